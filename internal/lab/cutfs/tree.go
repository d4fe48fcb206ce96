// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cutfs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// rootID is the number of the top directory, which FUSE wants to be 1.
const rootID = 1

// maxLoadBytes bounds what is read into memory from a directory, holes not counted.
const maxLoadBytes = 1 << 30

// node is a file, a directory or a symbolic link.
type node struct {
	mode   uint32 // with its type, as in stat
	mtime  time.Time
	ctime  time.Time
	links  uint32            // how many names there are of it
	data   *content          // of a file
	names  map[string]uint64 // of a directory
	target string            // of a symbolic link
}

func (n *node) isDir() bool { return n.mode&unix.S_IFMT == unix.S_IFDIR }

func (n *node) clone() *node {
	c := *n
	if n.data != nil {
		c.data = n.data.clone()
	}
	c.names = maps.Clone(n.names)
	return &c
}

// Tree is a directory tree in memory: what a disk holds. Nothing changes it once it is made.
type Tree struct {
	nodes map[uint64]*node
	last  uint64 // the highest number in use
}

func newTree() *Tree {
	return &Tree{last: rootID, nodes: map[uint64]*node{
		rootID: {mode: unix.S_IFDIR | 0o755, names: map[string]uint64{}}}}
}

func (t *Tree) clone() *Tree {
	c := &Tree{last: t.last, nodes: make(map[uint64]*node, len(t.nodes))}
	for id, n := range t.nodes {
		c.nodes[id] = n.clone()
	}
	return c
}

// Load reads the files and directories below dir. Holes stay holes.
func Load(dir string) (*Tree, error) {
	t := newTree()
	ids := map[string]uint64{".": rootID}
	var total int64
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || rel == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		n := &node{mode: uint32(info.Mode().Perm()), mtime: info.ModTime(), ctime: info.ModTime()}
		switch {
		case d.IsDir():
			n.mode |= unix.S_IFDIR
			n.names = map[string]uint64{}
		case d.Type() == fs.ModeSymlink:
			n.mode |= unix.S_IFLNK
			n.target, err = os.Readlink(path)
		case d.Type().IsRegular():
			n.mode |= unix.S_IFREG
			n.data, err = loadFile(path, maxLoadBytes-total)
			if err == nil {
				total += int64(len(n.data.pages)) * pageBytes
			}
		default:
			err = fmt.Errorf("%s: neither a file nor a directory", path)
		}
		t.last++
		t.nodes[t.last], ids[rel] = n, t.last
		t.name(ids[filepath.Dir(rel)], d.Name(), t.last)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", dir, err)
	}
	return t, nil
}

// loadFile reads a sparse file, up to so many bytes of data.
func loadFile(path string, room int64) (*content, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	c := &content{size: st.Size(), pages: map[int64]*page{}}
	var none page
	for end := int64(0); ; {
		off, err := unix.Seek(int(f.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return c, nil
		}
		if err != nil {
			return nil, fmt.Errorf("look for data in %s: %w", path, err)
		}
		if end, err = unix.Seek(int(f.Fd()), off, unix.SEEK_HOLE); err != nil {
			return nil, fmt.Errorf("look for a hole in %s: %w", path, err)
		}
		for i := off / pageBytes; i*pageBytes < end; i++ {
			pg := new(page)
			if _, err := f.ReadAt(pg[:], i*pageBytes); err != nil && err != io.EOF {
				return nil, err
			}
			if *pg == none {
				continue
			}
			if room -= pageBytes; room < 0 {
				return nil, fmt.Errorf("%s: more than %d bytes in all", path, int64(maxLoadBytes))
			}
			c.pages[i] = pg
		}
	}
}

// walk calls f for everything below the top, parents first, by name.
func (t *Tree) walk(f func(path string, id uint64, n *node) error) error {
	var below func(dir string, id uint64, depth int) error
	below = func(dir string, id uint64, depth int) error {
		names := t.nodes[id].names
		for _, name := range slices.Sorted(maps.Keys(names)) {
			n := t.nodes[names[name]]
			if n == nil {
				continue // a second name of what never reached the disk
			}
			path := filepath.Join(dir, name)
			if err := f(path, names[name], n); err != nil {
				return err
			}
			// A tree is no deeper than it has nodes, or it is a ring.
			if n.isDir() && depth < len(t.nodes) {
				if err := below(path, names[name], depth+1); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return below("", rootID, 0)
}

// WriteTo makes the tree's files in dir, which must exist and have none of their names.
func (t *Tree) WriteTo(dir string) error {
	return t.walk(func(path string, _ uint64, n *node) error {
		full := filepath.Join(dir, path)
		switch {
		case n.isDir():
			return os.Mkdir(full, 0o755)
		case n.data == nil:
			return os.Symlink(n.target, full)
		}
		return n.data.save(full)
	})
}

func (c *content) save(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = f.Truncate(c.size)
	for i, pg := range c.pages {
		if err != nil {
			break
		}
		_, err = f.WriteAt(pg[:min(pageBytes, c.size-i*pageBytes)], i*pageBytes)
	}
	return errors.Join(err, f.Close())
}

// Names lists the paths of all files, directories and links, sorted by directory.
func (t *Tree) Names() []string {
	var names []string
	t.walk(func(path string, _ uint64, _ *node) error {
		names = append(names, path)
		return nil // so walk gives no error either
	})
	return names
}

// find gives the node at a path, nil if there is none.
func (t *Tree) find(path string) *node {
	n := t.nodes[rootID]
	for name := range strings.SplitSeq(path, "/") {
		if n == nil || n.names == nil {
			return nil
		}
		n = t.nodes[n.names[name]]
	}
	return n
}

// Digest is the SHA-256 of a file: of its length and of what it reads as. It is "" where there is
// no such file.
func (t *Tree) Digest(path string) string {
	n := t.find(path)
	if n == nil || n.data == nil {
		return ""
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d\n", n.data.size)
	var none page
	for _, i := range slices.Sorted(maps.Keys(n.data.pages)) {
		if pg := n.data.pages[i]; *pg != none {
			fmt.Fprintf(h, "%d\n", i)
			h.Write(pg[:])
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// ReadAt reads from a file as io.ReaderAt does.
func (t *Tree) ReadAt(path string, p []byte, off int64) (int, error) {
	n := t.find(path)
	if n == nil || n.data == nil {
		return 0, fmt.Errorf("read %s: %w", path, fs.ErrNotExist)
	}
	m := n.data.readAt(p, off)
	if m < len(p) {
		return m, io.EOF
	}
	return m, nil
}

// Files gives every name of a file with its number, which is that of the inode that programs see.
func (t *Tree) Files() map[string]uint64 {
	all := map[string]uint64{}
	t.walk(func(path string, id uint64, n *node) error {
		if n.data != nil {
			all[path] = id
		}
		return nil // so walk gives no error either
	})
	return all
}
