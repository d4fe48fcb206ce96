// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/guest/volume"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// System gives the files of the Linux system on a guest's disks (NewTree), and as files of /shisa what the
// disks themselves tell: their file systems, and when they were written last. label names the guest; times
// after now are not believed.
func System(ctx context.Context, g *Guest, part, label string, now time.Time) (tree.Tree, error) {
	t, err := NewTree(ctx, g, part)
	if err != nil {
		return nil, err
	}
	d := facts(ctx, g, t)
	files := map[string][]byte{}
	for name, content := range map[string]any{"disk.json": d,
		"meta.json": evidence.Meta{Label: label, Time: lastSign(ctx, t, d, now)}} {
		if files["/shisa/"+name], err = json.Marshal(content); err != nil {
			return nil, err
		}
	}
	return tree.Overlay(t, files), ctx.Err()
}

// facts tells what is on the disks.
func facts(ctx context.Context, g *Guest, t *Tree) *evidence.Disks {
	d := &evidence.Disks{Images: []string{}, Volumes: []evidence.DiskVolume{}, Notes: slices.Concat(g.Notes(), g.Divided())}
	for _, x := range g.Layout.Disks {
		d.Images = append(d.Images, x.Name)
		if st, err := diskio.Look(x.Name); err == nil && st.ModTime.After(d.Changed) {
			d.Changed = st.ModTime
		}
	}
	for i, v := range g.Layout.Volumes {
		f := evidence.DiskVolume{Name: v.Name, Names: kernelNames(g.Layout, i), Kind: string(v.Kind), UUID: v.UUID,
			Label: v.Label, PartUUID: v.PartUUID, PartName: v.PartName}
		for _, e := range t.mounts {
			if e.Files() && g.fstabPart(e.Source) == i || e.Point == "/" && i == t.root {
				f.Point, f.Line = e.Point, e.Line
				break
			}
		}
		switch {
		case readable(v):
			if system, err := g.FS(ctx, i); err != nil {
				f.Unread = err.Error()
			} else {
				info, view := system.Info(), system.View()
				f.Info, f.View = &info, &view
			}
		case v.NotExamined != "":
			f.Unread = v.NotExamined
		case slices.Contains([]volume.Kind{volume.Btrfs, volume.ZFS}, v.Kind):
			f.Unread = fmt.Sprintf("%s is not read", v.Kind)
		}
		d.Volumes = append(d.Volumes, f)
	}
	return d
}

// kernelNames gives the names that the guest's kernel may have for a volume: by the bus of its disk, and
// dm-0 for the only logical volume.
func kernelNames(l *volume.Layout, i int) []string {
	v := l.Volumes[i]
	switch {
	case v.Class == volume.Logical:
		logical := 0
		for _, o := range l.Volumes {
			if o.Class == volume.Logical {
				logical++
			}
		}
		if logical == 1 {
			return []string{"dm-0"}
		}
		return []string{}
	case v.Class == volume.Array:
		if name, is := strings.CutPrefix(v.Name, "md/"); is {
			return []string{name}
		}
		return []string{v.Name}
	case v.Disk < 0 || v.Disk > 25:
		return []string{}
	}
	letter, number := string(rune('a'+v.Disk)), ""
	if v.Part > 0 {
		number = fmt.Sprint(v.Part)
	}
	nvme := fmt.Sprintf("nvme%dn1", v.Disk)
	if number != "" {
		nvme += "p" + number
	}
	return []string{"vd" + letter + number, "sd" + letter + number, "xvd" + letter + number, "hd" + letter + number, nvme}
}

// lastSign is when the guest was seen last: the last change of a file system that keeps it, or of its
// logs, else that of the images.
func lastSign(ctx context.Context, t *Tree, d *evidence.Disks, now time.Time) time.Time {
	var last time.Time
	take := func(at time.Time) {
		if at.After(last) && at.Before(now.Add(24*time.Hour)) { // clocks of guests may be wrong
			last = at
		}
	}
	for _, v := range d.Volumes {
		if v.Info != nil && v.Info.Record.Written > 0 {
			take(time.Unix(v.Info.Record.Written, 0).UTC())
		}
	}
	if t.root >= 0 {
		names, err := t.List(ctx, "/var/log")
		for _, n := range names {
			if err == nil {
				take(n.Mtime)
			}
		}
	}
	if last.IsZero() {
		return d.Changed
	}
	return last
}
