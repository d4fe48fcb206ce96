// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleIM04 finds images that several write to at one time, on one host or on several.
func ruleIM04() Rule {
	r := Rule{Rule: finding.IM04, Needs: []evidence.Part{evidence.PartImages}, Reach: Upward,
		Guard: "who only reads counts for nothing, so that many may share a base; two processes of one machine, of which one " +
			"does not run, as while it moves, are told with that doubt; a disk that all its machines are configured to share is " +
			"no fault; hosts that were looked at at different times say nothing of a machine that may have moved between",
		Test: "on images with one writer, two, and one writer with readers; on bundles of two hosts that share a store"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Images {
			x := &e.Images[i]
			if len(x.Users) == 0 {
				continue
			}
			o := imageObject(e, i)
			w := writersOf(e, x)
			switch {
			case len(w) < 2 || w.sharing():
				out = append(out, pass(o))
			case w.apart(e.Now) > sameTime && len(w.machines()) == 1:
				out = append(out, unknown(o, fmt.Sprintf("%s was seen with it on several hosts, which were looked at %s apart: "+
					"it may have moved between", w[0].Machine, w.apart(e.Now).Round(time.Second))))
			default:
				out = append(out, fail(severalWrite(&r, e, x, o, w)))
			}
		}
		return out
	}
	return r
}

func severalWrite(r *Rule, e *evidence.Evidence, x *evidence.Image, o Object, w writers) *Finding {
	var names []string
	var facts []Fact
	for _, u := range w {
		names = append(names, userName(u))
		facts = append(facts, usedBy(u, x.Path))
	}
	f := found(r, o, 0.9, "two_writers", fmt.Sprintf("%d programs write to %s: %s", len(names), x.Path,
		strings.Join(names, ", ")), facts...)
	switch {
	case len(w.machines()) == 1 && w.hosts() > 1 && w.running():
		f.Summary = fmt.Sprintf("%s runs on %d hosts at once, and writes to %s from each: %s", w[0].Machine, w.hosts(), x.Path,
			strings.Join(names, ", "))
	case len(w.machines()) == 1:
		f.Confidence = 0.5
		f.Summary += "; they run one machine, which may be moving"
		if w.hosts() > 1 {
			f.Severity = finding.Warning
		}
	}
	if w.apart(e.Now) > sameTime {
		f.Confidence = min(f.Confidence, 0.6)
		f.Summary += fmt.Sprintf("; the hosts were looked at %s apart", w.apart(e.Now).Round(time.Second))
	}
	f.Remedies = []Remedy{
		{Text: "stop all but one of them at once, the one that was started last first: both believe to be alone, and write " +
			"over what the other one wrote"},
		{Text: "then see what is hurt", Command: "shisa check " + x.Path},
	}
	return f
}

// writers are those who may write to an image, in the order of their hosts.
type writers []*evidence.ImageUser

func writersOf(e *evidence.Evidence, x *evidence.Image) writers {
	var w writers
	far := false
	for j := range x.Users {
		if u := x.Users[j]; u.Writing {
			w, far = append(w, &u), far || u.Host != ""
		}
	}
	for _, u := range w {
		if far && u.Host == "" {
			u.Host = e.Label
		}
	}
	slices.SortStableFunc(w, func(a, b *evidence.ImageUser) int { return strings.Compare(a.Host, b.Host) })
	return w
}

// machines are the machines that they run, each once; a program that runs none counts as one of its own.
func (w writers) machines() map[string]bool {
	all := map[string]bool{}
	for _, u := range w {
		all[cmp.Or(u.Machine, userName(u))] = true
	}
	return all
}

func (w writers) hosts() int {
	all := map[string]bool{}
	for _, u := range w {
		all[u.Host] = true
	}
	return len(all)
}

// sharing tells whether all are configured to share it.
func (w writers) sharing() bool {
	for _, u := range w {
		if !u.Shared {
			return false
		}
	}
	return true
}

// running tells whether the machines of all of them run, as they are said to.
func (w writers) running() bool {
	for _, u := range w {
		if u.State != "running" {
			return false
		}
	}
	return true
}

// apart is how far apart the times are at which they were seen.
func (w writers) apart(now time.Time) time.Duration {
	var first, last time.Time
	for _, u := range w {
		at := u.Time
		if at.IsZero() {
			at = now
		}
		if first.IsZero() || at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
	}
	return last.Sub(first)
}

// userName names one who has an image open.
func userName(u *evidence.ImageUser) string {
	name := u.Command
	if u.PID > 0 {
		name += fmt.Sprintf(" [%d]", u.PID)
	}
	if u.Machine != "" && u.Machine != u.Command {
		name += " for " + u.Machine
	}
	if u.Host != "" {
		name += " on " + u.Host
	}
	return name
}

// usedBy is where it is seen that one has an image open.
func usedBy(u *evidence.ImageUser, image string) Fact {
	where := cmp.Or(u.Document, fmt.Sprintf("/proc/%d/fd", u.PID))
	if u.Host != "" {
		where = u.Host + ":" + where
	}
	return Fact{Source: evidence.Source{Path: where}, Value: image, Text: "has it open: " + userName(u)}
}
