// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/umount"
)

// AdviceSchema is the schema of an umount.Advice in JSON.
const AdviceSchema = "shisa.advice/1"

// Advice writes for people how those who look into a mount are kept from it.
func Advice(w io.Writer, a *umount.Advice, s Style) error {
	o := newOut(w, s)
	path := Name(a.Path)
	switch {
	case len(a.Cures) == 0 && len(a.Blind) > 0:
		o.prose("", "nobody was found to keep away from "+path+", and not all could be looked at")
	case len(a.Cures) == 0:
		o.prose("", "nobody to keep away from "+path+" was found: --pollers watches for some time who looks at it")
	default:
		o.prose("", "to keep them away from "+path+" for good:")
	}
	if !a.Mounted {
		o.prose("note: ", "nothing is mounted on "+path+" now, so nobody can hold it")
	}
	shown := false
	for i, c := range a.Cures {
		if i == maxCures && !o.s.All {
			o.line()
			o.line(fmt.Sprintf("... %s, --all shows them", Count(int64(len(a.Cures)-i), "more program", "more programs")))
			break
		}
		o.line()
		o.cure(&c)
		for _, way := range c.Ways {
			shown = shown || way.Kind == umount.WayDropin
		}
	}
	if shown {
		o.line()
		o.prose("", Text(a.Wrong)+".")
	}
	for i, b := range a.Blind {
		if i == 0 {
			o.line()
			o.line("not looked at:")
		}
		o.prose("  ", Text(b.What)+": "+Text(b.Reason))
	}
	return o.flush()
}

// maxCures bounds the programs that are listed without Style.All.
const maxCures = 20

// cure writes what to do about one program.
func (o *out) cure(c *umount.Cure) {
	p := c.Process
	of := []string{}
	for _, name := range []string{p.Machine, p.Container, p.UserUnit} {
		if name != "" {
			of = append(of, Text(name))
		}
	}
	if len(of) == 0 && p.Unit != "" {
		of = append(of, Text(p.Unit))
	}
	who := fmt.Sprintf("%s (%s)", Text(p.Comm), strings.Join(append([]string{fmt.Sprint(p.PID)}, of...), ", "))
	how := map[umount.How]string{
		umount.Polls: "looks at it every " + time.Duration(c.PeriodNS).Round(10*time.Millisecond).String(),
		umount.Holds: "holds it now",
		umount.Runs:  "was not seen there, and is known to look at every mount",
	}[c.How]
	o.prose("", o.paint(bold, who)+": "+how)
	for _, w := range c.Ways {
		word := map[umount.WayKind]string{
			umount.WayOption: "  own option: ", umount.WayDropin: "  drop-in: ", umount.WayUserDropin: "  drop-in: ", umount.WayPropagation: "  container: ",
			umount.WayNone: "  none: ",
		}[w.Kind]
		o.prose(word, Text(w.What))
		if w.File != "" {
			o.prose("    in ", Name(w.File))
		}
		for l := range strings.Lines(w.Text) {
			if !strings.HasPrefix(l, "#") {
				o.line("      ", Text(strings.TrimSuffix(l, "\n")))
			}
		}
		for i, command := range w.Commands {
			first := "    then "
			if i == 0 && w.Kind == umount.WayDropin {
				first = "    by   "
			}
			o.line(first, Text(command))
		}
	}
}
