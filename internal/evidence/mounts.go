// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

const (
	// maxTableBytes bounds one table of mounts, maxMounts all that are kept of all name spaces, and
	// maxNamespaces those. A host of containers has some hundreds.
	maxTableBytes = 64 << 20
	maxMounts     = 200_000
	maxNamespaces = 4096
)

// space is a mount namespace with a process that is in it.
type space struct {
	id  uint64
	pid string // "1", "self"
	own bool   // that of the first process
}

// mounts reads the tables of mounts of every namespace. That of the first process comes first.
func (g *gatherer) mounts(ctx context.Context) {
	spaces, table, err := g.spaces(ctx)
	if err != nil {
		g.gap(PartMounts, "", Reason(err))
		return
	}
	for i, s := range spaces {
		if i > 0 || table == "" {
			table = "/proc/" + s.pid + "/mountinfo"
		}
		text, err := g.t.Read(ctx, table, maxTableBytes)
		if tree.Missing(err) && i > 0 {
			continue // the process ended
		}
		if err != nil && !errors.Is(err, tree.ErrTooLarge) {
			object := table
			if i == 0 {
				object = ""
			}
			g.gap(PartMounts, object, Reason(err))
			continue
		}
		g.table(s, table, text)
	}
	g.nfs(ctx, spaces)
	g.answers(ctx)
}

// spaces lists the mount namespaces. In a copy there is one, whose table may be anybody's.
func (g *gatherer) spaces(ctx context.Context) (all []space, table string, err error) {
	if g.t.Kind() == tree.Disk {
		return nil, "", nil // fstab says what would be mounted: see planned
	}
	names, err := g.t.List(ctx, "/proc")
	if err != nil && !errors.Is(err, tree.ErrTooLarge) {
		return nil, "", err
	}
	seen := map[uint64]bool{}
	add := func(pid string, own bool) error {
		link, err := g.t.Link(ctx, "/proc/"+pid+"/ns/mnt")
		if err != nil {
			return err
		}
		id, ok := numbered(link, "mnt")
		if ok && !seen[id] && len(all) < maxNamespaces {
			seen[id] = true
			all = append(all, space{id, pid, own})
		}
		return nil
	}
	denied := 0
	first := add("1", true)
	if first != nil {
		if err := add("self", true); err != nil {
			return g.copied(ctx, first)
		}
		g.gap(PartMounts, "/proc/1/mountinfo", "taken as seen by this process: "+Reason(first))
	}
	for _, n := range names {
		if _, err := strconv.Atoi(n.Name); err != nil {
			continue
		}
		if err := add(n.Name, false); errors.Is(err, fs.ErrPermission) {
			denied++
		} else if err != nil && !tree.Missing(err) && !errors.Is(err, tree.ErrNotCollected) {
			g.gap(PartMounts, "/proc/"+n.Name+"/ns/mnt", Reason(err))
		}
	}
	if denied > 0 {
		g.gap(PartMounts, "other mount namespaces", fmt.Sprintf(
			"%d processes do not let be seen what is mounted for them, without more rights", denied))
	}
	return all, "", nil
}

// copied gives the one namespace of a copy that has no links of namespaces, as a report of sos.
func (g *gatherer) copied(ctx context.Context, why error) ([]space, string, error) {
	for _, name := range []string{"/proc/1/mountinfo", "/proc/self/mountinfo"} {
		if _, err := g.t.Read(ctx, name, 1); err == nil || errors.Is(err, tree.ErrTooLarge) {
			return []space{{pid: path.Base(path.Dir(name)), own: true}}, name, nil
		}
	}
	return nil, "", why
}

// numbered takes the number out of "mnt:[4026531840]".
func numbered(link, kind string) (uint64, bool) {
	rest, is := strings.CutPrefix(link, kind+":[")
	id, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 64)
	return id, is && err == nil
}

// table takes in the mounts of one namespace. Those of another than the first process's without files
// of a disk, a server or memory are left out.
func (g *gatherer) table(s space, name string, text []byte) {
	all, bad := linux.ParseMounts(text)
	if bad > 0 {
		g.gap(PartMounts, name, fmt.Sprintf("%d lines are not understood, or too many", bad))
	}
	for i, m := range all {
		if !s.own && Pseudo(m.Type) {
			continue
		}
		if len(g.e.Mounts) == maxMounts {
			g.gap(PartMounts, name, fmt.Sprintf("there are more than %d mounts", maxMounts))
			return
		}
		e := Mount{Mount: m, Namespace: s.id, Own: s.own, FS: -1, From: Source{Path: name, Line: i + 1}}
		if !Pseudo(m.Type) {
			e.FS = g.system(&m, e.From)
			g.e.FSs[e.FS].Mounts = append(g.e.FSs[e.FS].Mounts, len(g.e.Mounts))
		}
		if isNFS(m.Type) {
			e.NFS = mountedNFS(&m)
		}
		g.e.Mounts = append(g.e.Mounts, e)
	}
}

// systemKey tells file systems of one machine apart.
type systemKey struct {
	dev  uint64
	kind string
}

// system gives the index of the file system of a mount: one for each number of a device.
func (g *gatherer) system(m *linux.Mount, from Source) int {
	key := systemKey{m.Dev, m.Type}
	i, known := g.byDev[key]
	if !known {
		i = len(g.e.FSs)
		g.byDev[key] = i
		g.e.FSs = append(g.e.FSs, FS{Type: m.Type, Source: m.Source, From: from})
	}
	return i
}

// Pseudo tells of a type of file system without files that anybody stores: of the kernel itself, or a
// trigger for mounting.
func Pseudo(fsType string) bool {
	return slices.Contains(pseudo[:], fsType) || fsType == "autofs"
}

var pseudo = [...]string{"proc", "sysfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs",
	"fusectl", "mqueue", "pstore", "bpf", "efivarfs", "binfmt_misc", "rpc_pipefs", "nsfs", "selinuxfs", "smackfs",
	"nfsd", "hugetlbfs", "devtmpfs", "resctrl", "dlmfs", "sockfs", "pipefs", "anon_inodefs", "rootfs", "cpuset",
	"fuse.lxcfs", "fuse.portal", "fuse.gvfsd-fuse", "xenfs", "functionfs", "openpromfs", "pidfs", "secretmem"}

// Sealed tells of a type of file system that is full by its nature and never written.
func Sealed(fsType string) bool {
	return slices.Contains([]string{"squashfs", "iso9660", "erofs", "cramfs", "romfs", "udf"}, fsType)
}

// planned takes the mounts of a machine that does not run from its fstab, which Config has.
func (g *gatherer) planned(all []linux.FstabEntry) {
	for _, f := range all {
		if !f.Files() {
			continue
		}
		m := linux.Mount{Point: f.Point, Root: "/", Type: f.Type, Source: f.Source, Options: strings.Join(f.Options, ",")}
		m.Super = m.Options
		e := Mount{Mount: m, Own: true, FS: -1, From: Source{Path: "/etc/fstab", Line: f.Line},
			NotAsked: "the machine does not run"}
		if isNFS(f.Type) {
			e.NFS = mountedNFS(&m)
		}
		g.e.Mounts = append(g.e.Mounts, e)
	}
}

// MountOf gives the index of the mount that a name lies on in the namespace of the first process, -1 if
// that is not known. The name has no symbolic links.
func (e *Evidence) MountOf(name string) int {
	best := -1
	for i := range e.Mounts {
		m := &e.Mounts[i]
		if m.Own && below(name, m.Point) && (best < 0 || len(m.Point) >= len(e.Mounts[best].Point)) {
			best = i
		}
	}
	return best
}

func below(name, dir string) bool {
	return name == dir || strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// nameDevices gives the numbers of devices their names, from /sys/dev/block or from what mountinfo has as
// the source.
func (g *gatherer) nameDevices(ctx context.Context) {
	uuids := g.links(ctx, "/dev/disk/by-uuid", "UUID=")
	labels := g.links(ctx, "/dev/disk/by-label", "LABEL=")
	g.links(ctx, "/dev/disk/by-partuuid", "PARTUUID=")
	g.links(ctx, "/dev/disk/by-partlabel", "PARTLABEL=")
	mapper := g.mapperNames(ctx)
	for i := range g.e.FSs {
		f := &g.e.FSs[i]
		if f.Device == "" && len(f.Mounts) > 0 {
			dev := g.e.Mounts[f.Mounts[0]].Dev
			f.Device = g.deviceName(ctx, dev, f.Source)
			switch other := mapper[f.Device]; {
			case strings.HasPrefix(other, mapperDir):
				f.Names = []string{other}
			case other != "":
				f.Device, f.Names = other, []string{f.Device}
			}
		}
		if f.UUID == "" {
			f.UUID = uuids[f.Device]
		}
		if f.Label == "" {
			f.Label = labels[f.Device]
		}
	}
}

// deviceName names a device by its number, or by the source of the mount where the number is not one of
// a device (btrfs) or sysfs is not there. It is "" for what lies on none.
func (g *gatherer) deviceName(ctx context.Context, dev uint64, source string) string {
	if unix.Major(dev) != 0 {
		link, err := g.t.Link(ctx, fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev)))
		if err == nil {
			return path.Base(link)
		}
	}
	name, is := strings.CutPrefix(source, "/dev/")
	if !is {
		return ""
	}
	if to, err := g.t.Link(ctx, source); err == nil {
		return path.Base(to) // /dev/mapper/vg-lv -> ../dm-0
	}
	return name
}

// mapperDir is where the device mapper has devices by the names that people gave them, below /dev.
const mapperDir = "mapper/"

// mapperNames gives both names of the devices of the device mapper, each by the other: "dm-0", by which the kernel's
// messages and sysfs have it, and "mapper/vg-root". Where udev does not run, /dev/mapper has no links that tell. Names
// are a convenience: what cannot be read of them is not told.
func (g *gatherer) mapperNames(ctx context.Context) map[string]string {
	found := map[string]string{}
	all, err := g.t.List(ctx, classBlock)
	if err != nil || len(all) > maxDevices {
		return found
	}
	for _, n := range all {
		if !strings.HasPrefix(n.Name, "dm-") {
			continue
		}
		const longest = 128 // DM_NAME_LEN (include/uapi/linux/dm-ioctl.h)
		text, err := g.t.Read(ctx, classBlock+"/"+n.Name+"/dm/name", longest)
		if given := strings.TrimSpace(string(text)); err == nil && given != "" {
			found[n.Name], found[mapperDir+given] = mapperDir+given, n.Name
		}
	}
	return found
}

// links reads a directory of links to devices: device -> name. All are in Evidence.IDs by that with a
// prefix. The directories of udev are there only where there is something to name, but for by-uuid.
func (g *gatherer) links(ctx context.Context, dir, prefix string) map[string]string {
	found := map[string]string{}
	names, err := g.t.List(ctx, dir)
	if err != nil {
		return found // names are a convenience; without them IDs stays nil
	}
	if g.e.IDs == nil {
		g.e.IDs = map[string]string{}
	}
	for _, n := range names {
		if to, err := g.t.Link(ctx, dir+"/"+n.Name); err == nil {
			name := udevText(n.Name)
			found[path.Base(to)] = name
			g.e.IDs[prefix+name] = path.Base(to)
		}
	}
	return found
}

// udevText puts in what udev writes as \x and two hex digits.
func udevText(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// answers takes in what mounts answered when they were asked.
func (g *gatherer) answers(ctx context.Context) {
	var p Probed
	known := g.own(ctx, PartProbes, "probes.json", &p)
	if !known && g.t.Kind() != tree.Disk {
		g.gap(PartProbes, "", "mounts are asked on the machine itself, while it runs")
	}
	g.e.Stalled = p.Stalled
	by := map[[2]uint64]*ProbedMount{}
	for i := range p.Mounts {
		m := &p.Mounts[i]
		by[[2]uint64{m.Namespace, uint64(m.ID)}] = m
	}
	for i := range g.e.Mounts {
		m := &g.e.Mounts[i]
		if a := by[[2]uint64{m.Namespace, uint64(m.ID)}]; a != nil && a.Point == m.Point {
			m.Probe, m.NotAsked, m.Hidden = a.Answer, a.Why, a.Why == covered
			if m.NFS != nil {
				m.NFS.Stalled = a.Stalled
			}
		} else if known && m.FS >= 0 {
			m.NotAsked = "it was not there when mounts were asked"
		}
	}
	if !known {
		g.printedByDF(ctx) // sosdf.go
	}
	for i := range g.e.FSs {
		g.share(g.e.FSs[i].Mounts)
	}
}

// share gives the answer of one mount to the others of the same file system, of which one is asked.
func (g *gatherer) share(mounts []int) {
	asked := slices.IndexFunc(mounts, func(i int) bool { return g.e.Mounts[i].Probe != nil })
	if asked < 0 {
		return
	}
	for _, i := range mounts {
		if m := &g.e.Mounts[i]; m.Probe == nil && m.NotAsked == sameSystem {
			a := *g.e.Mounts[mounts[asked]].Probe
			a.ReadOnly = false // that is of a mount
			m.Probe, m.NotAsked = &a, ""
		}
	}
}
