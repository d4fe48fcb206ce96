// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package watch

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// maxChanges bounds the events of one examination; the rest is told as a number.
const maxChanges = 200

// thing is something that an examination told: a finding, or that something cannot be told.
type thing struct {
	Event
	object doctor.Object
	needs  []evidence.Part
	// doubted: it was found before, and whether it still is so cannot be told.
	doubted bool
	// gaps is what could not be read when it was found.
	gaps map[evidence.Gap]bool
}

// things are those of one examination, by a key for each.
type things map[string]thing

// thingsIn takes them from a report.
func thingsIn(r *doctor.Report, needs map[string][]evidence.Part) things {
	all, gaps, label := things{}, gapsIn(r), r.Machines[0].Label
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Over {
			continue
		}
		all["finding "+f.ID] = thing{object: f.Object, needs: needs[f.Code], gaps: gaps, Event: Event{Machine: label,
			Kind: Found, Count: 1, Code: f.Code, Finding: f.ID, Severity: f.Severity, Object: f.Object.String(), Summary: f.Summary}}
	}
	for i := range r.Rules {
		a := &r.Rules[i]
		for _, d := range a.Reasons {
			all["rule "+a.Code+" "+d.Object.String()] = thing{object: d.Object, Event: Event{Machine: label,
				Kind: CannotTell, Count: 1, Code: a.Code, Severity: finding.Warning, Object: d.Object.String(), Summary: d.Why}}
		}
	}
	for _, m := range r.NotLookedAt {
		key := "gap " + m.Machine + " " + string(m.Part) + " " + m.Object
		all[key] = thing{Event: Event{Machine: label, Kind: CannotTell, Count: 1, Severity: finding.Warning, Object: m.Object,
			Summary: string(m.Part) + ": " + m.Reason}}
	}
	return all
}

func gapsIn(r *doctor.Report) map[evidence.Gap]bool {
	gaps := map[evidence.Gap]bool{}
	for _, m := range r.NotLookedAt {
		gaps[evidence.Gap{Part: m.Part, Object: m.Object}] = true
	}
	return gaps
}

// change compares two examinations: it gives the events of what changed, and adds to the later one what
// cannot be called over.
func change(before, now things, r *doctor.Report) []Event {
	var events []Event
	for _, key := range order(now) {
		was, known := before[key]
		t := now[key]
		if !known || was.doubted || was.Severity != t.Severity {
			events = append(events, t.Event)
		}
	}
	gaps := gapsIn(r)
	for _, key := range order(before) {
		if _, still := now[key]; still {
			continue
		}
		was := before[key]
		if was.Kind == Found && doubtful(&was, now, gaps) {
			if !was.doubted {
				e := was.Event
				e.Kind, e.Severity, e.Summary = CannotTell, finding.Warning, "whether it is still so: "+e.Summary
				events = append(events, e)
			}
			was.doubted = true
			now[key] = was
			continue
		}
		e := was.Event
		if e.Kind == CannotTell {
			e.Summary = "it can be told again: " + e.Summary
		}
		e.Kind, e.Severity = Over, finding.Note
		events = append(events, e)
	}
	return bounded(events)
}

// doubtful tells whether nobody can say that what was found is no more: its rule cannot tell about the
// object or the machine, or something that the rule needs could be read before, and cannot now.
func doubtful(was *thing, now things, gaps map[evidence.Gap]bool) bool {
	host := doctor.Object{Kind: doctor.Host, On: was.Machine, Name: was.Machine}
	for _, o := range []doctor.Object{was.object, host} {
		if _, cannot := now["rule "+was.Code+" "+o.String()]; cannot {
			return true
		}
	}
	for g := range gaps {
		if !was.gaps[g] && slices.Contains(was.needs, g.Part) {
			return true
		}
	}
	return false
}

// order gives the keys, the worst first.
func order(all things) []string {
	return slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		return cmp.Or(cmp.Compare(all[a].Severity.Rank(), all[b].Severity.Rank()), strings.Compare(a, b))
	})
}

// bounded makes one event of what is too much.
func bounded(events []Event) []Event {
	if len(events) <= maxChanges {
		return events
	}
	more := int64(len(events) - maxChanges)
	events = append(events[:maxChanges:maxChanges], Event{Kind: CannotTell, Severity: finding.Warning, Count: more,
		Summary: strconv.FormatInt(more, 10) + " further changes are not told one by one: shisa doctor tells all"})
	return events
}
