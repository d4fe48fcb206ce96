// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/klog"
)

// Boot is one run of the machine.
type Boot struct {
	ID string // as journals write it, "" if not known
	// Began is the first sign of it, Last the last.
	Began, Last time.Time
	// Ran is how long it ran by the kernel's own clock, as far as that is known: 0 else.
	Ran time.Duration
	// End is "shutdown", "panic", "cut", "running" or "unknown".
	End string
	// LastUnit is the service that most likely asked for the end: that which ended first after it was
	// asked for, or else was started last before.
	LastUnit string
	// How is what the machine was told to do: "reboot", "poweroff", "halt", "kexec" or "soft-reboot"; "" where
	// no log tells of it.
	How string
	// Asked is the first sign of that, nil if there is none. Said is what units and people did before, and who
	// asked as far as it was told, the oldest first.
	Asked *Word
	Said  []Word
	// Watchdog is the line that tells of a watchdog which resets the machine, "" if none does.
	Watchdog string
	Jumps    []Jump
	Path     string
	// Exact: the times are.
	Exact bool
}

// Jump is a step of the clock of the day against the kernel's own.
type Jump struct {
	At     time.Time // the time after it
	By     time.Duration
	Asleep bool // the machine slept there, and so it is none
	Path   string
}

// Bounds: of boots that are kept, and of what is a step of the clock.
const (
	maxBoots = 4096
	maxJumps = 4096 // of all boots
	minJump  = time.Minute
)

// tracker finds the boots.
type tracker struct {
	byID  map[string]*boot
	texts marks
	// marks is how many there are of journals, since they were thinned last; jumps how many steps of the clock.
	marks, jumps int
	// logins are those of wtmp.
	logins []Boot
	end    time.Time // of all logs in text
}

// boot is a boot of the journal while it is read.
type boot struct {
	Boot
	marks  marks
	order  int           // of its first entry among those of other boots: the clock of the day may be wrong
	offset time.Duration // of the clock of the day, against the kernel's
	mono   time.Duration // of the last entry
	timed  bool
	// kernel: the kernel said something in it. first is the kernel's time of its first entry, journald that it
	// was of the journal's own program.
	kernel, journald bool
	first            time.Duration
}

func (t *tracker) boot(id string) *boot {
	if t.byID == nil {
		t.byID = map[string]*boot{}
	}
	b := t.byID[id]
	if b == nil && len(t.byID) < maxBoots {
		b = &boot{Boot: Boot{ID: id, Exact: true}, order: len(t.byID)}
		t.byID[id] = b
	}
	return b
}

// entry takes the times of any entry of a journal.
func (t *tracker) entry(b *boot, at time.Time, mono time.Duration, path, program string) {
	b.kernel = b.kernel || program == "kernel"
	if b.Began.IsZero() {
		b.first, b.journald = mono, klog.Program(program) == "systemd-journald"
	}
	if b.Began.IsZero() || at.Before(b.Began) {
		b.Began = at
	}
	if at.After(b.Last) {
		b.Last = at
	}
	b.Path, b.Ran = cmp.Or(b.Path, path), max(b.Ran, mono)
	offset := at.Sub(time.Unix(0, 0)) - mono
	if b.timed && mono >= b.mono {
		if d := offset - b.offset; d.Abs() > minJump && t.jumps < maxJumps {
			t.jumps++
			b.Jumps = append(b.Jumps, Jump{At: at, By: d.Round(time.Millisecond), Path: path})
		}
	}
	b.offset, b.mono, b.timed = offset, mono, true
}

// marked tells whether a form says something about the course of a boot.
func marked(form string) bool {
	kind, _, _ := strings.Cut(form, ".")
	return kind == "unit" || kind == "shutdown" || kind == "journal" || kind == "kernel" || kind == "machine"
}

func (t *tracker) text(m *Message, before, end time.Time) {
	if end.After(t.end) {
		t.end = end
	}
	if marked(m.Form.Name) {
		x := newMark(m, "")
		x.before = before
		t.texts.add(x)
	}
}

// mark takes a mark of a boot of the journal.
func (t *tracker) mark(b *boot, m mark) {
	b.marks.add(m)
	if t.marks++; t.marks < allMarks {
		return
	}
	t.marks = 0
	for _, b := range t.byID {
		b.marks.thin(fewDaily)
	}
}

// unitOf takes the name of a unit from "srv.mount - /srv".
func unitOf(s string) string {
	name, _, _ := strings.Cut(s, " - ")
	return name
}

// boots gives those that are known: of journals, or else of texts, or else of wtmp.
func (t *tracker) boots(running bool, current string) []Boot {
	out := t.fromJournals()
	if len(out) == 0 {
		out = t.fromTexts()
	}
	if len(out) == 0 {
		out = t.logins
	}
	if n := len(out); n > 0 && running {
		last := &out[n-1]
		i := slices.IndexFunc(out, func(b Boot) bool { return b.ID != "" && b.ID == plainID(current) })
		if i >= 0 {
			out[i].End = "running"
		} else if current == "" || last.ID == "" {
			last.End = "running"
		}
	}
	return out
}

// fromJournals gives the boots of journals in the order in which they were written.
func (t *tracker) fromJournals() []Boot {
	all := slices.Collect(maps.Values(t.byID))
	slices.SortFunc(all, func(a, b *boot) int { return cmp.Compare(a.order, b.order) })
	var out []Boot
	for _, b := range all {
		b.judge(b.marks.list)
		if !b.kernel && b.journald {
			b.Ran -= min(b.first, b.Ran) // a container: its kernel ran before
		}
		out = append(out, b.Boot)
	}
	return out
}

// fromTexts divides messages at the first one of each kernel.
func (t *tracker) fromTexts() []Boot {
	slices.SortStableFunc(t.texts.list, byTime)
	var out []Boot
	var marks []mark
	finish := func(last time.Time) {
		if n := len(out); n > 0 {
			b := boot{Boot: out[n-1]}
			b.Last = last
			for _, m := range marks {
				if m.at.After(b.Last) {
					b.Last = m.at
				}
			}
			b.judge(marks)
			out[n-1] = b.Boot
		}
		marks = nil
	}
	for _, m := range t.texts.list {
		if m.form == "kernel.boot" {
			if n := len(out); n > 0 && m.at.Sub(out[n-1].Began) <= apart {
				if n > 1 && m.before.After(out[n-2].Last) {
					out[n-2].Last = m.before
				}
				continue // in another log, too
			}
			finish(m.before)
			out = append(out, Boot{Began: m.at, Path: m.path, Exact: m.exact})
			continue
		}
		marks = append(marks, m)
	}
	finish(t.end)
	return out
}

// judge tells how a boot ended, and what was started last before.
func (b *boot) judge(marks []mark) {
	slices.SortStableFunc(marks, byTime)
	b.End = "cut"
	b.unique()
	var up rising
	for _, m := range marks {
		switch m.form {
		case "kernel.panic":
			b.End = "panic"
		case "unit.starting", "unit.started":
			up.start(m)
		case "shutdown.request", "shutdown.forced":
			up.ask()
		case "unit.failed":
			up.end(m)
		case "unit.stopped":
			up.end(m)
			up.down = up.down || goesDown(m.unit)
		case "unit.reached":
			up.down = up.down && !goesUp(m.unit)
			if ends(m.unit) {
				up.down, b.End = true, "shutdown"
			}
		case "journal.started":
			if b.End == "shutdown" {
				up, b.End = rising{}, "cut" // so far it was the system that finds the root file system
			}
		case "shutdown.begun", "shutdown.final", "journal.stopped", "kernel.reboot":
			if b.End != "panic" {
				up.down, b.End = true, "shutdown"
			}
		case "kernel.suspend", "kernel.resume", "machine.suspended":
			b.asleep(m.at)
		}
	}
	b.LastUnit = up.last()
	b.course(marks)
}

// rising is what systemd starts before it shuts down.
type rising struct {
	// asked: somebody asked the machine to go down; down: it does.
	asked, down bool
	// there are the services that were up or coming up then, and ended is the first of them that ended after
	// that: who asks does so by a program that ends then.
	there []string
	ended string
	// starting are services that are not up yet, started those that are; the newest last.
	starting, started []string
}

// ask takes that somebody asks the machine to go down.
func (u *rising) ask() {
	u.asked, u.down = true, true
	u.there = slices.Concat(u.starting, u.started)
}

func (u *rising) start(m mark) {
	if u.down || m.unit == "" || aside(m.unit) {
		return
	}
	// Each list has a service once: those that come again and again push nobody out.
	of := func(unit string) bool { return unit == m.unit }
	u.starting = slices.DeleteFunc(u.starting, of)
	to := &u.started
	if m.form == "unit.starting" {
		to = &u.starting
	} else {
		u.started = slices.DeleteFunc(u.started, of)
	}
	if *to = append(*to, m.unit); len(*to) > maxStarting {
		*to = (*to)[1:]
	}
}

// end takes a service that ended.
func (u *rising) end(m mark) {
	if u.asked && u.ended == "" && slices.Contains(u.there, m.unit) {
		u.ended = m.unit
	}
}

// maxStarting bounds how many services are remembered.
const maxStarting = 64

// last is the service that ended first after the machine was asked to go down; else one that was about
// to start then, else the last that had.
func (u *rising) last() string {
	if u.ended != "" {
		return u.ended
	}
	all := u.started
	if len(u.starting) > 0 {
		all = u.starting
	}
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1]
}

// aside tells of what comes up with any request to shut down, or with a login, and asks for nothing
// itself: by its name, or by the description that older logs have.
func aside(unit string) bool {
	if i := strings.LastIndexByte(unit, '.'); i >= 0 && !strings.ContainsRune(unit, ' ') {
		switch unit[i:] {
		case ".target", ".slice", ".scope", ".socket", ".mount", ".timer", ".path", ".device", ".swap", ".automount":
			return true
		}
	}
	for _, p := range []string{"systemd-", "dbus", "polkit", "user@", "user-runtime-dir@", "getty@", "serial-getty@",
		"console-getty", "plymouth-", "Session ", "User Manager", "User Runtime", "Login Service", "User Login", "D-Bus",
		"Authorization Manager", "Getty on", "Serial Getty", "Show Plymouth", "Update UTMP", "Create list of", "Permit User"} {
		if strings.HasPrefix(unit, p) {
			return true
		}
	}
	return false
}

// goesUp tells of targets that are reached on the way up.
func goesUp(unit string) bool {
	switch unit {
	case "sysinit.target", "basic.target", "multi-user.target", "System Initialization", "Basic System", "Multi-User System":
		return true
	}
	return false
}

// unique leaves out steps that were seen more than once, as when a journal was gone through for one kind
// of entries after the other.
func (b *boot) unique() {
	var out []Jump
	for _, j := range b.Jumps {
		again := slices.ContainsFunc(out, func(k Jump) bool {
			return (j.By-k.By).Abs() < minJump && j.At.Sub(k.At) < time.Hour
		})
		if !again {
			out = append(out, j)
		}
	}
	b.Jumps = out
}

// asleep marks the steps of the clock that sleep explains.
func (b *boot) asleep(at time.Time) {
	for i := range b.Jumps {
		j := &b.Jumps[i]
		before := j.At.Add(-j.By)
		if j.By > 0 && !at.Before(before.Add(-5*time.Minute)) && !at.After(j.At.Add(5*time.Minute)) {
			j.Asleep = true
		}
	}
}

// goesDown tells of a target that is stopped first when a machine is shut down.
func goesDown(unit string) bool {
	switch unit {
	case "multi-user.target", "graphical.target", "timers.target", "Multi-User System", "Graphical Interface",
		"Timers", "Timer Units":
		return true
	}
	return false
}

// ends tells of a target that ends a boot, by its name or the description that older systemd writes.
func ends(unit string) bool {
	switch unit {
	case "shutdown.target", "reboot.target", "poweroff.target", "halt.target", "kexec.target", "final.target",
		"Shutdown", "Reboot", "Power-Off", "Halt", "Final Step", "System Reboot", "System Shutdown",
		"System Power Off", "System Halt", "Late Shutdown Services":
		return true
	}
	return false
}
