// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"strings"

	"github.com/shisa-vm/shisa/internal/linux/logs"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// saidBoots is of how many boots, the newest, it is kept what was said before they ended.
const saidBoots = 256

// boots takes the boots that logs tell of, and the one that goes on.
func (g *gatherer) boots(l *logs.Log) {
	running := false
	for i := range l.Boots {
		b := &l.Boots[i]
		boot := Boot{ID: b.ID, Began: b.Began, Last: b.Last, Ran: b.Ran, End: b.End, LastUnit: b.LastUnit,
			How: b.How, Watchdog: b.Watchdog, From: Source{Path: b.Path, Time: b.Began}}
		if b.Asked != nil {
			w := word(b.Asked)
			boot.Asked = &w
		}
		for j := range b.Said {
			if len(l.Boots)-i <= saidBoots {
				boot.Said = append(boot.Said, word(&b.Said[j]))
			}
		}
		for _, j := range b.Jumps {
			boot.Jumps = append(boot.Jumps, Jump{At: j.At, By: j.By, Asleep: j.Asleep, From: Source{Path: j.Path, Time: j.At}})
		}
		running = running || b.End == "running"
		g.e.Boots = append(g.e.Boots, boot)
	}
	h := &g.e.Host
	alive := g.t.Kind() == tree.Live || g.t.Kind() == tree.Bundle
	if alive && !running && !h.Booted.IsZero() {
		g.e.Boots = append(g.e.Boots, Boot{ID: strings.ReplaceAll(h.BootID, "-", ""), Began: h.Booted, Last: g.e.Now,
			End: "running", From: Source{Path: "/proc/stat", Time: h.Booted}})
	}
	for i := range g.e.Boots {
		if b := &g.e.Boots[i]; alive && b.End == "running" && g.e.Now.After(b.Last) {
			b.Last, b.Ran = g.e.Now, max(b.Ran, g.e.Now.Sub(h.Booted))
			if h.Booted.IsZero() {
				b.Ran = 0
			}
		}
	}
	if len(g.e.Boots) == 0 {
		g.gap(PartBoots, "", "no journal, syslog or wtmp tells of a boot")
	}
}

func word(w *logs.Word) Word {
	return Word{Form: w.Form, Unit: w.Unit, Text: w.Text, From: Source{Path: w.Path, Line: w.Line, Time: w.At}}
}
