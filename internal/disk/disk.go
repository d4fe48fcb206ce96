// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package disk looks at one disk from top to bottom: an image with all files that it rests on, its
// backing files and external data files. It decides which files a header may make us open, and
// gives the guest's view of the whole: bytes, map, description and comparison.
package disk

import (
	"errors"
	"fmt"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// MaxDepth is how many images a chain may have. Each keeps a file open, and nobody runs a machine on
// more than a few dozen; what is longer is more likely a mistake, or made to exhaust us.
const MaxDepth = 512

// Errors for errors.Is. Those of a link come as *LinkError.
var (
	// ErrMissing: the file that an image rests on is not there.
	ErrMissing = errors.New("is not there")
	// ErrUnreadable: it is there and cannot be used.
	ErrUnreadable = errors.New("cannot be used")
	// ErrNotFollowed: it is outside the directories that the policy allows.
	ErrNotFollowed = errors.New("was not followed")
	// ErrLoop: it is an image of the same chain already.
	ErrLoop = errors.New("leads back into the chain")
	// ErrTooDeep: the chain has more than MaxDepth images.
	ErrTooDeep = fmt.Errorf("is beyond %d images", MaxDepth)
	// ErrProtocol: it is not a local file.
	ErrProtocol = errors.New("is not a local file")
	// ErrFormat: the format is recognised, but its data cannot be read.
	ErrFormat = errors.New("data cannot be read")
	// ErrUnknownFormat: no format has that name.
	ErrUnknownFormat = errors.New("unknown format")
	// ErrNoSnapshot: the image has no snapshot of that id or name.
	ErrNoSnapshot = errors.New("no such snapshot")
)

// Options say how a disk is opened. The zero value is the safe one.
type Options struct {
	// Policy limits which files the headers may make us open.
	Policy Policy
	// Format of the image itself, "" to tell it by its content.
	Format string
	// Snapshot is the id or name of an internal snapshot of the image itself; "" is the present.
	Snapshot string
	// Single: leave the backing file alone; what the image does not hold reads as zeros.
	Single bool
	// Direct reads past the page cache, where the file system allows it (EINVAL where not).
	Direct bool
}

// open opens a file that the policy does not ask about, or allows wherever it is.
func (o Options) open(path string) (*diskio.File, error) {
	if o.Direct {
		return diskio.OpenDirect(path)
	}
	return diskio.Open(path)
}

// FormatFrom says how the format of a file is known.
type FormatFrom string

// Where the format comes from.
const (
	FormatAsked  FormatFrom = "asked"  // the caller named it
	FormatHeader FormatFrom = "header" // the overlay's header names it
	FormatProbed FormatFrom = "probed" // told by content, as qemu does when nobody names it
)

// Layer is one image of a chain.
type Layer struct {
	// Path is the name by which the file is opened, made as qemu makes it.
	Path string
	// Real is Path without symbolic links.
	Real string
	// Format is the one that is used, Probed the one that the content shows.
	Format     string
	FormatFrom FormatFrom
	Probed     string
	Stat       diskio.Stat
	// Header is nil unless the format is qcow2.
	Header *qcow2.Header
	// SizeBytes of the virtual disk, -1 where it is not known. ClusterBytes is the size of a cluster,
	// grain or block, 0 where there is none.
	SizeBytes    int64
	ClusterBytes int64
	// Backing and Data are the backing file and the external data file; nil without one.
	Backing *Link
	Data    *Link
	// Extents are the parts of the disk of a vmdk image that has it in other files, in their order.
	Extents []Extent
	// Notes say what is not as it should be and did not hinder reading: that a log was replayed in
	// memory, that a copy stands in for a damaged header.
	Notes []string

	other
	file     *diskio.File
	data     []*diskio.File // the external data file, or the extents; nil for one that is not open
	disk     image.Reader   // nil until the layer is made readable
	rec      *recursion     // with disk, where holes of the file count
	snap     image.HostOff  // the L1 table of the internal snapshot that disk shows, 0 for none
	backing  *named         // as the header has it
	resolved bool           // the links are known
	broken   error          // why the header is of no use
}

// named is the name of a backing file, and what the header says of its format.
type named struct{ name, format string }

// dataLink is the link to the data file or the extent with that number.
func (l *Layer) dataLink(part int) *Link {
	if l.Data != nil {
		return l.Data
	}
	return &l.Extents[part].Link
}

// Extent is a part of a disk that another file holds; a part of zeros has none, and its Name is "".
type Extent struct {
	Link
	Type   string // as the descriptor has it
	Guest  image.GuestOff
	Length int64
	// Offset is where in a flat file the part begins.
	Offset image.HostOff
}

// LinkState says what became of a name that a header holds.
type LinkState string

// The states of a link.
const (
	LinkOK          LinkState = "ok"
	LinkMissing     LinkState = "missing"
	LinkUnreadable  LinkState = "unreadable"
	LinkNotFollowed LinkState = "not_followed"
	LinkLoop        LinkState = "loop"
	LinkTooDeep     LinkState = "too_deep"
	LinkProtocol    LinkState = "protocol"
)

// Link is the name of a file in an image's header, and where it leads.
type Link struct {
	// Name is as the header has it.
	Name string
	// Full is the name as qemu completes it with the overlay's directory; "" if it cannot be.
	Full string
	// Path is the local file that it means, "" if it does not mean one. Real is Path without
	// symbolic links, "" where that could not be told.
	Path string
	Real string
	// Format is the one that the header or the name itself gives; "" if neither does.
	Format string
	State  LinkState
	// Reason says why the state is not ok.
	Reason string
	// Stat is known for the states ok, loop, too_deep, and not_followed.
	Stat diskio.Stat

	cause error // for missing, unreadable and protocol
}

// What a file is to the image that names it.
const (
	roleBacking = "backing file"
	roleData    = "data file"
	roleExtent  = "extent"
)

// Err is nil for LinkOK and otherwise says what is wrong with the link; overlay is the image whose
// header holds the name, role is "backing file" or "data file".
func (l *Link) Err(overlay, role string) error {
	if l.State == LinkOK {
		return nil
	}
	return withAdvice(&LinkError{Overlay: overlay, Role: role, Link: *l, Cause: l.cause}, l, role)
}

// withAdvice adds what to do about a link that cannot be followed.
func withAdvice(err error, l *Link, role string) error {
	switch l.State {
	case LinkNotFollowed:
		return finding.WithHint(err, "--follow opens it")
	case LinkMissing:
		if role == roleBacking {
			return finding.WithHint(err, "find the file: the image holds only what changed since")
		}
		return finding.WithHint(err, "find the file: it holds what is on the disk")
	case LinkLoop:
		return finding.WithHint(err, "find out which image of the circle was renamed or rebased")
	case LinkTooDeep:
		return finding.WithHint(err, "flatten the chain")
	}
	return err
}

// LinkError says which file of a disk cannot be used.
type LinkError struct {
	Overlay string
	Role    string
	Link    Link
	Cause   error // nil, or why opening it ended
}

func (e *LinkError) kind() error {
	switch e.Link.State {
	case LinkMissing:
		return ErrMissing
	case LinkNotFollowed:
		return ErrNotFollowed
	case LinkLoop:
		return ErrLoop
	case LinkTooDeep:
		return ErrTooDeep
	case LinkProtocol:
		return ErrProtocol
	}
	return ErrUnreadable
}

func (e *LinkError) Error() string {
	name := e.Link.Path
	if name == "" {
		name = fmt.Sprintf("%q", e.Link.Name)
	}
	s := fmt.Sprintf("%s of %s: %s %v", e.Role, e.Overlay, name, e.kind())
	if e.Link.Reason != "" {
		s += ": " + e.Link.Reason
	}
	return s
}

// Unwrap gives the sentinel of the state, and the cause.
func (e *LinkError) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.kind()}
	}
	return []error{e.kind(), e.Cause}
}
