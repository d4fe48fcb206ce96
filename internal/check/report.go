// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package check examines the consistency of many images at once: it walks directories, follows
// backing chains as far as the policy allows, sees who uses an image, checks a running one without
// false alarms, and gives one report.
package check

import (
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// Report is the result of examining all images below some paths.
type Report struct {
	Verdict finding.Verdict `json:"verdict"`
	// Status lists every exit status that applies, the one that is returned first.
	Status []int `json:"status"`
	// Paths are the names that were asked for.
	Paths  []string `json:"paths"`
	Images []Image  `json:"images"`
	// Blind are places that could not be looked at and that belong to no image.
	Blind   []finding.Blind `json:"blind"`
	Summary Summary         `json:"summary"`
}

// Summary counts a report.
type Summary struct {
	Images     int64 `json:"images"`
	Clean      int64 `json:"clean"`
	Found      int64 `json:"found"`
	CannotTell int64 `json:"cannot_tell"`
	// Running is how many images were in use by a writer.
	Running int64 `json:"running"`
	// Unchecked is how many files are disk images of a format that has no check.
	Unchecked int64 `json:"unchecked"`
	// Skipped is how many files below a directory are no disk images.
	Skipped int64 `json:"skipped"`
	// Links is how many symbolic links below a directory were not followed; what they lead to was
	// looked at only where it lies below one of the directories as well.
	Links int64 `json:"links"`
	// LeakedBytes is the space of leaked clusters.
	LeakedBytes int64 `json:"leaked_bytes"`
	// BlindSpots is how many things could not be looked at.
	BlindSpots int64 `json:"blind_spots"`
}

// Image is the report on one image file.
type Image struct {
	Path    string          `json:"path"`
	PathB64 string          `json:"path_b64,omitempty"` // where the path is not UTF-8
	Format  string          `json:"format"`             // "qcow2", "raw", "vmdk", ...; "" if it could not be told
	Verdict finding.Verdict `json:"verdict"`
	// VirtualBytes is the size of the disk, FileBytes the length of the file, AllocatedBytes the
	// space that it takes; -1 if not known.
	VirtualBytes   int64 `json:"virtual_bytes"`
	FileBytes      int64 `json:"file_bytes"`
	AllocatedBytes int64 `json:"allocated_bytes"`
	ClusterBytes   int64 `json:"cluster_bytes"` // 0 where the format has none
	// Checked: the format has a check and it ran to its end or to a blind spot.
	Checked bool         `json:"checked"`
	Counts  qcow2.Counts `json:"counts"`
	Use     Use          `json:"use"`
	// Backing is the backing file, nil if the image names none.
	Backing *Backing `json:"backing"`
	// Snapshots are the names of internal snapshots.
	Snapshots []string `json:"snapshots"`
	// Notes are sentences worth knowing that are no findings: what cannot be told about a running
	// image, or that a raw image has nothing to check.
	Notes    []string          `json:"notes"`
	Findings []finding.Finding `json:"findings"`
	Blind    []finding.Blind   `json:"blind"`
	// Hurt is what the guest ranges of the findings are for, where that was looked for; HurtNote says
	// why it was not, or what could not be told.
	Hurt     []finding.Owner `json:"hurt"`
	HurtNote string          `json:"hurt_note"`
}

// UseState says whether programs use an image.
type UseState string

// The states of use.
const (
	UseNone    UseState = "none"    // no process of this host has it open, and no lock shows another
	UseRead    UseState = "read"    // open, and nobody may write
	UseWrite   UseState = "write"   // a program holds it for writing, or it changed while we looked
	UseUnknown UseState = "unknown" // nobody was seen, and not all could be; Reason says why
)

// Use is who uses an image.
type Use struct {
	State  UseState `json:"state"`
	Reason string   `json:"reason"`
	// Rounds is how many times the image was examined to tell errors from writes in flight.
	Rounds  int      `json:"rounds"`
	Holders []Holder `json:"holders"`
}

// Holder is a process that has an image open.
type Holder struct {
	PID     int    `json:"pid"`
	Command string `json:"command"` // first word of the command line
	// Name is the virtual machine's name if the process is a QEMU that tells it.
	Name    string `json:"name"`
	Writing bool   `json:"writing"` // opened for writing
}

// BackingState says what became of a backing file.
type BackingState string

// The states of a backing file.
const (
	BackingChecked     BackingState = "checked"      // examined; its own entry has the result
	BackingNotFollowed BackingState = "not_followed" // it is there, and outside what we may open
	BackingMissing     BackingState = "missing"
	BackingUnreadable  BackingState = "unreadable"
	BackingLoop        BackingState = "loop"
	BackingTooDeep     BackingState = "too_deep"
)

// Backing is the backing file of an image.
type Backing struct {
	// Name is as the image has it, Path where that leads; Path is "" if the name is not a path.
	Name   string       `json:"name"`
	Path   string       `json:"path"`
	Format string       `json:"format"` // as the image has it, "" if it does not say
	State  BackingState `json:"state"`
	Reason string       `json:"reason"`
}
