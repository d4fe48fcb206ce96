// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"slices"
	"strings"
	"time"
)

// Log is what was said of disks, file systems and what they are for, by the kernel and by programs.
type Log struct {
	// Events are in the order of time.
	Events []Event `json:"events"`
	// From and To are the times between which something was said at all; Sources how many files were
	// read.
	From    time.Time   `json:"from"`
	To      time.Time   `json:"to"`
	Sources []LogSource `json:"sources"`
	// HungSilent: the kernel has said so often that a task hangs that it says it no more.
	HungSilent bool `json:"hung_silent"`
}

// maxOf bounds what one question to the log gives; the count of each event says how many there were.
const maxOf = 8

// Of gives the first and last events of some forms about a device of the machine, "" for any, in the
// order of time.
func (l *Log) Of(device string, forms ...string) []*Event {
	var all []*Event
	for i := range l.Events {
		e := &l.Events[i]
		if e.Host == "" && slices.Contains(forms, e.Form) && (device == "" || e.about(device)) {
			all = append(all, e)
		}
	}
	if len(all) > maxOf {
		all = append(all[:maxOf/2:maxOf/2], all[len(all)-maxOf/2:]...)
	}
	return all
}

// Devices gives the machine's devices that events of some forms name, each once, in the order of their
// names.
func (l *Log) Devices(forms ...string) []string {
	var all []string
	for i := range l.Events {
		e := &l.Events[i]
		if name := e.Fields["device"]; name != "" && e.Host == "" && slices.Contains(forms, e.Form) {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// about tells whether a message names a device; NVMe names the controller, nvme0 of nvme0n1.
func (e *Event) about(device string) bool {
	c := e.Fields["controller"]
	return e.Fields["device"] == device || c != "" && strings.HasPrefix(device, c+"n")
}

// LogSource is one file of a log, or the kernel's own ring.
type LogSource struct {
	Path    string    `json:"path"`
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	Entries int64     `json:"entries"`
	// Persistent: it outlives a boot.
	Persistent bool `json:"persistent"`
	// Damage says what could not be read of it, "" if all could.
	Damage string `json:"damage"`
}

// Event is a message that is known.
type Event struct {
	// Form is the name of the message's form in package klog, as "ext4.abort".
	Form string `json:"form"`
	// Fields are what it names: "device", "inode", "server", "pid", "comm", "seconds", "path" ...
	Fields map[string]string `json:"fields"`
	Time   time.Time         `json:"time"`
	// Exact is false where the log has no year or zone, and Time rests on what stands around it.
	Exact bool `json:"exact"`
	// Boot is the boot that it belongs to, "" if that is not known.
	Boot string `json:"boot"`
	// Host is another machine that said it, where a log holds the messages of several.
	Host string `json:"host"`
	Text string `json:"text"`
	From Source `json:"from"`
	// Count is how often it was said the same way, from Time to Last.
	Count int64     `json:"count"`
	Last  time.Time `json:"last"`
}

// Boot is one run of the machine.
type Boot struct {
	ID string `json:"id"`
	// Began is the first sign of it, Last the last, by the clock of the day, which may have been wrong.
	Began time.Time `json:"began"`
	Last  time.Time `json:"last"`
	// Ran is how long it ran by the kernel's own clock, 0 if that is not known.
	Ran time.Duration `json:"ran"`
	// End is how it ended: "shutdown", "panic", "cut" (the log just stops), "running", "unknown".
	End string `json:"end"`
	// LastUnit is the service that most likely asked for the end: that which ended first after it was
	// asked for, or else was started last before; "" if not known.
	LastUnit string `json:"last_unit"`
	// How is what the machine was told to do: "reboot", "poweroff", "halt", "kexec" or "soft-reboot"; "" where
	// nothing tells.
	How string `json:"how"`
	// Asked is the first sign of that, nil if there is none. Said is what units and people did before, and who
	// asked as far as it was told, the oldest first.
	Asked *Word  `json:"asked"`
	Said  []Word `json:"said"`
	// Watchdog is the line that tells of a watchdog which resets the machine, "" if none does.
	Watchdog string `json:"watchdog"`
	// Jumps are where the clock of the day left that of the kernel.
	Jumps []Jump `json:"jumps"`
	From  Source `json:"from"`
}

// Word is a message that tells of the course of a boot.
type Word struct {
	// Form is the name of its form in package klog, Unit the unit that it is about, or the session.
	Form string `json:"form"`
	Unit string `json:"unit"`
	Text string `json:"text"`
	From Source `json:"from"` // with its time
}

// Jump is a step of the clock.
type Jump struct {
	At time.Time     `json:"at"` // the time after it
	By time.Duration `json:"by"`
	// Asleep: the machine slept there, and so it is none.
	Asleep bool   `json:"asleep"`
	From   Source `json:"from"`
}

// Tasks is who waited in the kernel, both times that were looked at. It is /shisa/tasks.json.
type Tasks struct {
	// Between is the time from the first look to the second, 0 if there was no need for that one.
	Between time.Duration `json:"between"`
	Waiting []Task        `json:"waiting"`
	// Looked is how many there were, More how many waited that are not in the list.
	Looked int `json:"looked"`
	More   int `json:"more"`
	// Hidden counts those asleep of which the kernel did not say where, so that they may wait for FUSE.
	Hidden int `json:"hidden"`
	// Missed says what was not seen, "" if all was.
	Missed string `json:"missed"`
}

// Task is a thread in state D at both looks, or in state S while it waits for an answer of a server of FUSE.
type Task struct {
	PID    int      `json:"pid"`
	TID    int      `json:"tid"`
	Comm   string   `json:"comm"`
	Args   []string `json:"args"`
	Kernel bool     `json:"kernel"` // a thread of the kernel
	Unit   string   `json:"unit"`
	// Container is as in linux.Place.
	Container string `json:"container"`
	WChan     string `json:"wchan"`
	// Same: the second look found the same place in the kernel, and no progress.
	Same bool `json:"same"`
	// Asleep: it is in state S, and can be killed, which brings it to state D.
	Asleep bool     `json:"asleep"`
	Stack  []string `json:"stack"`
	// Syscall is the number and arguments as /proc tells.
	Syscall string `json:"syscall"`
	// Mounts are the mount points of what it has open or works in, the likeliest first; Devices where
	// its stack or its files lead.
	Mounts  []string `json:"mounts"`
	Devices []string `json:"devices"`
	// Machine is the virtual machine that it runs, "" for others.
	Machine string `json:"machine"`
	From    Source `json:"source"`
}

// Memory is what the kernel tells of memory, in bytes.
type Memory struct {
	Total, Available, Free, SUnreclaim, SReclaimable, Dirty, Writeback, SwapTotal, SwapFree int64
	// OOMKills is the counter of vmstat, -1 if there is none.
	OOMKills int64
	// Slabs are the largest caches.
	Slabs []Slab
	// Pressure has the lines of /proc/pressure as "io.full.avg60" -> 1.23 (percent).
	Pressure map[string]float64
	// Series is what was seen over time, the oldest first; it may be short or empty.
	Series []MemoryPoint
	From   Source
}

// Slab is a cache of kernel objects.
type Slab struct {
	Name    string
	Bytes   int64
	Objects int64
}

// MemoryPoint is the memory at one time, in bytes; -1 where that is not known.
type MemoryPoint struct {
	Time       time.Time `json:"time"`
	Available  int64     `json:"available_bytes"`
	SUnreclaim int64     `json:"sunreclaim_bytes"`
	// Held is what the kernel counts as available though it is in use: see [Memory]. 0 if not known.
	Held int64 `json:"held_bytes,omitempty"`
}
