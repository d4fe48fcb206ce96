// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/refs/nova"
)

// novaFiles hold the compute service's settings; later ones count more (oslo.config).
var novaFiles = []string{"/usr/share/nova/nova-dist.conf", "/etc/nova/nova.conf", "/etc/nova/nova-compute.conf"}

// nova reads the configuration of OpenStack's compute service, and who uses its directory.
func (g *gatherer) nova(ctx context.Context) {
	all := map[string]Setting{}
	from := Source{}
	for _, file := range novaFiles {
		if text := g.optional(ctx, PartConfig, file); text != nil {
			ini(file, text, all)
			from = Source{Path: file}
		}
	}
	if from.Path == "" {
		return
	}
	n := &Nova{RemoveUnused: true, MinimumAge: 24 * time.Hour, Instances: "/var/lib/nova/instances",
		Nodes: map[string]time.Time{}, From: from}
	// The options moved from DEFAULT to [image_cache] in 2020 (release Ussuri).
	for _, section := range []string{"DEFAULT", "libvirt", "image_cache"} {
		if s, ok := all[section+".remove_unused_base_images"]; ok {
			n.RemoveUnused, n.From = isTrue(s.Value), s.From
		}
		if s, ok := all[section+".remove_unused_original_minimum_age_seconds"]; ok {
			n.MinimumAge = time.Duration(min(number(s.Value, 86400), 1<<32)) * time.Second
		}
	}
	state := "/var/lib/nova"
	if s, ok := all["DEFAULT.state_path"]; ok {
		state = s.Value
	}
	n.Instances = path.Join(state, "instances")
	if s, ok := all["DEFAULT.instances_path"]; ok {
		n.Instances = path.Clean(strings.ReplaceAll(s.Value, "$state_path", state))
	}
	g.e.Config.Nova = n
	g.novaNodes(ctx, n)
}

// novaNodes reads the file in which every compute node leaves its time: {"node1": 1700000000.1, ...}
// (nova/virt/libvirt/imagecache.py and storage_users.py, "compute_nodes"). Two nodes in it mean that
// the directory is shared.
func (g *gatherer) novaNodes(ctx context.Context, n *Nova) {
	for i := range g.e.Mounts {
		m := &g.e.Mounts[i]
		inside := n.Instances == m.Point || strings.HasPrefix(n.Instances, strings.TrimSuffix(m.Point, "/")+"/")
		if m.Own && inside && shares(m.Type) {
			n.Shared = true
		}
	}
	file := path.Join(n.Instances, nova.HostsFile)
	text, err := g.t.Read(ctx, file, nova.MaxHostsBytes)
	if err != nil {
		g.missed(PartConfig, file, err)
		if !tree.Missing(err) {
			n.NodesUnread = Reason(err)
		}
		return
	}
	nodes, err := nova.ParseHosts(text)
	n.Shared = n.Shared || len(nodes) > 1
	if err != nil {
		// The nodes before the place where it is torn are there all the same, but the time of one may be cut off.
		n.NodesUnread = err.Error()
		g.gap(PartConfig, file, n.NodesUnread)
		return
	}
	for _, host := range nodes {
		n.Nodes[host.Name] = host.Heard
	}
}

// shares tells whether other machines may have the same file system mounted.
func shares(fsType string) bool {
	switch linux.MayHang(fsType) {
	case "a server", "a cluster":
		return true
	}
	return strings.HasPrefix(fsType, "fuse.gluster") || strings.HasPrefix(fsType, "fuse.ceph")
}

// ini reads [section] and name = value into "section.name".
func ini(file string, text []byte, to map[string]Setting) {
	section := "DEFAULT"
	for _, l := range joined(text, maxConfigLines) {
		if name, ok := strings.CutPrefix(l.text, "["); ok {
			section, _, _ = strings.Cut(name, "]")
			continue
		}
		if name, value, ok := strings.Cut(l.text, "="); ok && !strings.HasPrefix(l.text, ";") {
			to[section+"."+strings.TrimSpace(name)] = Setting{strings.TrimSpace(value),
				Source{Path: file, Line: l.number}}
		}
	}
}

// isTrue reads a truth value as oslo.config does.
func isTrue(s string) bool {
	switch strings.ToLower(s) {
	case "true", "1", "on", "yes":
		return true
	}
	return false
}
