// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux/logs"
)

// hungWarnings is how often the kernel tells of tasks that hang before it is silent, unless it is set
// otherwise (kernel.hung_task_warnings).
const hungWarnings = 10

// Said is /shisa/log.json: what logs said, where they were read before. A bundle has it in place of the
// logs themselves, which hold much that is nobody's business.
type Said struct {
	Log   Log    `json:"log"`
	Boots []Boot `json:"boots"`
	Gaps  []Gap  `json:"gaps"`
	// Hurt are the files that it speaks of by their inodes and that somebody had open.
	Hurt []OpenFile `json:"hurt"`
}

// SaidIn gives what the logs of evidence said.
func SaidIn(e *Evidence) Said {
	s := Said{Log: e.Log, Boots: e.Boots, Hurt: openFiles(e)}
	for _, gap := range e.Gaps {
		if gap.Part == PartLog || gap.Part == PartBoots {
			s.Gaps = append(s.Gaps, gap)
		}
	}
	return s
}

// log reads what was said of disks and file systems, and the boots that logs tell of.
func (g *gatherer) log(ctx context.Context) {
	var said Said
	switch {
	case g.o.Said != nil:
		said = *g.o.Said
	case !g.own(ctx, PartLog, "log.json", &said):
		g.logs(ctx)
		return
	}
	g.e.Log, g.e.Boots = said.Log, said.Boots
	g.named, g.hurtNames = true, said.Hurt
	g.e.Gaps = append(g.e.Gaps, said.Gaps...)
	if g.o.Said != nil {
		g.e.Log.HungSilent = g.hungSilent() // more was heard since
	}
}

// logs reads what was said.
func (g *gatherer) logs(ctx context.Context) {
	h := &g.e.Host
	l, err := logs.Read(ctx, g.t, logs.Options{Now: g.e.Now, Host: h.Name, MachineID: h.MachineID, BootID: h.BootID, Booted: h.Booted})
	if err != nil {
		return // ctx ended, and Gather with it
	}
	for _, gap := range l.Gaps {
		g.gap(PartLog, gap.Path, gap.Reason)
	}
	for _, s := range l.Sources {
		g.e.Log.Sources = append(g.e.Log.Sources, LogSource{Path: s.Path, From: s.From, To: s.To, Entries: s.Entries,
			Persistent: s.Persistent, Damage: s.Damage})
		if s.Damage != "" && s.Persistent {
			g.gap(PartLog, s.Path, s.Damage) // a ring that lost its beginning is usual
		}
		if from := &g.e.Log.From; !s.From.IsZero() && (from.IsZero() || s.From.Before(*from)) {
			*from = s.From
		}
		if s.To.After(g.e.Log.To) {
			g.e.Log.To = s.To
		}
	}
	if len(l.Sources) == 0 {
		reason := "there is neither a journal nor another log"
		if len(l.Gaps) > 0 {
			reason = "no log could be read"
		}
		g.gap(PartLog, "", reason)
	} else if !slices.ContainsFunc(l.Sources, func(s logs.Source) bool { return s.Entries > 0 }) {
		// Logs that were emptied do not tell that nothing happened.
		g.gap(PartLog, "", "the logs that are there have no entry")
	}
	own := cmp.Or(h.Name, mostHeard(l))
	for i := range l.Messages {
		g.e.Log.Events = append(g.e.Log.Events, event(&l.Messages[i], own))
	}
	g.e.Log.HungSilent = g.hungSilent()
	g.boots(l)
}

// Heard makes an event of a message that the kernel just wrote.
func Heard(m *logs.Message) Event { return event(m, "") }

// event makes a message an event.
func event(m *logs.Message, own string) Event {
	e := Event{Form: m.Form.Name, Fields: map[string]string{}, Time: m.Time, Exact: m.Exact, Boot: m.Boot, Host: m.Host,
		Text: m.Text, From: Source{Path: m.Path, Line: m.Line, Time: m.Time}, Count: m.Count, Last: m.Last}
	for _, f := range m.Fields {
		e.Fields[f.Name] = f.Value
	}
	if m.Program != "kernel" {
		e.Fields["program"] = m.Program
	}
	if logs.SameHost(m.Host, own) || m.Host == "localhost" {
		e.Host = ""
	}
	return e
}

// mostHeard is the host of which most is said in the logs of a machine whose name is not known.
func mostHeard(l *logs.Log) (name string) {
	count := map[string]int64{}
	for i := range l.Messages {
		m := &l.Messages[i]
		if count[m.Host] += m.Count; m.Host != "" && count[m.Host] > count[name] {
			name = m.Host
		}
	}
	return name
}

// hungSilent tells whether the kernel says no more that tasks hang: by its own count of how often it may
// still do so; or since it said that, or by how often it did in the newest boot.
func (g *gatherer) hungSilent() bool {
	limit := int64(hungWarnings)
	set, ok := g.e.Config.Sysctl["kernel.hung_task_warnings"]
	if n, err := strconv.ParseInt(set.Value, 10, 64); ok && err == nil {
		if strings.HasPrefix(set.From.Path, "/proc/") {
			return n == 0
		}
		limit = n
	}
	newest, count, silent := "", int64(0), false
	for i := range g.e.Log.Events {
		e := &g.e.Log.Events[i]
		switch e.Form {
		case "hung.silent":
			newest, silent = e.Boot, true
		case "hung.task":
			if e.Boot != newest {
				newest, count, silent = e.Boot, 0, false
			}
			count += e.Count
		case "kernel.boot":
			newest, count, silent = e.Boot, 0, false
		}
	}
	return silent || limit >= 0 && count >= max(limit, 1)
}
