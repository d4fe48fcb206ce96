// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// Stop is how a machine is started once without what takes it down.
type Stop struct {
	// Arguments are added to the kernel's command line.
	Arguments []string `json:"arguments"`
	// Loader is the boot loader that was found, "" if none was; Menu the steps that lead to its editor.
	Loader string   `json:"loader"`
	Menu   []string `json:"menu"`
}

// Break is another unit that does without one that is masked.
type Break struct {
	Unit string `json:"unit"`
	// Masked is the unit that it names, By the setting by which it does, Effect what becomes of it.
	Masked string `json:"masked"`
	By     string `json:"by"`
	Effect string `json:"effect"`
	Path   string `json:"path"`
	Line   int    `json:"line"`
}

// Suspect is another unit that takes the machine down.
type Suspect struct {
	Unit  string      `json:"unit"`
	Does  string      `json:"does"`
	If    string      `json:"if"`
	Chain []BlameStep `json:"chain"`
	Doubt string      `json:"doubt"`
}

// explain adds to a blame what files say of the unit.
func (c *courts) explain(b *Blame, act *units.Act) {
	b.Chain, b.Started, b.Masks = []BlameStep{}, []BlameStep{}, []string{}
	if act != nil {
		b.Does, b.If, b.Chain = act.What, act.If, steps(act.Chain)
	}
	if b.Unit == "" {
		return
	}
	b.Masks = append(b.Masks, b.Unit)
	if c.e.Units == nil {
		if service, ok := strings.CutSuffix(b.Unit, ".service"); ok {
			b.Masks = append(b.Masks, service+".timer")
		}
		return
	}
	b.Masks = append(b.Masks, c.starters[b.Unit]...)
	for _, s := range c.reached()[b.Unit] {
		b.Started = append(b.Started, BlameStep{Text: s.From + " starts " + s.To + " by " + s.By, Path: s.Source.Path,
			Line: s.Source.Line})
	}
}

func steps(chain []units.Step) []BlameStep {
	out := []BlameStep{}
	for _, s := range chain {
		out = append(out, BlameStep{s.Text, s.From.Path, s.From.Line})
	}
	return out
}

// reached is what the default target starts.
func (c *courts) reached() map[string][]units.Start {
	if c.e.Units == nil {
		return nil
	}
	return c.e.Units.Reached(cmp.Or(c.e.Units.Default, "default.target"))
}

// dangerous are the units that are started at the next start, at once or by something that waits for a time or an
// event, and take the machine down then.
func (c *courts) dangerous() (all []Suspect) {
	reached := c.reached()
	for _, u := range c.e.Units.Units {
		started, sure, doubt := false, false, ""
		for _, by := range append([]string{u.Name}, c.starters[u.Name]...) {
			if chain := reached[by]; chain != nil {
				why := units.DoubtOf(chain)
				started, sure, doubt = true, sure || why == "", cmp.Or(doubt, why)
			}
		}
		if sure {
			doubt = ""
		}
		if !started || u.State != units.Loaded {
			continue
		}
		for _, a := range c.actsOf(u.Name) {
			if a.If == "" && a.At == "" && !a.Again && a.Delay < shortBoot && len(a.Guards) == 0 {
				all = append(all, Suspect{Unit: u.Name, Does: a.What, If: a.If, Chain: steps(a.Chain),
					Doubt: cmp.Or(a.Doubt, doubt)})
				break
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Suspect) int {
		return cmp.Compare(len(reached[b.Unit]), len(reached[a.Unit])) // those that no timer is needed for first
	})
	return all
}

// byFiles blames the unit that takes the machine down by its own files, where no log tells who did.
func (c *courts) byFiles(of int) *Blame {
	if c.e.Units == nil {
		return nil
	}
	all := c.dangerous()
	if len(all) == 0 || all[0].Doubt != "" {
		return nil
	}
	b := &Blame{Kind: ByUnit, Unit: all[0].Unit, Who: all[0].Unit, Of: of, Evidence: []Fact{}}
	var act *units.Act
	if acts := c.actsOf(b.Unit); len(acts) > 0 {
		act = c.act(b.Unit, false)
	}
	c.explain(b, act)
	return b
}

// also are others that take the machine down at its next start, without waiting for a timer.
func (c *courts) also(b *Blame) []Suspect {
	out := []Suspect{}
	if c.e.Units == nil {
		return out
	}
	reached := c.reached()
	for _, s := range c.dangerous() {
		if reached[s.Unit] != nil && (b == nil || !slices.Contains(b.Masks, s.Unit)) {
			out = append(out, s)
		}
	}
	return out
}

// breaks are the units that do without masked ones.
func (c *courts) breaks(masks []string) []Break {
	out := []Break{}
	if c.e.Units == nil {
		return out
	}
	effects := [][2]string{
		{"Requires", "it is not started"}, {"Requisite", "it is not started"}, {"BindsTo", "it is not started"},
		{"Wants", "it is started without it"}, {"Upholds", "it is started without it"},
		{"After", "it no longer waits for it"}, {"OnFailure", "it is not started when that fails"},
		{"OnSuccess", "it is not started when that succeeds"}, {"Sockets", "it is started without it"},
	}
	for _, u := range c.e.Units.Units {
		if u.State != units.Loaded || slices.Contains(masks, u.Name) {
			continue
		}
		for _, x := range effects {
			section := "Unit"
			if x[0] == "Sockets" {
				section = "Service"
			}
			for _, s := range u.All(section, x[0]) {
				for name := range strings.FieldsSeq(s.Value) {
					if m := c.canonical(name); slices.Contains(masks, m) {
						out = append(out, Break{u.Name, m, x[0] + "=", x[1], s.From.Path, s.From.Line})
					}
				}
			}
		}
		for _, l := range u.Links {
			if m := c.canonical(l.To); slices.Contains(masks, m) {
				effect := "it is started without it"
				if strings.HasPrefix(l.By, "requires") {
					effect = "it is not started"
				}
				out = append(out, Break{u.Name, m, l.By, effect, l.Source.Path, l.Source.Line})
			}
		}
	}
	return out[:min(len(out), maxBreaks)]
}

// maxBreaks bounds what is listed.
const maxBreaks = 200

// stop tells how the machine is started without what takes it down.
func (c *courts) stop(b *Blame) *Stop {
	s := &Stop{Arguments: []string{}, Loader: c.e.Menu.Loader, Menu: menuSteps(&c.e.Menu)}
	for _, m := range b.Masks {
		s.Arguments = append(s.Arguments, "systemd.mask="+m)
	}
	if s.Loader == "grub" && strings.Contains(strings.Join(s.Arguments, ""), `\`) {
		// GRUB manual 2.06, "Shell-like scripting", Quoting.
		s.Menu = append(s.Menu, `GRUB takes a backslash for itself: type \\ for each \`)
	}
	s.Menu = append(s.Menu, "the next start is as before: nothing on the disk is changed")
	return s
}

// menuSteps lead to the kernel's command line.
func menuSteps(m *evidence.BootMenu) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if m.Serial != "" {
		say("the menu is on the serial line too (%s): virsh console GUEST, or the serial console of the cloud", m.Serial)
	} else if m.Loader != "" {
		say("open the screen of the machine (virt-viewer, VNC, the console of the cloud): the menu is not on a serial line")
	}
	switch m.Loader {
	case "grub":
		grubSteps(m, say)
	case "systemd-boot":
		if m.NoEditor {
			say("the editor of systemd-boot is switched off (%s): change that on the disk, or start from another disk", m.From.Path)
			break
		}
		if m.Hidden {
			say("hold the space bar while the machine starts: systemd-boot shows no menu by itself")
		}
		say("press e on the entry, add the arguments at the end of the line, press Enter")
	case "extlinux":
		if m.NoEditor {
			say("the menu of EXTLINUX does not let its entries be changed (%s)", m.From.Path)
			break
		}
		say("hold Shift while the machine starts, press Tab on the entry, add the arguments, press Enter")
	default:
		switch {
		case m.Unread != "":
			say("how to get at the command line is not known: %s", m.Unread)
		case m.Apart:
			say("how to get at the command line is not known: /boot lies on a file system that was not read")
		default:
			say("no boot loader was found: where the hypervisor loads the kernel, add the arguments there " +
				"(<cmdline> in virsh edit, -append of QEMU)")
		}
		say("with GRUB it is: Shift or Esc while the machine starts, e on the entry, the arguments at the end of the line " +
			"that begins with linux, Ctrl-X")
	}
	return out
}

// grubSteps lead to GRUB's editor: GRUB manual 2.06, "The menu interface"; which keys show a hidden menu is in "Simple
// configuration handling", GRUB_TIMEOUT_STYLE.
func grubSteps(m *evidence.BootMenu, say func(string, ...any)) {
	switch {
	case m.Set && m.Timeout < 0:
		say("the menu waits until a key is pressed")
	case m.Set && m.Timeout == 0 || m.Hidden:
		say("the menu is not shown by itself (%s): hold Shift (BIOS) or press Esc again and again (UEFI, serial line) from the "+
			"moment the machine starts", m.From.Path)
	case m.Set:
		say("the menu waits for %d s: press an arrow key in that time", m.Timeout)
	default:
		say("how long the menu waits is not known: hold Shift (BIOS) or press Esc (UEFI, serial line) while the machine starts")
	}
	if m.Locked {
		say("the menu asks for a name and a password before it lets an entry be changed (superusers in %s)", m.From.Path)
	}
	say("press e on the first entry, go to the line that begins with linux, add the arguments at its end, press Ctrl-X or F10")
}
