// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"strings"
	"time"
)

// Word is a message that tells of the course of a boot.
type Word struct {
	At time.Time
	// Form is the name of its form in package klog. Unit is the unit that it is about, or the session.
	Form, Unit string
	Text       string
	Path       string
	Line       int // 0 in a journal
	Exact      bool
}

// Bounds of what is kept of a boot's course: the services that were started last, those that failed last, and
// what people did; and of each message, in bytes.
const (
	maxStarts = 32
	maxFailed = 16
	maxPeople = 8
	maxSaid   = 240
)

func (m *mark) word() Word {
	return Word{At: m.at, Form: m.form, Unit: m.unit, Text: m.said, Path: m.path, Line: m.line, Exact: m.exact}
}

// asks tells of what says outright that the machine is to go down.
func (m *mark) asks() bool {
	switch m.form {
	case "shutdown.request", "shutdown.caller", "shutdown.forced", "shutdown.watchdog":
		return true
	}
	return false
}

// people tells of what somebody does, not a unit.
func (m *mark) people() bool {
	switch m.form {
	case "machine.session", "machine.sessionend":
		return true
	}
	return m.form == "machine.sudo" && how(m.said) != ""
}

// how tells what a message wants of the machine.
func how(text string) string {
	text = strings.ToLower(text)
	for _, w := range []struct{ sign, how string }{
		{"kexec", "kexec"}, {"soft-reboot", "soft-reboot"}, {"soft reboot", "soft-reboot"}, {"reboot", "reboot"},
		{"restarting", "reboot"}, {"power off", "poweroff"}, {"power-off", "poweroff"}, {"poweroff", "poweroff"},
		{"powering", "poweroff"}, {"power down", "poweroff"}, {"power key", "poweroff"}, {"halt", "halt"},
		{"shutdown -r", "reboot"}, {"shutdown", "poweroff"}, {"init 6", "reboot"}, {"init 0", "poweroff"},
	} {
		if strings.Contains(text, w.sign) {
			return w.how
		}
	}
	return ""
}

// course finds out what the machine was told to do, and what was so before.
func (b *boot) course(marks []mark) {
	b.How, b.Asked, b.Said, b.Watchdog = "", nil, nil, ""
	var asked *mark
	at := len(marks)
	outright := false
	for i := range marks {
		m := &marks[i]
		switch {
		case m.asks():
			if asked == nil {
				asked, at = m, i
			}
			outright = true
			if h := how(m.said); h != "" {
				b.How = h
			}
		case m.form == "unit.stopped" && goesDown(m.unit) || m.form == "shutdown.begun" || m.form == "kernel.reboot":
			if asked == nil {
				asked, at = m, i
			}
			if m.form != "unit.stopped" {
				b.tell(how(m.said))
			}
		case m.form == "shutdown.final":
			b.tell(how(m.said))
		case m.form == "unit.reached" && goesUp(m.unit) && !outright, m.form == "journal.started" && !outright:
			asked, at, b.How = nil, len(marks), "" // so far it was the system that finds the root file system
		case m.form == "unit.reached" && ends(m.unit):
			switch m.unit {
			case "shutdown.target", "final.target", "Shutdown", "System Shutdown", "Final Step", "Late Shutdown Services":
			default:
				b.How = how(m.unit)
			}
		case m.form == "machine.watchdog":
			b.Watchdog = m.said
		}
	}
	if asked != nil {
		w := asked.word()
		b.Asked = &w
	}
	b.said(marks, at)
}

// tell takes what the machine was told to do, unless it is known better.
func (b *boot) tell(how string) {
	if b.How == "" {
		b.How = how
	}
}

// said keeps what units and people did before the machine was asked to go down, which it was by the mark
// at, and who asked.
func (b *boot) said(marks []mark, at int) {
	kept := make([]bool, at)
	keepLate(marks[:at], kept, maxStarts)
	starts, seen := 0, map[string]bool{}
	for i := at - 1; i >= 0 && starts < maxStarts; i-- {
		m := &marks[i]
		if (m.form == "unit.starting" || m.form == "unit.started") && m.unit != "" && !aside(m.unit) && !seen[m.unit] {
			seen[m.unit], kept[i] = true, true
			starts++
		}
	}
	for i := range kept {
		if kept[i] {
			b.Said = append(b.Said, marks[i].word())
		}
	}
	for i := at; i < len(marks) && len(b.Said) < 4*maxStarts; i++ {
		if m := &marks[i]; m.asks() {
			b.Said = append(b.Said, m.word())
		}
	}
}

// keepLate marks what is kept of a run of marks besides those of starts: the last failure of each service, and the
// last of what people did; no more than keep of each.
func keepLate(run []mark, kept []bool, keep int) {
	failed, people := map[string]bool{}, 0
	for i := len(run) - 1; i >= 0; i-- {
		switch m := &run[i]; {
		case m.form == "unit.failed" && !failed[m.unit] && !aside(m.unit) && len(failed) < min(keep, maxFailed):
			failed[m.unit], kept[i] = true, true
		case m.people() && people < min(keep, maxPeople):
			kept[i] = true
			people++
		}
	}
}
