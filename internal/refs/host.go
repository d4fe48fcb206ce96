// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/hypervisor"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// Host is what a host tells beside the images themselves.
type Host struct {
	// Linux are its processes and devices; nil leaves them out, and is a gap.
	Linux *linux.Host
	// Tree are its files, Root the directory that it lies in, "" for the running system.
	Tree tree.Tree
	Root string
}

// configured looks which machines name bases or what rests on them.
func (t *taking) configured(ctx context.Context) error {
	if t.o.Host == nil {
		t.gap(t.c.Bases, "processes and configured machines", "they were not asked for")
		return nil
	}
	places, err := hypervisor.Find(ctx, hypervisor.Options{Root: t.o.Host.Root, Timeout: t.o.Timeout})
	if err != nil {
		return err
	}
	for i := range places {
		p := &places[i]
		switch {
		case p.Kind == hypervisor.PlaceConfig && p.Error != "":
			t.gap(p.Path, "configuration", p.Error)
		case p.Kind == hypervisor.PlaceImage:
			if err := t.disk(ctx, p.Path, Reference{How: Domain, Holder: p.Why, Machine: p.Machine}); err != nil {
				return err
			}
		}
	}
	return t.kept(ctx)
}

// disk takes a file that the description of a machine names.
func (t *taking) disk(ctx context.Context, path string, u Reference) error {
	path = filepath.Join("/", t.o.Host.Root, path)
	n := named{img: img{dir: filepath.Dir(path), name: filepath.Base(path)}}
	// A colon in the name is one of the name: libvirt writes no protocols there.
	i, err := t.resolve(ctx, &n, disk.PlainName(path))
	if err != nil || i < 0 {
		return err
	}
	u.As = path
	t.targets[i].named = append(t.targets[i].named, u)
	t.c.Looked.Domains++
	return nil
}

// Bounds of what is read of libvirt's files.
const (
	maxKeptFiles = 1 << 16
	maxXMLBytes  = 4 << 20
)

// The header of a machine that was saved with its memory (libvirt, qemu_saveimage.h); the numbers have the
// byte order of the machine that wrote them:
//
//	 0  magic "LibvirtQemudSave", or "LibvirtQemudPart" while it is written
//	16  version     20  length of the XML     24  was running, compression, cookie, reserved
//	92  the XML, with a zero at its end
const (
	savedHeader = 92
	savedMagic  = "LibvirtQemud"
)

// kept reads what libvirt keeps of machines beside their own descriptions: snapshots, checkpoints, and
// machines that were saved with their memory.
func (t *taking) kept(ctx context.Context) error {
	const dir = "/var/lib/libvirt/qemu"
	if err := t.each(ctx, dir+"/save", func(name string) error { return t.saved(ctx, name) }); err != nil {
		return err
	}
	for _, sub := range []string{"snapshot", "checkpoint"} {
		err := t.each(ctx, dir+"/"+sub, func(machine string) error {
			return t.each(ctx, machine, func(name string) error {
				text, err := t.o.Host.Tree.Read(ctx, name, maxXMLBytes)
				if err != nil {
					return t.unread(ctx, name, err)
				}
				return t.domain(ctx, name, text, SnapshotDomain, filepath.Base(machine))
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// each calls fn for all names in a directory of the host that may not be there.
func (t *taking) each(ctx context.Context, dir string, fn func(name string) error) error {
	entries, err := t.o.Host.Tree.List(ctx, dir)
	if err != nil {
		return t.unread(ctx, dir, err)
	}
	for i, e := range entries {
		if i == maxKeptFiles {
			t.gap(dir, "directory", fmt.Sprintf("only the first %d names were looked at", maxKeptFiles))
			break
		}
		if err := fn(dir + "/" + e.Name); err != nil {
			return err
		}
	}
	return nil
}

// unread makes a gap of what could not be read, unless it is not there. Its error is that of ctx.
func (t *taking) unread(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !tree.Missing(err) {
		t.gap(name, "description of a machine", reason(err))
	}
	return nil
}

// saved reads the description in a saved machine.
func (t *taking) saved(ctx context.Context, name string) error {
	head, err := t.o.Host.Tree.Read(ctx, name, maxXMLBytes)
	if err != nil && !errors.Is(err, tree.ErrTooLarge) {
		return t.unread(ctx, name, err)
	}
	if len(head) < savedHeader || !bytes.HasPrefix(head, []byte(savedMagic)) {
		t.gap(name, "description of a machine", "is no machine that libvirt saved")
		return nil
	}
	n := int64(binary.NativeEndian.Uint32(head[20:]))
	text := head[savedHeader:]
	if n > int64(len(text)) {
		t.gap(name, "description of a machine", "is cut off")
		return nil
	}
	text, _, _ = bytes.Cut(text[:n], []byte{0})
	machine := strings.TrimSuffix(filepath.Base(name), ".save")
	return t.domain(ctx, name, text, SavedDomain, machine)
}

// domain takes the disks of a description.
func (t *taking) domain(ctx context.Context, name string, text []byte, how How, machine string) error {
	d, err := hypervisor.ParseDomain(text)
	if err != nil {
		t.gap(name, "description of a machine", err.Error())
	}
	for _, k := range d.Disks {
		if k.Volume != "" {
			t.gap(name, "description of a machine", fmt.Sprintf("names volume %q of pool %q, which was not looked up", k.Volume, k.Pool))
		}
		if k.Path == "" || k.Protocol != "" {
			continue
		}
		if err := t.disk(ctx, k.Path, Reference{How: how, Holder: name, Machine: machine}); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// processes adds who has a base open.
func (t *taking) processes(ctx context.Context) error {
	if t.o.Host == nil || t.o.Host.Linux == nil {
		t.gap("/proc", "processes", "they were not asked for")
		return nil
	}
	c, err := t.o.Host.Linux.Census(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		t.gap("/proc", "processes", reason(err))
		return nil
	}
	t.c.Looked.Processes = int64(c.Processes)
	for _, why := range c.Gaps() {
		t.gap("/proc", "processes", why)
	}
	for i := range t.c.All {
		b := &t.c.All[i]
		if b.State == Missing {
			continue
		}
		for _, h := range c.Holders(ctx, diskio.Stat{ID: b.File}, b.Path) {
			u := Reference{How: Open, Holder: h.Process.Command(), Machine: h.Process.Machine(), PID: h.Process.PID, As: b.Path}
			if h.Writing {
				u.How = Writing
			}
			u.Since = t.started(h.Process.PID)
			if h.Device != "" {
				u.How, u.Holder = Loop, "/dev/"+h.Device
			}
			b.Uses = append(b.Uses, u)
		}
	}
	return t.deleted(ctx, c)
}

// started tells since when a process runs, zero if that is not known: it may have ended meanwhile.
func (t *taking) started(pid int) time.Time {
	at, err := t.o.Host.Linux.Started(pid)
	if pid == 0 || err != nil {
		return time.Time{}
	}
	return at.Truncate(time.Second)
}

// deleted adds files that were removed from the directory of bases and that somebody still has open: they
// can be brought back as long as that lasts. The error is that of ctx.
func (t *taking) deleted(ctx context.Context, c *linux.Census) error {
	for _, f := range c.Deleted() {
		is, err := t.ours(ctx, c, &f)
		if err != nil {
			return err
		}
		if !is {
			continue
		}
		name := filepath.Base(f.Path)
		p, _ := t.o.Host.Linux.Process(ctx, f.PID) // one that cannot be read has its number
		u := Reference{How: Deleted, Holder: p.Command(), Machine: p.Machine(), PID: f.PID, FD: f.FD,
			File: t.through(ctx, &f), As: f.Path, Since: t.started(f.PID)}
		if f.PID == 0 {
			u.Holder = "/dev/" + f.Device
		}
		at := -1
		for i := range t.c.All {
			if t.c.All[i].Name == name && t.c.All[i].State == Missing {
				at = i
			}
		}
		if at < 0 {
			at = len(t.c.All)
			t.c.All = append(t.c.All, Base{Name: name, Path: filepath.Join(t.c.Bases, name), State: Missing, Uses: []Reference{}})
		}
		t.c.All[at].Uses = append(t.c.All[at].Uses, u)
	}
	return ctx.Err()
}

// through looks at the file behind the descriptor of a process; zero if it is not known any more.
func (t *taking) through(ctx context.Context, f *linux.OpenFile) diskio.ID {
	path := fmt.Sprintf("/proc/%d/fd/%d", f.PID, f.FD)
	st, err := diskio.Within(ctx, t.o.Timeout, func() (diskio.Stat, error) { return diskio.Look(path) }, nil)
	if err != nil || f.Ino != 0 && st.Ino != f.Ino {
		return diskio.ID{}
	}
	return st.ID
}
