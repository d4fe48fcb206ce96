// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"cmp"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// file is a log that was found.
type file struct {
	path  string
	size  int64
	mtime time.Time
	kind  kind
	// series is what a file and those that were rotated away from it have in common.
	series string
}

// kind is how the lines of a log are made.
type kind int

const (
	syslogKind  kind = iota // one of many programs, perhaps of many hosts
	clusterKind             // corosync, pacemaker, dlm: as syslog, of one program
	qemuKind                // what libvirt keeps of one machine
	libvirtKind
	novaKind
	dmesgKind
	journalctlKind // the output of journalctl in a report
	anyKind        // each line tells
)

// places are where logs in text are, by directory; names are matched without what rotation adds.
var places = []struct {
	dir   string
	names string
	kind  kind
}{
	{"/var/log", `^(syslog|messages|kern\.log|daemon\.log|user\.log|warn|localmessages|all\.log|system\.log|debug)$`, syslogKind},
	{"/var/log", `^pacemaker\.log$`, clusterKind},
	{"/var/log", `^dmesg$`, dmesgKind},
	{"/var/log/pacemaker", `^pacemaker\.log$`, clusterKind},
	{"/var/log/cluster", `\.log$`, clusterKind},
	{"/var/log/corosync", `\.log$`, clusterKind},
	{"/var/log/dlm_controld", `\.log$`, clusterKind},
	{"/var/log/libvirt", `^(libvirtd|virtqemud)\.log$`, libvirtKind},
	{"/var/log/libvirt/qemu", `\.log$`, qemuKind},
	{"/var/log/nova", `\.log$`, novaKind},
	{"/var/log/kolla/nova", `\.log$`, novaKind},
	{"/var/log/containers/nova", `\.log$`, novaKind},
	{"/sys/fs/pstore", `^dmesg-`, dmesgKind},
	{"/sos_commands/kernel", `^dmesg$|^dmesg_-T$`, dmesgKind},
	{"/sos_commands/logs", `^journalctl_.*`, journalctlKind},
}

// central are directories in which daemons keep the logs of other hosts.
var central = []string{"/var/log/remote", "/var/log/hosts", "/var/log/rsyslog", "/var/log/central"}

// rotation is what is added to the name of a log that was set aside: ".1", ".2.gz", "-20261101.xz".
var rotation = regexp.MustCompile(`(-\d{8}(-?\d{2,10})?|\.\d{1,4}|\.old)?(\.gz|\.xz|\.zst|\.bz2)?$`)

// texts finds the logs in text, the newest first within each series.
func (r *reader) texts() []file {
	if r.o.Collected {
		return r.collected(false)
	}
	var all []file
	for _, p := range places {
		names := regexp.MustCompile(p.names)
		for _, e := range r.list(p.dir) {
			if base := rotation.ReplaceAllString(e.Name, ""); regular(e) && names.MatchString(base) && !strings.Contains(e.Name, "disk-usage") {
				all = append(all, file{p.dir + "/" + e.Name, e.Size, e.Mtime, p.kind, p.dir + "/" + base})
			}
		}
	}
	for _, dir := range central {
		all = r.below(all, dir, 2, syslogKind, "")
	}
	all = r.below(all, kept, 3, dmesgKind, "dmesg")
	slices.SortStableFunc(all, func(a, b file) int {
		return cmp.Or(strings.Compare(a.series, b.series), -a.mtime.Compare(b.mtime), strings.Compare(a.path, b.path))
	})
	if len(all) > maxFiles {
		r.gap("/var/log", "%d logs: only %d were looked at", len(all), maxFiles)
		all = all[:maxFiles]
	}
	return all
}

// kept is where systemd keeps what the kernel left in the firmware's memory when it crashed.
const kept = "/var/lib/systemd/pstore"

func pstored(path string) bool {
	return strings.HasPrefix(path, kept+"/") || strings.HasPrefix(path, "/sys/fs/pstore/")
}

// below finds logs in a directory and those in it.
func (r *reader) below(all []file, dir string, depth int, k kind, prefix string) []file {
	for _, e := range r.list(dir) {
		name := path.Join(dir, e.Name)
		switch {
		case e.Type.IsDir() && depth > 0 && len(all) <= maxFiles:
			all = r.below(all, name, depth-1, k, prefix)
		case regular(e) && strings.HasPrefix(e.Name, prefix):
			all = append(all, file{name, e.Size, e.Mtime, k, rotation.ReplaceAllString(name, "")})
		}
	}
	return all
}

func regular(e tree.Entry) bool { return e.Type == 0 && e.Size > 0 }

// journals finds the journal files of the machine, but those of its users.
func (r *reader) journals() []file {
	if r.o.Collected {
		return r.collected(true)
	}
	var all []file
	for _, dir := range []string{"/var/log/journal", "/run/log/journal"} {
		for _, d := range r.list(dir) {
			if !d.Type.IsDir() {
				continue
			}
			for _, e := range r.list(dir + "/" + d.Name) {
				journal := strings.HasSuffix(e.Name, ".journal") || strings.HasSuffix(e.Name, ".journal~")
				if regular(e) && journal && !strings.HasPrefix(e.Name, "user-") {
					all = append(all, file{path: dir + "/" + d.Name + "/" + e.Name, size: e.Size, mtime: e.Mtime, series: d.Name})
				}
			}
		}
	}
	slices.SortStableFunc(all, func(a, b file) int { return -a.mtime.Compare(b.mtime) })
	return all[:min(len(all), maxFiles)]
}
