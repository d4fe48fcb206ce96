// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/stall"
	"github.com/shisa-vm/shisa/internal/evidence"
)

// AdapterNotKnown stands for an adapter that is not known, and taken for one whose timers count.
const AdapterNotKnown = "not known"

// deadDisks are what the files of a machine tell of its disks: by the names in fstab and on the kernel's
// command line, and by what it has as file systems.
func deadDisks(e *evidence.Evidence) []stall.Disk {
	one := stall.Disk{Name: "disk", MaxRetries: -2, MaxMedium: -1, EHDeadline: -1, Driver: "sd", HostDriver: AdapterNotKnown}
	names := []string{}
	for _, f := range e.Config.Fstab {
		names = append(names, f.Source)
	}
	for _, w := range strings.Fields(e.Config.CommandLine + " " + e.Limits.CommandLine) {
		if root, is := strings.CutPrefix(w, "root="); is {
			names = append(names, root)
		}
	}
	for _, n := range names {
		for prefix, driver := range map[string]string{"/dev/vd": "virtio_blk", "/dev/nvme": "nvme", "/dev/xvd": "vbd"} {
			if strings.HasPrefix(n, prefix) {
				one.Name, one.Driver, one.HostDriver = strings.TrimRight(strings.TrimPrefix(n, "/dev/"), "0123456789"), driver, ""
				one.Guess = []string{"the driver: by the name " + n}
			}
		}
	}
	if one.Driver == "sd" {
		one.Guess = append(one.Guess, "an adapter whose timers count; behind virtio or on Hyper-V nothing of this happens, "+
			"and requests wait for ever")
	}
	if one.Driver == "nvme" {
		nvmeLimits(e, &one)
	}
	for i := range e.FSs {
		if f, ok := stallFS(e, &e.FSs[i]); ok && !strings.HasPrefix(f.Type, "nfs") && e.FSs[i].Device != "" {
			one.FSs = append(one.FSs, f)
		}
	}
	if p := deadMultipath(e, names); p != nil {
		one.Multipath = p
		one.Guess = append(one.Guess, "multipath, as /etc/fstab and multipath.conf have it")
	}
	return append([]stall.Disk{one}, deadSessions(e)...)
}

// deadMultipath is what multipath.conf says, where the machine has file systems on such devices.
func deadMultipath(e *evidence.Evidence, names []string) *stall.Multipath {
	if !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "/dev/mapper/mpath") }) {
		return nil
	}
	return &stall.Multipath{NoPathRetry: e.Config.Multipath["no_path_retry"].Value,
		Polling: settingSeconds(e.Config.Multipath["polling_interval"].Value)}
}

// deadSessions are the file systems that fstab has wait for the network though they are none of a server: they lie on disks
// of iSCSI, or the like, with the timers of iscsid.conf.
func deadSessions(e *evidence.Evidence) []stall.Disk {
	var all []stall.Disk
	of := func(name string) time.Duration {
		v := e.Config.ISCSI[name].Value
		if n := settingSeconds(v); n > 0 || v == "0" {
			return n
		}
		return -1
	}
	for _, f := range e.Config.Fstab {
		if !slices.Contains(f.Options, "_netdev") || strings.HasPrefix(f.Type, "nfs") || !strings.HasPrefix(f.Point, "/") ||
			!slices.Contains([]string{"ext3", "ext4", "xfs", "btrfs", "gfs2"}, f.Type) {
			continue
		}
		all = append(all, stall.Disk{Name: f.Source, Driver: "sd", HostDriver: "iscsi_tcp", MaxRetries: -2, MaxMedium: -1, EHDeadline: -1,
			FSs:   []stall.FS{{Type: f.Type, Point: f.Point, Journal: true}},
			Guess: []string{"a disk of iSCSI: by _netdev in /etc/fstab"},
			ISCSI: &stall.ISCSI{Replacement: of("node.session.timeo.replacement_timeout"),
				NoopInterval: of("node.conn[0].timeo.noop_out_interval"), NoopTimeout: of("node.conn[0].timeo.noop_out_timeout")}})
	}
	return all
}
