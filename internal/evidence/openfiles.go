// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

const (
	// maxOpenFiles bounds the descriptors of all processes that are looked at, openTimeout the time for that.
	maxOpenFiles = 1 << 17
	openTimeout  = time.Second
	// maxInfoBytes bounds the text about one; that of an epoll with many files is longer, and no file's.
	maxInfoBytes = 4096
)

// OpenFile is a file that the log speaks of by its inode, and that a process has open.
type OpenFile struct {
	Device string `json:"device"`
	Inode  uint64 `json:"inode"`
	Path   string `json:"path"`
	By     string `json:"by"`
}

// openFiles gives those that are known.
func openFiles(e *Evidence) []OpenFile {
	all := []OpenFile{}
	for i := range e.FSs {
		for _, h := range e.FSs[i].Hurt {
			if h.Open != "" {
				all = append(all, OpenFile{e.FSs[i].Device, h.Inode, h.Open, h.By})
			}
		}
	}
	return all
}

// hurtOpen names the files that the log speaks of and that a process has open. Only /proc is looked into: the file
// systems may not answer, and who goes through one keeps it from being unmounted.
func (g *gatherer) hurtOpen(ctx context.Context) {
	want := map[int]map[uint64]bool{} // index of a file system -> inodes
	for i := range g.e.FSs {
		if g.e.FSs[i].Type == "btrfs" {
			continue // its numbers are those of subvolumes, and several have the same
		}
		for _, ino := range g.hurtInodes(&g.e.FSs[i]) {
			if want[i] == nil {
				want[i] = map[uint64]bool{}
			}
			want[i][ino] = true
		}
	}
	if g.named {
		for _, o := range g.hurtNames {
			for i := range want {
				if g.e.FSs[i].Device == o.Device && want[i][o.Inode] {
					g.e.FSs[i].Hurt = append(g.e.FSs[i].Hurt, HurtFile{Inode: o.Inode, Open: o.Path, By: o.By})
				}
			}
		}
		return
	}
	if len(want) == 0 || g.t.Kind() != tree.Live {
		return
	}
	byMount := map[int]int{} // id of a mount, of any namespace -> index of its file system
	for i := range g.e.Mounts {
		if m := &g.e.Mounts[i]; want[m.FS] != nil {
			byMount[m.ID] = m.FS
		}
	}
	o := &opens{g: g, want: want, byMount: byMount, end: time.Now().Add(openTimeout)}
	if !o.all(ctx) {
		for i := range want { // no gap: that a file was hurt is known, and how its name is found is told
			g.e.FSs[i].HurtUnseen = true
		}
	}
}

// opens looks for open files.
type opens struct {
	g       *gatherer
	want    map[int]map[uint64]bool
	byMount map[int]int
	end     time.Time
	looked  int
}

// all looks at all processes; whole is false where there was no time for that.
func (o *opens) all(ctx context.Context) (whole bool) {
	names, err := o.g.t.List(ctx, "/proc")
	if err != nil {
		return false
	}
	whole = true
	for _, n := range names {
		if _, err := strconv.Atoi(n.Name); err != nil {
			continue
		}
		dir := "/proc/" + n.Name
		fds, err := o.g.t.List(ctx, dir+"/fdinfo")
		if err != nil {
			whole = whole && tree.Missing(err) // it ended, or may not be looked at
			continue
		}
		for _, fd := range fds {
			if o.looked++; o.looked > maxOpenFiles || time.Now().After(o.end) || ctx.Err() != nil {
				return false
			}
			o.one(ctx, dir, fd.Name)
		}
	}
	return whole
}

// one looks at one descriptor, by what the kernel says of it and without touching the file.
func (o *opens) one(ctx context.Context, dir, fd string) {
	f, err := o.g.t.Open(ctx, dir+"/fdinfo/"+fd) // not Read: a bundle would have all of them
	if err != nil {
		return // it was closed
	}
	defer f.Close()
	text := make([]byte, maxInfoBytes)
	n, err := f.ReadAt(text, 0)
	if err != nil && err != io.EOF {
		return
	}
	mount, ino := fdInfo(string(text[:n]))
	i, known := o.byMount[mount]
	if !known || !o.want[i][ino] {
		return
	}
	name, err := o.g.t.Link(ctx, dir+"/fd/"+fd)
	if err != nil || !path.IsAbs(name) || strings.HasSuffix(name, " (deleted)") {
		return
	}
	fs := &o.g.e.FSs[i]
	if slices.ContainsFunc(fs.Hurt, func(h HurtFile) bool { return h.Inode == ino }) {
		return
	}
	comm, _ := o.g.t.Read(ctx, dir+"/comm", maxSmallBytes)
	fs.Hurt = append(fs.Hurt, HurtFile{Inode: ino, Open: name,
		By: fmt.Sprintf("%s [%s]", strings.TrimSpace(string(comm)), path.Base(dir))})
}

// fdInfo reads the number of the mount and of the inode of a descriptor: "mnt_id:\t23", "ino:\t131" (proc(5),
// /proc/pid/fdinfo; the inode since Linux 5.14). The mount is -1 where one of them is not there.
func fdInfo(text string) (mount int, ino uint64) {
	mount, found := -1, false
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch name {
		case "mnt_id":
			if n, err := strconv.Atoi(value); err == nil {
				mount = n
			}
		case "ino":
			n, err := strconv.ParseUint(value, 10, 64)
			ino, found = n, err == nil
		}
	}
	if !found {
		return -1, 0
	}
	return mount, ino
}
