// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxAddresses bounds the addresses of one machine: a host of containers has hundreds.
const maxAddresses = 4096

// host tells what machine this is.
func (g *gatherer) host(ctx context.Context) {
	h := &g.e.Host
	h.Name = g.first(ctx, "/proc/sys/kernel/hostname", "/etc/hostname", "/sos_commands/host/hostname")
	h.MachineID = g.first(ctx, "/etc/machine-id", "/var/lib/dbus/machine-id")
	h.Kernel = g.first(ctx, "/proc/sys/kernel/osrelease")
	words := strings.Fields(g.first(ctx, "/proc/version", "/sos_commands/kernel/uname_-a"))
	if h.Kernel == "" && len(words) > 2 {
		h.Kernel = words[2] // both are "Linux X RELEASE ..."
	}
	h.OS = assigned(g.first(ctx, "/etc/os-release", "/usr/lib/os-release"), "PRETTY_NAME")
	h.BootID = g.first(ctx, "/proc/sys/kernel/random/boot_id")
	h.UUID = strings.ToLower(g.first(ctx, "/sys/class/dmi/id/product_uuid"))
	h.Booted = g.booted(ctx)
	h.Virtual = g.virtual(ctx)
	h.Addresses = localAddresses(g.first(ctx, "/proc/net/fib_trie"), g.first(ctx, "/proc/net/if_inet6"))
	for line := range strings.Lines(g.first(ctx, "/proc/cpuinfo")) {
		if strings.HasPrefix(line, "processor") {
			h.Processors++
		}
	}
}

// first gives the text of the first of some files that is there, without the white space around it. What
// a copy does not have leaves the machine a little less known, and is no gap.
func (g *gatherer) first(ctx context.Context, names ...string) string {
	for _, name := range names {
		b, err := g.t.Read(ctx, name, maxSmallBytes)
		if text := string(bytes.TrimSpace(b)); err == nil && text != "" {
			return text
		}
	}
	return ""
}

// assigned gives the value of a name in lines of NAME=value (os-release(5)).
func assigned(text, name string) string {
	for line := range strings.Lines(text) {
		if value, is := strings.CutPrefix(strings.TrimSpace(line), name+"="); is {
			return strings.Trim(value, `"'`)
		}
	}
	return ""
}

// booted is when the kernel was started, by btime of /proc/stat (proc(5)).
func (g *gatherer) booted(ctx context.Context) time.Time {
	for line := range strings.Lines(g.first(ctx, "/proc/stat")) {
		rest, is := strings.CutPrefix(line, "btime ")
		if s, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64); is && err == nil {
			return time.Unix(s, 0).UTC()
		}
	}
	return time.Time{}
}

// virtual tells by what the machine is made, by the names that hypervisors give their boards.
func (g *gatherer) virtual(ctx context.Context) string {
	if t := g.first(ctx, "/sys/hypervisor/type"); t != "" {
		return t // "xen"
	}
	board := strings.ToLower(g.first(ctx, "/sys/class/dmi/id/sys_vendor") + " " +
		g.first(ctx, "/sys/class/dmi/id/product_name"))
	for _, v := range [...][2]string{{"vmware", "vmware"}, {"microsoft corporation virtual", "hyperv"}, {"xen", "xen"},
		{"qemu", "kvm"}, {"kvm", "kvm"}, {"openstack", "kvm"}, {"rhev", "kvm"}, {"ovirt", "kvm"},
		{"amazon ec2", "kvm"}, {"google", "kvm"}, {"innotek", "virtualbox"}, {"firecracker", "kvm"}} {
		if strings.Contains(board, v[0]) {
			return v[1]
		}
	}
	info := g.first(ctx, "/proc/cpuinfo")
	flags := slices.ContainsFunc(strings.Fields(info), func(w string) bool { return w == "hypervisor" })
	switch {
	case flags, info == "":
		return "unknown"
	default:
		return ""
	}
}

// localAddresses gives the addresses of this machine but for those of loopback: from fib_trie, where
// each is followed by "/32 host LOCAL", and from if_inet6 (proc_net_fib_trie(5), Documentation/networking
// of the kernel: 32 hex digits, index, length, scope, flags, name).
func localAddresses(trie, six string) []string {
	var all []string
	add := func(a netip.Addr, err error) {
		if err == nil && !a.IsLoopback() && !a.IsLinkLocalUnicast() && len(all) < maxAddresses {
			all = append(all, a.String())
		}
	}
	last := ""
	for line := range strings.Lines(trie) {
		line = strings.TrimSpace(line)
		if rest, is := strings.CutPrefix(line, "|-- "); is {
			last = rest
		} else if strings.HasPrefix(line, "/32 host LOCAL") {
			add(netip.ParseAddr(last))
		}
	}
	for line := range strings.Lines(six) {
		digits, _, _ := strings.Cut(line, " ")
		if len(digits) != 32 {
			continue
		}
		var parts []string
		for i := 0; i < 32; i += 4 {
			parts = append(parts, digits[i:i+4])
		}
		add(netip.ParseAddr(strings.Join(parts, ":")))
	}
	slices.Sort(all)
	return slices.Compact(all)
}
