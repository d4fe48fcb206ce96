// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package watch

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// TestChange goes through examinations, one after the other: what is told of each. Nothing is called over
// that can only not be told.
func TestChange(t *testing.T) {
	needs := map[string][]evidence.Part{"FS01": {evidence.PartFSs}}
	worse, over := readOnly, readOnly
	worse.Severity = finding.Lost
	over.Over = true
	host := doctor.Object{Kind: doctor.Host, On: "h", Name: "h"}
	cannot := func(o doctor.Object) []doctor.Asked {
		return []doctor.Asked{{Code: "FS01", Unknown: 1, Reasons: []doctor.Doubt{{Object: o, Why: "it hangs"}}}}
	}
	gap := func(p evidence.Part) []doctor.Missing {
		return []doctor.Missing{{Machine: "h", Gap: evidence.Gap{Part: p, Object: "/sys/x", Reason: "denied"}}}
	}
	type look struct {
		findings []doctor.Finding
		rules    []doctor.Asked
		missing  []doctor.Missing
		want     []string
	}
	found := []doctor.Finding{readOnly}
	for name, looks := range map[string][]look{
		"comes and goes": {{want: nil}, {findings: found, want: []string{"found danger FS01"}}, {findings: found},
			{want: []string{"over note FS01"}}, {findings: found, want: []string{"found danger FS01"}}},
		"worse":           {{findings: found, want: []string{"found danger FS01"}}, {findings: []doctor.Finding{worse}, want: []string{"found lost FS01"}}},
		"over by itself":  {{findings: found, want: []string{"found danger FS01"}}, {findings: []doctor.Finding{over}, want: []string{"over note FS01"}}},
		"never so":        {{findings: []doctor.Finding{over}}},
		"turns unknown":   {{findings: found, want: []string{"found danger FS01"}}, {rules: cannot(readOnly.Object), want: []string{"cannot_tell warning FS01", "cannot_tell warning FS01"}}, {rules: cannot(readOnly.Object)}, {want: []string{"over note FS01", "over note FS01"}}},
		"unknown as such": {{findings: found, want: []string{"found danger FS01"}}, {rules: cannot(host), want: []string{"cannot_tell warning FS01", "cannot_tell warning FS01"}}, {findings: found, want: []string{"found danger FS01", "over note FS01"}}},
		"a part is gone":  {{findings: found, want: []string{"found danger FS01"}}, {missing: gap(evidence.PartFSs), want: []string{"cannot_tell warning ", "cannot_tell warning FS01"}}, {missing: gap(evidence.PartFSs)}, {want: []string{"over note FS01", "over note "}}},
		"another part":    {{findings: found, want: []string{"found danger FS01"}}, {missing: gap(evidence.PartMemory), want: []string{"cannot_tell warning ", "over note FS01"}}},
		"seen with a gap": {{findings: found, missing: gap(evidence.PartFSs), want: []string{"found danger FS01", "cannot_tell warning "}}, {missing: gap(evidence.PartFSs), want: []string{"over note FS01"}}},
	} {
		t.Run(name, func(t *testing.T) {
			before := things{}
			for i, l := range looks {
				r := &doctor.Report{Machines: []doctor.Patient{{Label: "h"}}, Findings: l.findings, Rules: l.rules, NotLookedAt: l.missing}
				now := thingsIn(r, needs)
				var got []string
				for _, e := range change(before, now, r) {
					got = append(got, fmt.Sprintf("%s %s %s", e.Kind, e.Severity, e.Code))
				}
				slices.Sort(got)
				slices.Sort(l.want)
				if !slices.Equal(got, l.want) {
					t.Errorf("look %d tells %q, want %q", i, got, l.want)
				}
				before = now
			}
		})
	}
}

// TestManyChanges: a thousand changes at once are told as some of them and a number, the worst first.
func TestManyChanges(t *testing.T) {
	r := &doctor.Report{Machines: []doctor.Patient{{Label: "h"}}}
	for i := range 1000 {
		f := readOnly
		f.ID, f.Severity = fmt.Sprint(i), finding.Note
		if i == 999 {
			f.Severity = finding.Lost
		}
		r.Findings = append(r.Findings, f)
	}
	got := change(things{}, thingsIn(r, nil), r)
	if len(got) != maxChanges+1 || got[0].Finding != "999" || got[maxChanges].Count != 1000-maxChanges {
		t.Errorf("%d events, first %+v, last %+v", len(got), got[0], got[len(got)-1])
	}
}

// TestPurse: nothing may be spent above the burst and the share, whatever was spent at once.
func TestPurse(t *testing.T) {
	begin, spent := time.Unix(0, 0), 5*time.Second
	p := newPurse(func() time.Duration { return spent }, begin)
	for _, c := range []struct {
		spent, after, want time.Duration
	}{
		{0, 0, 0}, {burst, 0, 0}, {burst + 8*time.Second, 0, 1000 * time.Second}, {burst + 8*time.Second, 1000 * time.Second, 0},
		{burst + 8*time.Second, 500 * time.Second, 500 * time.Second},
	} {
		spent = 5*time.Second + c.spent
		if got := p.wait(begin.Add(c.after)); got.Round(time.Millisecond) != c.want {
			t.Errorf("spent %v after %v: wait = %v, want %v", c.spent, c.after, got, c.want)
		}
	}
	if processorTime() <= 0 {
		t.Error("this program took no time of the processor")
	}
}

// TestMemory: logs that cost much are read more seldom, and what the kernel said meanwhile is not lost.
func TestMemory(t *testing.T) {
	begin := time.Unix(10_000, 0)
	at := func(d time.Duration) time.Time { return begin.Add(d) }
	m := &memory{}
	if m.said(begin, time.Minute) != nil {
		t.Error("logs that were never read are known")
	}
	logs := evidence.Said{Log: evidence.Log{Events: []evidence.Event{{Form: "a"}}}}
	m.hear(evidence.Event{Form: "b", Last: at(-time.Second), Count: 1})
	m.hear(evidence.Event{Form: "c", Last: at(time.Second), Count: 1})
	m.keep(&seen{logs: &logs, begun: begin, cost: 4 * time.Second}) // 1000 s of the share
	m.hear(evidence.Event{Form: "c", Last: at(2 * time.Second), Count: 2})
	s := m.said(at(999*time.Second), time.Minute)
	if s == nil || len(s.Log.Events) != 2 || s.Log.Events[1].Form != "c" || s.Log.Events[1].Count != 3 || len(logs.Log.Events) != 1 {
		t.Errorf("after 999 s: %+v", s)
	}
	if m.said(at(1000*time.Second), time.Minute) != nil || m.said(at(30*time.Minute), time.Hour) == nil {
		t.Error("logs are not read again in time")
	}
	for i := range maxHeard + 1 {
		m.hear(evidence.Event{Form: fmt.Sprint(i), Last: at(3 * time.Second)})
	}
	if m.said(at(4*time.Second), time.Minute) != nil || len(m.heard) > maxHeard {
		t.Error("more is remembered than there is room for")
	}
}
