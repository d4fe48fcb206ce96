// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/guest/files"
)

// How many files with several names are remembered while copying, with how long names. Of more, each
// name becomes a file of its own, which the result says.
const (
	maxLinked      = 1 << 20
	maxLinkedBytes = 64 << 20
)

// links are the first names of files that have several.
type links struct {
	first map[files.Ino]string
	bytes int
}

// remember keeps the first name of a file that has several, and tells whether it could.
func (l *links) remember(st *files.Stat, name string) bool {
	if _, known := l.first[st.Ino]; known || st.IsDir() || st.Links < 2 {
		return true
	}
	if len(l.first) == maxLinked || l.bytes+len(name) > maxLinkedBytes {
		return false
	}
	if l.first == nil {
		l.first = make(map[files.Ino]string)
	}
	l.first[st.Ino] = name
	l.bytes += len(name)
	return true
}

// errLinks: a file becomes several.
var errLinks = errors.New("more files have several names than are followed: this one becomes several files")

// blockBytes is how much of a file is read at once.
const blockBytes = 1 << 20

// Copied is what a copy did.
type Copied struct {
	Files, Directories, Links, Nodes int64
	// Bytes is what was read of files; holes are not.
	Bytes int64
	// Kept were there already, as whole as the guest has them: same size, same time.
	Kept int64
	// Problems are what is not as in the guest: what could not be read, named or set; the first of
	// them. Lost counts those of which content or names are missing, Unset attributes that could not
	// be set.
	Problems    []string
	Lost, Unset int64
}

// CopyOptions say how Copy copies.
type CopyOptions struct {
	// Resume: what is there with the guest's size and time is kept; otherwise it is an error.
	Resume bool
	// Owner: files get the owners they have in the guest, which needs root.
	Owner bool
	// Progress, if set, is told the bytes and names done so far.
	Progress func(bytes, names int64)
}

// Copy copies a file or a directory with all that is in it out of the guest, as name in tree. Holes
// stay holes. What cannot be read or set is in the result, and the rest is copied; the error is that
// of ctx, or of writing.
func Copy(ctx context.Context, from *files.Found, fsys files.FS, tree *diskio.Tree, name string,
	o CopyOptions,
) (*Copied, error) {
	c := &copier{ctx: ctx, tree: tree, o: o, done: new(Copied), from: from.Path, to: name}
	err := files.Walk(ctx, fsys, from.Entry.Ino, from.Path, c.one)
	if err != nil {
		return c.done, err
	}
	c.leave("")
	return c.done, nil
}

type copier struct {
	ctx      context.Context
	tree     *diskio.Tree
	o        CopyOptions
	done     *Copied
	from, to string
	links    links
	dirs     []copiedDir // those that the walk is in
}

// copiedDir is a directory that the copy is in. Its attributes are read when it is left: those of
// each level at once could be too many to keep.
type copiedDir struct {
	from *files.Found
	to   string
}

// leave gives directories their attributes in which nothing changes any more, the deepest first:
// those that next does not lie in.
func (c *copier) leave(next string) {
	for n := len(c.dirs) - 1; n >= 0; n-- {
		d := c.dirs[n]
		if next == d.from.Path || strings.HasPrefix(next, strings.TrimSuffix(d.from.Path, "/")+"/") {
			return
		}
		c.unset(d.from.Path, c.tree.SetAttributes(d.to, c.attributes(d.from)))
		c.dirs = c.dirs[:n]
	}
}

// only tells whether an error of making something concerns its name or size alone: the target takes
// no such names, no file so long, or has that name already, as where case does not count or a
// broken directory has it twice.
func only(err error) bool {
	for _, of := range []error{syscall.EEXIST, syscall.ENAMETOOLONG, syscall.EINVAL, syscall.EILSEQ, syscall.EFBIG,
		syscall.EMLINK, syscall.ENOTSUP} {
		if errors.Is(err, of) {
			return true
		}
	}
	return false
}

// target is where a path of the guest goes.
func (c *copier) target(p string) string {
	return path.Join(c.to, strings.TrimPrefix(strings.TrimPrefix(p, c.from), "/"))
}

// problem notes what is not as in the guest.
func (c *copier) problem(p, what string) {
	if len(c.done.Problems) < files.MaxProblems {
		c.done.Problems = append(c.done.Problems, p+": "+what)
	}
}

func (c *copier) lost(p string, err error) {
	c.done.Lost++
	c.problem(p, err.Error())
}

func (c *copier) unset(p string, not []error) {
	for _, err := range not {
		c.done.Unset++
		c.problem(p, err.Error())
	}
}

// one copies one name. What only that name does not allow is lost, with what is below it.
func (c *copier) one(f *files.Found) error {
	c.leave(f.Path)
	err := c.make(f)
	top := !strings.Contains(c.target(f.Path), "/") // what is there already was not made by this copy
	if !top && errors.Is(err, syscall.EACCES) {
		// An earlier copy gave the directory the guest's mode, which lets its owner make nothing in it.
		c.lost(f.Path, err)
		return files.ErrSkip
	}
	if only(err) && (!top || c.o.Resume || !errors.Is(err, fs.ErrExist)) {
		c.lost(f.Path, err)
		return files.ErrSkip
	}
	return err
}

func (c *copier) make(f *files.Found) error {
	if f.Err != nil {
		c.lost(f.Path, f.Err)
		return nil
	}
	st := f.File.Stat()
	to := c.target(f.Path)
	kept, err := c.there(f, to)
	if err != nil || kept {
		return err
	}
	if first, linked := c.links.first[st.Ino]; linked {
		if err := c.tree.Link(first, to); err != nil {
			return err
		}
		c.done.Links++
		return nil
	}
	switch st.Mode & files.TypeMask {
	case files.TypeDir:
		if err := c.tree.Mkdir(to); err != nil {
			return err
		}
		c.done.Directories++
		c.dirs = append(c.dirs, copiedDir{f, to})
		return nil
	case files.TypeRegular:
		err = c.file(f, to, c.attributes(f))
	case files.TypeLink:
		err = c.link(f, to, c.attributes(f))
	case files.TypeChar, files.TypeBlock, files.TypeFIFO, files.TypeSocket:
		if err = c.tree.Mknod(to, st.Mode, st.Major, st.Minor); err != nil {
			c.lost(f.Path, err) // only root makes devices
			return nil
		}
		c.done.Nodes++
		c.unset(f.Path, c.tree.SetAttributes(to, c.attributes(f)))
	default:
		c.lost(f.Path, fmt.Errorf("its mode %#o names no type", st.Mode))
		return nil
	}
	if err == nil {
		c.remember(f, to)
	}
	c.tell()
	return err
}

// remember keeps the first name of a file that has several.
func (c *copier) remember(f *files.Found, to string) {
	if !c.links.remember(f.File.Stat(), to) {
		c.unset(f.Path, []error{errLinks})
	}
}

func (c *copier) tell() {
	if c.o.Progress != nil {
		d := c.done
		c.o.Progress(d.Bytes, d.Files+d.Directories+d.Links+d.Nodes+d.Kept)
	}
}

// there tells whether a path is there already as it should be, which is an error without Resume.
func (c *copier) there(f *files.Found, to string) (kept bool, err error) {
	have, err := c.tree.Existing(to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	st := f.File.Stat()
	if st.IsDir() && have.IsDir() && to == "." {
		return true, nil // the directory that the tree is in stays as it is
	}
	if st.IsDir() && have.IsDir() && c.o.Resume {
		c.done.Kept++
		c.dirs = append(c.dirs, copiedDir{f, to})
		return true, nil
	}
	if !c.o.Resume || !c.same(f.File, to, have) {
		return false, &fs.PathError{Op: "create", Path: to, Err: syscall.EEXIST}
	}
	c.done.Kept++
	c.remember(f, to)
	return true, nil
}

// same tells whether what is there is what an earlier copy made.
func (c *copier) same(f files.File, to string, have fs.FileInfo) bool {
	st := f.Stat()
	timed := have.ModTime().Equal(Time(st.Mtime))
	switch typ := have.Mode().Type(); {
	case typ != typeOf(st.Mode):
		return false
	case typ == fs.ModeSymlink: // its time was set only after it was made
		want, err := ReadLink(f)
		is, err2 := c.tree.Readlink(to)
		return err == nil && err2 == nil && is == want
	case typ&fs.ModeDevice != 0:
		sys, ok := have.Sys().(*syscall.Stat_t)
		return ok && timed && sys.Rdev == unix.Mkdev(st.Major, st.Minor)
	case typ == 0:
		return timed && have.Size() == st.Size
	}
	return timed
}

// typeOf gives Go's word for the type in st_mode.
func typeOf(mode uint32) fs.FileMode {
	switch mode & files.TypeMask {
	case files.TypeDir:
		return fs.ModeDir
	case files.TypeLink:
		return fs.ModeSymlink
	case files.TypeBlock:
		return fs.ModeDevice
	case files.TypeChar:
		return fs.ModeDevice | fs.ModeCharDevice
	case files.TypeFIFO:
		return fs.ModeNamedPipe
	case files.TypeSocket:
		return fs.ModeSocket
	}
	return 0
}

// Time turns a time of a file into Go's.
func Time(t files.Time) time.Time {
	return time.Unix(t.Seconds, int64(t.Nanoseconds)).UTC()
}

// attributes are those that a copy gets.
func (c *copier) attributes(f *files.Found) diskio.Attributes {
	st := f.File.Stat()
	a := diskio.Attributes{Mode: st.Mode &^ files.TypeMask, Owner: c.o.Owner, UID: int(st.UID),
		GID: int(st.GID), Atime: Time(st.Atime), Mtime: Time(st.Mtime)}
	if !c.o.Owner && !st.IsDir() && a.Mode&(syscall.S_ISUID|syscall.S_ISGID) != 0 {
		// It would be a stranger's program that anybody runs as whoever makes this copy.
		a.Mode &^= syscall.S_ISUID | syscall.S_ISGID
		c.unset(f.Path, []error{errors.New("the set-user-ID bits, without its owner")})
	}
	err := f.File.Xattrs(c.ctx, func(name string, value []byte) error {
		if a.Xattrs == nil {
			a.Xattrs = make(map[string][]byte)
		}
		a.Xattrs[name] = append([]byte{}, value...)
		return nil
	})
	if err != nil {
		c.lost(f.Path, fmt.Errorf("extended attributes: %w", err))
	}
	return a
}

// link copies a symbolic link.
func (c *copier) link(f *files.Found, to string, a diskio.Attributes) error {
	target, err := ReadLink(f.File)
	if err != nil {
		c.lost(f.Path, err)
		return nil
	}
	if err := c.tree.Symlink(target, to); err != nil {
		return err
	}
	c.done.Links++
	c.unset(f.Path, c.tree.SetAttributes(to, a))
	return nil
}

// file copies a regular file. One that cannot be read to its end is not left behind half.
func (c *copier) file(f *files.Found, to string, a diskio.Attributes) error {
	n, err := c.tree.Create(to)
	if err != nil {
		return err
	}
	read, err := c.content(f.File, n)
	switch {
	case read != nil:
		c.lost(f.Path, read)
		return n.Discard()
	case err != nil:
		return errors.Join(err, n.Discard())
	}
	not, err := n.Commit(a)
	c.unset(f.Path, not)
	c.done.Files++
	return err
}

// content copies what is in a file, and leaves holes where the guest has them.
func (c *copier) content(f files.File, n *diskio.NewFile) (read, write error) {
	size := f.Stat().Size
	if err := n.Truncate(size); err != nil {
		return nil, err
	}
	buf := make([]byte, min(blockBytes, max(size, 1)))
	read = f.Extents(c.ctx, func(e files.Extent) error {
		if e.Unwritten {
			return nil
		}
		for off, end := e.Offset, min(e.Offset+e.Length, size); off < end; {
			if err := c.ctx.Err(); err != nil {
				write = err
				return err
			}
			part := buf[:min(int64(len(buf)), end-off)]
			got, err := f.ReadAt(part, off)
			if got < len(part) {
				return fmt.Errorf("at %d: %w", off+int64(got), errors.Join(err, io.ErrUnexpectedEOF))
			}
			if _, err := n.WriteAt(part, off); err != nil {
				write = err
				return err
			}
			off += int64(got)
			c.done.Bytes += int64(got)
			c.tell()
		}
		return nil
	})
	if write != nil {
		return nil, write
	}
	return read, nil
}
