// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"cmp"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
)

// BasePlan writes for people what may be done with the bases of a pool: what is to be brought back first, then what may
// be done, then what stays and why. saved is the file that the plan was written to, "" for none.
func BasePlan(w io.Writer, p *judge.Plan, saved string, s Style) error {
	o := newOut(w, s)
	o.basesHead(p)
	for _, k := range p.Blockers {
		o.prose("  ", o.paint(red, "nothing may be done")+": "+blockerWords(&k))
	}
	for _, v := range []judge.Verdict{judge.RestoreNow, judge.MayPurge, judge.MayQuarantine, judge.Keep} {
		o.planned(p, v, s)
	}
	for _, n := range p.Next {
		if saved == "" || !strings.HasPrefix(n, judge.NextQuarantine) && !strings.HasPrefix(n, judge.NextPurge) {
			o.prose("next: ", Text(n))
		}
	}
	if saved != "" {
		o.saved(p, saved)
	}
	return o.flush()
}

// saved says where a plan is, and what uses it: a second one would not be written over it.
func (o *out) saved(p *judge.Plan, file string) {
	o.prose("", "the plan is in "+Name(file)+", its digest is "+p.SHA256)
	if len(p.With(judge.MayQuarantine)) > 0 {
		o.line("  $ shisa base quarantine --plan ", Word(file), " ", Word(p.Bases))
	}
	if len(p.With(judge.MayPurge)) > 0 {
		o.line("  $ shisa base purge --plan ", Word(file), " --approve DIGEST ", Word(p.Bases))
	}
}

// basesHead says how things stand in one sentence.
func (o *out) basesHead(p *judge.Plan) {
	text := Count(int64(len(p.With(judge.MayQuarantine))), "base", "bases") + " may be set aside, " +
		Count(int64(len(p.With(judge.MayPurge))), "base", "bases") + " may be removed for good"
	if n := int64(len(p.With(judge.RestoreNow))); n > 0 {
		text += ", " + o.paint(red, Count(n, "is", "are")+" to be brought back")
	}
	gone := int64(0)
	for i := range p.All {
		if b := &p.All[i]; b.State == refs.Missing && b.Verdict == judge.Keep {
			gone++
		}
	}
	if gone > 0 {
		text += ", " + o.paint(red, Count(gone, "is", "are")+" MISSING")
	}
	o.prose(Name(p.Bases)+": ", text)
}

// planOrder is the order in which bases with one verdict are listed.
func planOrder(b *judge.Decided) int {
	switch {
	case b.State == refs.Missing:
		return 0
	case len(b.Uses) == 0:
		return 1
	}
	return 2
}

// planned lists the bases with one verdict, those that are missing whole.
func (o *out) planned(p *judge.Plan, v judge.Verdict, s Style) {
	all := p.With(v)
	slices.SortStableFunc(all, func(a, b *judge.Decided) int { return cmp.Compare(planOrder(a), planOrder(b)) })
	word, color := map[judge.Verdict]string{judge.RestoreNow: "is to be brought back", judge.MayPurge: "may be removed for good",
		judge.MayQuarantine: "may be set aside", judge.Keep: "stays"}[v], ""
	switch v {
	case judge.RestoreNow:
		color = red
	case judge.MayPurge, judge.MayQuarantine:
		color = yellow
	}
	for i, b := range all {
		if i >= maxOfAKind && !s.All && b.State != refs.Missing {
			o.line(fmt.Sprintf("  and %s more (--all lists them)", Count(int64(len(all)-i), "base", "bases")))
			return
		}
		text, more := Name(b.Name)+" "+o.paint(color, word), []judge.Blocker(nil)
		if b.State == refs.Missing {
			name := b.Name
			if filepath.Dir(b.Path) != p.Bases {
				name = b.Path
			}
			text = Name(name) + " is " + o.paint(red, "MISSING")
		}
		if b.ID != "" {
			text += ", in quarantine as " + b.ID + " since " + minute(b.Since)
		}
		if b.State == refs.ByShield {
			text += ", removed, and only its shield keeps it"
		}
		switch {
		case len(b.Uses) > 0:
			text += ": needed by " + needs(b.Uses)
		case len(b.Blockers) > 0:
			k := b.Blockers[0]
			k.Path = "" // it is that of the base
			text += ": " + blockerWords(&k)
			if more = b.Blockers[1:]; len(more) > 0 && !s.All {
				text += ", and " + Count(int64(len(more)), "more reason", "more reasons") + " (--all lists them)"
				more = nil
			}
		case v != judge.Keep:
			text += ", " + Bytes(b.AllocatedBytes)
		}
		o.prose("  ", text)
		for i := range more {
			k := more[i]
			k.Path = ""
			o.prose("    also: ", blockerWords(&k))
		}
	}
}

// blockerWords says in words what speaks against a change.
func blockerWords(k *judge.Blocker) string {
	text := Text(k.Why)
	if k.Path != "" {
		text = Name(k.Path) + ": " + text
	}
	if k.Node != "" {
		text = "node " + Text(k.Node) + ": " + text
	}
	return text
}
