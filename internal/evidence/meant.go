// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import "time"

// Config is what files say should be.
type Config struct {
	Fstab []FstabEntry
	Udev  []UdevRule
	// Sysctl has the values in force, or those of the files where nothing runs.
	Sysctl map[string]Setting
	// Modules are the options of modules: "nvme_core.io_timeout" -> "4294967295".
	Modules map[string]Setting
	// CommandLine is the kernel's.
	CommandLine string
	ISCSI       map[string]Setting
	// Multipath are the defaults of multipath.conf: "no_path_retry" -> "queue".
	Multipath map[string]Setting
	Nova      *Nova
	// Exports are the directories that this machine's NFS server gives to others.
	Exports []string
}

// Setting is a value and where it comes from.
type Setting struct {
	Value string
	From  Source
}

// FstabEntry is a line of /etc/fstab.
type FstabEntry struct {
	Source, Point, Type string
	Options             []string
	Pass                int
	From                Source
}

// UdevRule is a rule that sets a timeout of disks, or that would if it were right.
type UdevRule struct {
	// Match are its conditions in order, as "ENV{DEVTYPE}==disk"; Sets what it does.
	Match, Sets []string
	// Seconds is the timeout that it gives, 0 if it does not say.
	Seconds int
	// Broken says why it does nothing, "" if it works; Overridden is the file of the same name that
	// stands before it.
	Broken, Overridden string
	From               Source
}

// Nova is the configuration of OpenStack's compute service.
type Nova struct {
	// RemoveUnused is remove_unused_base_images, true unless it is said otherwise.
	RemoveUnused bool
	// MinimumAge is how old an unused image has to be that is removed.
	MinimumAge time.Duration
	// Instances is the directory, Shared that it is on a file system that other machines have too.
	Instances string
	Shared    bool
	// Nodes are the machines that have written into it, with the time of the last sign of each.
	Nodes map[string]time.Time
	// NodesUnread says why their list could not be read, "" if it was, or there is none.
	NodesUnread string
	From        Source
}

// Machine is a virtual machine that this host knows.
type Machine struct {
	Name, UUID string
	// Running is what QEMU or libvirt tells: "running", "paused", "shut off", "unknown".
	State string
	PID   int
	// QMP is what QEMU answered, nil if it was not asked or did not answer; QMPWhy says why.
	QMP    *QMP
	QMPWhy string
	// Disks are the indexes in Images of what it has as disks.
	Disks []int
	From  Source
}

// QMP is what QEMU's monitor told.
type QMP struct {
	Status string // "running", "io-error", "paused" ... `json:"status"`
	// Stopped are the disks that stopped the machine: device -> "nospace" or "failed".
	Stopped map[string]string `json:"stopped"`
}

// Image is a disk image with what is right below it.
type Image struct {
	// Path is the name by which it was found first, Real that without symbolic links, as this host sees it, and
	// Names are others that led to it.
	Path   string   `json:"path"`
	Real   string   `json:"real"`
	Names  []string `json:"names"`
	Format string   `json:"format"`
	// Mount is the index in Mounts of where it lies, -1 if not known.
	Mount int `json:"mount"`
	// Backing is the name as the image has it, BackingPath where that is; "" for none. BackingState is
	// as in shisa check: "ok", "missing", "not followed" ...
	Backing       string `json:"backing"`
	BackingPath   string `json:"backing_path"`
	BackingState  string `json:"backing_state"`
	BackingFormat string `json:"backing_format"`
	// Corrupt and Dirty are the marks of the header.
	Corrupt bool `json:"corrupt"`
	Dirty   bool `json:"dirty"`
	// Made and Changed are when the image came to be, as far as that is known, and its last change.
	Made    time.Time `json:"made"`
	Changed time.Time `json:"changed"`
	// Users are who has it open: processes of this host, and the locks of others.
	Users []ImageUser `json:"users"`
	// Checked is what a check of it found, nil if it was not checked.
	Checked *Checked `json:"checked"`
	// Unread says why nothing is known of it, "" if it could be read.
	Unread string `json:"unread"`
	From   Source `json:"from"`
}

// ImageUser is one who has an image open.
type ImageUser struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	Machine string `json:"machine"`
	Writing bool   `json:"writing"`
	// Shared: the machine is configured to share the disk, and its guest knows how.
	Shared bool `json:"shared"`
	// State is that of the machine, "" if it is not known.
	State string `json:"state"`
	// Document is the file that says so, "" for a process that has it open.
	Document string `json:"document"`
	// Host is another machine whose evidence shows that, as of Time; "" and zero for this one.
	Host string    `json:"host"`
	Time time.Time `json:"time,omitempty"`
}

// Checked is what a check of an image found.
type Checked struct {
	Leaks       int64 `json:"leaks"`
	LeakBytes   int64 `json:"leak_bytes"`
	Corruptions int64 `json:"corruptions"`
	// Codes are those of the findings, worst first.
	Codes []string  `json:"codes"`
	Time  time.Time `json:"time"`
}

// Cluster is what corosync, pacemaker, dlm and gfs2 tell.
type Cluster struct {
	// Present: there is something of a cluster at all.
	Present bool
	// Nodes with the state as configured or seen: "online", "offline", "unclean", "unknown".
	Nodes map[string]string
	// Quorum is "yes", "no" or "" where that is not known.
	Quorum string
	// Fencing: is anything set to fence ("yes", "no", ""); Pending are nodes that wait to be fenced.
	Fencing string
	Pending []string
	// Lockspaces of dlm that wait, with what for.
	Waiting map[string]string
	// Token is corosync's timeout, 0 if not known.
	Token time.Duration
	From  Source
}
