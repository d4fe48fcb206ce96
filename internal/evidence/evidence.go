// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package evidence gathers what a machine shows about itself, and turns it into values that rules can
// be written over: mounts and file systems, devices, the kernel's messages, tasks that wait, memory,
// disk images and what is configured about them.
//
// All of it is read through a [tree.Tree], so that the machine may be the one that runs, a copy of its
// files, its dead disk, or a bundle. What only asking the running system can tell (does a mount answer,
// does a task wait a second time, what does QEMU say) is asked by [Probe], which leaves its answers as
// files below /shisa of the tree; a bundle has them too.
//
// Nothing is left out silently: a value that could not be had is a [Gap] with its reason, and each part
// says whether it is whole.
package evidence

import (
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// Evidence is all that is known of one machine at one time.
type Evidence struct {
	Kind tree.Kind
	// Label tells machines apart whose evidence is looked at together: the name of the host, or of
	// the bundle or the disk where that is not known. No two have the same.
	Label string
	Host  Host
	// Now is the time that the evidence is of: of the running system the present, of a bundle when it
	// was collected, of a dead disk its last sign of life.
	Now time.Time
	// DisksChanged is when the images of a machine that does not run were written last, as their host
	// tells; zero for others.
	DisksChanged time.Time

	Mounts []Mount
	// IDs are the file systems and partitions that there are, as fstab names them: "UUID=...", "LABEL=...",
	// "PARTUUID=...", "PARTLABEL=..." -> device. It is nil where that is not known.
	IDs map[string]string
	FSs []FS
	// Spaces is the room in file systems as it was seen before, and now at the end.
	Spaces []SpacePoint
	// Stalled are the devices whose requests wait, and none is answered.
	Stalled  []ProbedDevice
	Devices  []Device
	Log      Log
	Boots    []Boot
	Tasks    Tasks
	Memory   Memory
	Config   Config
	Machines []Machine
	Images   []Image
	Cluster  Cluster
	// Limits is how long storage may not answer before somebody gives up.
	Limits Limits
	// Units is what systemd would start; nil where nothing is known of that.
	Units *units.Set
	// Menu is how its kernel is chosen.
	Menu BootMenu
	// Clock is what timers rest on.
	Clock Clock

	// Gaps is what could not be read, by part.
	Gaps []Gap
}

// Part is a part of the evidence, as a rule needs it.
type Part string

// The parts.
const (
	PartHost    Part = "host"
	PartMounts  Part = "mounts"
	PartProbes  Part = "probes" // what mounts answer
	PartFSs     Part = "file systems"
	PartDevices Part = "devices"
	PartLog     Part = "log"
	PartBoots   Part = "boots"
	PartTasks   Part = "tasks"
	PartMemory  Part = "memory"
	PartConfig  Part = "configuration"
	PartImages  Part = "images"
	PartQMP     Part = "qmp"
	PartCluster Part = "cluster"
	PartUnits   Part = "units"
	PartClock   Part = "clock"
)

// Gap is something that could not be read, and why.
type Gap struct {
	Part Part `json:"part"`
	// Object is the file, mount or device that it concerns, "" if it is the part as a whole: then
	// nothing is known of that part.
	Object string `json:"object"`
	Reason string `json:"reason"`
}

// Whole tells whether nothing of a part is missing; why says what is.
func (e *Evidence) Whole(p Part) (why string, whole bool) {
	var reasons []string
	for _, g := range e.Gaps {
		if g.Part == p {
			reasons = append(reasons, strings.TrimPrefix(g.Object+": "+g.Reason, ": "))
		}
	}
	return strings.Join(slices.Compact(reasons), "; "), len(reasons) == 0
}

// Known tells whether anything is known of a part; why says why not.
func (e *Evidence) Known(p Part) (why string, known bool) {
	i := slices.IndexFunc(e.Gaps, func(g Gap) bool { return g.Part == p && g.Object == "" })
	if i < 0 {
		return "", true
	}
	return e.Gaps[i].Reason, false
}

// Source is where a value was read.
type Source struct {
	// Path is the file, as the machine names it; Line its line, 0 if none is meant.
	Path string `json:"path"`
	Line int    `json:"line"`
	// Time is when the value came to be, as a message; the zero time if it is as of Now.
	Time time.Time `json:"time,omitempty"`
}

// Host is the machine itself.
type Host struct {
	Name      string // "" if not known
	MachineID string
	Kernel    string // "6.1.0-56-amd64"
	OS        string // PRETTY_NAME of os-release
	// UUID is that of the board, in lower case, by which a hypervisor knows its guest.
	UUID string
	// Virtual is "kvm", "vmware", "hyperv", "xen", "" for hardware, "unknown".
	Virtual string
	BootID  string
	// Booted is when it was started; zero if not known, or if it does not run.
	Booted time.Time
	// Addresses are its own addresses, as far as its files tell, without loopback.
	Addresses []string
	// Processors is how many it has, 0 if not known.
	Processors int
}
