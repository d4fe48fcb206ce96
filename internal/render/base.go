// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// BaseScanSchema is the schema of a refs.Census in JSON.
const BaseScanSchema = "shisa.base-scan/1"

// BaseDoneSchema is the schema of a bases.Done in JSON.
const BaseDoneSchema = "shisa.base-done/1"

// BaseEventSchema is the schema of a pool.Happened in JSON.
const BaseEventSchema = "shisa.base-event/1"

// BaseScan writes for people who needs the bases of a pool: those that are missing first, and those that
// nobody was found to need last.
func BaseScan(w io.Writer, c *refs.Census, s Style) error {
	o := newOut(w, s)
	o.baseHead(c)
	all := slices.Clone(c.All)
	slices.SortStableFunc(all, func(a, b refs.Base) int { return cmp.Compare(baseOrder(&a), baseOrder(&b)) })
	for i := range all {
		if i >= maxOfAKind && !s.All && all[i].State != refs.Missing {
			o.line(fmt.Sprintf("  and %s more (--all lists them)", Count(int64(len(all)-i), "base", "bases")))
			break
		}
		o.base(c, &all[i])
	}
	o.baseTail(c)
	o.baseNext(c)
	return o.flush()
}

// baseNext says what to do about what is missing, and about what could be lost.
func (o *out) baseNext(c *refs.Census) {
	missing, bare := 0, int64(0)
	for i := range c.All {
		switch b := &c.All[i]; {
		case b.State == refs.Missing:
			missing++
		case b.State == refs.Live && len(b.Uses) > 0 && b.Shield == "":
			bare++
		}
	}
	if missing > 0 {
		o.waysBack(c)
	}
	if bare > 0 {
		o.line("next: ", Count(bare, "base that is needed has", "bases that are needed have"), " no second name, by which to come back")
		o.line("  $ shisa base protect ", Word(c.Bases))
	}
}

// BaseWhy writes all that needs the bases of a census.
func BaseWhy(w io.Writer, c *refs.Census, s Style) error {
	o := newOut(w, s)
	for i := range c.All {
		b := &c.All[i]
		o.prose("", Name(b.Path)+": "+o.baseState(b))
		for k, u := range b.Uses {
			if k == maxOfAKind && !s.All {
				o.line(fmt.Sprintf("  and %s more (--all lists them)", Count(int64(len(b.Uses)-k), "use", "uses")))
				break
			}
			o.flow("  ", words(needWords(&u)+sinceWords(&u)), " ")
		}
	}
	o.baseTail(c)
	return o.flush()
}

// baseHead says how things stand in one sentence.
func (o *out) baseHead(c *refs.Census) {
	missing, unused, held, kept := int64(0), int64(0), int64(0), int64(0)
	for i := range c.All {
		switch {
		case c.All[i].State == refs.Missing:
			missing++
		case c.All[i].State == refs.ByShield:
			kept++
		case c.All[i].ID != "":
			held++
		case len(c.All[i].Uses) == 0:
			unused++
		}
	}
	text := Count(int64(len(c.All))-missing-held-kept, "base", "bases")
	if missing > 0 {
		text += ", " + o.paint(red, Count(missing, "is", "are")+" needed and MISSING")
	}
	if unused > 0 {
		text += fmt.Sprintf(", for %d of them no use was found", unused)
	}
	if kept > 0 {
		text += fmt.Sprintf(", only shields keep %d more", kept)
	}
	if held > 0 {
		text += ", and " + Count(held, "was", "were") + " set aside"
	}
	o.prose(Name(c.Bases)+": ", text)
}

// baseOrder is the order in which bases are listed.
func baseOrder(b *refs.Base) int {
	switch {
	case b.State == refs.Missing:
		return 0
	case b.ID != "" && len(b.Uses) > 0:
		return 1
	case len(b.Uses) > 0:
		return 2
	case b.ID == "":
		return 3
	}
	return 4
}

// base is a base with who needs it, in a line or two. Of many only the number is told.
func (o *out) base(c *refs.Census, b *refs.Base) {
	name := b.Name
	if b.State == refs.Missing && !c.Here(b) {
		name = b.Path
	}
	text := Name(name) + ": " + o.baseState(b)
	if n := len(b.Uses); n == 1 || n > 0 && b.State == refs.Missing {
		text += "; " + needWords(&b.Uses[0])
		if n > 1 {
			text += ", and " + Count(int64(n-1), "more", "more")
		}
	}
	o.prose("  ", text)
}

// baseState says in words what of a base is.
func (o *out) baseState(b *refs.Base) string {
	if b.State == refs.Missing {
		text := o.paint(red, "MISSING") + ", needed by " + needs(b.Uses)
		if b.Shield != "" {
			text += ", a shield has it (shisa base restore brings it back)"
		}
		if b.Held != "" {
			text += ", it is in quarantine as " + b.Held + " (shisa base restore brings it back)"
		}
		return text
	}
	size := Bytes(b.SizeBytes) + " (" + Bytes(b.AllocatedBytes) + " on the disk)"
	switch b.State {
	case refs.Quarantined:
		size = o.paint(yellow, "in quarantine") + " as " + b.ID + " since " + minute(b.Since) + ", " + size
	case refs.Claimed:
		size = o.paint(yellow, "about to be removed for good") + ", in quarantine as " + b.ID + ", " + size
	case refs.ByShield:
		size = o.paint(yellow, "removed") + ", and only its shield keeps it, " + size
	}
	if b.Shield != "" && b.State != refs.ByShield {
		size += ", shielded"
	}
	if len(b.Uses) == 0 {
		return size + ", no use was found"
	}
	return size + ", " + o.paint(green, "needed") + " by " + needs(b.Uses)
}

// needs counts who needs a base.
func needs(uses []refs.Reference) string {
	images, processes, pins, machines, nodes := int64(0), int64(0), int64(0), map[string]bool{}, map[string]bool{}
	for i := range uses {
		switch uses[i].How {
		case refs.Header, refs.ByName:
			images++
		case refs.Open, refs.Writing, refs.Deleted, refs.Loop:
			processes++
		case refs.Pin:
			pins++
		case refs.LastReport:
			nodes[uses[i].Node] = true
		}
		if m := uses[i].Machine; m != "" {
			machines[m] = true
		}
	}
	var parts []string
	if images > 0 {
		parts = append(parts, Count(images, "image", "images"))
	}
	if processes > 0 {
		parts = append(parts, Count(processes, "process", "processes"))
	}
	if n := int64(len(machines)); n > 0 {
		parts = append(parts, Count(n, "machine", "machines"))
	}
	if n := int64(len(nodes)); n > 0 {
		parts = append(parts, "what "+Count(n, "node", "nodes")+" said last")
	}
	if pins > 0 {
		parts = append(parts, Count(pins, "pin", "pins"))
	}
	if len(parts) == 0 {
		return Count(int64(len(uses)), "description", "descriptions")
	}
	return strings.Join(parts, ", ")
}

// needWords says in words what needs a base.
func needWords(u *refs.Reference) string {
	text := ""
	switch u.How {
	case refs.Header:
		text = Name(u.Holder) + " rests on it"
	case refs.ByName:
		text = Name(u.Holder) + " rests on a file of that name, " + Name(u.As) + ", which is not there on this host"
	case refs.Open:
		text = fmt.Sprintf("process %d (%s) has it open", u.PID, Text(u.Holder))
	case refs.Writing:
		text = fmt.Sprintf("process %d (%s) may write to it", u.PID, Text(u.Holder))
	case refs.Deleted:
		text = fmt.Sprintf("process %d (%s) has it open, and can give it back", u.PID, Text(u.Holder))
	case refs.Loop:
		text = Name(u.Holder) + " was made of it"
	case refs.Domain:
		text = Text(u.Holder) + " names it"
	case refs.SavedDomain:
		text = "a saved machine names it (" + Name(u.Holder) + ")"
	case refs.SnapshotDomain:
		text = "a snapshot names it (" + Name(u.Holder) + ")"
	case refs.Pin:
		text = "it is pinned: " + Text(u.Holder)
	case refs.LastReport:
		text = "its last report, of " + minute(u.Said) + ", names " + Name(u.Holder)
	case refs.Nova:
		text = "Nova has a machine of it (" + Name(u.Holder) + ")"
	}
	if u.Depth > 1 {
		text += " through " + Count(int64(u.Depth-1), "other", "others")
	}
	if u.Machine != "" {
		text += ", machine " + Text(u.Machine)
	}
	if u.Node != "" {
		text += ", node " + Text(u.Node)
	}
	if u.NodeState != "" {
		text += " (" + u.NodeState + ")"
	}
	if u.Task != "" {
		text += ", " + Text(u.Task)
	}
	return text
}

// sinceWords says since when somebody needs a base, where that is known.
func sinceWords(u *refs.Reference) string {
	if u.Since.IsZero() {
		return ""
	}
	return ", since " + minute(u.Since)
}

// baseTail says what was looked at, and what was not.
func (o *out) baseTail(c *refs.Census) {
	o.line("")
	o.prose("", fmt.Sprintf("looked at: %s, %s on top of others, %s",
		Count(c.Looked.Files, "file", "files"), Count(c.Looked.Overlays, "image", "images"),
		Count(c.Looked.Processes, "process", "processes")))
	if c.Indexed {
		o.prose("", fmt.Sprintf("%s did not change since an earlier scan, and were not read again: a plan to remove anything "+
			"takes a scan without --index", Count(c.Remembered, "file", "files")))
	}
	for _, note := range c.IndexNotes {
		o.prose("index: ", Text(note))
	}
	o.clocks(c)
	o.kept(c)
	if c.Partial.Files > 0 {
		o.prose("", fmt.Sprintf("%s are taken by %s of bases that came to no end, or are under way, the oldest not changed since %s: "+
			"shisa base recover takes those away that were not changed for a day", Bytes(c.Partial.AllocatedBytes),
			Count(c.Partial.Files, "copy", "copies"), minute(c.Partial.Oldest)))
	}
	if c.Complete() {
		return
	}
	o.blind(c.Gaps, "", true)
	o.prose("", "Any of that may need any base: nothing may be removed.")
}

// BaseClocks writes which hosts of Nova have a clock that is ahead, and what that means; nothing where there is none.
func BaseClocks(w io.Writer, c *refs.Census, s Style) error {
	o := newOut(w, s)
	o.clocks(c)
	return o.flush()
}

func (o *out) clocks(c *refs.Census) {
	told := 0
	for i := range c.Hosts {
		h := &c.Hosts[i]
		if h.AheadSeconds == 0 || told == maxOfAKind && !o.s.All {
			continue
		}
		told++
		ahead := time.Duration(h.AheadSeconds) * time.Second
		o.prose(o.paint(yellow, Text(h.Name)+" has another time")+": ", fmt.Sprintf("its clock is %s ahead of this host's at least, by "+
			"Nova's list of hosts. Nova there takes bases for so much older than they are, and touches may not keep those "+
			"that are needed. Put the clock right that is wrong; until then shisa base protect --watch brings back what is "+
			"removed", ahead.Truncate(time.Minute)))
	}
}

// BaseLacks writes what is needed and missing, and what was not looked at; nothing where there is neither.
func BaseLacks(w io.Writer, c *refs.Census, s Style) error {
	o := newOut(w, s)
	missing := false
	for i := range c.All {
		if b := &c.All[i]; b.State == refs.Missing {
			missing = true
			o.base(c, b)
		}
	}
	if missing {
		o.waysBack(c)
	}
	if !c.Complete() {
		o.blind(c.Gaps, "", true)
	}
	return o.flush()
}

func (o *out) waysBack(c *refs.Census) {
	o.line("next: the ways to bring back what is missing, with their proof")
	o.line("  $ shisa base missing ", Word(c.Bases))
}

// BaseKept writes what space only shields keep, whether it will be wanted, and how it is had; nothing where there is none.
func BaseKept(w io.Writer, c *refs.Census, s Style) error {
	o := newOut(w, s)
	o.kept(c)
	return o.flush()
}

func (o *out) kept(c *refs.Census) {
	if c.Kept.Files == 0 {
		return
	}
	o.prose("", fmt.Sprintf("%s of %s are kept by their shields alone, the oldest not changed since %s",
		Bytes(c.Kept.AllocatedBytes), Count(c.Kept.Files, "base", "bases"), minute(c.Kept.Oldest)))
	if r := c.Room; r != nil && r.Wanted {
		text := fmt.Sprintf("%s of %s are left there", Bytes(r.FreeBytes), Bytes(r.SizeBytes))
		if r.Full != nil {
			late := "open"
			if r.Late != nil {
				late = minute(*r.Late)
			}
			text += fmt.Sprintf(", and at this rate nothing about %s (%s to %s)", minute(*r.Full),
				minute(*r.Early), late)
		}
		o.prose(o.paint(yellow, "that space will be wanted")+": ", text)
	} else if r != nil && r.NoForecast != "" {
		o.prose("", "whether that will be wanted is not known: "+Text(r.NoForecast))
	}
	if !slices.ContainsFunc(c.All, func(b refs.Base) bool { return b.State == refs.ByShield && len(b.Uses) == 0 }) {
		return // they are needed, and are to be brought back
	}
	o.prose("", "those that nobody needs give it back when they are set aside and removed for good as any other base:")
	o.line("  $ shisa base plan --out plan.json ", Word(c.Bases))
	o.line("  $ shisa base quarantine --plan plan.json ", Word(c.Bases))
}

// BaseDone writes what an act did.
func BaseDone(w io.Writer, d *pool.Done, s Style) error {
	o := newOut(w, s)
	nothing := true
	for _, part := range []struct {
		what  string
		names []string
	}{
		{"restored", d.Restored}, {"shielded", d.Shielded}, {"touched", d.Touched}, {"recorded", d.Recorded},
		{"lost their shield", d.Unshielded}, {"set aside", d.Quarantined}, {"pinned", d.Pinned},
		{"not pinned any more", d.Unpinned}, {"removed for good", d.Purged}, {"came to its end", d.Recovered},
		{"lost their record", d.Forgotten},
	} {
		if len(part.names) == 0 {
			continue
		}
		nothing = false
		names := part.names
		more := ""
		if len(names) > maxOfAKind && !s.All {
			more = fmt.Sprintf(" and %d more (--all lists them)", len(names)-maxOfAKind)
			names = names[:maxOfAKind]
		}
		list := make([]string, len(names))
		for i, n := range names {
			list[i] = Name(n)
		}
		o.prose("", fmt.Sprintf("%s: %s%s", part.what, strings.Join(list, ", "), more))
	}
	for _, l := range d.Left {
		o.prose("", o.paint(yellow, "left")+": "+Name(l.Name)+": "+Text(l.Why))
	}
	for _, l := range d.Unseen {
		if l.Name == pool.Dir {
			o.prose("", o.paint(yellow, "not read")+": "+Text(l.Why))
			continue
		}
		o.prose("", o.paint(yellow, "may be needed")+", and stays in quarantine: "+Name(l.Name)+": not seen: "+Text(l.Why))
	}
	for _, l := range d.Stays {
		o.prose("", "stays: "+Name(l.Name)+" "+Text(l.Why))
	}
	switch {
	case d.Begun:
		o.line("a pool begins here: what it keeps lies in ", Name(pool.Path(d.Bases)))
	case nothing && len(d.Left)+len(d.Unseen) == 0:
		o.line("there was nothing to do")
	}
	o.receipt(d.Receipt, d.Undo)
	return o.flush()
}

// receipt names the receipt of an act, and what takes that back.
func (o *out) receipt(id, undo string) {
	switch {
	case undo != "":
		o.prose("", "receipt "+id+", taken back by:")
		o.line("  $ " + undo)
	case id != "":
		o.prose("", "receipt "+id+"; nothing of that can be taken back")
	}
}

// BaseEvent writes one thing that happened to a pool that is watched, and to which if it is one of several.
func BaseEvent(w io.Writer, h *pool.Happened, among bool, s Style) error {
	o := newOut(w, s)
	words, color := map[pool.What]string{
		pool.Removed: "was removed", pool.Restored: "is there again", pool.NotRestored: "could NOT be brought back",
		pool.NotNeeded: "stays away", pool.Passed: "looked at everything", pool.Lost: "looking again",
		pool.Reported: "told the others what this node needs",
	}[h.What], ""
	switch h.What {
	case pool.Removed, pool.NotRestored:
		color = red
	case pool.Restored:
		color = green
	}
	text := o.paint(color, words)
	if h.Name != "" {
		text = Name(h.Name) + " " + text
	}
	if h.PID > 0 {
		text += fmt.Sprintf(" by process %d", h.PID)
	}
	if h.Command != "" {
		text += " (" + Text(h.Command) + ")"
	} else if h.PID > 0 {
		text += ", which has ended,"
	}
	if h.Unit != "" {
		text += " of " + Text(h.Unit)
	}
	text = strings.TrimSuffix(text, ",")
	if h.Why != "" {
		text += ": " + Text(h.Why)
	}
	if among {
		text = Name(h.Bases) + ": " + text
	}
	o.prose(h.Time.Format("2006-01-02 15:04:05Z")+"  ", text)
	return o.flush()
}
