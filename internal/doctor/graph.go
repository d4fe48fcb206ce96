// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// The objects of a machine's evidence, by their indexes where there are any. All rules and the graph
// name objects by these.

func hostObject(e *evidence.Evidence) Object { return Object{Host, e.Label, e.Label} }

// mountObject is mount i. One of another namespace than the first process's carries its number.
func mountObject(e *evidence.Evidence, i int) Object {
	m := &e.Mounts[i]
	if m.Own {
		return Object{Mount, e.Label, m.Point}
	}
	return Object{Mount, e.Label, m.Point + "@" + strconv.FormatUint(m.Namespace, 10)}
}

// fsObject is file system i: by its device; one of a server by its share; one without either by where it is
// mounted first, since many are called "tmpfs".
func fsObject(e *evidence.Evidence, i int) Object {
	f := &e.FSs[i]
	name := f.Device
	switch {
	case name != "":
	case strings.Contains(f.Source, ":/") || strings.HasPrefix(f.Source, "//") || len(f.Mounts) == 0:
		name = f.Type + ":" + cmp.Or(strings.TrimPrefix(f.Source, "/dev/"), f.UUID)
	default:
		name = f.Type + ":" + mountObject(e, f.Mounts[0]).Name
	}
	return Object{FileSystem, e.Label, name}
}

func deviceObject(e *evidence.Evidence, name string) Object {
	return Object{Device, e.Label, strings.TrimPrefix(name, "/dev/")}
}

// fileObject is a file by its name on a file system: "sda1:/var/lib/db", or "sda1:inode 17" where no
// name is known.
func fileObject(e *evidence.Evidence, fs int, name string) Object {
	return Object{File, e.Label, fsObject(e, fs).Name + ":" + name}
}

func taskObject(e *evidence.Evidence, t *evidence.Task) Object {
	return Object{Task, e.Label, t.Comm + "[" + strconv.Itoa(t.TID) + "]"}
}

func unitObject(e *evidence.Evidence, name string) Object { return Object{Unit, e.Label, name} }

// machineObject is a virtual machine of the host that the evidence is of.
func machineObject(e *evidence.Evidence, i int) Object {
	return Object{Machine, e.Label, e.Machines[i].Name}
}

func clusterObject(e *evidence.Evidence) Object { return Object{Cluster, e.Label, "cluster"} }

// shareObject and serverObject belong to no machine: several name them.
func shareObject(n *evidence.NFS) Object {
	return Object{Share, "", serverName(n.Server) + ":" + path.Clean(n.Export)}
}

func serverObject(n *evidence.NFS) Object { return Object{Server, "", serverName(n.Server)} }

// serverName makes one name of the ways in which a server is written.
func serverName(s string) string {
	return strings.ToLower(strings.TrimSuffix(strings.Trim(s, "[]"), "."))
}

// imageObject is image i: one on a share is the same whoever sees it.
func imageObject(e *evidence.Evidence, i int) Object {
	return imagePathObject(e, cmp.Or(e.Images[i].Real, e.Images[i].Path), e.Images[i].Mount)
}

// namedImage is the image that has a name, by whatever other names it is known.
func namedImage(e *evidence.Evidence, name string) Object {
	for k := range e.Images {
		if e.Images[k].Is(name) {
			return imageObject(e, k)
		}
	}
	return imagePathObject(e, name, e.MountOf(name))
}

func imagePathObject(e *evidence.Evidence, name string, mount int) Object {
	if mount < 0 || mount >= len(e.Mounts) {
		return Object{Image, e.Label, name}
	}
	m := &e.Mounts[mount]
	rel := strings.TrimPrefix(name, strings.TrimSuffix(m.Point, "/"))
	if m.NFS != nil {
		return Object{Image, "", serverName(m.NFS.Server) + ":" + path.Join(m.NFS.Export, m.Root, rel)}
	}
	if store := storeOf(e, m); store != "" {
		return Object{Image, "", store + ":" + path.Join(m.Root, rel)}
	}
	return Object{Image, e.Label, name}
}

// storeOf names a file system that several hosts have mounted at once, other than NFS; "" for one that is of this
// host alone, and where all that it could be known by is not known.
func storeOf(e *evidence.Evidence, m *evidence.Mount) string {
	switch m.Type {
	case "gfs2", "ocfs2":
		if m.FS < 0 || m.FS >= len(e.FSs) {
			return ""
		}
		f := &e.FSs[m.FS]
		if m.Type == "gfs2" && f.Label != "" {
			return m.Type + ":" + f.Label // the name that its locks have in the cluster
		}
		if id := strings.TrimLeft(strings.ToLower(f.UUID), "0-"); id != "" {
			return m.Type + ":" + id
		}
	case "ceph", "cifs", "smb3", "fuse.glusterfs", "glusterfs", "beegfs", "lustre":
		if m.Source != "" && m.Source != "none" {
			return m.Type + ":" + m.Source
		}
	}
	return ""
}

// graph is what rests on what, over all evidence.
type graph struct {
	nodes map[Object]*node
}

// node is an object with its neighbours.
type node struct {
	object Object
	// on are what it rests on, above what rests on it; each once.
	on, above []*node
	// seen: there is evidence about the object itself, not only its name.
	seen bool
	// spare: it lives on without one of those that it rests on, as an array or a device of many paths.
	spare   bool
	results []Result
}

func (g *graph) node(o Object) *node {
	n := g.nodes[o]
	if n == nil {
		n = &node{object: o}
		g.nodes[o] = n
	}
	return n
}

// see says that there is evidence about an object.
func (g *graph) see(o Object) { g.node(o).seen = true }

// rest says that one object rests on another one.
func (g *graph) rest(from, to Object) {
	a, b := g.node(from), g.node(to)
	if a == b || slices.Contains(a.on, b) {
		return
	}
	a.on, b.above = append(a.on, b), append(b.above, a)
}

// picture makes the graph of all machines whose evidence there is.
func picture(all []*evidence.Evidence) *graph {
	g := &graph{nodes: map[Object]*node{}}
	for _, e := range all {
		g.see(hostObject(e))
		g.file(e, hostObject(e), "/")
		g.storage(e)
		g.images(e)
		g.tasks(e)
	}
	for _, e := range all {
		g.serving(e)
		g.guests(e, all)
		g.cluster(e, all)
	}
	return g
}

// storage joins mounts, file systems and devices.
func (g *graph) storage(e *evidence.Evidence) {
	for i := range e.Devices {
		d := &e.Devices[i]
		o := deviceObject(e, d.Name)
		g.see(o)
		g.node(o).spare = d.Paths != nil || d.Array != nil && redundant(d.Array.Level)
		for _, low := range d.On {
			g.rest(o, deviceObject(e, low))
		}
		if d.Partition > 0 {
			g.rest(o, deviceObject(e, d.Disk))
		}
		if d.Backing != "" {
			g.file(e, o, d.Backing)
		}
	}
	for i := range e.FSs {
		o := fsObject(e, i)
		g.see(o)
		if d := e.FSs[i].Device; d != "" && e.Kind != tree.Disk {
			g.rest(o, deviceObject(e, d))
			if disk := diskOf(d); disk != "" {
				g.rest(deviceObject(e, d), deviceObject(e, disk))
			}
		}
	}
	for i := range e.Mounts {
		m := &e.Mounts[i]
		o := mountObject(e, i)
		g.see(o)
		if m.FS >= 0 && m.FS < len(e.FSs) {
			g.rest(o, fsObject(e, m.FS))
		}
		if m.NFS != nil {
			below := o
			if m.FS >= 0 && m.FS < len(e.FSs) {
				below = fsObject(e, m.FS)
			}
			g.rest(below, shareObject(m.NFS))
			g.rest(shareObject(m.NFS), serverObject(m.NFS))
		}
	}
}

// partition is how the kernel names the parts of disks (disk_name in block/partitions of Linux).
var partition = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(sd[a-z]+|vd[a-z]+|xvd[a-z]+|hd[a-z]+|(?:nvme\d+n\d+|mmcblk\d+)p)(\d+)$`)
})

// diskOf gives by its name the disk that a device is a part of, "" if it is none.
func diskOf(device string) string {
	if m := partition().FindStringSubmatch(device); m != nil {
		disk := m[1]
		if strings.HasPrefix(disk, "nvme") || strings.HasPrefix(disk, "mmc") {
			disk = strings.TrimSuffix(disk, "p")
		}
		return disk
	}
	return ""
}

// file says that an object rests on the mount that a file of the machine lies on.
func (g *graph) file(e *evidence.Evidence, o Object, name string) {
	if i := e.MountOf(name); i >= 0 {
		g.rest(o, mountObject(e, i))
	}
}

// images joins machines, their images and what these rest on.
func (g *graph) images(e *evidence.Evidence) {
	for i := range e.Images {
		img := &e.Images[i]
		o := imageObject(e, i)
		if img.Unread == "" {
			g.see(o)
		}
		if img.Mount >= 0 && img.Mount < len(e.Mounts) {
			g.rest(o, mountObject(e, img.Mount))
		}
		if img.BackingPath != "" {
			g.rest(o, namedImage(e, img.BackingPath))
		}
	}
	for i := range e.Machines {
		o := machineObject(e, i)
		g.see(o)
		for _, d := range e.Machines[i].Disks {
			if d >= 0 && d < len(e.Images) {
				g.rest(o, imageObject(e, d))
			}
		}
	}
}

// tasks joins tasks that wait with what they wait for.
func (g *graph) tasks(e *evidence.Evidence) {
	for i := range e.Tasks.Waiting {
		t := &e.Tasks.Waiting[i]
		o := taskObject(e, t)
		g.see(o)
		for _, point := range t.Mounts {
			for j := range e.Mounts {
				if e.Mounts[j].Point == point {
					g.rest(o, mountObject(e, j))
				}
			}
		}
		for _, d := range t.Devices {
			g.rest(o, deviceObject(e, d))
		}
	}
}

// serving finds out whether a machine is a server that others name, and joins its shares with the
// mounts that they lie on.
func (g *graph) serving(e *evidence.Evidence) {
	names := map[string]bool{}
	for _, n := range append([]string{e.Host.Name}, e.Host.Addresses...) {
		if n != "" {
			names[serverName(n)] = true
		}
	}
	// Joining adds nodes, so those that are meant are taken before.
	var servers, shares []Object
	for o := range g.nodes {
		switch {
		case o.Kind == Server && isNamed(names, o.Name):
			servers = append(servers, o)
		case o.Kind == Share:
			shares = append(shares, o)
		}
	}
	for _, o := range servers {
		g.see(o)
		g.rest(o, hostObject(e))
		for _, s := range shares {
			if export, ok := strings.CutPrefix(s.Name, o.Name+":"); ok {
				g.export(e, s, export)
			}
		}
	}
}

// export joins a share, by the name that a client has for it, with the same by the name of its server, and
// with the mount that it lies on.
func (g *graph) export(e *evidence.Evidence, share Object, dir string) {
	i := e.MountOf(dir)
	if i < 0 {
		return // what it lies on was not looked at
	}
	g.see(share)
	g.rest(share, mountObject(e, i))
	for _, given := range e.Config.Exports {
		if e.Host.Name == "" || dir != given && !strings.HasPrefix(dir, strings.TrimSuffix(given, "/")+"/") {
			continue
		}
		own := shareObject(&evidence.NFS{Server: e.Host.Name, Export: given})
		g.see(own)
		g.rest(share, own)
		if i := e.MountOf(given); i >= 0 {
			g.rest(own, mountObject(e, i))
		}
	}
}

// cluster joins the file systems that nodes share with the cluster whose locks they take, and a cluster that
// waits for a node to be fenced with that node and with what it has of those file systems.
func (g *graph) cluster(e *evidence.Evidence, all []*evidence.Evidence) {
	if !e.Cluster.Present {
		return
	}
	o := clusterObject(e)
	g.see(o)
	for _, i := range typed(e, clustered...) {
		g.rest(fsObject(e, i), o)
	}
	for _, name := range e.Cluster.Pending {
		node := Object{Host, name, name}
		for _, x := range all {
			if x == e || !isNamed(map[string]bool{serverName(x.Host.Name): true}, serverName(name)) {
				continue
			}
			node = hostObject(x)
			for _, i := range typed(x, clustered...) {
				g.rest(o, fsObject(x, i))
			}
			for _, device := range x.Log.Devices("gfs2.withdraw") {
				g.rest(o, Object{FileSystem, x.Label, device})
			}
		}
		g.rest(o, node)
	}
}

// clustered are the types of file systems that take their locks from a cluster.
var clustered = []string{"gfs2", "ocfs2"}

// isNamed tells whether a name is one of those, a short one for a long one of the same host too. Of
// addresses only the whole counts.
func isNamed(names map[string]bool, name string) bool {
	if names[name] {
		return true
	}
	if strings.Trim(name, "0123456789.:abcdef") == "" && strings.ContainsAny(name, ".:") {
		return false
	}
	for n := range names {
		short, _, long := strings.Cut(n, ".")
		first, _, full := strings.Cut(name, ".")
		if long != full && short == first {
			return true
		}
	}
	return false
}

// guests joins a machine with the virtual machine that it is on another one.
func (g *graph) guests(e *evidence.Evidence, all []*evidence.Evidence) {
	if e.Host.UUID == "" {
		return
	}
	for _, h := range all {
		for i := range h.Machines {
			if h != e && strings.EqualFold(h.Machines[i].UUID, e.Host.UUID) {
				for j := range e.Devices {
					if d := &e.Devices[j]; d.Partition == 0 && len(d.On) == 0 && d.Backing == "" {
						g.rest(deviceObject(e, d.Name), machineObject(h, i))
					}
				}
			}
		}
	}
}

// files says that files which rules speak of rest on their file systems, whose names theirs begin with.
func (g *graph) files() {
	for _, n := range g.sorted() {
		if n.object.Kind != File {
			continue
		}
		if name, _, ok := strings.Cut(n.object.Name, ":"); ok {
			if fs := g.nodes[Object{FileSystem, n.object.On, name}]; fs != nil {
				g.rest(n.object, fs.object)
			}
		}
	}
}

// restarts tells of a finding about a unit that ends the run of its machine.
func restarts(f *Finding) bool {
	return slices.Contains([]string{"TM01", "TM02", "TM03", "TM05", "TM06"}, f.Code)
}

// loops lets a machine that starts again and again rest on the units that are to blame for it, where something is
// found about those.
func (g *graph) loops() {
	for _, n := range g.sorted() {
		for i := range n.results {
			f := n.results[i].Finding
			if f == nil || f.Code != "TM08" || f.Over {
				continue
			}
			for _, o := range f.Affects {
				if u := g.nodes[o]; u != nil && slices.ContainsFunc(u.results, func(r Result) bool {
					return r.Finding != nil && restarts(r.Finding)
				}) {
					g.rest(n.object, o)
				}
			}
		}
	}
}
