// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/calendar"
)

// refused says why systemd does not take a unit whose files it could read, "" if it does (service_verify(),
// timer_verify() and so on in src/core).
func refused(u *Unit) string {
	switch u.Type() {
	case "service":
		return refusedService(u)
	case "timer":
		if len(u.Elapses()) == 0 {
			return "it lacks a time"
		}
	case "path":
		return lacksAll(u, "PathExists", "PathExistsGlob", "PathChanged", "PathModified", "DirectoryNotEmpty")
	case "socket":
		return lacksAll(u, "ListenStream", "ListenDatagram", "ListenSequentialPacket", "ListenFIFO", "ListenSpecial",
			"ListenNetlink", "ListenMessageQueue", "ListenUSBFunction")
	}
	return ""
}

// broken gives the index of the first setting of a command that systemd does not understand, after which it reads
// no more of the file; -1 if there is none.
func broken(u *Unit, all []Setting) int {
	return slices.IndexFunc(all, func(s Setting) bool {
		if s.Section != u.Section() || !isExec(s.Key) {
			return false
		}
		_, bad := commands(s)
		return bad
	})
}

// lacksAll tells of a unit that has none of some settings of its type.
func lacksAll(u *Unit, keys ...string) string {
	for _, key := range keys {
		if len(u.All(u.Section(), key)) > 0 {
			return ""
		}
	}
	return "it has none of " + strings.Join(keys, "=, ") + "="
}

func isExec(key string) bool {
	return slices.Contains(execKeys(), key) || key == "ExecCondition"
}

// execKeys are the settings whose commands are run, in the order in which they are.
func execKeys() []string {
	return []string{"ExecStartPre", "ExecStart", "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPre", "ExecStopPost"}
}

func refusedService(u *Unit) string {
	last := func(key string) string {
		s, _ := u.Last("Service", key)
		return s.Value
	}
	start, stop := u.commands("ExecStart"), u.commands("ExecStop")
	success, _ := u.Last("Unit", "SuccessAction")
	acts := success.Value != "" && success.Value != "none"
	kind := last("Type")
	if kind == "" {
		switch {
		case last("BusName") != "":
			kind = "dbus"
		case len(start) > 0:
			kind = "simple"
		default:
			kind = "oneshot"
		}
	}
	switch {
	case len(start) == 0 && len(stop) == 0 && !acts:
		return "it has no ExecStart=, ExecStop=, or SuccessAction="
	case kind != "oneshot" && len(start) == 0:
		return "it has no ExecStart="
	case !isTrue(last("RemainAfterExit")) && len(start) == 0 && !acts:
		return "it has no ExecStart=, and not RemainAfterExit=yes"
	case kind != "oneshot" && len(start) > 1:
		return "it has several ExecStart=, which only Type=oneshot may"
	case kind == "oneshot" && slices.Contains([]string{"always", "on-success"}, last("Restart")):
		return "it has Restart=" + last("Restart") + ", which Type=oneshot may not"
	case kind == "dbus" && last("BusName") == "":
		return "it has Type=dbus and no BusName="
	}
	return ""
}

// Elapses gives the settings by which a timer elapses, in their order. An empty one of any of them takes all
// before it back (config_parse_timer()).
func (u *Unit) Elapses() []Setting {
	var all []Setting
	for _, s := range u.Settings {
		if s.Section != "Timer" || !slices.Contains(timerKeys(), s.Key) {
			continue
		}
		if s.Value == "" {
			all = nil
		} else {
			all = append(all, s)
		}
	}
	return all
}

// Counts tells whether a timer has a setting among those by which it elapses.
func (u *Unit) Counts(key string) bool {
	return slices.ContainsFunc(u.Elapses(), func(s Setting) bool { return s.Key == key })
}

// Elapse is a time after the start of the machine at which a timer elapses.
type Elapse struct {
	After time.Duration
	By    Setting
}

// Soonest gives when a timer elapses first after each start, however the clock is. ok is false for one that goes by
// the calendar alone.
func (u *Unit) Soonest() (first Elapse, ok bool) {
	for _, s := range u.Elapses() {
		switch s.Key {
		case "OnBootSec", "OnStartupSec", "OnActiveSec":
			d, err := calendar.ParseSpan(s.Value)
			if err != nil {
				continue // systemd ignores it
			}
			if !ok || d < first.After {
				first, ok = Elapse{d, s}, true
			}
		}
	}
	return first, ok
}

func timerKeys() []string {
	return []string{"OnActiveSec", "OnBootSec", "OnStartupSec", "OnUnitActiveSec", "OnUnitInactiveSec", "OnCalendar",
		"OnClockChange", "OnTimezoneChange"}
}
