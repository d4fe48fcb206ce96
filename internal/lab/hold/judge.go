// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"fmt"
	"slices"
	"strings"
)

// Answer is what a scan says of a disk, in the words of `shisa holders`.
type Answer struct {
	Holders []Seen
	// Audited: the kernel's own count of references was read. Unexplained are those of them, on the
	// mount that was asked about and on what is unmounted along with it, that nobody was found for.
	Audited     bool
	Unexplained int64
	// Free: it says that nobody keeps anything busy.
	Free bool
}

// Seen is one holder that a scan found.
type Seen struct {
	Word      string // its kind
	PID, TID  int
	FDs       []int
	Path      string
	Namespace uint64 // of the mount that is held
	Blocks    string // what it keeps from happening: "umount" or less
}

// String is what was seen, on one line.
func (s Seen) String() string {
	return fmt.Sprintf("%s of %d/%d fd %v path %q namespace %d, blocks %s", s.Word, s.PID, s.TID,
		s.FDs, s.Path, s.Namespace, s.Blocks)
}

// blocksUmount is the word for what umount(2) fails on.
const blocksUmount = "umount"

// Judge says what is wrong with an answer that was given while h was there; nothing if it is right.
func (h *Hold) Judge(a Answer) []string {
	k := h.Kind
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	named := slices.ContainsFunc(a.Holders, h.is)
	if k.Effect == Harmless && (len(a.Holders) > 0 || !a.Free) {
		say("is said to be held, and nobody does")
	}
	if k.Effect != Harmless && a.Free {
		say("is said to be free")
	}
	if k.Word != "" && !named {
		say("is not told as %s", h.want())
	}
	if k.Effect == Blocks && !named && a.Unexplained == 0 {
		say("is missed without a word")
	}
	if !a.Audited && k.Effect != Hides {
		say("is not audited")
	}
	if a.Unexplained < 0 || a.Unexplained > 0 && (named || k.Effect != Blocks) {
		say("has %d references unexplained", a.Unexplained)
	}
	for _, s := range a.Holders {
		of := s.PID == 0 || s.PID == h.PID || s.PID == h.AlsoPID
		if s.Blocks == blocksUmount && (k.Effect != Blocks || !of) {
			say("is blamed on %s", s)
		}
	}
	return wrong
}

// is reports whether a scan saw h.
func (h *Hold) is(s Seen) bool {
	return s.Word == h.Kind.Word && (s.Blocks == blocksUmount) == (h.Kind.Effect == Blocks) &&
		s.PID == h.PID && (h.TID == 0 || s.TID == h.TID) &&
		(h.FD < 0 || slices.Contains(s.FDs, h.FD)) &&
		(h.Path == "" || strings.TrimSuffix(s.Path, " (deleted)") == h.Path) &&
		(h.Namespace == 0 || s.Namespace == h.Namespace)
}

// want is what a scan has to see.
func (h *Hold) want() Seen {
	s := Seen{Word: h.Kind.Word, PID: h.PID, TID: h.TID, Path: h.Path, Namespace: h.Namespace}
	if h.FD >= 0 {
		s.FDs = []int{h.FD}
	}
	if h.Kind.Effect == Blocks {
		s.Blocks = blocksUmount
	}
	return s
}

// JudgeReleased says what is wrong with an answer that was given when nobody was there any more.
func JudgeReleased(a Answer) []string {
	var wrong []string
	for _, s := range a.Holders {
		wrong = append(wrong, "is blamed on "+s.String())
	}
	if !a.Free || !a.Audited || a.Unexplained != 0 {
		wrong = append(wrong, fmt.Sprintf("is free %t, audited %t, %d references unexplained",
			a.Free, a.Audited, a.Unexplained))
	}
	return wrong
}
