// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// ruleFS09 tells of ext4 file systems that go on after an error, and may make more of it.
func ruleFS09() Rule {
	r := Rule{Rule: finding.FS09, Needs: []evidence.Part{evidence.PartFSs}, Reach: Hint,
		Guard: "it is what mke2fs sets, and harmless until there is an error: a note. A journal that is given up ends all " +
			"writes whatever this says",
		Test: "on file systems made with each of the three answers"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for _, i := range typed(e, "ext2", "ext3", "ext4") {
			f := &e.FSs[i]
			o := fsObject(e, i)
			switch {
			case f.Super == nil || f.Super.OnError == "":
				out = append(out, unknown(o, "what it does at an error could not be read"))
			case f.Super.OnError != "continue":
				out = append(out, pass(o))
			default:
				out = append(out, fail(goesOn(&r, e, i)))
			}
		}
		return out
	}
	return r
}

func goesOn(r *Rule, e *evidence.Evidence, i int) *Finding {
	f := &e.FSs[i]
	x := found(r, fsObject(e, i), 0.95, "continues", named(e, i)+" goes on after an error, on what may be broken",
		Fact{Source: f.Super.From, Value: "errors=continue"})
	if e.Kind != tree.Disk {
		dev := "/dev/" + f.Device
		x.Remedies = []Remedy{{Text: "have it stop taking writes instead", Command: "tune2fs -e remount-ro " + dev,
			Undo: "tune2fs -e continue " + dev,
			Risk: "programs on it then meet errors at the first fault, and not at the last"}}
	}
	return x
}
