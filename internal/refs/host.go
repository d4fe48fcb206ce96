// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
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
	places, err := hypervisor.Find(ctx, hypervisor.Options{Root: t.o.Host.Root, Timeout: t.o.Timeout, Files: true})
	if err != nil {
		return err
	}
	for i := range places {
		p := &places[i]
		use := Reference{How: Domain, Holder: p.Why, Machine: p.Machine, Since: p.Since}
		switch {
		case p.Kind == hypervisor.PlaceConfig && p.Error != "":
			t.gap(p.Path, "configuration", p.Error)
		case p.Unknown:
			t.gap(p.Path, p.Why, "it is a volume of a storage pool of which nobody can tell where it lies")
		case p.Kind == hypervisor.PlaceRemote && p.Machine != "":
			protocol, name, _ := strings.Cut(p.Path, ":")
			t.served(protocol, name, p.Format, use)
		case p.Kind == hypervisor.PlaceImage && !filepath.IsAbs(p.Path):
			t.gap(p.Path, p.Why, "it is no absolute path")
		case p.Kind == hypervisor.PlaceImage:
			path := strings.TrimPrefix(p.Path, strings.TrimSuffix(t.o.Host.Root, "/"))
			take := t.disk
			if p.Beside {
				take = t.beside
			}
			if err := take(ctx, path, use); err != nil {
				return err
			}
		}
	}
	for _, dir := range t.o.Libvirt {
		if err := t.libvirt(ctx, dir); err != nil {
			return err
		}
	}
	pools, err := hypervisor.FindPools(ctx, hypervisor.Options{Root: t.o.Host.Root, Timeout: t.o.Timeout})
	if err != nil {
		return err
	}
	return t.kept(ctx, "/var/lib/libvirt/qemu", pools)
}

// libvirt reads what another libvirt keeps of machines, as one in a container does: dir is its /etc/libvirt, or its
// /var/lib/libvirt, or the directory qemu in one of these. One that has no names is a gap: somebody said that there
// are some.
func (t *taking) libvirt(ctx context.Context, dir string) error {
	dir = strings.TrimRight(dir, "/")
	entries, err := t.o.Host.Tree.List(ctx, dir)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		t.gap(dir, "descriptions of machines", reason(err))
		return nil
	case len(entries) == 0:
		t.gap(dir, "descriptions of machines", "it is empty: is its storage mounted?")
		return nil
	}
	for _, at := range []string{dir, dir + "/qemu"} {
		err := t.each(ctx, at, func(name string, changed time.Time) error {
			if !strings.HasSuffix(name, ".xml") {
				return nil
			}
			text, err := t.o.Host.Tree.Read(ctx, name, maxXMLBytes)
			if err != nil {
				return t.unread(ctx, name, err)
			}
			return t.domain(ctx, text, Reference{How: Domain, Holder: name, Since: changed}, nil)
		})
		if err == nil {
			err = t.kept(ctx, at, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// disk takes a file that the description of a machine names.
func (t *taking) disk(ctx context.Context, path string, u Reference) error {
	path = filepath.Join("/", t.o.Host.Root, path)
	n := named{img: imgOf(filepath.Dir(path), filepath.Base(path))}
	// A colon in the name is one of the name: libvirt writes no protocols there.
	i, _, err := t.resolve(ctx, &n, disk.PlainName(path))
	if err != nil || i < 0 {
		return err
	}
	u.As = path
	t.targets[i].named = append(t.targets[i].named, u)
	t.c.Looked.Domains++
	return nil
}

// beside takes what the description of a machine names beside its disks, if that is a file, or may have been one: a base is
// used by whoever names it, whatever for.
func (t *taking) beside(ctx context.Context, path string, u Reference) error {
	at := filepath.Join("/", t.o.Host.Root, path)
	_, err := diskio.WithinAt(ctx, at, t.o.Timeout, func() (diskio.Stat, error) { return diskio.Look(at) }, nil)
	if errors.Is(err, diskio.ErrDirectory) || errors.Is(err, diskio.ErrSpecial) {
		return ctx.Err()
	}
	return t.disk(ctx, path, u)
}

// served takes a disk that the description of a machine names on a server, which may have the directory of the bases too.
// The header of any other that is no raw disk may name a base.
func (t *taking) served(protocol, path, format string, u Reference) {
	if slices.Contains([]string{"gluster", "nfs", "ssh", "sftp", "http", "https", "ftp", "ftps"}, protocol) { // what has directories
		name := (&url.URL{Scheme: protocol, Host: "server", Path: "/" + strings.TrimPrefix(path, "/")}).String()
		if i := t.address(name); i >= 0 {
			u.As = path
			t.targets[i].named = append(t.targets[i].named, u)
			return
		}
	}
	if format != "" && format != "raw" {
		t.gap(strings.TrimSuffix(protocol+":"+path, ":"), u.Holder, "its header was not read: it is no file of this host, and its format is "+format)
	}
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
// machines that were saved with their memory. dir is its /var/lib/libvirt/qemu.
func (t *taking) kept(ctx context.Context, dir string, pools hypervisor.Pools) error {
	if err := t.each(ctx, dir+"/save", func(name string, changed time.Time) error {
		return t.saved(ctx, name, changed, pools)
	}); err != nil {
		return err
	}
	for _, sub := range []string{"snapshot", "checkpoint"} {
		err := t.each(ctx, dir+"/"+sub, func(machine string, _ time.Time) error {
			return t.each(ctx, machine, func(name string, changed time.Time) error {
				text, err := t.o.Host.Tree.Read(ctx, name, maxXMLBytes)
				if err != nil {
					return t.unread(ctx, name, err)
				}
				return t.domain(ctx, text, Reference{How: SnapshotDomain, Holder: name, Machine: filepath.Base(machine), Since: changed}, pools)
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// each calls fn for all names in a directory of the host that may not be there, with when they were changed last.
func (t *taking) each(ctx context.Context, dir string, fn func(name string, changed time.Time) error) error {
	entries, err := t.o.Host.Tree.List(ctx, dir)
	if err != nil {
		return t.unread(ctx, dir, err)
	}
	for i, e := range entries {
		if i == maxKeptFiles {
			t.gap(dir, "directory", fmt.Sprintf("only the first %d names were looked at", maxKeptFiles))
			break
		}
		if err := fn(dir+"/"+e.Name, e.Mtime); err != nil {
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

// saved reads the description in a saved machine, whose file was changed last when that was.
func (t *taking) saved(ctx context.Context, name string, changed time.Time, pools hypervisor.Pools) error {
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
	return t.domain(ctx, text, Reference{How: SavedDomain, Holder: name, Machine: machine, Since: changed}, pools)
}

// domain takes the disks of a description as uses like u. It knows best itself since when it is there; else that is no
// later than its file was changed last.
func (t *taking) domain(ctx context.Context, text []byte, u Reference, pools hypervisor.Pools) error {
	name := u.Holder
	d, err := hypervisor.ParseDomain(text)
	if err != nil {
		t.gap(name, "description of a machine", err.Error())
	}
	if !d.Created.IsZero() {
		u.Since = d.Created
	}
	u.Machine = cmp.Or(u.Machine, d.Name)
	for _, k := range d.Disks {
		if k.Volume != "" {
			path, known := pools.Volume(k.Pool, k.Volume)
			if !known {
				t.gap(name, "description of a machine",
					fmt.Sprintf("names volume %q of pool %q, of which nobody can tell where it lies", k.Volume, k.Pool))
				continue
			}
			if k.Path = path; path == "" {
				k.Protocol = k.Pool + "/" + k.Volume
			}
		}
		switch {
		case k.Protocol != "":
			t.served(k.Protocol, k.Path, k.Format, u)
			continue
		case k.Path == "":
			continue
		case !filepath.IsAbs(k.Path):
			t.gap(name, "description of a machine", fmt.Sprintf("names %q, which is no absolute path", k.Path))
			continue
		}
		if err := t.disk(ctx, k.Path, u); err != nil {
			return err
		}
	}
	for _, path := range d.Files {
		if err := t.beside(ctx, path, u); err != nil {
			return err
		}
	}
	for _, path := range d.Parts {
		if hypervisor.Look(ctx, t.o.Timeout, hypervisor.PlaceImage, filepath.Join("/", t.o.Host.Root, path), "", "").There {
			if err := t.beside(ctx, path, u); err != nil {
				return err
			}
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
			if b := &t.c.All[i]; b.Name == name && b.State == Missing && t.c.Here(b) {
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
	st, err := diskio.WithinAt(ctx, path, t.o.Timeout, func() (diskio.Stat, error) { return diskio.Look(path) }, nil)
	if err != nil || f.Ino != 0 && st.Ino != f.Ino {
		return diskio.ID{}
	}
	return st.ID
}
