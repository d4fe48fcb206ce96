// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package finding

// The rules about block devices.
var (
	BL01 = Rule{"BL01", "device-offline", Lost, "a disk was taken out of use",
		"prove that the storage is back, set the device running, then look at its file systems"}
	BL05 = Rule{"BL05", "udev-rule-broken", Warning, "a rule that was to set the timeout of disks does nothing",
		"write a rule of your own in /etc/udev/rules.d; one in /usr/lib is lost with the next update"}
	BL06 = Rule{"BL06", "device-timeouts", Danger, "commands to a disk timed out",
		"look at the storage behind the disk first; a longer timeout hides the stall and does not end it"}
	BL07 = Rule{"BL07", "multipath-no-path", Lost, "a multipath device has no path left and keeps requests for ever",
		"bring a path back; or let its requests fail, when what waits for them is to be given up"}
	BL08 = Rule{"BL08", "array-degraded", Danger, "an array has lost members",
		"replace the member before another one fails; copy what cannot be lost first"}
)

// The rules about memory.
var (
	ME01 = Rule{"ME01", "slab-leak", Danger, "the kernel's own memory grows for good",
		"plan a restart before the memory is used up, outside of backups; then another kernel"}
	ME02 = Rule{"ME02", "out-of-memory", Danger, "the kernel ended processes for want of memory",
		"look which process grew; what was ended may have been writing"}
)

// doctorRules are the rules of the doctor.
func doctorRules() []Rule {
	return []Rule{
		BL01, BL05, BL06, BL07, BL08,
		ME01, ME02,
	}
}
