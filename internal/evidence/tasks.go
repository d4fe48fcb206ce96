// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// tasks takes in who waited when the running system was asked. A machine that does not run has none.
func (g *gatherer) tasks(ctx context.Context) {
	t := &g.e.Tasks
	if !g.own(ctx, PartTasks, "tasks.json", t) {
		if g.t.Kind() != tree.Disk {
			g.gap(PartTasks, "", "tasks are looked at on the machine itself, while it runs")
		}
		return
	}
	if t.Missed != "" {
		g.gap(PartTasks, "", t.Missed)
	}
	if t.More > 0 {
		g.gap(PartTasks, "more tasks that wait", strconv.Itoa(t.More)+" were not looked at one by one")
	}
	if t.Hidden > 0 {
		g.gap(PartTasks, "tasks that wait for FUSE", "of "+strconv.Itoa(t.Hidden)+" tasks the kernel does not say where they wait, "+
			"without more rights")
	}
	for i := range t.Waiting {
		g.waitsFor(&t.Waiting[i])
	}
}

// waitsFor gives a task the devices below its mounts, and takes numbers of devices for their names.
func (g *gatherer) waitsFor(t *Task) {
	add := func(name string) {
		if name != "" && !slices.Contains(t.Devices, name) {
			t.Devices = append(t.Devices, name)
		}
	}
	given := t.Devices
	t.Devices = []string{}
	for _, name := range given {
		add(g.byNumber(name))
	}
	for _, point := range t.Mounts {
		if i := g.e.MountOf(point); i >= 0 && g.e.Mounts[i].Point == point && g.e.Mounts[i].FS >= 0 {
			add(g.e.FSs[g.e.Mounts[i].FS].Device)
		}
	}
}

// byNumber gives the name of a device that is written as MAJOR:MINOR, if a mounted file system is on it.
func (g *gatherer) byNumber(name string) string {
	major, minor, is := strings.Cut(name, ":")
	if !is {
		return name
	}
	dev := unix.Mkdev(uint32(whole(major)), uint32(whole(minor)))
	for i := range g.e.FSs {
		f := &g.e.FSs[i]
		if len(f.Mounts) > 0 && g.e.Mounts[f.Mounts[0]].Dev == dev && f.Device != "" {
			return f.Device
		}
	}
	return name
}
