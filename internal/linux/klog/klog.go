// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package klog knows what the kernel and some programs say when storage fails: it takes a line of a log
// and tells the form of the message and what it names. It reads no files.
//
// The forms are tables of patterns; testdata/samples.txt has lines of each with the kernels that print
// them and the source file that they come from. What is in no table is not known, never guessed.
package klog

import (
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
)

// Form is one thing that is said in one or more wordings.
//
// The fields that patterns name mean the same in all forms: "device" is a block device as the kernel
// names it (sda1, dm-0), "member" one of an array, "address" a SCSI address, "controller" an NVMe one,
// "map" a multipath map, "pool" a thin pool; "inode", "block", "offset" (bytes), "sector" (of 512
// bytes), "errno" (negative or positive, as it was said), "function", "file" and "line" of the kernel's
// source; "comm" and "pid" a task, "seconds" how long; "server", "node", "unit", "path", "machine".
type Form struct {
	// Name never changes its meaning: "ext4.abort".
	Name string
	// Severity is that of what is said, seen by itself: Note for what is no fault.
	Severity finding.Severity
	// Patterns are its wordings, as pattern.go reads them.
	Patterns []string
}

// Field is one thing that a message names.
type Field struct{ Name, Value string }

// Match is a message whose form is known.
type Match struct {
	Form *Form
	// Fields are in the order of the text. Their values are parts of the text.
	Fields []Field
}

// Field gives the value of a field, "" if the message does not have it.
func (m Match) Field(name string) string {
	for _, f := range m.Fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// maxText is how much of a message is looked at, in bytes. The kernel cuts its own at 1 KiB.
const maxText = 4096

// Matcher recognises messages. It is made once and may be used by several goroutines.
type Matcher struct {
	programs map[string]*index
	any      *index
}

// New makes a matcher of all forms.
func New() *Matcher {
	m := &Matcher{programs: map[string]*index{}, any: newIndex(anyForms())}
	for _, g := range Groups() {
		m.programs[g.Program] = newIndex(g.Forms)
	}
	return m
}

// Group is the forms of one kind of program.
type Group struct {
	// Program is "kernel", or a word for several programs: see [Program].
	Program string
	Forms   []Form
}

// Groups lists all forms but those that any program may print.
func Groups() []Group {
	kernel := ext4Forms()
	for _, more := range [][]Form{xfsForms(), btrfsForms(), clusterForms(), blockForms(), scsiForms(),
		nvmeForms(), dmForms(), nfsForms(), kernelForms()} {
		kernel = append(kernel, more...)
	}
	return append([]Group{{"kernel", kernel}}, programForms()...)
}

// Program gives the group that a program's messages are looked for in, by the name under which it
// writes to the log; "" if none of its own.
func Program(identifier string) string {
	id := strings.TrimSuffix(identifier, ".service")
	switch id {
	case "kernel", "systemd", "systemd-shutdown", "systemd-journald", "systemd-logind", "multipathd", "corosync",
		"iscsid", "sudo", "watchdog":
		return id
	case "systemd-journal": // as the kernel cuts its name
		return "systemd-journald"
	case "systemd-timesyncd", "chronyd", "ntpd", "ntpdate":
		return "clock"
	case "libvirtd", "virtqemud":
		return "qemu"
	case "crmd", "stonith-ng", "pengine", "attrd", "lrmd", "cib":
		return "pacemaker"
	case "dlm_controld", "fenced", "sanlock":
		return "fencing"
	case "umount", "mount":
		return "umount"
	case "dmeventd", "lvm":
		return "lvm"
	}
	for _, group := range []string{"nova", "qemu", "pacemaker"} {
		if strings.HasPrefix(id, group) {
			return group
		}
	}
	return ""
}

// Match tells the form of a message that a program wrote under a name; "kernel" is the kernel.
func (m *Matcher) Match(identifier, text string) (Match, bool) {
	text = strings.Trim(text[:min(len(text), maxText)], " \t\r\n")
	program := Program(identifier)
	if x := m.programs[program]; x != nil {
		if found, ok := x.match(text); ok {
			return found, true
		}
	}
	if program == "kernel" {
		return Match{}, false
	}
	return m.any.match(text)
}
