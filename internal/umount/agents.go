// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/holders"
)

// agent is a program that is known to look at every mount.
type agent struct {
	name string
	// programs are the names of its file; units those of its unit, where the file's name tells too little.
	programs, units []string
	// unit is that of its package, for the command that restarts it; "" where it is none of the system.
	unit string
	// option is the setting that keeps it from path, false where the path cannot be written there. nil
	// where it has none: then only a drop-in helps.
	option func(path string) (w Way, ok bool)
}

// commBytes is how much of a name the kernel keeps (TASK_COMM_LEN, one byte for the end).
const commBytes = 15

// agents is the table of known programs. Each option was looked up in what is named; that it is asked
// before the mount is looked at, in the source where that is named too.
//
// Without an option that helps: snmpd (snmpd.conf(5) 5.9.3 leaves out devices and NFS, no paths), munin-node
// (its plugin df 2.0.73 leaves out what df has looked at already), check-mk-agent (runs df; what is
// left out is said on the server).
func agents() []agent {
	return []agent{
		{name: "open-vm-tools", programs: []string{"vmtoolsd"}, unit: "open-vm-tools.service", option: vmtools},
		{name: "node_exporter", programs: []string{"node_exporter", "prometheus-node-exporter"},
			unit: "prometheus-node-exporter.service", option: nodeExporter},
		{name: "netdata", programs: []string{"netdata"}, unit: "netdata.service", option: netdata},
		{name: "telegraf", programs: []string{"telegraf"}, unit: "telegraf.service", option: telegraf},
		{name: "collectd", programs: []string{"collectd"}, unit: "collectd.service", option: collectd},
		{name: "zabbix-agent", programs: []string{"zabbix_agentd"}, unit: "zabbix-agent.service",
			option: zabbix("/etc/zabbix/zabbix_agentd.conf")},
		{name: "zabbix-agent2", programs: []string{"zabbix_agent2"}, unit: "zabbix-agent2.service",
			option: zabbix("/etc/zabbix/zabbix_agent2.conf")},
		{name: "datadog-agent", units: []string{"datadog-agent.service"}, unit: "datadog-agent.service",
			option: datadog},
		{name: "updatedb", programs: []string{"updatedb", "updatedb.plocate", "updatedb.mlocate"}, option: updatedb},
		{name: "qemu-guest-agent", programs: []string{"qemu-ga"}, unit: "qemu-guest-agent.service", option: qemuGA},
		{name: "gvfsd-trash", programs: []string{"gvfsd-trash"}, option: gvfsTrash},
		{name: "monit", programs: []string{"monit"}, unit: "monit.service", option: monit},
		{name: "snmpd", programs: []string{"snmpd"}, unit: "snmpd.service"},
		{name: "munin-node", programs: []string{"munin-node"}, unit: "munin-node.service"},
		{name: "check-mk-agent", programs: []string{"check_mk_agent"}, unit: "check-mk-agent@.service"},
	}
}

// agentOf is the known program that a process is, or belongs to the unit of; nil for others.
func agentOf(p holders.Process) *agent {
	names := []string{baseOf(p.Exe)}
	if len(p.Cmdline) > 0 {
		names = append(names, baseOf(p.Cmdline[0]))
	}
	for _, a := range agents() {
		if slices.Contains(a.units, p.Unit) || p.Unit != "" && p.Unit == a.unit {
			return &a
		}
		for _, name := range a.programs {
			if slices.Contains(names, name) || p.Comm == name[:min(len(name), commBytes)] {
				return &a
			}
		}
	}
	return nil
}

// way is the agent's own option, with the command that puts it into force.
func (a *agent) way(p holders.Process, path string) (Way, bool) {
	if a.option == nil || p.Container != "" {
		return Way{}, false // in a container its files are elsewhere
	}
	w, ok := a.option(path)
	w.Kind = WayOption
	unit := p.Unit
	if !strings.HasSuffix(unit, ".service") {
		unit = a.unit
	}
	if w.Commands == nil {
		w.Commands = []string{}
	}
	if ok && unit != "" && len(w.Commands) == 0 && p.UserUnit == "" {
		w.Commands = []string{"systemctl restart " + quoteUnit(unit)}
	}
	return w, ok
}

// rough is a path in which every character that some language may read as something else is replaced by
// any.
func rough(path, any string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/_-"
	var b strings.Builder
	for _, r := range path {
		if strings.ContainsRune(plain, r) {
			b.WriteRune(r)
		} else {
			b.WriteString(any)
		}
	}
	return b.String()
}

// isPlain reports whether a path means the same in every language.
func isPlain(path string) bool { return rough(path, "") == path }

// Source: /etc/vmware-tools/tools.conf.example of open-vm-tools 12.2.0. It has no setting for one path.
func vmtools(string) (Way, bool) {
	return Way{What: "it does not look at disks any more; the hypervisor shows no free space of any of them then",
		File: "/etc/vmware-tools/tools.conf", Text: "[guestinfo]\ndisable-query-diskinfo=true\n"}, true
}

// Source: prometheus-node-exporter(1) 1.5.0 and /etc/default/prometheus-node-exporter of Debian 12; the
// pattern is asked before statfs (collector/filesystem_linux.go, GetStats). A "$" is not expanded there
// (systemd.exec(5), "EnvironmentFile=").
func nodeExporter(path string) (Way, bool) {
	return Way{What: "it leaves out the mounts that the pattern matches, which takes the place of the one that it " +
		"comes with; elsewhere than on Debian the option goes to its command line",
		File: "/etc/default/prometheus-node-exporter",
		Text: fmt.Sprintf("ARGS=\"--collector.filesystem.mount-points-exclude=^/(dev|proc|run/credentials/.+|sys|"+
			"var/lib/docker/.+|var/lib/containers/storage/.+)($|/)|^%s($|/)\"\n", rough(path, "."))}, true
}

// Source: netdata 1.37.1, collectors/diskspace.plugin (the list it comes with, and do_disk_space_stats: the
// pattern is asked before statvfs, and stat is called once when a mount is new).
func netdata(path string) (Way, bool) {
	return Way{What: "it gathers nothing of these paths; it still looks once at each mount that is new, which the " +
		"drop-in prevents as well",
		File: "/etc/netdata/netdata.conf",
		Text: fmt.Sprintf("[plugin:proc:diskspace]\n    exclude space metrics on paths = /proc/* /sys/* /var/run/user/* "+
			"/run/user/* /snap/* /var/lib/docker/* %s\n", rough(path, "*"))}, true
}

// Source: https://docs.influxdata.com/telegraf/v1/input-plugins/disk/ ("mount_points will restrict the stats
// to only the specified mount points"). It has no setting for a path that is left out.
func telegraf(path string) (Way, bool) {
	return Way{What: "it looks at the mounts that are named only: name all but " + path,
		File: "/etc/telegraf/telegraf.conf", Text: "[[inputs.disk]]\n  mount_points = [\"/\"]\n"}, true
}

// Source: collectd.conf(5) 5.12.0, "Plugin df" and "IGNORELISTS"; src/df.c, df_read: asked before statvfs.
func collectd(path string) (Way, bool) {
	if !isPlain(path) {
		return Way{}, false
	}
	return Way{What: "its plugin df leaves the mount out; where the plugin names mounts already, without " +
		"IgnoreSelected true, take this one out there",
		File: "/etc/collectd/collectd.conf",
		Text: fmt.Sprintf("<Plugin df>\n  MountPoint \"%s\"\n  IgnoreSelected true\n</Plugin>\n", path)}, true
}

// Source: zabbix_agentd.conf of zabbix-agent 6.0.14, "Option: DenyKey". What is looked at is said on the
// server; denied is what it asks for.
func zabbix(file string) func(string) (Way, bool) {
	return func(path string) (Way, bool) {
		if !isPlain(path) {
			return Way{}, false
		}
		return Way{What: "it does not answer what the server asks of this mount, nor what needs all mounts; take the " +
			"items out on the server, too", File: file,
			Text: fmt.Sprintf("DenyKey=vfs.fs.size[%[1]s]\nDenyKey=vfs.fs.size[%[1]s,*]\nDenyKey=vfs.fs.inode[%[1]s]\n"+
				"DenyKey=vfs.fs.inode[%[1]s,*]\nDenyKey=vfs.fs.get\n", path)}, true
	}
}

// Source: disk/datadog_checks/disk/data/conf.yaml.default of DataDog/integrations-core (patterns match from the
// beginning; the older word is mount_point_blacklist), and the tests of the agent's own check for the new word.
func datadog(path string) (Way, bool) {
	return Way{What: "its disk check leaves the mount out; in old versions the word is mount_point_blacklist",
		File: "/etc/datadog-agent/conf.d/disk.d/conf.yaml",
		Text: fmt.Sprintf("init_config:\ninstances:\n  - use_mount: false\n    mount_point_exclude:\n      - '%s$'\n",
			rough(path, "."))}, true
}

// Source: updatedb.conf(5) of plocate 1.1.18: names are separated by blanks, and nothing is escaped.
func updatedb(path string) (Way, bool) {
	if strings.ContainsAny(path, " \t\"'`$\\") {
		return Way{}, false
	}
	return Way{What: "it does not scan the directories that this list names: put this one at its end",
		File: "/etc/updatedb.conf", Text: fmt.Sprintf("PRUNEPATHS=\"... %s\"\n", path)}, true
}

// Source: qemu-ga(8) 7.2 ("-b, --block-rpcs", and the key of qemu-ga.conf) and its QAPI schema.
func qemuGA(string) (Way, bool) {
	return Way{What: "it does not answer when the hypervisor asks for file systems and their free space, of all mounts",
		File: "/etc/qemu/qemu-ga.conf", Text: "[general]\nblock-rpcs=guest-get-fsinfo\n"}, true
}

// Source: GLib 2.66, g_file_trash; gvfsd-trash of gvfs 1.50.3 knows the same option of a mount.
func gvfsTrash(path string) (Way, bool) {
	return Way{What: "it looks for no waste basket on mounts with this option: add it to the options of " + path + ", and mount " +
		"that again", File: "/etc/fstab", Text: "x-gvfs-notrash\n"}, true
}

// Source: monit(1) 5.33, "CHECK FILESYSTEM".
func monit(path string) (Way, bool) {
	return Way{What: "it looks at what it is told to only: take out the check of this file system",
		File: "/etc/monit/monitrc", Text: fmt.Sprintf("check filesystem NAME with path %s\n", path)}, true
}
