// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/stall"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// Stall is what a machine does when storage stops answering.
type Stall struct {
	Label string
	// For is how long it does not answer.
	For   time.Duration
	Disks []StalledDisk
	// NotKnown is what could not be known, in words.
	NotKnown []string
}

// StalledDisk is a disk, or a mount of a server, and what becomes of it.
type StalledDisk struct {
	stall.Timeline
	// Rules are the rules of udev that set its timeout, in the order in which udev runs them; the last one
	// counts at the next start of the machine.
	Rules []evidence.UdevRule
	// Silent are rules that were to set it, and set nothing.
	Silent []evidence.UdevRule
	// AtBoot is the timeout that it will have then, 0 if no rule sets one.
	AtBoot time.Duration
	// Policy is the least that its platform asks for, 0 if it asks for nothing; By says who.
	Policy time.Duration
	By     string
}

// StallOf tells what the disks of a machine do when storage stops answering for a time. device is the
// one that is meant, "" for all; an empty list is one that is not there.
func StallOf(e *evidence.Evidence, stalled time.Duration, device string) *Stall {
	s := &Stall{Label: e.Label, For: stalled, Disks: []StalledDisk{}, NotKnown: []string{}}
	m := stallMachine(e)
	for _, d := range stallDisks(e) {
		if device != "" && d.Name != strings.TrimPrefix(device, "/dev/") {
			continue
		}
		one := StalledDisk{Rules: []evidence.UdevRule{}}
		if dev := deviceOf(e, d.Name); dev != nil {
			one.Rules, one.AtBoot = rulesFor(e, dev)
			one.Policy, one.By = policy(e, dev)
			one.Silent = silentRules(e, dev)
		} else if d.NFS == nil {
			one.Rules, one.AtBoot = anyRules(e)
			if one.AtBoot > 0 && d.Driver == "sd" && d.ISCSI == nil {
				d.Timeout = one.AtBoot
				d.Guess = append(d.Guess, "the timeout: by the rule of udev in "+one.Rules[len(one.Rules)-1].From.Path+
					", if it is for this disk")
			}
		}
		one.Timeline = stall.Predict(m, d, stalled)
		s.Disks = append(s.Disks, one)
	}
	s.NotKnown = append(s.NotKnown, notKnownOfStalls(e)...)
	return s
}

// notKnownOfStalls is what the kind of evidence does not have.
func notKnownOfStalls(e *evidence.Evidence) []string {
	all := []string{"whether the disk will answer tests, or nothing at all: both are told"}
	if len(e.Devices) == 0 {
		all = append(all, "what the disks are attached to, and the values that a running kernel has: the machine does not run, "+
			"or its /sys is not in the copy")
	}
	if _, known := e.Config.Sysctl["kernel.hung_task_timeout_secs"]; !known {
		all = append(all, "whether the kernel looks for tasks that hang: kernel.hung_task_timeout_secs was not found")
	}
	for _, p := range []evidence.Part{evidence.PartDevices, evidence.PartConfig, evidence.PartCluster, evidence.PartUnits} {
		if why, whole := e.Whole(p); !whole {
			all = append(all, string(p)+": "+why)
		}
	}
	return all
}

// stallMachine is what is the same for all disks.
func stallMachine(e *evidence.Evidence) stall.Machine {
	sysctl := func(name string) int {
		n, err := strconv.Atoi(e.Config.Sysctl["kernel."+name].Value)
		if err != nil || n < 0 || n > 1<<30 {
			return 0
		}
		return n
	}
	m := stall.Machine{HZ: e.Limits.HZ, Panic: sysctl("hung_task_panic") > 0,
		HungTask: time.Duration(sysctl("hung_task_timeout_secs")) * time.Second,
		Reboot:   time.Duration(sysctl("panic")) * time.Second}
	for _, w := range e.Limits.Watchdogs {
		m.Watchdogs = append(m.Watchdogs, stall.Watchdog{Name: w.Name, From: w.From.Path, Resets: w.Resets, Doubt: w.Doubt,
			At: stall.Span{Low: w.Early, High: w.Late}})
	}
	for _, l := range e.Limits.Leases {
		m.Leases = append(m.Leases, stall.Lease{Name: l.Name, From: l.From.Path, Needs: l.Needs,
			Lost: stall.Span{Low: l.Early, High: l.Late}})
	}
	return m
}

func deviceOf(e *evidence.Evidence, name string) *evidence.Device {
	i := slices.IndexFunc(e.Devices, func(d evidence.Device) bool { return d.Name == name })
	if i < 0 {
		return nil
	}
	return &e.Devices[i]
}

// adapter is the driver of a disk's adapter, by what it calls itself, or by what it is on.
func adapter(e *evidence.Evidence, d *evidence.Device) string {
	return cmp.Or(d.HostDriver, e.Limits.Disks[d.Name].Adapter)
}

// stallDisks are the disks of a machine with what is on them, then its mounts of servers.
func stallDisks(e *evidence.Evidence) []stall.Disk {
	var all []stall.Disk
	inPaths := map[string]bool{}
	for i := range e.Devices {
		if d := &e.Devices[i]; d.Paths != nil {
			for _, low := range d.On {
				inPaths[low] = true
			}
		}
	}
	for i := range e.Devices {
		d := &e.Devices[i]
		switch {
		case d.Partition > 0 || inPaths[d.Name]:
		case d.Paths != nil && len(d.On) > 0:
			if low := deviceOf(e, d.On[0]); low != nil {
				one := stallDisk(e, low)
				one.Name, one.Multipath = d.Name, &stall.Multipath{NoPathRetry: d.Paths.NoPathRetry,
					Polling: settingSeconds(e.Config.Multipath["polling_interval"].Value)}
				one.FSs, one.Arrays = restingOn(e, d.Name)
				all = append(all, one)
			}
		case stallable(d):
			one := stallDisk(e, d)
			one.FSs, one.Arrays = restingOn(e, d.Name)
			all = append(all, one)
		}
	}
	if len(e.Devices) == 0 {
		all = append(all, deadDisks(e)...)
	}
	return append(all, servers(e)...)
}

// stallable tells whether a device is a disk of which something can be said.
func stallable(d *evidence.Device) bool {
	switch stall.Classify(d.Driver, d.HostDriver) {
	case stall.SCSI, stall.ATA, stall.ISCSITCP, stall.NVMe, stall.Inert:
		return true
	}
	return d.Driver == "sd"
}

func settingSeconds(text string) time.Duration {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 1<<30 {
		return 0
	}
	return time.Duration(n) * time.Second
}

func stallDisk(e *evidence.Evidence, d *evidence.Device) stall.Disk {
	one := stall.Disk{Name: d.Name, Model: strings.TrimSpace(strings.TrimSpace(d.Vendor) + " " + strings.TrimSpace(d.Model)),
		Driver: d.Driver, HostDriver: adapter(e, d), Timeout: d.Timeout, EHTimeout: d.EHTimeout, MaxRetries: d.MaxRetries,
		MaxMedium: -1, EHDeadline: -1}
	if l, known := e.Limits.Disks[d.Name]; known {
		one.MaxMedium, one.EHDeadline = l.MaxMedium, l.EHDeadline
		if l.Session != nil {
			one.ISCSI = &stall.ISCSI{Replacement: l.Session.Replacement, NoopInterval: l.Session.NoopInterval,
				NoopTimeout: l.Session.NoopTimeout}
		}
	}
	if d.Driver == "nvme" {
		nvmeLimits(e, &one)
	}
	return one
}

// nvmeLimits takes the settings of the module; the timeout of the queue itself comes before them.
func nvmeLimits(e *evidence.Evidence, one *stall.Disk) {
	if one.Timeout == 0 {
		one.Timeout = settingSeconds(e.Config.Modules["nvme_core.io_timeout"].Value)
	}
	one.AdminTimeout = settingSeconds(e.Config.Modules["nvme_core.admin_timeout"].Value)
	if n, err := strconv.Atoi(e.Config.Modules["nvme_core.max_retries"].Value); err == nil && n >= 0 && n < 256 {
		one.MaxRetries = n
	}
}

// restingOn are the file systems that rest on a disk alone, and the arrays that go on without it.
func restingOn(e *evidence.Evidence, disk string) (fss []stall.FS, arrays []string) {
	names := []string{disk}
	for i := 0; i < len(names); i++ {
		for j := range e.Devices {
			d := &e.Devices[j]
			rests := slices.Contains(d.On, names[i]) || d.Partition > 0 && d.Disk == names[i]
			switch {
			case !rests || slices.Contains(names, d.Name) || slices.Contains(arrays, d.Name):
			case d.Array != nil && redundant(d.Array.Level):
				arrays = append(arrays, d.Name)
			default:
				names = append(names, d.Name)
			}
		}
	}
	for i := range e.FSs {
		if slices.Contains(names, strings.TrimPrefix(e.FSs[i].Device, "/dev/")) {
			if f, ok := stallFS(e, &e.FSs[i]); ok {
				fss = append(fss, f)
			}
		}
	}
	return fss, arrays
}

// stallFS is a file system that takes writes; not ok is one that is not mounted, or read-only.
func stallFS(e *evidence.Evidence, f *evidence.FS) (stall.FS, bool) {
	one := stall.FS{Type: f.Type, Point: f.Device, Journal: f.Type != "ext2"}
	if f.Super != nil {
		one.OnError, one.MetadataRetries = f.Super.OnError, f.Super.Retries["metadata/EIO/max_retries"]
	}
	mounted := false
	for _, i := range f.Mounts {
		m := &e.Mounts[i]
		if mounted || m.Hidden {
			continue
		}
		mounted, one.Point = true, m.Point
		for _, o := range strings.Split(m.Super, ",") {
			if o == "ro" {
				return one, false
			}
			if v, is := strings.CutPrefix(o, "commit="); is {
				one.Commit = settingSeconds(v)
			}
		}
	}
	swap := f.Type == "swap" || f.Type == "iso9660" || f.Type == "squashfs" || f.Type == "erofs"
	return one, (mounted || e.Kind == tree.Disk) && !swap
}

// servers are the mounts of NFS, each once.
func servers(e *evidence.Evidence) []stall.Disk {
	var all []stall.Disk
	for i := range e.Mounts {
		m := &e.Mounts[i]
		if m.NFS == nil || m.Hidden || slices.ContainsFunc(all, func(d stall.Disk) bool { return d.Name == m.Point }) {
			continue
		}
		version := 0
		if m.NFS.Vers != "" {
			version = int(m.NFS.Vers[0] - '0')
		}
		all = append(all, stall.Disk{Name: m.Point, Model: m.NFS.Server + ":" + m.NFS.Export, NFS: &stall.NFS{Soft: m.NFS.Soft,
			Timeo: time.Duration(m.NFS.Timeo) * 100 * time.Millisecond, Retrans: m.NFS.Retrans, Version: version,
			UDP: strings.Contains(","+m.Super+",", ",proto=udp,")}})
	}
	return all
}

// rulesFor are the rules of udev that set the timeout of a disk, and what they come to.
func rulesFor(e *evidence.Evidence, d *evidence.Device) (rules []evidence.UdevRule, atBoot time.Duration) {
	rules = []evidence.UdevRule{}
	run := time.Duration(0)
	for i := range e.Config.Udev {
		u := &e.Config.Udev[i]
		if u.Overridden != "" || u.Broken != "" || u.Seconds <= 0 || !forDisk(e, u, d) {
			continue
		}
		rules = append(rules, *u)
		seconds := time.Duration(u.Seconds) * time.Second
		// What rules assign is written while they are read, what they run comes after all of them.
		if u.Runs() {
			run = seconds
		} else {
			atBoot = seconds
		}
	}
	return rules, cmp.Or(run, atBoot)
}

// silentRules are rules that were to set the timeout of a disk, and are broken.
func silentRules(e *evidence.Evidence, d *evidence.Device) []evidence.UdevRule {
	var all []evidence.UdevRule
	for i := range e.Config.Udev {
		if u := &e.Config.Udev[i]; u.Overridden == "" && u.Broken != "" && (isFor(u, d) || forDisk(e, u, d)) {
			all = append(all, *u)
		}
	}
	return all
}

// forDisk tells whether the conditions of a rule of udev name a disk, as far as they are about its vendor
// and model, its name, its WWID or its place.
func forDisk(e *evidence.Evidence, u *evidence.UdevRule, d *evidence.Device) bool {
	block, named := false, false
	for _, m := range u.Match {
		block = block || m == "SUBSYSTEM==block"
	}
	for _, m := range u.Match {
		key, pattern, ok := strings.Cut(m, "==")
		value := ""
		switch {
		case !ok:
			continue
		case strings.HasSuffix(key, "vendor}"):
			value = d.Vendor
		case strings.HasSuffix(key, "model}"):
			value = d.Model
		case strings.HasSuffix(key, "wwid}"):
			value = d.WWID
		case key == "DEVPATH":
			value = strings.TrimPrefix(e.Limits.Disks[d.Name].Path, "/sys")
		case key == "KERNEL" && block:
			value = d.Name
		default:
			continue
		}
		if !matches(pattern, value) {
			return false
		}
		named = true
	}
	return named
}

// anyRules are all that set a timeout, of a machine whose disks are not known.
func anyRules(e *evidence.Evidence) (rules []evidence.UdevRule, atBoot time.Duration) {
	rules = []evidence.UdevRule{}
	for _, u := range e.Config.Udev {
		if u.Overridden == "" && u.Broken == "" && u.Seconds > 0 {
			rules, atBoot = append(rules, u), time.Duration(u.Seconds)*time.Second
		}
	}
	return rules, atBoot
}

// policy is the least timeout that the platform of a disk asks for.
func policy(e *evidence.Evidence, d *evidence.Device) (time.Duration, string) {
	switch {
	case d.Driver == "sd" && strings.TrimSpace(d.Vendor) == "VMware":
		return 180 * time.Second, "VMware (the rule that comes with open-vm-tools)"
	case d.Driver == "nvme" && strings.HasPrefix(d.Model, "Amazon Elastic Block Store"):
		return 255 * time.Second, "AWS (the longest that the driver takes: 255 s, or 4294967295 where it can)"
	}
	return 0, ""
}

// never is a timeout that means that none is wanted.
func never(d time.Duration) string {
	if d > 365*24*time.Hour {
		return "for ever"
	}
	return fmt.Sprintf("%.0f s", d.Seconds())
}
