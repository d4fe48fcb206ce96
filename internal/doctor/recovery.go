// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// recovery is what to do about a file system that the kernel gave up, step by step for what is there:
// first the storage below it, then a copy, then the log, then the mount. Nothing is to be written before
// the copy, and no check with repair goes before the replay of the log.
func recovery(e *evidence.Evidence, i int) []Remedy {
	f := &e.FSs[i]
	if e.Kind == tree.Disk {
		return recoverDisk(f)
	}
	at, dev := point(e, f), "/dev/"+f.Device
	steps := storageBack(e, f)
	steps = append(steps, Remedy{Text: "stop what writes to " + at + ": what it wrote since is in memory at best, and it " +
		"may take that for saved", Command: "shisa holders " + quoted(at)})
	steps = append(steps, Remedy{Text: "copy what can be read and is in no backup; then copy the disk as it is, or take a " +
		"snapshot of it where that is made: all below can then be taken back",
		Risk: "a failing disk may fail more while all of it is read: what cannot be lost first"})
	if at == "/" {
		return append(steps, rootAgain(f)...)
	}
	steps = append(steps, Remedy{Text: "unmount it; the copy in memory of what could not be written goes with it",
		Command: "shisa umount " + quoted(at), Undo: "",
		Risk: "what was not written is lost for good, and cannot be written any more in any case"})
	return append(append(steps, replay(f, dev, at)...), Remedy{
		Text:    "look whether it is well now, and at the files that were being written",
		Command: "shisa doctor --write-probe"})
}

// rootAgain is for the file system that the system itself runs from.
func rootAgain(f *evidence.FS) []Remedy {
	return []Remedy{
		{Text: "it is the root of the system and cannot be unmounted: restart the machine when its storage is back. Its " +
			"log is replayed when it is mounted", Command: "systemctl reboot --force",
			Risk: "programs are not asked to end; where the storage still fails the machine does not come up, and logs of " +
				"now are only in memory: keep the output of dmesg elsewhere first"},
		{Text: "check it before it is mounted, from the initramfs or a rescue system; on a copy first",
			Command: checker(f.Type, "COPY"),
			Risk:    "a repair before the log is replayed throws away what the log holds"},
	}
}

// storageBack says which storage has to be back first.
func storageBack(e *evidence.Evidence, f *evidence.FS) []Remedy {
	var steps []Remedy
	below := rests(e, f.Device)
	for _, d := range below {
		switch {
		case d.State != "" && !slices.Contains([]string{"running", "live"}, d.State) && d.Driver == "sd":
			file := "/sys/block/" + d.Name + "/device/state"
			steps = append(steps, Remedy{Text: fmt.Sprintf("first %s has to be back, which is %q: when its storage answers, "+
				"let the kernel use it again", d.Name, d.State), Command: "echo running > " + file,
				Undo: "echo offline > " + file,
				Risk: "requests that were kept go out now: not where another machine has taken the disk over"})
		case d.Paths != nil && d.Paths.Active == 0:
			steps = append(steps, Remedy{Text: d.Name + " has no path left: a path has to come back first",
				Command: "multipath -ll"})
		case d.Array != nil && len(d.Array.Failed) > 0:
			steps = append(steps, Remedy{Text: fmt.Sprintf("the array %s has lost %s: look at it first", d.Name,
				strings.Join(d.Array.Failed, ", ")), Command: "cat /proc/mdstat"})
		case d.Backing != "":
			steps = append(steps, Remedy{Text: "it lies in the file " + d.Backing + ": the file system of that has to take " +
				"writes first", Command: "shisa doctor"})
		}
	}
	if len(steps) > 0 {
		return steps
	}
	names := []string{}
	for _, d := range below {
		names = append(names, d.Name)
	}
	text := "prove that the storage below it answers, and takes writes: until then all below fails again"
	if len(names) > 0 {
		text += " (" + strings.Join(names, " on ") + ")"
	}
	command := ""
	if f.Device != "" {
		command = "dd if=/dev/" + f.Device + " of=/dev/null bs=1M count=64 iflag=direct"
	}
	return []Remedy{{Text: text, Command: command}}
}

// rests gives the devices that a device rests on, itself first.
func rests(e *evidence.Evidence, name string) []*evidence.Device {
	var all []*evidence.Device
	names := []string{name}
	for i := 0; i < len(names); i++ {
		for j := range e.Devices {
			d := &e.Devices[j]
			if d.Name != names[i] || d.Name == "" {
				continue
			}
			all = append(all, d)
			low := d.On
			if d.Partition > 0 {
				low = append(slices.Clone(low), d.Disk)
			}
			for _, n := range low {
				if !slices.Contains(names, n) {
					names = append(names, n)
				}
			}
		}
	}
	return all
}

// replay has the log replayed by a mount, after that was tried on a copy.
func replay(f *evidence.FS, dev, at string) []Remedy {
	try := Remedy{Text: "try the copy first: see what is in it, with its log replayed in memory",
		Command: "shisa disk ls COPY:/"}
	check := Remedy{Text: "check the copy; where it finds damage, decide on the copy what a repair would cost",
		Command: checker(f.Type, "COPY")}
	again := Remedy{Text: "mount it again: that replays its log", Command: "mount " + quoted(at),
		Undo: "umount " + quoted(at),
		Risk: "the log is written to its place; where the storage fails once more, so does that"}
	switch f.Type {
	case "xfs":
		check.Text += ". On a log that was not replayed it complains of much that the replay mends: mount and unmount " +
			"the copy first"
		check.Risk = "never xfs_repair -L before a mount was tried: it throws the log away"
	case "btrfs":
		try.Command, check.Risk = "", "never btrfs check --repair before all that can be read is copied"
		try.Text = "mount the copy for reading and look what is in it; for as long as both are there never mount the copy " +
			"and the disk on one machine: they have the same number"
	default:
		check.Text += ". Then the same on " + dev + ", unmounted: it replays the log, and mends"
		check.Risk = "e2fsck without -n writes: on the copy first"
	}
	return []Remedy{try, check, again}
}

// checker is the program that checks a file system without a change.
func checker(fsType, what string) string {
	switch fsType {
	case "xfs":
		return "xfs_repair -n " + what
	case "btrfs":
		return "btrfs check --readonly " + what
	}
	return "e2fsck -fn " + what
}

// recoverDisk is for a disk that nobody runs.
func recoverDisk(f *evidence.FS) []Remedy {
	return []Remedy{
		{Text: "prove that the storage on which the image lies is well, before the machine is started again"},
		{Text: "keep a copy of the image as it is: the first start writes to it",
			Risk: "copy sparse files as such, on a file system with room for them"},
		{Text: "see what is in it, with its log replayed in memory", Command: "shisa disk ls DISK:/"},
		{Text: "check the copy; its log is replayed by the first mount", Command: checker(f.Type, "COPY"),
			Risk: "with -n nothing is written, and the log is not replayed: some of what it finds mends itself"},
		{Text: "start the machine, and look at the files that were being written"},
	}
}

// quoted is a path as a shell takes it.
func quoted(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
