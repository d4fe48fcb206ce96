// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"fmt"
	"path"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

const (
	// sameMoment is how much later than its overlay a base may have been written for it to be one copy.
	sameMoment = 10 * time.Minute
	// oneRound is within what time a program that keeps base images alive touches all of a directory.
	oneRound = time.Minute
)

// ruleIM02 finds base images that were written after an overlay was made on them: what the overlay
// does not hold itself is then not what the guest saw.
func ruleIM02() Rule {
	r := Rule{Rule: finding.IM02, Needs: []evidence.Part{evidence.PartImages}, Reach: Upward,
		Guard: "programs that keep base images touch them without writing: where nova does, or all bases of a directory " +
			"have changed within a minute, it is a note; owner, mode and further names change nothing of it; what a copy of the " +
			"files says of times is not used",
		Test: "on overlays that qemu-img makes, with bases that are written to, touched and given to others, and on users of bases"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Images {
			x := &e.Images[i]
			if x.BackingState != "ok" {
				continue
			}
			base := imageAt(e, x.BackingPath)
			if base == nil || base.Unread != "" {
				continue
			}
			o := imagePathObject(e, cmp.Or(base.Real, base.Path), base.Mount)
			switch {
			case writer(base) != nil:
				u := writer(base)
				f := found(&r, o, 0.9, "written_now", fmt.Sprintf("%s writes to %s, on which %s rests", userName(u), base.Path,
					x.Path), usedBy(u, base.Path))
				f.Affects = []Object{imageObject(e, i)}
				f.Remedies = []Remedy{{Text: "stop the machine that writes to the base, now: each write changes the disks of all that " +
					"rest on it"}}
				out = append(out, fail(f))
			case x.Made.IsZero():
				out = append(out, pass(o)) // nobody writes to it; when the overlay was made is not known
			case base.Changed.After(x.Made.Add(sameMoment)):
				out = append(out, fail(rewritten(&r, e, i, base)))
			default:
				out = append(out, pass(o))
			}
		}
		return once(out)
	}
	return r
}

func rewritten(r *Rule, e *evidence.Evidence, i int, base *evidence.Image) *Finding {
	x := &e.Images[i]
	f := found(r, imagePathObject(e, cmp.Or(base.Real, base.Path), base.Mount), 0.5, "newer", fmt.Sprintf(
		"%s was changed after %s was made on it", base.Path, x.Path),
		Fact{Source: base.From, Value: base.Changed.UTC().Format(time.RFC3339), Text: "last change of the base"},
		Fact{Source: x.From, Value: x.Made.UTC().Format(time.RFC3339), Text: "when the overlay was made"})
	f.Affects = []Object{imageObject(e, i)}
	f.Severity = finding.Warning
	n := touchedWith(e, base)
	switch {
	case e.Config.Nova != nil:
		f.Severity, f.Reach, f.Confidence = finding.Note, Hint, 0.2
		f.Summary += "; nova touches base images without writing to them"
	case n > 1:
		f.Severity, f.Reach, f.Confidence = finding.Note, Hint, 0.2
		f.Summary += fmt.Sprintf("; so were the other %d bases in its directory, within a minute, as by a program that touches them", n)
	}
	if base.Made.After(x.Made.Add(sameMoment)) {
		f.Evidence = append(f.Evidence, Fact{Source: base.From, Value: base.Made.UTC().Format(time.RFC3339),
			Text: "when the file of the base was made: it is not the one that the overlay was made on, but put in its place"})
	}
	f.Remedies = []Remedy{{Text: "compare the base with the image that it came from, by its digest: a change of the time alone is " +
		"harmless, and so is one by a layer between the two that was committed into the base", Command: "sha256sum " + base.Path}}
	return f
}

// touchedWith gives how many other bases lie in the directory of one, if all of them changed when it did; else 0.
func touchedWith(e *evidence.Evidence, base *evidence.Image) int {
	bases := map[*evidence.Image]bool{}
	for i := range e.Images {
		bases[imageAt(e, e.Images[i].BackingPath)] = true
	}
	n := 0
	for i := range e.Images {
		x := &e.Images[i]
		if x == base || x.Unread != "" || !bases[x] || path.Dir(x.Path) != path.Dir(base.Path) {
			continue
		}
		if x.Changed.Sub(base.Changed).Abs() > oneRound {
			return 0
		}
		n++
	}
	return n
}

// imageAt gives the image with a path, nil if it was not looked at.
func imageAt(e *evidence.Evidence, name string) *evidence.Image {
	for i := range e.Images {
		if e.Images[i].Is(name) {
			return &e.Images[i]
		}
	}
	return nil
}

// writer gives one who has an image open for writing, nil if there is none.
func writer(x *evidence.Image) *evidence.ImageUser {
	for i := range x.Users {
		if x.Users[i].Writing {
			return &x.Users[i]
		}
	}
	return nil
}
