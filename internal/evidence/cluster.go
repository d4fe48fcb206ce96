// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// cluster reads what is configured of a cluster, and what its programs said last. It comes after the log.
func (g *gatherer) cluster(ctx context.Context) {
	c := &g.e.Cluster
	c.Nodes, c.Waiting = map[string]string{}, map[string]string{}
	const file = "/etc/corosync/corosync.conf"
	if text := g.optional(ctx, PartCluster, file); text != nil {
		c.Present, c.From = true, Source{Path: file}
		c.corosync(text)
	}
	for _, name := range []string{"/etc/cluster/cluster.conf", "/var/lib/pacemaker/cib/cib.xml"} {
		if text := g.optional(ctx, PartCluster, name); text != nil {
			c.Present = true
			c.fencing(string(text))
		}
	}
	c.said(&g.e.Log)
	g.lockspaces(ctx)
}

// recovered is DLM_RS_DONE of fs/dlm/dlm_internal.h: a lockspace has it from the end of its recovery until it is
// stopped again.
const recovered = 0x40

// lockspaces reads how the lockspaces of dlm stand that the kernel has, as /sys/kernel/dlm/NAME/recover_status
// (dlm_recover_status_show in fs/dlm/lockspace.c of Linux 6.1; 0 from dlm_ls_stop on). It knows better than a log.
func (g *gatherer) lockspaces(ctx context.Context) {
	c := &g.e.Cluster
	for _, n := range g.optionalList(ctx, PartCluster, "/sys/kernel/dlm") {
		file := "/sys/kernel/dlm/" + n.Name + "/recover_status"
		text := g.optionalWord(ctx, PartCluster, file)
		status, err := strconv.ParseUint(text, 16, 32)
		if err != nil {
			if text != "" {
				g.gap(PartCluster, file, fmt.Sprintf("is no status: %.20q", text))
			}
			continue
		}
		c.Present = true
		switch {
		case status&recovered != 0:
			delete(c.Waiting, n.Name)
		case c.Waiting[n.Name] == "" && len(c.Waiting) < 1024:
			what := "it is being recovered"
			if status == 0 {
				what = "it was stopped, and is not recovered"
			}
			c.Waiting[n.Name] = what + " (recover_status " + text + ")"
		}
	}
}

// corosync reads the timeout and the nodes of corosync.conf(5).
func (c *Cluster) corosync(text []byte) {
	section := []string{}
	c.Token = time.Second
	for _, l := range joined(text, maxConfigLines) {
		body, _, _ := strings.Cut(l.text, "#")
		body = strings.TrimSpace(body)
		switch {
		case strings.HasSuffix(body, "{"):
			section = append(section, strings.TrimSpace(strings.TrimSuffix(body, "{")))
		case body == "}" && len(section) > 0:
			section = section[:len(section)-1]
		default:
			name, value, _ := strings.Cut(body, ":")
			in := strings.Join(section, ".")
			value = strings.TrimSpace(value)
			switch strings.TrimSpace(name) {
			case "token":
				if in == "totem" {
					c.Token = time.Duration(min(number(value, 1000), 1<<31)) * time.Millisecond
				}
			case "name", "ring0_addr":
				if in == "nodelist.node" && len(c.Nodes) < 1024 && c.Nodes[value] == "" {
					c.Nodes[value] = "unknown"
				}
			}
		}
	}
}

// fencing tells whether anything is set to fence nodes.
func (c *Cluster) fencing(text string) {
	switch {
	case strings.Contains(text, `name="stonith-enabled" value="false"`):
		c.Fencing = "no"
	case strings.Contains(text, `class="stonith"`), strings.Contains(text, "<fencedevice "):
		c.Fencing = "yes"
	}
}

// said takes the last word of messages: what is needed and was not done.
func (c *Cluster) said(l *Log) {
	for i := range l.Events {
		e := &l.Events[i]
		node := e.Fields["node"]
		switch e.Form {
		case "fence.needed":
			c.Present = true
			if node != "" && !slices.Contains(c.Pending, node) && len(c.Pending) < 1024 {
				c.Pending = append(c.Pending, node)
			}
		case "fence.done", "dlm.fenced":
			c.Pending = slices.DeleteFunc(c.Pending, func(n string) bool { return n == node || e.Form == "dlm.fenced" })
			clear(c.Waiting)
		case "dlm.fencing":
			c.Present = true
			if space := e.Fields["lockspace"]; space != "" && len(c.Waiting) < 1024 {
				c.Waiting[space] = "fencing or quorum"
			}
		case "quorum.lost":
			c.Present, c.Quorum = true, "no"
		case "quorum.got":
			c.Present, c.Quorum = true, "yes"
			clear(c.Waiting)
		case "node.state":
			c.Nodes[node] = e.Fields["state"]
		case "kernel.boot":
			c.Pending, c.Quorum = nil, "" // what was said before is of another run
			clear(c.Waiting)
		}
	}
}
