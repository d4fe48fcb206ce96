// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stories

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// Loss is evidence that is taken away: all of a machine if From is "".
type Loss struct{ Machine, From string }

func (l Loss) String() string {
	if l.From == "" {
		return "all of " + l.Machine
	}
	return l.Machine + ":" + l.From
}

// Losses are all of a story, each by itself.
func (s *Story) Losses() []Loss {
	var all []Loss
	for _, m := range s.Machines {
		if len(s.Machines) > 1 {
			all = append(all, Loss{m.Name, ""})
		}
		for _, name := range m.Sources() {
			all = append(all, Loss{m.Name, name})
		}
	}
	return all
}

// Examine has the doctor look at a story without what is lost.
func (s *Story) Examine(ctx context.Context, losses ...Loss) (*doctor.Report, error) {
	var all []*evidence.Evidence
	for _, m := range s.Machines {
		var without []string
		for _, l := range losses {
			if l.Machine == m.Name {
				without = append(without, l.From)
			}
		}
		if slices.Contains(without, "") {
			continue
		}
		e, err := m.gather(ctx, without)
		if err != nil {
			return nil, fmt.Errorf("%s without %s: %w", s.Name, losses, err)
		}
		all = append(all, e)
	}
	return doctor.Examine(all, nil), nil
}

// gather gathers evidence; that of all there is only once.
func (m *Machine) gather(ctx context.Context, without []string) (*evidence.Evidence, error) {
	if len(without) == 0 && m.whole != nil {
		return m.whole, nil
	}
	e, err := evidence.Gather(ctx, m.Tree(without...), evidence.Options{Now: Noon(), Label: m.Name})
	if len(without) == 0 {
		m.whole = e
	}
	return e, err
}

// Bundle writes what the doctor would gather of a machine.
func (m *Machine) Bundle(ctx context.Context, w io.Writer) error {
	own := map[string][]byte{}
	for name, text := range m.files {
		if strings.HasPrefix(name, "/shisa/") {
			own[name] = []byte(text)
		}
	}
	_, _, err := evidence.Collect(ctx, m.Tree(), own, evidence.Options{Now: Noon(), Label: m.Name}, "story", w)
	return err
}

// Said is how what the doctor says stands to the truth.
type Said string

// The ways.
const (
	// Right: the cause is named.
	Right Said = "right"
	// Asks: it says that it is not certain, and the cause is one of those that it names, or it says that the
	// cause was not looked at.
	Asks Said = "asks"
	// Elsewhere: it is not certain, and the cause is none of those that it names.
	Elsewhere Said = "elsewhere"
	// Signs: it tells what it sees and claims no cause.
	Signs Said = "signs"
	// Nothing is said to be wrong, and that not all could be told.
	Nothing Said = "nothing"
	// Wrong: something is named as the cause, or as what should be looked at, that is not.
	Wrong Said = "wrong"
	// Clean: it says that all is well, though something is wrong and was not looked at.
	Clean Said = "clean"
)

// Judge tells what the first answer of the doctor is worth. Of what is wrong, all but harmless causes count.
func (s *Story) Judge(r *doctor.Report) Said {
	c := first(r)
	switch {
	case len(s.Causes) == 0 && c == nil:
		return Right
	case c == nil && r.Verdict == finding.Clean:
		return Clean
	case c == nil:
		return Nothing
	case s.truth(c.Object):
		if c.Certainty == doctor.LikelyCause || c.Certainty == doctor.Alone {
			return Right
		}
		return Asks
	case c.Certainty == doctor.NotCertain:
		if slices.ContainsFunc(c.Rivals, func(x doctor.Rival) bool { return s.truth(x.Object) }) {
			return Asks
		}
		return Elsewhere
	case c.Certainty == doctor.Alone && len(s.Causes) > 0:
		return Signs
	}
	return Wrong
}

// truth tells whether an object is a cause.
func (s *Story) truth(o doctor.Object) bool {
	return slices.Contains(s.Accept, o.String()) ||
		slices.ContainsFunc(s.Causes, func(a Answer) bool { return a.Object == o.String() })
}

// first is the first cause that is more than a note, nil if there is none.
func first(r *doctor.Report) *doctor.Cause {
	for i := range r.Causes {
		c := &r.Causes[i]
		f := findingOf(r, c.Finding)
		if f == nil || f.Severity.Rank() < finding.Waste.Rank() {
			return c
		}
	}
	return nil
}

func findingOf(r *doctor.Report, id string) *doctor.Finding {
	i := slices.IndexFunc(r.Findings, func(f doctor.Finding) bool { return f.ID == id })
	if i < 0 {
		return nil
	}
	return &r.Findings[i]
}

// Silent gives the findings worse than a note that are lost without a word: whole has them, part has not, and part
// says of nothing more that it is not known.
func Silent(whole, part *doctor.Report) []string {
	var lost []string
	for i := range whole.Findings {
		f := &whole.Findings[i]
		if f.Severity.Rank() < finding.Note.Rank() && findingOf(part, f.ID) == nil {
			lost = append(lost, f.Code+" "+f.Object.String())
		}
	}
	if len(lost) == 0 || len(part.Machines) < len(whole.Machines) {
		return nil // a machine that is not there is seen not to be there
	}
	known := doubts(whole)
	for x := range doubts(part) {
		if !known[x] {
			return nil
		}
	}
	return lost
}

// doubts are all that a report says is not known.
func doubts(r *doctor.Report) map[string]bool {
	all := map[string]bool{}
	for _, a := range r.Rules {
		for _, d := range a.Reasons {
			all[a.Code+" "+d.Object.String()+" "+d.Why] = true
		}
	}
	for _, x := range r.NotLookedAt {
		all[x.Machine+" "+string(x.Part)+" "+x.Object+" "+x.Reason] = true
	}
	return all
}
