// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"slices"
	"strconv"
	"strings"
)

// Place is where a process belongs, from the text of its control group.
type Place struct {
	// Cgroup is the path of the control group.
	Cgroup string
	// Unit is the unit of systemd, UserUnit that of the user's own manager within it; "" where there
	// is none.
	Unit, UserUnit string
	// Container names the container or machine with its runtime, as "docker:4f1a...",
	// "kubernetes:POD/ID", "libvirt:vm-17"; "" where it is in none.
	Container string
}

// maxCgroupBytes bounds /proc/PID/cgroup; a path has at most 4096 bytes, a host some 15 hierarchies.
const maxCgroupBytes = 128 << 10

// ParseCgroup reads /proc/PID/cgroup (cgroups(7)): lines as "0::/system.slice/ssh.service" for version
// 2, and "4:memory:/docker/4f1a..." for each hierarchy of version 1, where systemd's own one is called
// "name=systemd".
func ParseCgroup(text string) Place {
	var p Place
	rank := 0 // the hierarchy of systemd before version 2, before the others
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) < 3 || !strings.HasPrefix(fields[2], "/") {
			continue
		}
		path := strings.TrimSuffix(fields[2], " (deleted)")
		if p.Container == "" {
			p.Container = containerOf(path)
		}
		n := 1
		switch {
		case path == "/":
			n = 0
		case fields[1] == "name=systemd":
			n = 3
		case fields[1] == "" && fields[0] == "0":
			n = 2
		}
		if n > rank || p.Cgroup == "" {
			rank, p.Cgroup = n, path
		}
	}
	p.Unit, p.UserUnit = unitOf(p.Cgroup)
	return p
}

// unitOf gives the unit as systemd finds it (cg_path_get_unit and cg_path_get_user_unit in
// src/basic/cgroup-util.c): the first name behind the slices, and behind user@UID.service the first
// behind the slices of the user's manager.
func unitOf(path string) (unit, userUnit string) {
	rest := skipSlices(parts(path))
	if len(rest) == 0 || !unitName(rest[0]) {
		return "", ""
	}
	unit = unescapeCgroup(rest[0])
	if !strings.HasPrefix(unit, "user@") {
		return unit, ""
	}
	if rest = skipSlices(rest[1:]); len(rest) > 0 && unitName(rest[0]) {
		userUnit = unescapeCgroup(rest[0])
	}
	return unit, userUnit
}

func parts(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func skipSlices(names []string) []string {
	for len(names) > 0 && strings.HasSuffix(names[0], ".slice") {
		names = names[1:]
	}
	return names
}

func unitName(s string) bool {
	return slices.ContainsFunc([]string{".service", ".scope", ".socket", ".mount", ".swap"},
		func(suffix string) bool { return strings.HasSuffix(s, suffix) && len(s) > len(suffix) })
}

// unescapeCgroup takes off the "_" that systemd puts before names that the kernel has a use for.
func unescapeCgroup(s string) string { return strings.TrimPrefix(s, "_") }

// containerOf tells of the outermost container in a path: what its runtime calls it.
func containerOf(path string) string {
	names := parts(path)
	pod := ""
	for i, name := range names {
		before := ""
		if i > 0 {
			before = names[i-1]
		}
		if id, ok := podOf(name); ok {
			pod = id
			continue
		}
		kind, id := runtimeOf(before, name)
		switch {
		case kind == "":
		case pod != "":
			return "kubernetes:" + pod + "/" + id
		default:
			return kind + ":" + id
		}
	}
	if pod != "" {
		return "kubernetes:" + pod
	}
	return ""
}

// podOf takes the pod out of the name that Kubernetes' kubelet gives a control group: "podUID" below
// "kubepods", or "kubepods-burstable-podUID.slice" with "_" for "-".
func podOf(name string) (string, bool) {
	slice, systemd := strings.CutSuffix(name, ".slice")
	i := strings.LastIndex(slice, "pod")
	switch {
	case systemd && strings.HasPrefix(slice, "kubepods-") && i >= len("kubepods-"):
		return strings.ReplaceAll(slice[i+len("pod"):], "_", "-"), true
	case !systemd && i == 0 && strings.Count(name, "-") == 4:
		return name[len("pod"):], true
	}
	return "", false
}

// runtimeOf knows the names that container runtimes and machine managers give control groups; before
// is the name of the group above.
func runtimeOf(before, name string) (kind, id string) {
	scope, isScope := strings.CutSuffix(name, ".scope")
	if isScope {
		for prefix, kind := range map[string]string{"docker-": "docker", "libpod-": "podman",
			"crio-": "cri-o", "cri-containerd-": "containerd"} {
			if id, ok := strings.CutPrefix(scope, prefix); ok && hexID(id) {
				return kind, id
			}
		}
		if before == "qemu.slice" && len(scope) <= 9 && strings.Trim(scope, "0123456789") == "" {
			return "proxmox", scope // qemu.slice/100.scope
		}
		if machine, ok := strings.CutPrefix(scope, "machine-"); ok {
			return machineOf(unescapeUnit(machine))
		}
	}
	if id, ok := strings.CutPrefix(name, "lxc.payload."); ok {
		return "lxc", id
	}
	if machine, ok := strings.CutPrefix(name, "systemd-nspawn@"); ok {
		return "nspawn", unescapeUnit(strings.TrimSuffix(machine, ".service"))
	}
	if id, ok := strings.CutPrefix(name, "libpod-"); ok && hexID(id) {
		return "podman", id
	}
	switch {
	case before == "lxc":
		return "lxc", name
	case before == "docker" && hexID(name):
		return "docker", name
	case hexID(name):
		return "container", name
	}
	return "", ""
}

// machineOf tells what a scope of systemd-machined is: libvirt calls its machines "qemu-N-NAME" and
// "lxc-N-NAME" (virDomainDriverGenerateMachineName).
func machineOf(name string) (kind, id string) {
	for prefix, kind := range map[string]string{"qemu-": "libvirt", "lxc-": "libvirt-lxc"} {
		rest, ok := strings.CutPrefix(name, prefix)
		number, machine, more := strings.Cut(rest, "-")
		if _, err := strconv.Atoi(number); ok && more && err == nil {
			return kind, machine
		}
	}
	return "machine", name
}

// hexID reports whether s is an id as container runtimes make them: 64 hexadecimal digits.
func hexID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// unescapeUnit puts back what systemd writes as \xNN in names of units (systemd-escape(1)).
func unescapeUnit(s string) string {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}
