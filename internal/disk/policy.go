// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// Policy says which files the headers of images may make us open. The zero value allows only
// what lies in or below the directory of the image itself. What a directory allows are regular files
// where files are kept: no block devices, whose content belongs to others, and nothing in the file
// systems of the kernel (/proc, /sys), where reading may block, never end, or do things.
type Policy struct {
	// Dirs are the directories that the user named and the configured pools. All files below them
	// are allowed. Symbolic links are resolved before comparing.
	Dirs []string
	// Roots are further such directories, absolute and without symbolic links: for those who judge
	// many names, since resolving costs some system calls each time.
	Roots []string
	// Follow allows every local file, as qemu does.
	Follow bool
}

// Resolve says where the name of a backing file from the header of the image at overlay leads,
// without opening anything: its existence and type are looked up. format is what the header says of
// it. seen are the files of the chain from the top down to and including overlay.
func (p Policy) Resolve(overlay, name, format string, seen []diskio.ID) Link {
	l := Link{Name: name, Format: format, Full: fullName(overlay, name)}
	if name == "" {
		l.State, l.Full, l.Reason = LinkMissing, "", "the image does not name it"
		return l
	}
	path, own, err := ParseName(name)
	if err == nil && !hasProtocol(name) {
		path = l.Full
	}
	// What the header says of the format comes before what the name says.
	if l.Format == "" {
		l.Format = own
	}
	if err != nil {
		return l.fail(err)
	}
	l.Path = path
	p.look(&l, overlay, seen)
	return l
}

// ResolveData is Resolve for an external data file. qemu takes its name as it is, so that a
// relative one depends on the directory that the program runs in.
func (p Policy) ResolveData(overlay, name string, seen []diskio.ID) Link {
	l := Link{Name: name, Full: name, Path: name, Format: formatRaw}
	if name == "" {
		l.State, l.Reason = LinkMissing, "the header does not name it"
		return l
	}
	p.look(&l, overlay, seen)
	if l.State != LinkMissing || strings.HasPrefix(name, "/") {
		return l
	}
	beside := filepath.Join(filepath.Dir(overlay), name)
	// This only serves the explanation; the file is missing in any case.
	if _, err := diskio.Look(beside); err == nil {
		l.Reason = "qemu looks for it from the directory that it runs in; the name would fit " + beside
	}
	return l
}

// resolveExtent is Resolve for a file that the descriptor of a vmdk image at overlay names. That is
// always the name of a file; what looks like a protocol is reported as one unless there is such a file.
func (p Policy) resolveExtent(overlay, name string, seen []diskio.ID) Link {
	l := Link{Name: name, Full: fullName(overlay, name)}
	if l.Path = l.Full; hasProtocol(name) {
		l.Path = overlay[:strings.LastIndexByte(overlay, '/')+1] + name
		if _, err := diskio.Look(l.Path); err != nil {
			protocol, _, _ := strings.Cut(name, ":")
			l.Path = ""
			return l.fail(fmt.Errorf("%w: protocol %q", ErrProtocol, protocol))
		}
	}
	p.look(&l, overlay, seen)
	return l
}

// look finds out the state of a link whose Path is known.
func (p Policy) look(l *Link, overlay string, seen []diskio.ID) {
	st, err := diskio.Look(l.Path)
	if err != nil {
		*l = l.fail(err)
		return
	}
	real, err := diskio.RealPath(l.Path)
	if err != nil {
		*l = l.fail(err)
		return
	}
	l.Stat, l.Real = st, real
	switch {
	case slices.Contains(seen, st.ID):
		l.State = LinkLoop
	case len(seen) >= MaxDepth:
		l.State = LinkTooDeep
	case p.Follow:
		l.State = LinkOK
	case st.Block:
		l.State, l.Reason = LinkNotFollowed, "it is a block device, which no directory that was named stands for"
	case !p.allows(real, overlay):
		l.State, l.Reason = LinkNotFollowed, "it is outside the directories that were named"
	case diskio.InPseudo(real):
		l.State, l.Reason = LinkNotFollowed, "it is in a file system of the kernel, such as /proc"
	default:
		l.State = LinkOK
	}
}

// fail sets the state that err stands for.
func (l Link) fail(err error) Link {
	l.cause = err
	switch {
	case errors.Is(err, ErrProtocol):
		l.State, l.Reason = LinkProtocol, strings.TrimPrefix(err.Error(), ErrProtocol.Error()+": ")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		l.State, l.Reason = LinkMissing, missingPart(l.Path)
	default:
		l.State, l.Reason = LinkUnreadable, reasonOf(err)
	}
	return l
}

// reasonOf is the text of err without the path, which the link has already.
func reasonOf(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// missingPart names the part of path that is not there if it is not the file itself: a directory
// whose file system is not mounted, or what a symbolic link leads to.
func missingPart(path string) string {
	_, err := filepath.EvalSymlinks(path)
	var pe *fs.PathError
	if !errors.As(err, &pe) || filepath.Clean(pe.Path) == filepath.Clean(path) {
		return ""
	}
	return pe.Path + ": " + pe.Err.Error()
}

// allows says whether the file at real may be opened because the header of overlay names it.
func (p Policy) allows(real, overlay string) bool {
	for _, root := range p.Roots {
		if within(root, real) {
			return true
		}
	}
	for _, dir := range p.Dirs {
		// A directory that cannot be looked at allows nothing.
		if root, err := diskio.RealPath(dir); err == nil && within(root, real) {
			return true
		}
	}
	// The image's own directory is that of its name, and that of the file if the name is a link.
	own := []string{overlay[:strings.LastIndexByte(overlay, '/')+1] + "."}
	// Without a real path the image allows less.
	if file, err := diskio.RealPath(overlay); err == nil {
		own = append(own, filepath.Dir(file))
	}
	for _, dir := range own {
		root, err := diskio.RealPath(dir)
		// An image that lies in the root directory does not open everything on the machine.
		if err == nil && (root == "/" && filepath.Dir(real) == "/" || root != "/" && within(root, real)) {
			return true
		}
	}
	return false
}

func within(root, path string) bool {
	return path == root || strings.HasPrefix(path, strings.TrimSuffix(root, "/")+"/")
}
