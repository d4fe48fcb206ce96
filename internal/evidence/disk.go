// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// Disks is /shisa/disk.json: what the disks of a machine that does not run hold, as far as no file tells.
type Disks struct {
	// Images are the disks themselves, as the host names them.
	Images  []string     `json:"images"`
	Volumes []DiskVolume `json:"volumes"`
	// Changed is when the images were written last.
	Changed time.Time `json:"changed"`
	// Notes say what is not as it should be with the images or how they are divided.
	Notes []string `json:"notes"`
}

// DiskVolume is a part of the disks, and the file system on it.
type DiskVolume struct {
	// Name is as in shisa disk parts; Names are those that the machine's kernel may have for it.
	Name  string   `json:"name"`
	Names []string `json:"names"`
	// Point is where /etc/fstab mounts it, "" for nowhere, and Line its line there.
	Point    string `json:"point"`
	Line     int    `json:"line"`
	Kind     string `json:"kind"`
	UUID     string `json:"uuid"`
	Label    string `json:"label"`
	PartUUID string `json:"partuuid"`
	PartName string `json:"part_name"`
	// Unread says why the file system was not read, "" if it was.
	Unread string `json:"unread"`
	// Info and View are of a file system that was read.
	Info *files.Info `json:"info"`
	View *files.View `json:"view"`
}

// onDisk takes in the file systems of a disk, and where fstab would mount them.
func (g *gatherer) onDisk(ctx context.Context) {
	var d Disks
	if !g.own(ctx, PartFSs, "disk.json", &d) {
		g.gap(PartFSs, "", "the disk was not looked at")
		return
	}
	g.e.DisksChanged = d.Changed.UTC()
	text, err := g.t.Read(ctx, "/etc/fstab", maxSmallBytes)
	if err != nil && !tree.Missing(err) && !errors.Is(err, tree.ErrTooLarge) {
		g.gap(PartMounts, "/etc/fstab", Reason(err))
	}
	all, _ := linux.ParseFstab(text)
	g.planned(all)
	for _, note := range d.Notes {
		g.gap(PartFSs, "the disk", note)
	}
	g.e.IDs = map[string]string{}
	for i := range d.Volumes {
		v := &d.Volumes[i]
		for key, value := range map[string]string{"UUID": v.UUID, "LABEL": v.Label, "PARTUUID": v.PartUUID,
			"PARTLABEL": v.PartName} {
			if value != "" {
				g.e.IDs[key+"="+value] = v.Name
			}
		}
		g.volume(v)
	}
}

// volume takes in one file system.
func (g *gatherer) volume(v *DiskVolume) {
	if v.Info == nil && v.Unread == "" {
		return // nothing that holds files
	}
	f := FS{Type: v.Kind, UUID: v.UUID, Label: v.Label, Device: "part " + v.Name, Names: v.Names,
		Source: v.Name, From: Source{Path: "part " + v.Name}}
	n := len(g.e.FSs)
	for i := range g.e.Mounts {
		if m := &g.e.Mounts[i]; m.From.Line == v.Line && v.Line > 0 {
			m.FS = n
			f.Mounts = append(f.Mounts, i)
			m.Probe = diskUse(v.Info)
		}
	}
	if v.Unread != "" {
		g.gap(PartFSs, f.Device, v.Unread)
	}
	if v.Info != nil {
		f.Type = v.Info.Kind
		f.Super, f.Log = recorded(v, f.From), logOf(v, f.From)
	}
	g.e.FSs = append(g.e.FSs, f)
}

// diskUse tells how full a file system on a disk is, in the words of statfs(2).
func diskUse(i *files.Info) *Answer {
	if i == nil || i.BlockBytes <= 0 {
		return nil
	}
	block := uint64(i.BlockBytes)
	free, size := uint64(max(0, i.FreeBytes))/block, uint64(max(0, i.SizeBytes))/block
	return &ask.Answer{Errno: -1, WriteErrno: -1, BlockSize: block, Blocks: size, Free: free,
		Avail:  free - min(free, uint64(i.Record.ReservedBytes)/block),
		Inodes: uint64(max(0, i.Inodes)), InodesFree: uint64(max(0, i.FreeInodes))}
}

// recorded is what the superblock says.
func recorded(v *DiskVolume, from Source) *Super {
	r := &v.Info.Record
	if r.State == "" {
		return nil // it keeps nothing of the kind
	}
	return &Super{Errors: r.Errors, FirstError: seconds(r.First.Time), LastError: seconds(r.Last.Time),
		FirstFunc: r.First.Func, LastFunc: r.Last.Func, FirstInode: uint64(r.First.Ino),
		LastInode: uint64(r.Last.Ino), State: r.State, OnError: r.OnError, Checked: seconds(r.Checked),
		Made: seconds(r.Made), Written: seconds(r.Written), Aborted: r.Aborted,
		Reserved: uint64(r.ReservedBytes / max(1, v.Info.BlockBytes)), From: from}
}

// logOf is the state of its journal, with the reasons why the view is not whole.
func logOf(v *DiskVolume, from Source) *FSLog {
	l := &FSLog{Dirty: v.Info.Record.Dirty, Written: seconds(v.Info.Record.Written), From: from}
	if v.View == nil {
		return l
	}
	l.Replayed = v.View.Transactions
	for _, p := range v.View.Problems {
		if p.Hides {
			l.Incomplete = append(l.Incomplete, p.What)
		}
	}
	if v.View.State == files.Incomplete && v.View.More > 0 {
		l.Incomplete = append(l.Incomplete, fmt.Sprintf("%d problems more", v.View.More))
	}
	return l
}

// hurtInodes are those of a file system that the log speaks of, the last ones first.
func (g *gatherer) hurtInodes(f *FS) []uint64 {
	var inodes []uint64
	for j := range g.e.Log.Events {
		ev := &g.e.Log.Events[len(g.e.Log.Events)-1-j]
		ino, err := strconv.ParseUint(ev.Fields["inode"], 10, 64)
		device := strings.TrimPrefix(ev.Fields["device"], "/dev/")
		ours := slices.Contains(f.Names, device) || device != "" && device == f.Device
		if err == nil && ours && ev.Host == "" && !slices.Contains(inodes, ino) && len(inodes) < maxHurtNames {
			inodes = append(inodes, ino)
		}
	}
	return inodes
}

// maxHurtNames bounds the inodes of one file system whose names are looked for.
const maxHurtNames = 100

// hurt finds the names of the files that the log speaks of by their inodes, on a disk. On a machine that
// runs that would go through all of a mount, and only those are named that somebody has open.
func (g *gatherer) hurt(ctx context.Context) {
	names, can := g.t.(tree.Namer)
	if g.t.Kind() != tree.Disk {
		g.hurtOpen(ctx)
		return
	}
	for i := range g.e.FSs {
		f := &g.e.FSs[i]
		inodes := g.hurtInodes(f)
		if len(inodes) == 0 || !can {
			continue
		}
		found, err := names.Names(ctx, f.Source, inodes)
		if err != nil {
			g.gap(PartFSs, f.Device, "the names of files that were hurt were not all looked for: "+Reason(err))
		}
		for _, ino := range inodes {
			f.Hurt = append(f.Hurt, HurtFile{Inode: ino, Path: found[ino]})
		}
	}
}
