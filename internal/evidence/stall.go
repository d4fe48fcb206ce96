// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// Limits is what decides how long a machine bears storage that does not answer, besides what [Device]
// and [Config] tell.
type Limits struct {
	// HZ is the tick of the kernel, 0 if not known.
	HZ int
	// CommandLine is what the kernel of a machine that does not run will be started with, as far as its boot
	// loader's files tell; empty for others.
	CommandLine string
	// Disks are the limits of disks, by the names of devices.
	Disks map[string]DiskLimits
	// Watchdogs end or reset what does not report in time.
	Watchdogs []Watchdog
	// Leases are times for which others believe that this node does its work.
	Leases []Lease
}

// DiskLimits are those of one disk.
type DiskLimits struct {
	// Path is the directory of the disk in sysfs, without symbolic links: "/sys/devices/.../block/sda".
	Path string
	// Adapter is the driver of what the disk's adapter is on ("hv_storvsc", "vmw_pvscsi", "ahci"), "" if
	// not known.
	Adapter string
	// MaxMedium is max_medium_access_timeouts of SCSI, -1 if not known.
	MaxMedium int64
	// EHDeadline is that of the adapter: 0 if it is off, -1 if not known.
	EHDeadline time.Duration
	// Session is set for iSCSI.
	Session *Session
}

// Session are the timers of a session of iSCSI; -1 if not known.
type Session struct{ Replacement, NoopInterval, NoopTimeout time.Duration }

// limits reads what there is of them for each disk:
//
//	/sys/class/block/sda -> ../../devices/platform/host2/session1/target2:0:0/2:0:0:0/block/sda
//	/sys/class/scsi_disk/2:0:0:0/max_medium_access_timeouts
//	/sys/class/scsi_host/host2/eh_deadline                   seconds, or "off"
//	/sys/class/iscsi_session/session1/recovery_tmo           seconds, or "off"
//	/sys/class/iscsi_connection/connection1:0/{ping_tmo,recv_tmo}
func (g *gatherer) limits(ctx context.Context) {
	l := &g.e.Limits
	l.Disks = map[string]DiskLimits{}
	l.HZ = g.tick(ctx)
	if g.e.Config.CommandLine == "" {
		l.CommandLine = g.startedWith(ctx)
		for _, w := range strings.Fields(l.CommandLine) {
			name, value, ok := strings.Cut(w, "=")
			if name = strings.ReplaceAll(name, "-", "_"); ok && strings.HasPrefix(name, "nvme_core.") {
				g.e.Config.Modules[name] = Setting{value, Source{Path: "the boot loader's command line"}}
			}
		}
	}
	for i := range g.e.Devices {
		d := &g.e.Devices[i]
		if d.Partition > 0 || d.Driver == "" {
			continue
		}
		l.Disks[d.Name] = g.diskLimits(ctx, d)
	}
	g.watchdogs(ctx)
	g.leases(ctx)
}

// startedWith gives the kernel's command line of the first entry of a boot loader: GRUB's configuration, entries of the
// Boot Loader Specification, and what such are made from.
func (g *gatherer) startedWith(ctx context.Context) string {
	for _, name := range []string{"/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg"} {
		for _, l := range joined(g.optional(ctx, PartConfig, name), maxConfigLines) {
			if f := strings.Fields(l.text); len(f) > 2 && (f[0] == "linux" || f[0] == "linux16" || f[0] == "linuxefi") {
				return strings.Join(f[2:], " ")
			}
		}
	}
	if _, text := g.among(ctx, "/boot/loader/entries/", "/loader/entries/"); text != nil {
		for _, l := range joined(text, maxConfigLines) {
			if rest, is := strings.CutPrefix(l.text, "options "); is {
				return strings.TrimSpace(rest)
			}
		}
	}
	text, _ := g.word(ctx, PartConfig, "/etc/kernel/cmdline")
	return text
}

// tick is CONFIG_HZ of the kernel that runs, by the copy of its configuration that distributions put in
// /boot.
func (g *gatherer) tick(ctx context.Context) int {
	if g.e.Host.Kernel == "" || strings.Contains(g.e.Host.Kernel, "/") {
		return 0
	}
	text := g.optional(ctx, PartConfig, "/boot/config-"+g.e.Host.Kernel)
	for line := range strings.Lines(string(text)) {
		if value, is := strings.CutPrefix(line, "CONFIG_HZ="); is {
			if hz := number(strings.TrimSpace(value), 0); hz >= 10 && hz <= 10000 {
				return int(hz)
			}
		}
	}
	return 0
}

func (g *gatherer) diskLimits(ctx context.Context, d *Device) DiskLimits {
	l := DiskLimits{MaxMedium: -1, EHDeadline: -1}
	target, err := g.t.Link(ctx, d.From.Path)
	if err != nil {
		return l // an old sysfs, or a copy without links
	}
	if !path.IsAbs(target) {
		target = path.Join(classBlock, target)
	}
	l.Path = target
	parts := strings.Split(target, "/")
	address, session := "", ""
	for i, p := range parts {
		switch {
		case strings.HasPrefix(p, "host") && number(p[len("host"):], -1) >= 0:
			l.Adapter = g.driver(ctx, strings.Join(parts[:i], "/")+"/driver")
			l.EHDeadline = deadline(g.optionalWord(ctx, PartDevices, "/sys/class/scsi_host/"+p+"/eh_deadline"))
		case strings.HasPrefix(p, "session") && number(p[len("session"):], -1) >= 0:
			session = p
		case strings.Count(p, ":") == 3 && i+2 < len(parts) && parts[i+1] == "block":
			address = p
		}
	}
	if address != "" {
		l.MaxMedium = number(g.optionalWord(ctx, PartDevices, "/sys/class/scsi_disk/"+address+
			"/max_medium_access_timeouts"), -1)
	}
	if session != "" {
		l.Session = g.session(ctx, session)
	}
	return l
}

// deadline reads eh_deadline: "off", or seconds.
func deadline(text string) time.Duration {
	if text == "off" {
		return 0
	}
	return secondsOr(text, -1)
}

// secondsOr reads a number of seconds, or gives none.
func secondsOr(text string, none time.Duration) time.Duration {
	n := number(text, -1)
	if n < 0 || n > 1<<32 {
		return none
	}
	return time.Duration(n) * time.Second
}

// session reads the timers of a session of iSCSI, with those of iscsid.conf where sysfs has none.
func (g *gatherer) session(ctx context.Context, name string) *Session {
	dir := "/sys/class/iscsi_session/" + name
	link := "/sys/class/iscsi_connection/connection" + strings.TrimPrefix(name, "session") + ":0"
	of := func(file, setting string) time.Duration {
		v := secondsOr(g.optionalWord(ctx, PartDevices, file), -1)
		if v < 0 {
			v = secondsOr(g.e.Config.ISCSI[setting].Value, -1)
		}
		return v
	}
	return &Session{
		Replacement:  of(dir+"/recovery_tmo", "node.session.timeo.replacement_timeout"),
		NoopInterval: of(link+"/recv_tmo", "node.conn[0].timeo.noop_out_interval"),
		NoopTimeout:  of(link+"/ping_tmo", "node.conn[0].timeo.noop_out_timeout"),
	}
}

// Runs tells whether a rule sets the timeout by a program, which runs when all rules were read.
func (u *UdevRule) Runs() bool {
	for _, s := range u.Sets {
		if runTimeout().MatchString(s) {
			return true
		}
	}
	return false
}

// GatherSettings is Gather of what decides about stalls alone: no log is read, and nothing of images and
// machines.
func GatherSettings(ctx context.Context, t tree.Tree, o Options) (*Evidence, error) {
	g := &gatherer{t: t, o: o, byDev: map[systemKey]int{}, e: &Evidence{Kind: t.Kind(), Now: o.Now.UTC(), Label: o.Label}}
	for _, part := range []func(context.Context){g.meta, g.host, g.mounts, g.systems, g.devices, g.config, g.multipath,
		g.memory, g.cluster, g.units, g.limits} {
		part(ctx)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	if g.e.Label == "" {
		g.e.Label = g.e.Host.Name
	}
	return g.e, nil
}
