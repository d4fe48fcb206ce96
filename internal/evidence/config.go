// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// maxConfigLines bounds the lines of one file of settings.
const maxConfigLines = 1 << 16

// config reads what files say should be.
func (g *gatherer) config(ctx context.Context) {
	c := &g.e.Config
	c.Sysctl, c.Modules = map[string]Setting{}, map[string]Setting{}
	c.ISCSI, c.Multipath = map[string]Setting{}, map[string]Setting{}
	if text := g.optionalWord(ctx, PartConfig, "/proc/cmdline"); text != "" && g.t.Kind() != tree.Disk {
		c.CommandLine = text
	}
	g.fstab(ctx)
	g.modules(ctx)
	g.sysctl(ctx)
	for name, to := range map[string]map[string]Setting{"/etc/iscsi/iscsid.conf": c.ISCSI} {
		if text := g.optional(ctx, PartConfig, name); text != nil {
			settings(name, text, to)
		}
	}
	g.multipathConf(ctx)
	g.exports(ctx)
	g.udev(ctx)
	g.nova(ctx)
}

// fstab reads what is to be mounted (fstab(5)).
func (g *gatherer) fstab(ctx context.Context) {
	const file = "/etc/fstab"
	text := g.optional(ctx, PartConfig, file)
	entries, bad := linux.ParseFstab(text)
	if len(bad) > 0 {
		g.gap(PartConfig, file, fmt.Sprintf("lines that are not understood: %v", bad[:min(len(bad), 10)]))
	}
	for _, e := range entries {
		g.e.Config.Fstab = append(g.e.Config.Fstab, FstabEntry{Source: e.Source, Point: e.Point, Type: e.Type,
			Options: e.Options, Pass: e.Pass, From: Source{Path: file, Line: e.Line}})
	}
}

// settings reads lines of NAME = VALUE.
func settings(file string, text []byte, to map[string]Setting) {
	for _, l := range joined(text, maxConfigLines) {
		name, value, ok := strings.Cut(l.text, "=")
		if ok {
			to[strings.TrimSpace(name)] = Setting{strings.Trim(strings.TrimSpace(value), `"`),
				Source{Path: file, Line: l.number}}
		}
	}
}

// modules reads the options of modules: "options nvme_core io_timeout=255" (modprobe.d(5)), what the
// kernel was started with, and what is in force where it runs.
func (g *gatherer) modules(ctx context.Context) {
	to := g.e.Config.Modules
	for _, dir := range []string{"/usr/lib/modprobe.d", "/lib/modprobe.d", "/run/modprobe.d", "/etc/modprobe.d"} {
		names := g.optionalList(ctx, PartConfig, dir)
		for _, n := range names {
			if !strings.HasSuffix(n.Name, ".conf") || !isRegular(n) {
				continue
			}
			file := path.Join(dir, n.Name)
			text := g.optional(ctx, PartConfig, file)
			for _, l := range joined(text, maxConfigLines) {
				f := strings.Fields(l.text)
				if len(f) < 3 || f[0] != "options" {
					continue
				}
				for _, o := range f[2:] {
					name, value, _ := strings.Cut(o, "=")
					to[f[1]+"."+name] = Setting{value, Source{Path: file, Line: l.number}}
				}
			}
		}
	}
	for _, word := range strings.Fields(g.e.Config.CommandLine) {
		if name, value, ok := strings.Cut(word, "="); ok && strings.Contains(name, ".") {
			to[strings.ReplaceAll(name, "-", "_")] = Setting{value, Source{Path: "/proc/cmdline"}}
		}
	}
	if g.t.Kind() == tree.Disk {
		return
	}
	for _, name := range []string{"nvme_core.io_timeout", "nvme_core.admin_timeout", "nvme_core.max_retries",
		"nvme_core.multipath"} {
		module, parameter, _ := strings.Cut(name, ".")
		file := "/sys/module/" + module + "/parameters/" + parameter
		if value := g.optionalWord(ctx, PartConfig, file); value != "" {
			to[name] = Setting{value, Source{Path: file}}
		}
	}
}

// sysctls are the settings that rules look at.
var sysctls = []string{"kernel.hung_task_timeout_secs", "kernel.hung_task_warnings", "kernel.hung_task_panic",
	"kernel.panic", "kernel.panic_on_oops", "kernel.softlockup_panic", "vm.panic_on_oom", "vm.dirty_ratio",
	"vm.dirty_bytes", "vm.overcommit_memory", "vm.min_free_kbytes"}

// sysctl reads the settings in force, or those of the files where nothing runs: the last file that names
// one counts (sysctl.d(5)).
func (g *gatherer) sysctl(ctx context.Context) {
	to := g.e.Config.Sysctl
	if g.t.Kind() != tree.Disk {
		for _, name := range sysctls {
			file := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
			if value := g.optionalWord(ctx, PartConfig, file); value != "" {
				to[name] = Setting{value, Source{Path: file}}
			}
		}
		return
	}
	files := map[string]string{}
	for _, dir := range []string{"/usr/lib/sysctl.d", "/run/sysctl.d", "/etc/sysctl.d"} {
		names := g.optionalList(ctx, PartConfig, dir)
		for _, n := range names {
			if strings.HasSuffix(n.Name, ".conf") && isRegular(n) {
				files[n.Name] = path.Join(dir, n.Name)
			}
		}
	}
	order := make([]string, 0, len(files)+1)
	for name := range files {
		order = append(order, name)
	}
	slices.Sort(order)
	for i, name := range order {
		order[i] = files[name]
	}
	for _, file := range append(order, "/etc/sysctl.conf") {
		text := g.optional(ctx, PartConfig, file)
		all := map[string]Setting{}
		settings(file, text, all)
		for name, s := range all {
			name = strings.ReplaceAll(strings.TrimPrefix(name, "-"), "/", ".")
			if slices.Contains(sysctls, name) {
				to[name] = s
			}
		}
	}
}

// multipathConf reads the section "defaults" of multipath.conf(5), and what "overrides" puts above it.
func (g *gatherer) multipathConf(ctx context.Context) {
	const file = "/etc/multipath.conf"
	text := g.optional(ctx, PartConfig, file)
	section, depth := "", 0
	for _, l := range joined(text, maxConfigLines) {
		body, _, _ := strings.Cut(l.text, "#")
		f := strings.Fields(body)
		switch {
		case len(f) == 0:
		case f[len(f)-1] == "{":
			if depth == 0 {
				section = f[0]
			}
			depth++
		case f[0] == "}":
			depth--
		case depth == 1 && len(f) > 1 && (section == "defaults" || section == "overrides"):
			if _, known := g.e.Config.Multipath[f[0]]; !known || section == "overrides" {
				value := strings.Trim(strings.Join(f[1:], " "), `"`)
				g.e.Config.Multipath[f[0]] = Setting{value, Source{Path: file, Line: l.number}}
			}
		}
	}
}

// exports reads what this machine's NFS server gives to others: exports(5), "/srv host(rw) ...".
func (g *gatherer) exports(ctx context.Context) {
	files := []string{"/etc/exports"}
	names := g.optionalList(ctx, PartConfig, "/etc/exports.d")
	for _, n := range names {
		if strings.HasSuffix(n.Name, ".exports") && isRegular(n) {
			files = append(files, "/etc/exports.d/"+n.Name)
		}
	}
	for _, file := range files {
		text := g.optional(ctx, PartConfig, file)
		for _, l := range joined(text, maxConfigLines) {
			if f := strings.Fields(l.text); f[0][0] == '/' && !slices.Contains(g.e.Config.Exports, f[0]) {
				g.e.Config.Exports = append(g.e.Config.Exports, f[0])
			}
		}
	}
}
