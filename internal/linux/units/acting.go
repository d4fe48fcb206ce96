// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"context"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/calendar"
)

// acting goes through the programs that act on the machine or on units, and on files that decide something.
func (r *runner) acting(ctx context.Context, p place, base string, words []string) (Truth, bool) {
	switch base {
	case "systemctl":
		return r.systemctl(ctx, p, words[1:]), true
	case "loginctl":
		for _, w := range words[1:] {
			if what := verbs(w); what != "" {
				r.act(p, what)
			}
		}
	case "reboot", "poweroff", "halt":
		r.reboot(p, base, words[1:])
	case "shutdown":
		r.shutdown(p, words[1:])
	case "init", "telinit":
		switch words[len(words)-1] {
		case "6":
			r.act(p, Reboot)
		case "0":
			r.act(p, PowerOff)
		}
	case "kexec":
		if slices.Contains(words, "-e") || slices.Contains(words, "--exec") {
			r.act(p, Kexec)
		}
	case "rtcwake":
		if i := slices.Index(words, "-m"); i > 0 && i+1 < len(words) && words[i+1] == "off" {
			r.act(p, PowerOff)
		}
	case "busctl", "dbus-send", "gdbus", "qdbus":
		r.bus(p, words[1:])
	case "ipmitool":
		for i, w := range words {
			if (w == "power" || w == "chassis") && i+1 < len(words) {
				switch words[len(words)-1] {
				case "cycle", "reset":
					r.act(p, Reboot)
				case "off", "soft":
					r.act(p, PowerOff)
				}
				break
			}
		}
	case "touch", "mkdir", "tee", "mkfifo":
		for _, w := range past(words[1:], "dtrm", false) {
			r.file(p, w, Yes)
		}
	case "install", "cp", "mv", "ln":
		if rest := past(words[1:], "mogtS", false); len(rest) > 1 {
			r.file(p, rest[len(rest)-1], Yes)
			if base == "mv" {
				r.file(p, rest[0], No)
			}
		}
	case "rm", "unlink", "rmdir":
		for _, w := range past(words[1:], "", false) {
			r.file(p, w, No)
		}
	case "test", "[":
		return r.test(ctx, "", words[1:]), true
	default:
		return Maybe, false
	}
	return Yes, true
}

// file notes that a file is made or removed. Without the links that start it a unit disarms itself.
func (r *runner) file(p place, name string, there Truth) {
	if p.way == No || !path.IsAbs(name) || strings.ContainsAny(name, unknown+"*?[") {
		return
	}
	name = path.Clean(name)
	r.set(p.way, name, there)
	for _, dir := range r.dirs {
		rest, in := strings.CutPrefix(name, dir+"/")
		if there == No && in && valid(path.Base(rest)) && p.way == Yes && !volatile(name) {
			r.disarm(path.Base(rest), p)
		}
	}
}

func (r *runner) disarm(unit string, p place) {
	if p.way != Yes {
		return
	}
	if u := r.byName[unit]; u != nil {
		unit = u.Name
	}
	if len(p.chain) > 0 {
		r.disarmed[unit] = p.chain[len(p.chain)-1].From
	}
}

// reboot reads halt(8).
func (r *runner) reboot(p place, what string, words []string) {
	for _, w := range words {
		switch {
		case w == "--help" || w == "-w" || w == "--wtmp-only" || w == "--version":
			return
		case w == "--halt":
			what = Halt
		case w == "--poweroff" || w == "-p" && what == Halt:
			what = PowerOff
		case w == "--reboot":
			what = Reboot
		case len(w) > 2 && w[0] == '-' && w[1] != '-' && strings.Contains(w, "w"):
			return
		case len(w) > 2 && w[0] == '-' && w[1] != '-' && strings.Contains(w, "p") && what == Halt:
			what = PowerOff
		}
	}
	r.act(p, what)
}

// shutdown reads shutdown(8).
func (r *runner) shutdown(p place, words []string) {
	what, when := PowerOff, ""
	for i := 0; i < len(words); i++ {
		w := words[i]
		switch {
		case w == "--halt":
			what = Halt
		case w == "--poweroff":
			what = PowerOff
		case w == "--reboot":
			what = Reboot
		case w == "--help" || w == "--show" || w == "--version":
			return
		case w == "-t" || w == "-g" && i+1 < len(words):
			i++
		case len(w) > 1 && w[0] == '-' && w[1] != '-':
			for _, c := range w[1:] {
				switch c {
				case 'r':
					what = Reboot
				case 'H':
					what = Halt
				case 'P', 'h':
					what = PowerOff
				case 'c', 'k':
					return // takes one back, or only warns
				}
			}
		case when == "" && w[0:min(1, len(w))] != "-":
			when = w
		}
	}
	p.time(when)
	r.act(p, what)
}

// time reads when a shutdown is to be: "now", "+5", "5", "03:30"; a minute from now if nothing is said.
func (p *place) time(when string) {
	minutes, err := strconv.Atoi(strings.TrimPrefix(when, "+"))
	long, later := calendar.ParseSpan(strings.TrimPrefix(when, "+"))
	switch {
	case when == "now":
	case when == "":
		p.delay += time.Minute
	case err == nil && minutes >= 0 && minutes < 1<<24:
		p.delay += time.Duration(minutes) * time.Minute
	case when[0] == '+' && later == nil:
		p.delay += long
	case strings.Contains(when, ":"):
		p.at = shown([]string{when})
	default:
		p.way, p.why = Maybe, "when it is to be is not known"
	}
}

// targets are the units whose start acts on the machine (systemd.special(7)).
func targetOf(name string) string {
	if !strings.Contains(name, ".") {
		return ""
	}
	switch name {
	case "reboot.target", "runlevel6.target", "ctrl-alt-del.target", "systemd-reboot.service":
		return Reboot
	case "poweroff.target", "runlevel0.target", "systemd-poweroff.service":
		return PowerOff
	case "halt.target", "systemd-halt.service":
		return Halt
	case "kexec.target", "systemd-kexec.service":
		return Kexec
	case "soft-reboot.target", "systemd-soft-reboot.service":
		return SoftReboot
	case "exit.target", "systemd-exit.service":
		return Exits
	}
	return ""
}

// systemctl reads systemctl(1).
func (r *runner) systemctl(ctx context.Context, p place, words []string) Truth {
	var plain []string
	now := false
	for i := 0; i < len(words); i++ {
		name, value, has := strings.Cut(words[i], "=")
		takes := slices.Contains([]string{"-t", "--type", "--state", "-p", "--property", "-P", "-o", "--output", "-n",
			"--lines", "-s", "--signal", "--job-mode", "--kill-who", "--kill-whom", "--root", "--image", "--message",
			"--boot-loader-menu", "--boot-loader-entry", "--reboot-argument", "--what", "--preset-mode", "--check-inhibitors",
			"--timestamp", "--when", "-H", "--host", "-M", "--machine"}, name)
		if takes && !has && i+1 < len(words) {
			i++
			value = words[i]
		}
		switch name {
		case "-H", "--host", "-M", "--machine", "--root", "--image", "--help", "-h", "--version", "--dry-run", "--user":
			return Maybe // another machine, other files, or nothing at all
		case "--when":
			if p.time(value); value == "cancel" || value == "show" {
				return Maybe
			}
		case "--now":
			now = true
		}
		if name == "" || name[0] != '-' {
			plain = append(plain, words[i])
		}
	}
	if len(plain) == 0 {
		return Maybe
	}
	if what := verbs(plain[0]); what != "" {
		r.act(p, what)
		return Yes
	}
	switch plain[0] {
	case "start", "restart", "reload-or-restart", "isolate", "default":
		for _, name := range plain[1:] {
			r.started(ctx, p, name)
		}
		return Yes
	case "enable", "reenable":
		if now {
			for _, name := range plain[1:] {
				r.started(ctx, p, name)
			}
		}
		return Yes
	case "disable", "mask":
		for _, name := range plain[1:] {
			r.disarm(completed(name), p)
		}
		return Yes
	case "is-active", "is-enabled", "is-failed", "is-system-running", "status", "show", "cat":
		return Maybe
	}
	return Maybe
}

// completed gives the name of a unit that systemctl takes: "foo" is foo.service.
func completed(name string) string {
	if typeOf(name) == "" {
		return name + ".service"
	}
	return name
}

// started goes through the unit that a command starts.
func (r *runner) started(ctx context.Context, p place, name string) {
	name = completed(name)
	if u := r.byName[name]; u != nil {
		name = u.Name
	}
	if what := targetOf(name); what != "" {
		r.act(p, what)
		return
	}
	if p.way == No || !valid(name) {
		return
	}
	r.starting = append(r.starting, started{name: name, at: p})
}

// started is a unit that a command starts.
type started struct {
	name   string
	at     place
	guards []Guard
}

// bus reads calls of the bus: Reboot, PowerOff, Halt and KExec of logind and of systemd, and starts of targets.
func (r *runner) bus(p place, words []string) {
	text := strings.Join(words, " ")
	if !strings.Contains(text, "login1") && !strings.Contains(text, "systemd1") {
		return
	}
	for _, w := range words {
		last := w[strings.LastIndexByte(w, '.')+1:]
		switch last {
		case "Reboot", "RebootWithFlags":
			r.act(p, Reboot)
		case "PowerOff", "PowerOffWithFlags":
			r.act(p, PowerOff)
		case "Halt", "HaltWithFlags":
			r.act(p, Halt)
		case "KExec":
			r.act(p, Kexec)
		case "SoftReboot":
			r.act(p, SoftReboot)
		}
		name := strings.Trim(w[strings.LastIndexByte(w, ':')+1:], `"'`)
		if what := targetOf(name); what != "" && strings.Contains(text, "StartUnit") {
			r.act(p, what)
		}
	}
}
