// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package units loads the units of a system as systemd would, from its files alone: their settings with
// drop-ins, masks, aliases and instances, what starts what, what the first boot would enable, and what
// running a unit does to the machine.
//
// Sources are systemd 252 and 257: systemd.unit(5), systemd.service(5), systemd.preset(5), machine-id(5),
// and src/shared/unit-file.c, src/shared/dropin.c, src/shared/install.c and src/core/transaction.c. Where
// the two differ, the comment says so.
package units

import (
	"slices"
	"strings"
	"time"
)

// Source is a place in a file, as the system names it.
type Source struct {
	Path string `json:"path"`
	// Line is from 1; 0 means the file or the link itself.
	Line int `json:"line"`
}

// Gap is something that could not be read, and why. What it hides is not known.
type Gap struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// Set is all units of a system.
type Set struct {
	// Units are those that have a file, and those that some other names, by name. Templates are among
	// them; their instances only if something names them.
	Units []*Unit
	// Default is the unit that default.target is: the name of the unit that its link leads to.
	Default string
	// MergedUsr tells that /sbin, /bin and /lib are links to the directories in /usr.
	MergedUsr bool
	// MachineID is the word in /etc/machine-id: "" if the file is missing or empty, "uninitialized", or
	// the id. HasID tells whether the file is there.
	MachineID string
	HasID     bool
	// FirstBoot tells that systemd takes the next start for the first one (machine-id(5)): the file is
	// missing, or says "uninitialized". It enables units by presets then.
	FirstBoot bool
	// Version is that of systemd, 252; 0 where its files do not tell.
	Version int
	// Presets are the rules of presets, in the order in which they are asked.
	Presets []Preset
	// FirstStarts are what the first boot links by presets, whether the next one is the first or not.
	FirstStarts []Start
	// Bare tells that systemd's own units are not among the files, as in a copy of /etc alone. The targets that every
	// system has are put in their place.
	Bare bool
	// Flat tells that the units are files of a plain directory, and that nothing is known of the system
	// that they are meant for: what is enabled, which programs it has.
	Flat bool
	// Of is the directory whose units are judged, where there are several of one name; "" means all.
	Of string
	// AtReboot are the lines of crontabs that run at each start.
	AtReboot []CronLine
	// Gaps is what could not be read.
	Gaps []Gap

	byName   map[string]*Unit
	acts     map[string][]Act
	edges    map[string][]Start // what the start of a unit starts
	lacking  map[string]string  // units that cannot be started, with what they lack
	wanted   map[string][]Start // what [Install] has a unit started by
	linked   map[string][]Start // the links that start it
	dirs     []string
	files    map[string]*file    // by path
	names    map[string]string   // name of a unit -> path of its file, or another name
	aliases  map[string][]string // path of a file -> names that lead to it
	sub      map[string][]entry  // directories NAME.d, NAME.wants ... by path
	doings   map[string]*doing   // by the name of the unit
	programs map[string]program  // what was found of programs, by their name
	paths    map[string]Truth    // whether a path exists
}

// State is how systemd would load a unit.
type State string

// The states.
const (
	Loaded     State = "loaded"
	Masked     State = "masked"     // its file is empty, or a link to /dev/null
	Missing    State = "missing"    // there is no file of its name
	Unreadable State = "unreadable" // there is one, which could not be read: nothing is known of the unit
	Bad        State = "bad"        // systemd refuses the file
	Template   State = "template"   // it is not started itself, only its instances
)

// Unit is one unit as systemd would load it.
type Unit struct {
	// Name is that of its file; Aliases are its other names.
	Name    string
	Aliases []string
	// Path is its file, "" if it has none; DropIns are the files that add to it, in the order in which they
	// are read.
	Path    string
	DropIns []string
	State   State
	// Why says why State is Unreadable or Bad.
	Why string
	// Settings are all assignments in the order in which systemd reads them. Specifiers are replaced
	// where their value is known.
	Settings []Setting
	// Links are the units that directories like NAME.wants start, in the order of names.
	Links []Start
}

// Setting is one assignment.
type Setting struct {
	Section, Key, Value string
	From                Source
}

// Start is one way in which From has To started.
type Start struct {
	From, To string
	// By is "Wants=", "Requires=", "BindsTo=", "Upholds=", "Sockets=", "wants link", "requires link",
	// "upholds link", or "preset" for what the first boot would link.
	By     string
	Source Source
	// Doubt says why From may not have To started, "" if it does.
	Doubt string
}

// Preset is one rule of a preset file.
type Preset struct {
	Enable bool
	// Ignore: units of this pattern are left as they are.
	Ignore    bool
	Pattern   string
	Instances []string
	From      Source
}

// Truth is what is known of a condition.
type Truth string

// The truths.
const (
	Yes   Truth = "yes"
	No    Truth = "no"
	Maybe Truth = "unknown"
)

// Words for what an act does to the machine.
const (
	Reboot     = "reboot"
	PowerOff   = "poweroff"
	Halt       = "halt"
	Kexec      = "kexec"
	SoftReboot = "soft-reboot"
	Crash      = "crash"
	// Exits: the manager leaves, as in a container.
	Exits = "exit"
)

// When an act happens that does not always: Act.If.
const (
	ItFails    = "it fails"
	ItSucceeds = "it succeeds"
	TooOften   = "it is started too often"
	TooLong    = "its start takes too long"
	IsStopped  = "it is stopped"
)

// Act is something that running a unit does to the machine.
type Act struct {
	// What is one of the words above.
	What string
	// Unit is whose start it is; Setting the one of it that does it, where there is one.
	Unit    string
	Setting Setting
	// Chain leads from the unit to the act: settings, lines of scripts, units that are started.
	Chain []Step
	// If is "" for always, else when, in the words above.
	If string
	// Delay is how long the act waits by itself, as shutdown +5; At is the time of day that it waits for, as
	// shutdown 03:30.
	Delay time.Duration
	At    string
	// Later: not at the next start, but at those after it, since what the next one changes lets it happen.
	Later bool
	// Again: not when the unit is run for the first time after a start, but when it is run once more before the next, since
	// what it changes until then lets it happen.
	Again bool
	// Guards are what keeps it from happening again and again.
	Guards []Guard
	// Missing is the program that does not exist: the act never happens.
	Missing string
	// Doubt says why it may not be so, "" if it is plain.
	Doubt string
}

// Step is one step of a chain.
type Step struct {
	Text string
	From Source
}

// The kinds of guards.
const (
	// NotMet: a condition of the unit is not met as of the files, so nothing of it runs.
	NotMet = "condition not met"
	// Unsure: whether a condition is met is not known.
	Unsure = "condition not known"
	// Disarms: the unit takes care that it does not act again.
	Disarms = "disarms"
)

// Guard is something that keeps an act from happening at every start.
type Guard struct {
	Kind string
	Text string
	// Path is the file that it rests on, "" if there is none. Lasting tells whether it stays over a restart.
	Path    string
	Lasting bool
	From    Source
}

// CronLine is a line of a crontab that runs at each start.
type CronLine struct {
	Command string
	From    Source
	Acts    []Act
}

// All gives the assignments of a setting that count: those after the last empty one.
func (u *Unit) All(section, key string) []Setting {
	var all []Setting
	for _, s := range u.Settings {
		switch {
		case s.Section != section || s.Key != key:
		case s.Value == "":
			all = nil
		default:
			all = append(all, s)
		}
	}
	return all
}

// Last gives the last assignment of a setting, which is what counts for those with one value. It may be
// empty: then the default counts.
func (u *Unit) Last(section, key string) (Setting, bool) {
	for _, s := range slices.Backward(u.Settings) {
		if s.Section == section && s.Key == key {
			return s, true
		}
	}
	return Setting{}, false
}

// Type is the end of a unit's name: "service", "timer" ...
func (u *Unit) Type() string { return typeOf(u.Name) }

// Section is the section of settings that belongs to a unit's type: "Service", "Timer" ...
func (u *Unit) Section() string {
	t := u.Type()
	if t == "" {
		return ""
	}
	return strings.ToUpper(t[:1]) + t[1:]
}

// Unit gives a unit by any of its names, nil if nothing has or names it. Instances are made of their
// templates.
func (s *Set) Unit(name string) *Unit {
	if u := s.byName[name]; u != nil {
		return u
	}
	return nil
}
