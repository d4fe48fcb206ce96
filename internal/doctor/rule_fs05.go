// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// ruleFS05 finds file systems that remember errors: ext4 in its superblock until it is checked, btrfs in
// its counters until they are set back.
func ruleFS05() Rule {
	r := Rule{Rule: finding.FS05, Needs: []evidence.Part{evidence.PartFSs}, Reach: Upward,
		Guard: "errors from before the last check are over. A clean superblock proves nothing: a disk that fails cannot " +
			"take the mark",
		Test: "on superblocks that a kernel and debugfs marked, and on counters of btrfs after a write that failed"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.FSs {
			if p := e.FSs[i].Super; p != nil && (p.DeviceErrors != nil || strings.HasPrefix(e.FSs[i].Type, "ext")) {
				out = append(out, remembered(&r, e, i))
			}
		}
		return out
	}
	return r
}

func remembered(r *Rule, e *evidence.Evidence, i int) Result {
	f := &e.FSs[i]
	o, p := fsObject(e, i), f.Super
	s := newSigns()
	if p.Errors > 0 && p.DeviceErrors == nil {
		from := p.From
		from.Time = p.LastError
		s.add(0.9, Fact{Source: from, Value: fmt.Sprintf("%d errors", p.Errors), Text: fmt.Sprintf(
			"the first by %s in inode %d, the last by %s in inode %d", p.FirstFunc, p.FirstInode, p.LastFunc, p.LastInode)})
		if !p.FirstError.IsZero() {
			first := p.From
			first.Time = p.FirstError
			s.add(0, Fact{Source: first, Value: "the first error"})
		}
	}
	if p.State == "errors" {
		s.add(0.9, Fact{Source: p.From, Value: "state: with errors"})
	}
	for _, dev := range slices.Sorted(maps.Keys(p.DeviceErrors)) {
		for _, name := range slices.Sorted(maps.Keys(p.DeviceErrors[dev])) {
			if n := p.DeviceErrors[dev][name]; n > 0 {
				s.add(0.8, Fact{Source: evidence.Source{Path: p.From.Path + "/" + dev + "/error_stats"},
					Value: fmt.Sprintf("%s %d", name, n)})
			}
		}
	}
	if len(s.facts) == 0 {
		return pass(o)
	}
	x := found(r, o, s.sure(), "errors-noted", named(e, i)+" remembers errors that nobody has looked at since",
		s.facts...)
	if !p.LastError.IsZero() && p.Checked.After(p.LastError) && p.State != "errors" {
		x.Summary = named(e, i) + " had errors, and was checked since"
		return fail(x.over())
	}
	what := "/dev/" + f.Device
	if e.Kind == tree.Disk {
		what = "COPY"
	}
	x.Remedies = []Remedy{{Text: "check it while it is not mounted, on a copy or snapshot first", Command: checker(f.Type, what),
		Risk: "what is mounted meanwhile gives errors that are none"}}
	if p.DeviceErrors != nil {
		x.Remedies = []Remedy{
			{Text: "read all of it and compare the checksums", Command: "btrfs scrub start -B " + quoted(point(e, f)),
				Risk: "it reads all of the disk, and mends from the other copy where there is one"},
			{Text: "when the cause is gone, set the counters back", Command: "btrfs device stats --reset " + quoted(point(e, f)),
				Risk: "the numbers are gone: keep them first"}}
	}
	return fail(x)
}
