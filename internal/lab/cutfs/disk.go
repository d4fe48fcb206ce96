// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cutfs

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Mode says which of the changes that were not yet synced a disk holds after a power cut.
type Mode int

// The modes.
const (
	// None: only what was synced: a file's bytes and length by fsync of the file, its name by fsync
	// of the directory.
	None Mode = iota
	// All: every call that had returned, as if the disk had no cache.
	All
	// Random: any of them, and of a write any of its sectors; the call in which the cut came may
	// have arrived too.
	Random
)

func (m Mode) String() string {
	switch m {
	case None:
		return "none"
	case All:
		return "all"
	}
	return "random"
}

// kind is what a change does.
type kind int

const (
	opWrite kind = iota
	opTruncate
	opGrow // by fallocate
	opZero // a hole, or a range of zeros
	opMode
	opTime
	opNew    // a new node under a name
	opLink   // another name
	opUnlink // a name less
	opRename
)

func (k kind) String() string {
	return [...]string{"write", "truncate", "fallocate", "zero", "chmod", "utimes", "create", "link",
		"unlink", "rename"}[k]
}

// change is one call that changes something.
type change struct {
	kind kind
	when time.Time
	// node is what is changed, or what the name stands for.
	node uint64
	// off, n and data are those of a write or a range; n is the length of a file too.
	off, n int64
	data   []byte
	mode   uint32
	mtime  time.Time // that is set
	target string    // of a new symbolic link
	// dir and name are the place of a name, toDir and toName the new one of a rename.
	dir, toDir   uint64
	name, toName string
	// open are the nodes that have to be synced before the change is sure to be on the disk.
	open []uint64
}

func (c *change) String() string {
	switch c.kind {
	case opWrite:
		return fmt.Sprintf("write %d bytes at %#x of file %d", len(c.data), c.off, c.node)
	case opTruncate, opGrow:
		return fmt.Sprintf("%v file %d to %d bytes", c.kind, c.node, c.n)
	case opZero:
		return fmt.Sprintf("zero %d bytes at %#x of file %d", c.n, c.off, c.node)
	case opRename:
		return fmt.Sprintf("rename %s to %s", c.name, c.toName)
	case opMode, opTime:
		return fmt.Sprintf("%v of file %d", c.kind, c.node)
	}
	return fmt.Sprintf("%v %s (file %d)", c.kind, c.name, c.node)
}

// waits sets what the change has to wait for.
func (c *change) waits() {
	switch c.kind {
	case opNew, opLink, opUnlink:
		c.open = []uint64{c.dir}
	case opRename:
		c.open = []uint64{c.dir, c.toDir}
	default:
		c.open = []uint64{c.node}
	}
}

// apply makes the change in t. With torn set, only those sectors of a write are written for which
// it says so.
func (c *change) apply(t *Tree, torn func() bool) {
	n := t.nodes[c.node]
	if c.kind == opNew {
		n = c.newNode()
		t.nodes[c.node] = n
		t.last = max(t.last, c.node)
	}
	if n == nil {
		return // its making is not on the disk
	}
	n.ctime = c.when
	switch c.kind {
	case opWrite:
		n.mtime = c.when
		if torn == nil {
			n.data.writeAt(c.data, c.off)
			return
		}
		for p, off := c.data, c.off; len(p) > 0; {
			part := p[:min(int64(len(p)), sectorBytes-off%sectorBytes)]
			if torn() {
				n.data.writeAt(part, off)
			}
			p, off = p[len(part):], off+int64(len(part))
		}
	case opTruncate:
		n.mtime = c.when
		n.data.truncate(c.n)
	case opGrow:
		n.data.truncate(max(c.n, n.data.size))
	case opZero:
		n.mtime = c.when
		n.data.zero(c.off, c.n)
	case opMode:
		n.mode = n.mode&^0o7777 | c.mode&0o7777
	case opTime:
		n.mtime = c.mtime
	case opNew, opLink:
		t.name(c.dir, c.name, c.node)
	case opUnlink:
		t.unname(c.dir, c.name, c.node)
	case opRename:
		// In one step, as every file system with a journal does it: never no name at all.
		t.unname(c.dir, c.name, c.node)
		t.name(c.toDir, c.toName, c.node)
	}
	for _, id := range []uint64{c.dir, c.toDir} {
		if d := t.nodes[id]; d != nil {
			d.mtime, d.ctime = c.when, c.when
		}
	}
}

func (c *change) newNode() *node {
	n := &node{mode: c.mode, mtime: c.when, ctime: c.when, target: c.target}
	switch {
	case n.isDir():
		n.names = map[string]uint64{}
	case c.target == "":
		n.data = &content{pages: map[int64]*page{}}
	}
	return n
}

// name gives a node a name; a directory that is not on the disk has none.
func (t *Tree) name(dir uint64, name string, id uint64) {
	d := t.nodes[dir]
	if d == nil {
		return
	}
	t.unname(dir, name, d.names[name])
	d.names[name] = id
	if n := t.nodes[id]; n != nil {
		n.links++
	}
}

func (t *Tree) unname(dir uint64, name string, id uint64) {
	d := t.nodes[dir]
	if d == nil || id == 0 || d.names[name] != id {
		return
	}
	delete(d.names, name)
	if n := t.nodes[id]; n != nil {
		n.links--
	}
}

// disk is what was there at first, what happened since, and how it stands for those who look.
type disk struct {
	base  *Tree
	now   *Tree
	log   []*change
	count int
	// cutAt is the number of the changing call that is the power cut; 0 means none. flying is that
	// call.
	cutAt  int
	cut    bool
	flying *change
}

func newDisk(t *Tree) *disk { return &disk{base: t, now: t.clone()} }

// do makes a change, unless the power is cut.
func (d *disk) do(c change) bool {
	if d.cut {
		return false
	}
	c.when = time.Now()
	if c.kind == opWrite {
		c.data = slices.Clone(c.data)
	}
	c.waits()
	d.count++
	if d.count == d.cutAt {
		d.cut, d.flying = true, &c
		return false
	}
	d.log = append(d.log, &c)
	c.apply(d.now, nil)
	return true
}

// sync puts on the disk what belongs to a node: the bytes of a file, the names in a directory.
func (d *disk) sync(id uint64) {
	for _, c := range d.log {
		if len(c.open) > 0 {
			c.open = slices.DeleteFunc(c.open, func(n uint64) bool { return n == id })
		}
	}
}

// survivors is what the disk holds after a power cut now.
func (d *disk) survivors(m Mode, seed uint64) *Tree {
	t := d.base.clone()
	r := rand.New(rand.NewPCG(seed, 0xc07))
	// Some disks lose little and some much.
	keep := r.Float64()
	log := d.log
	if m == Random && d.flying != nil {
		log = append(slices.Clip(log), d.flying)
	}
	for _, c := range log {
		switch {
		case len(c.open) == 0 || m == All:
			c.apply(t, nil)
		case m == None:
			// A file that is there without its name cannot be seen, but a later rename that is on the
			// disk may give it one.
			if c.kind == opNew {
				t.nodes[c.node] = c.newNode()
				t.last = max(t.last, c.node)
			}
		default:
			c.maybe(t, r, keep)
		}
	}
	return t
}

// maybe lets a change survive, or not, or in part.
func (c *change) maybe(t *Tree, r *rand.Rand, keep float64) {
	coin := func() bool { return r.Float64() < keep }
	switch whole := r.IntN(3) > 0; {
	case c.kind == opWrite && !whole:
		c.apply(t, coin)
	case coin():
		c.apply(t, nil)
	case c.kind == opNew:
		t.nodes[c.node] = c.newNode()
		t.last = max(t.last, c.node)
	}
}

// pending counts the changes that a power cut might take back.
func (d *disk) pending() (n int) {
	for _, c := range d.log {
		if len(c.open) > 0 {
			n++
		}
	}
	return n
}

// Write is one write of a program.
type Write struct {
	// Path is the file's path now, "" if it has none any more.
	Path           string
	Offset, Length int64
}

// writes lists the writes in their order.
func (d *disk) writes() []Write {
	paths := map[uint64]string{}
	d.now.walk(func(path string, id uint64, _ *node) error {
		paths[id] = path
		return nil
	})
	var list []Write
	for _, c := range d.log {
		if c.kind == opWrite {
			list = append(list, Write{Path: paths[c.node], Offset: c.off, Length: int64(len(c.data))})
		}
	}
	return list
}
