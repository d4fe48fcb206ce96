// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package finding

// The rules about file systems.
var (
	FS01 = Rule{"FS01", "ext4-failed", Lost, "the kernel gave up an ext4 file system",
		"stop what writes to it, bring its storage back, copy it, then check and mount it anew"}
	FS02 = Rule{"FS02", "xfs-shutdown", Lost, "an XFS file system shut itself down",
		"bring its storage back, unmount it, mount it again, and check it without repair first"}
	FS03 = Rule{"FS03", "btrfs-forced-ro", Lost, "the kernel made a btrfs file system read-only",
		"copy what can be read before anything is tried; bring its storage back"}
	FS04 = Rule{"FS04", "file-hurt", Danger, "the content of a file was lost on its way to the disk",
		"bring the file back from a backup of before, or write it anew"}
	FS05 = Rule{"FS05", "fs-errors-noted", Danger, "a file system remembers errors",
		"check it while it is not mounted, on a copy first"}
	FS06 = Rule{"FS06", "fs-not-unmounted", Note, "a file system on a disk was not unmounted",
		"nothing, if the machine runs or was cut off; its log is replayed when it is mounted"}
	FS08 = Rule{"FS08", "fs-full", Danger, "a file system has no room left",
		"make room, then look at what failed to write meanwhile"}
	FS09 = Rule{"FS09", "fs-goes-on", Note, "a file system goes on after an error",
		"have it stop taking writes at an error: tune2fs -e remount-ro"}
	FS10 = Rule{"FS10", "fstab-risk", Warning, "a line of /etc/fstab can keep the machine from starting",
		"add nofail where the machine is of use without the mount, or name what is there"}
)

// The rules about mounts of servers, and about who waits.
var (
	NF01 = Rule{"NF01", "mount-stuck", Danger, "a mount does not answer",
		"bring back what it waits for: the server, the process or the disk; repair nothing meanwhile"}
	NF02 = Rule{"NF02", "share-full", Danger, "a share is full",
		"make room on the server; its clients go on by themselves"}
	NF03 = Rule{"NF03", "nfs4-soft", Note, "a mount is soft in the belief that it does not hang",
		"mount it hard"}
	NF04 = Rule{"NF04", "images-unsafe-mount", Warning, "disk images lie on a mount that loses writes or locks",
		"mount it hard and with locks at the server"}
	PR01 = Rule{"PR01", "task-waits", Warning, "a task waits in the kernel and cannot be ended",
		"bring back what it waits for"}
	PR02 = Rule{"PR02", "task-hung", Warning, "the kernel says that a task hangs",
		"bring back what it waits for"}
	UM01 = Rule{"UM01", "umount-prober", Note, "a umount failed since somebody just looked into the mount",
		"try again with pauses: shisa umount"}
)

// The rules about block devices.
var (
	BL01 = Rule{"BL01", "device-offline", Lost, "a disk was taken out of use",
		"prove that the storage is back, set the device running, then look at its file systems"}
	BL02 = Rule{"BL02", "timeout-inert", Note, "the timeout of a disk was set, and its driver takes no notice of it",
		"expect nothing of it; what the disk does instead is told by shisa doctor stall"}
	BL03 = Rule{"BL03", "timeout-too-short", Warning, "a disk gives up sooner than the platform below it asks for",
		"write a rule of udev in /etc: shisa doctor stall --set plans it, and tells what it costs"}
	BL04 = Rule{"BL04", "timeout-order", Danger, "a cluster takes over before a disk gives up, and nothing fences the node",
		"set up fencing before anything else"}
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

// The rules about what logs tell of the course of a machine.
var (
	FS07 = Rule{"FS07", "log-stopped", Warning, "the log stops long before the machine did",
		"take the end of the log for no proof; look whether its file system still took writes"}
	TM01 = Rule{"TM01", "reboot-loop", Danger, "a unit ends the run of the machine each time it starts",
		"start it once without that unit: systemd.mask=UNIT on the kernel's command line; then mask or disable it"}
	TM02 = Rule{"TM02", "reboot-soon", Danger, "a timer ends the run of the machine shortly after each start",
		"start it once without the timer and its service: systemd.mask=UNIT on the kernel's command line; then mask them"}
	TM03 = Rule{"TM03", "timer-stamp-lost", Danger, "a timer restarts the machine at each start, since its stamp is lost",
		"start it once without the timer: systemd.mask=TIMER on the kernel's command line; then see that its stamp is kept"}
	TM04 = Rule{"TM04", "timer-catches-up", Warning, "a timer will restart the machine once, right after its next start",
		"expect it, or start the machine once without the timer"}
	TM05 = Rule{"TM05", "preset-loop", Danger, "the first boot enables a unit that ends the run of the machine",
		"disable it by a preset, or take its [Install] section out, before the first start"}
	TM06 = Rule{"TM06", "timer-slow-clock", Danger, "a timer restarts the machine again and again if its clock starts slow",
		"have something remember the time over restarts, and the hardware's clock taken for what it is"}
	TM07 = Rule{"TM07", "reboot-never", Warning, "a unit is to end the run of the machine and cannot: its program is missing",
		"name a program that exists; look first what else starts the unit"}
	TM08 = Rule{"TM08", "boot-churn", Danger, "the machine starts again and again",
		"start it once without the unit that asks for it: systemd.mask=UNIT on the kernel's command line"}
	TM09 = Rule{"TM09", "clock-jump", Warning, "the clock of the day was set by more than a minute",
		"compare no times across the step; find out who set the clock"}
)

// The rules about images and their life.
var (
	IM01 = Rule{"IM01", "image-missing", Lost, "a disk of a machine, or what it rests on, is not there",
		"find the very same file; neither start the machine nor rebase its overlay before"}
	IM02 = Rule{"IM02", "base-changed", Lost, "a base image was written after overlays were made on it",
		"compare the base with where it came from; stop what writes to it"}
	IM03 = Rule{"IM03", "image-damaged", Danger, "an image is marked as damaged, or was found to be",
		"shisa check tells what is hurt; shisa repair mends it so that it can be undone"}
	IM04 = Rule{"IM04", "two-writers", Lost, "several programs write to one image",
		"stop all but one of them at once, then check the image"}
	IM05 = Rule{"IM05", "stopped-by-storage", Danger, "a machine was stopped by its storage",
		"bring the storage back or make room, then let the machine go on; do not reset it"}
	LC01 = Rule{"LC01", "base-removed", Lost, "a base image was removed on which images rest",
		"have nothing removed any more, then bring the very same file back"}
	LC02 = Rule{"LC02", "shared-base-cleaner", Danger, "base images that several nodes share are removed by one of them",
		"set remove_unused_base_images = False on every node"}
)

// The rules about clusters.
var (
	CL01 = Rule{"CL01", "gfs2-withdrawn", Lost, "this node has withdrawn from a GFS2 file system",
		"find the error before it; the node has to be started anew"}
	CL02 = Rule{"CL02", "cluster-waits", Lost, "a cluster waits for a node to be fenced, or for a quorum",
		"make sure that the node is off; then tell the cluster"}
)

// doctorRules are the rules of the doctor.
func doctorRules() []Rule {
	return []Rule{
		BL01, BL02, BL03, BL04, BL05, BL06, BL07, BL08,
		CL01, CL02,
		FS01, FS02, FS03, FS04, FS05, FS06, FS07, FS08, FS09, FS10,
		IM01, IM02, IM03, IM04, IM05,
		LC01, LC02,
		ME01, ME02,
		NF01, NF02, NF03, NF04,
		PR01, PR02,
		TM01, TM02, TM03, TM04, TM05, TM06, TM07, TM08, TM09,
		UM01,
	}
}
