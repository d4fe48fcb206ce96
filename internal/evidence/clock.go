// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// Clock is what timers rest on: the clock at the start of a boot, who sets it right, and what remembers
// when timers elapsed last.
type Clock struct {
	// Present is when the machine would be started again: of one that is looked at from outside the
	// present of who looks.
	Present time.Time
	// Zone is that of the machine, UTC where it does not say one. ZoneName is "Europe/Berlin", "" if only
	// the rules are known.
	Zone     *time.Location
	ZoneName string
	// Local: systemd takes the clock of the hardware for local time (/etc/adjtime, hwclock(8)).
	Local     units.Truth
	LocalFrom Source
	// Ahead is by how much the clock of the hardware is before UTC, as read of a running machine; HasRTC tells
	// whether it could be read.
	Ahead  time.Duration
	HasRTC bool
	// Synced: a daemon that sets the clock right is started at each boot: Daemon. Here and below Maybe with a name
	// tells that a boot may start that unit, or not.
	Synced units.Truth
	Daemon string
	// Saves: something started at each boot keeps the clock from beginning before Saved: Saver.
	Saves     units.Truth
	Saver     string
	Saved     time.Time
	SavedFrom Source
	// Waits: timers with a calendar wait until the clock is right, for this unit.
	Waits  units.Truth
	Waiter string
	// Build is about when systemd was built, before which its clock never is; zero if not known.
	Build time.Time
	// Stamps are the stamps of persistent timers, by the timers' names.
	Stamps map[string]Stamp
	// Keeps is where they are.
	Keeps Keep
	// Zones are the zones that calendar events name: nil for one that the machine does not have.
	Zones map[string]NamedZone
}

// Stamp is when a persistent timer elapsed last.
type Stamp struct {
	At   time.Time
	From Source
	// Fixed: its time cannot be set, for its attributes.
	Fixed bool
}

// Keep is a directory that has to keep what is written to it until the next boot.
type Keep struct {
	Dir string
	// Known: what is in it is known, also that there is nothing.
	Known bool
	// Writable: it takes writes. Lasts: what is written is there in the next boot. Why gives the reason
	// of what is not "yes".
	Writable, Lasts units.Truth
	Why             string
	// Attributes: those of the stamps are known (chattr(1)). Those of the directory do not matter: a stamp that is
	// there is written to all the same, and where there is none nothing is caught up.
	Attributes bool
	// FS is the index in FSs of the file system that it lies on, -1 if not known.
	FS int
}

// NamedZone is a zone of the database, as the machine has it.
type NamedZone struct {
	Zone *time.Location
	// Err is fs.ErrNotExist if the machine has no such zone, or says why it could not be read.
	Err error
}

// Load gives a zone by its name, for [calendar.Zones].
func (c *Clock) Load(name string) (*time.Location, error) {
	z, asked := c.Zones[name]
	if !asked {
		return nil, fmt.Errorf("zone %s: %w", name, tree.ErrNotCollected)
	}
	return z.Zone, z.Err
}

// Where systemd keeps stamps, and bounds of what is read.
const (
	stampDir     = "/var/lib/systemd/timers"
	zoneDir      = "/usr/share/zoneinfo/"
	maxZoneBytes = 1 << 20
	maxZones     = 64
	maxStamps    = 4096
)

// clock reads what timers rest on. It needs the units, the mounts and the configuration.
func (g *gatherer) clock(ctx context.Context) {
	c := &g.e.Clock
	c.Present, c.Zone = g.e.Now, time.UTC
	if k := g.t.Kind(); (k == tree.Disk || k == tree.Directory) && g.o.Now.After(c.Present) {
		c.Present = g.o.Now.UTC()
	}
	c.Local, c.Synced, c.Saves, c.Waits = units.Maybe, units.Maybe, units.Maybe, units.Maybe
	c.Stamps, c.Zones = map[string]Stamp{}, map[string]NamedZone{}
	g.zone(ctx)
	g.adjtime(ctx)
	g.rtc(ctx)
	g.timeDaemons(ctx)
	g.build(ctx)
	g.stamps(ctx)
	g.keep(ctx)
	g.namedZones(ctx)
}

// zone reads the zone of the machine. One without /etc/localtime is in UTC (localtime(5)).
func (g *gatherer) zone(ctx context.Context) {
	const file = "/etc/localtime"
	c := &g.e.Clock
	b, err := g.t.Read(ctx, file, maxZoneBytes)
	if err != nil {
		g.missed(PartClock, file, err)
		return
	}
	if link, err := g.t.Link(ctx, file); err == nil {
		if _, name, ok := strings.Cut(link, "zoneinfo/"); ok {
			c.ZoneName = name
		}
	}
	zone, err := time.LoadLocationFromTZData(c.ZoneName, b)
	if err != nil {
		g.gap(PartClock, file, "is no zone that is understood: "+err.Error())
		return
	}
	c.Zone = zone
}

// adjtime reads the third line of /etc/adjtime, which is "LOCAL" or "UTC"; without it systemd takes the
// hardware's clock for UTC (clock_is_localtime() in src/basic/clock-util.c).
func (g *gatherer) adjtime(ctx context.Context) {
	const file = "/etc/adjtime"
	c := &g.e.Clock
	b, err := g.t.Read(ctx, file, maxSmallBytes)
	if tree.Missing(err) {
		c.Local = units.No
		return
	}
	if err != nil {
		g.missed(PartClock, file, err)
		return
	}
	c.Local, c.LocalFrom = units.No, Source{Path: file, Line: 3}
	lines := strings.Split(string(b), "\n")
	if len(lines) > 2 && strings.TrimSpace(lines[2]) == "LOCAL" {
		c.Local = units.Yes
	}
}

// rtc reads the clock of the hardware of a machine that runs, in seconds since 1970 as if it were in UTC
// (Documentation/ABI/testing/rtc-cdev of Linux). Both it and the present are of about the same moment.
func (g *gatherer) rtc(ctx context.Context) {
	if g.t.Kind() != tree.Live {
		return // in a bundle the two were not read at one time
	}
	text := g.first(ctx, "/sys/class/rtc/rtc0/since_epoch")
	s, err := strconv.ParseInt(text, 10, 64)
	if err != nil || s <= 0 || s > 1<<40 {
		return
	}
	c := &g.e.Clock
	c.HasRTC, c.Ahead = true, time.Unix(s, 0).Sub(g.e.Now).Round(time.Second)
}

// started gives the first of some units that each boot starts; Maybe and the first that a boot may start, if none is
// started for sure.
func started(set *units.Set, reached map[string][]units.Start, names ...string) (name string, t units.Truth) {
	t = units.No
	for _, n := range names {
		u := set.Unit(n)
		if u == nil {
			continue
		}
		chain, is := reached[u.Name]
		switch {
		case !is:
		case units.DoubtOf(chain) == "":
			return u.Name, units.Yes
		case t == units.No:
			name, t = u.Name, units.Maybe
		}
	}
	return name, t
}

// timeDaemons looks which units of time each boot starts.
func (g *gatherer) timeDaemons(ctx context.Context) {
	set, c := g.e.Units, &g.e.Clock
	if set == nil || set.Flat {
		return
	}
	reached := set.Reached(set.Default)
	first := func(names ...string) (string, units.Truth) { return started(set, reached, names...) }
	c.Daemon, c.Synced = first("systemd-timesyncd.service", "chrony.service", "chronyd.service", "ntp.service", "ntpd.service",
		"ntpsec.service", "openntpd.service", "ntpd-rs.service", "ptp4l.service", "phc2sys.service")
	if tool, _ := first("open-vm-tools.service", "vmtoolsd.service", "vboxadd-service.service", "virtualbox-guest-utils.service",
		"hv-kvp-daemon.service", "qemu-guest-agent.service"); tool != "" && c.Daemon == "" {
		c.Synced = units.Maybe // they can be told from the host to set it
	}
	c.Waiter, c.Waits = first("systemd-time-wait-sync.service", "chrony-wait.service", "ntp-wait.service", "ntpsec-wait.service")
	c.Saver, c.Saves = first("systemd-timesyncd.service", "fake-hwclock.service", "fake-hwclock-load.service")
	if u := set.Unit(c.Daemon); c.Saver == "" && u != nil && strings.HasPrefix(u.Name, "chrony") && restoresTime(u) {
		c.Saver, c.Saves = u.Name, c.Synced
	}
	var files []string
	switch c.Saver {
	case "":
	case "systemd-timesyncd.service":
		files = []string{"/var/lib/systemd/timesync/clock", "/var/lib/private/systemd/timesync/clock", "/var/lib/systemd/clock"}
	case "fake-hwclock.service", "fake-hwclock-load.service":
		files = []string{"/etc/fake-hwclock.data"}
	default:
		files = []string{"/var/lib/chrony/chrony.drift", "/var/lib/chrony/drift"}
	}
	for _, file := range files {
		if at, ok := g.mtime(ctx, file); ok {
			c.Saved, c.SavedFrom = at, Source{Path: file, Time: at}
			return
		}
	}
}

// restoresTime tells whether chronyd is started with -s: it then puts the clock forward to the time of its
// drift file (chronyd(8)).
func restoresTime(u *units.Unit) bool {
	return slices.ContainsFunc(u.All("Service", "ExecStart"), func(s units.Setting) bool {
		return slices.Contains(strings.Fields(s.Value), "-s")
	})
}

// mtime gives the time of a file's last change.
func (g *gatherer) mtime(ctx context.Context, file string) (time.Time, bool) {
	all, err := g.t.List(ctx, path.Dir(file))
	g.unread(PartClock, path.Dir(file), err)
	for _, e := range all {
		if e.Name == path.Base(file) {
			return e.Mtime.UTC(), true
		}
	}
	return time.Time{}, false
}

// build finds out about when systemd was built: the time of a file that says so, or of the program itself, which
// packages give it (clock_apply_epoch() in src/core/main.c, and NEWS of 215).
func (g *gatherer) build(ctx context.Context) {
	for _, file := range []string{"/usr/lib/clock-epoch", "/usr/lib/systemd/systemd", "/lib/systemd/systemd"} {
		if at, ok := g.mtime(ctx, file); ok {
			g.e.Clock.Build = at
			return
		}
	}
}

// stamps reads when persistent timers elapsed last.
func (g *gatherer) stamps(ctx context.Context) {
	c := &g.e.Clock
	c.Keeps = Keep{Dir: stampDir, Writable: units.Maybe, Lasts: units.Maybe, FS: -1}
	all, err := g.t.List(ctx, stampDir)
	if err != nil && !tree.Missing(err) {
		g.missed(PartClock, stampDir, err)
		return
	}
	c.Keeps.Known = true
	for _, e := range all {
		name, ok := strings.CutPrefix(e.Name, "stamp-")
		if !ok || !isRegular(e) || len(c.Stamps) >= maxStamps {
			continue
		}
		at := path.Join(stampDir, e.Name)
		s := Stamp{At: e.Mtime.UTC(), From: Source{Path: at, Time: e.Mtime.UTC()}}
		a := g.attributes(ctx, at)
		s.Fixed = a.Immutable || a.AppendOnly
		c.Stamps[name] = s
	}
}

// attributes gives those of a file or directory. They are hardly ever set: a copy, or a bundle of earlier days, that
// does not know them is no worse for it.
func (g *gatherer) attributes(ctx context.Context, name string) tree.Attributes {
	a, err := tree.AttributesOf(ctx, g.t, name)
	switch {
	case err == nil:
		g.e.Clock.Keeps.Attributes = true
	case !errors.Is(err, tree.ErrNotCollected):
		g.missed(PartClock, name, err)
	}
	return a
}

// namedZones reads the zones that calendar events of timers name.
func (g *gatherer) namedZones(ctx context.Context) {
	if g.e.Units == nil {
		return
	}
	for _, u := range g.e.Units.Units {
		if u.Type() != "timer" {
			continue
		}
		for _, s := range u.All("Timer", "OnCalendar") {
			at := strings.LastIndexByte(s.Value, ' ')
			if name := s.Value[at+1:]; at >= 0 && named(name) {
				g.namedZone(ctx, name)
			}
		}
	}
}

// named tells whether a word may be a zone's name, and not a time of the day.
func named(word string) bool {
	return word != "" && !strings.ContainsAny(word, ":*,.~@\\") && !strings.HasPrefix(word, "/") && path.Clean(word) == word
}

func (g *gatherer) namedZone(ctx context.Context, name string) {
	c := &g.e.Clock
	if _, known := c.Zones[name]; known || len(c.Zones) >= maxZones {
		return
	}
	b, err := g.t.Read(ctx, zoneDir+name, maxZoneBytes)
	g.unread(PartClock, zoneDir+name, err)
	z := NamedZone{Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		z.Err = fs.ErrNotExist
	case err == nil:
		z.Zone, z.Err = time.LoadLocationFromTZData(name, b)
	}
	c.Zones[name] = z
}
