// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/volume"
	"github.com/shisa-vm/shisa/internal/inside"
)

// GuestListSchema is the schema of a GuestListDocument in JSON.
const GuestListSchema = "shisa.disk-list/1"

// GuestListDocument is what ls, find, tree, stat and hash print as JSON. It may have millions of
// entries, so it is written while they are found.
type GuestListDocument struct {
	GuestHead
	Entries []GuestEntry `json:"entries"`
	GuestEnd
}

// GuestHead says what is looked into.
type GuestHead struct {
	Disk     string `json:"disk"`
	Snapshot string `json:"snapshot"` // the internal snapshot, "" for the present
	Part     string `json:"part"`
	Path     string `json:"path"`
	// FileSystem is what the part holds.
	FileSystem GuestFileSystem `json:"file_system"`
}

// GuestFileSystem describes a file system: files.Info in JSON, without its record.
type GuestFileSystem struct {
	Kind       string    `json:"kind"`
	Label      string    `json:"label"`
	UUID       string    `json:"uuid"`
	BlockBytes int64     `json:"block_bytes"`
	SizeBytes  int64     `json:"size_bytes"`
	FreeBytes  int64     `json:"free_bytes"`
	Inodes     int64     `json:"inodes"`
	FreeInodes int64     `json:"free_inodes"`
	Root       files.Ino `json:"root"` // the inode of the first directory
	Features   []string  `json:"features"`
}

// NewGuestFileSystem turns a description into the document's form.
func NewGuestFileSystem(i files.Info) GuestFileSystem {
	if i.Features == nil {
		i.Features = []string{}
	}
	return GuestFileSystem{Kind: i.Kind, Label: i.Label, UUID: i.UUID, BlockBytes: i.BlockBytes,
		SizeBytes: i.SizeBytes, FreeBytes: i.FreeBytes, Inodes: i.Inodes, FreeInodes: i.FreeInodes,
		Root: i.Root, Features: i.Features}
}

// GuestEntry is a name in the guest.
type GuestEntry struct {
	Path  string `json:"path"`
	Inode uint64 `json:"inode"`
	// Type is "file", "directory", "link", "block", "char", "fifo" or "socket"; "" if the inode could
	// not be read. Mode is the permissions as four octal digits.
	Type string `json:"type"`
	Mode string `json:"mode"`
	// Links is how many names it has.
	Links int64 `json:"links"`
	UID   int64 `json:"uid"`
	GID   int64 `json:"gid"`
	Size  int64 `json:"size_bytes"`
	// Allocated is the space that it takes.
	Allocated int64 `json:"allocated_bytes"`
	Major     int64 `json:"major"`
	Minor     int64 `json:"minor"`
	// Times are RFC 3339 in UTC with nanoseconds; Birth is "" where none is kept.
	Atime string `json:"atime"`
	Mtime string `json:"mtime"`
	Ctime string `json:"ctime"`
	Birth string `json:"birth"`
	// Target is where a symbolic link leads; SHA256 is there after hash, Xattrs and Extents after
	// stat.
	Target  string        `json:"target"`
	SHA256  string        `json:"sha256"`
	Xattrs  []GuestXattr  `json:"xattrs"`
	Extents []GuestExtent `json:"extents"`
	// Error says why something of it could not be read.
	Error string `json:"error"`
}

// GuestXattr is an extended attribute.
type GuestXattr struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// GuestExtent is a part of a file and its place.
type GuestExtent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
	// Place is where it lies on the part.
	Place     int64 `json:"place"`
	Unwritten bool  `json:"unwritten"` // reserved; reads as zeros
	Shared    bool  `json:"shared"`    // other files may use it too
}

// GuestEnd says how much of it could be read.
type GuestEnd struct {
	View files.View `json:"view"`
	// Unread counts the names and directories of which something could not be read.
	Unread int64 `json:"unread"`
	// MissingBytes lie past the end of an image that was cut; they read as zeros.
	MissingBytes int64 `json:"missing_bytes"`
	// Changed are the images that a program changed meanwhile.
	Changed []string `json:"changed"`
	// Notes are what is not as it should be with the images, or with how they are divided, and did not
	// hinder reading.
	Notes []string `json:"notes"`
	// Findings are that the reader crashed; nothing else is looked for.
	Findings []finding.Finding `json:"findings"`
	// Compared: all of the file system was gone through, and its names were held against the inodes in
	// use. Otherwise nothing tells that a directory without a checksum lost names.
	Compared bool `json:"compared"`
	// Complete: nothing is known to be missing that should have been listed.
	Complete bool   `json:"complete"`
	Error    string `json:"error"`
	// Status lists every exit status that applies, the one that is returned first.
	Status []int `json:"status"`
}

// NewGuestEnd judges how much could be read of g: of a whole walk view is the one of the survey, and
// err what ended it, nil at its end.
func NewGuestEnd(g *inside.Guest, view files.View, unread int64, err error) GuestEnd {
	if view.Problems == nil {
		view.Problems = []files.Problem{}
	}
	missing, changed := g.Missing(), g.Changed()
	e := GuestEnd{View: view, Unread: unread, MissingBytes: missing, Changed: changed,
		Notes: slices.Concat(g.Notes(), g.Divided()), Findings: []finding.Finding{}}
	var applies []int
	switch {
	case errors.Is(err, context.Canceled):
		e.Error, applies = "interrupted", append(applies, finding.StatusInterrupted)
	case errors.As(err, new(*fs.PathError)), errors.As(err, new(*os.LinkError)):
		// It is not the guest that is at fault: something could not be written.
		e.Error, applies = err.Error(), append(applies, finding.StatusFailed)
	case err != nil:
		e.Error, applies = err.Error(), append(applies, finding.StatusCannotTell)
	}
	doubt := slices.ContainsFunc(g.Layout.Problems, func(p volume.Problem) bool { return p.Doubt })
	if view.State == files.Incomplete || unread > 0 || missing > 0 || doubt {
		applies = append(applies, finding.StatusCannotTell)
	}
	if len(changed) > 0 {
		applies = append(applies, finding.StatusRefused)
	}
	if crash := g.Crash(); len(crash) > 0 {
		e.Findings = crash
		applies = append(applies, finding.StatusFound, finding.StatusCannotTell)
	}
	e.Complete = len(applies) == 0
	e.Status = finding.OrderStatus(applies...)
	return e
}

// typeWords are the words for the letters of inside.TypeLetter.
var typeWords = map[byte]string{'f': "file", 'd': "directory", 'l': "link", 'b': "block", 'c': "char",
	'p': "fifo", 's': "socket"}

// NewGuestEntry describes a name that was found. The target of a link is read.
func NewGuestEntry(f *files.Found) GuestEntry {
	e := GuestEntry{Path: f.Path, Inode: uint64(f.Entry.Ino), Xattrs: []GuestXattr{},
		Extents: []GuestExtent{}}
	if f.Err != nil {
		e.Error = f.Err.Error()
	}
	if f.File == nil {
		return e
	}
	st := f.File.Stat()
	e.Type = typeWords[inside.TypeLetter(st.Mode)]
	e.Mode = fmt.Sprintf("%04o", st.Mode&^files.TypeMask)
	e.Links, e.UID, e.GID = int64(st.Links), int64(st.UID), int64(st.GID)
	e.Size, e.Allocated = st.Size, st.Sectors*512
	e.Major, e.Minor = int64(st.Major), int64(st.Minor)
	e.Atime, e.Mtime, e.Ctime = guestTime(st.Atime), guestTime(st.Mtime), guestTime(st.Ctime)
	if st.Birth != (files.Time{}) {
		e.Birth = guestTime(st.Birth)
	}
	if e.Type == "link" {
		target, err := inside.ReadLink(f.File)
		if err != nil && e.Error == "" {
			e.Error = err.Error()
		}
		e.Target = target
	}
	return e
}

func guestTime(t files.Time) string { return inside.Time(t).Format(time.RFC3339Nano) }

// GuestList writes entries as they are found.
type GuestList interface {
	Entry(e GuestEntry, l inside.Level) error
	End(e GuestEnd) error
}

// NewGuestListJSON writes one document.
func NewGuestListJSON(w io.Writer, head GuestHead) (GuestList, error) {
	b := bufio.NewWriterSize(w, mapBuffer)
	var part bytes.Buffer
	if err := JSON(&part, GuestListSchema, head); err != nil {
		return nil, err
	}
	b.Write(bytes.TrimSuffix(part.Bytes(), []byte("\n}\n")))
	b.WriteString(",\n  \"entries\": [")
	return &guestJSON{w: b}, nil
}

type guestJSON struct {
	w    *bufio.Writer
	some bool
	part bytes.Buffer
}

func (g *guestJSON) Entry(e GuestEntry, _ inside.Level) error {
	g.part.Reset()
	if err := JSON(&g.part, "", e); err != nil {
		return err
	}
	if g.some {
		g.w.WriteByte(',')
	}
	g.some = true
	text := bytes.TrimSuffix(g.part.Bytes(), []byte("\n"))
	g.w.WriteString("\n    ")
	_, err := g.w.Write(bytes.ReplaceAll(text, []byte("\n"), []byte("\n    ")))
	return err
}

func (g *guestJSON) End(e GuestEnd) error {
	if g.some {
		g.w.WriteString("\n  ")
	}
	g.w.WriteString("],")
	g.part.Reset()
	if err := JSON(&g.part, GuestListSchema, e); err != nil {
		return err
	}
	// The schema stands at the head already.
	_, tail, _ := bytes.Cut(g.part.Bytes(), []byte(","))
	g.w.Write(tail)
	return g.w.Flush()
}

// GuestForm is how a list looks as text.
type GuestForm int

// The forms.
const (
	// GuestNames is a path a line, as of find.
	GuestNames GuestForm = iota
	// GuestZero is as GuestNames, with a zero byte after each.
	GuestZero
	// GuestLong is as of ls -l.
	GuestLong
	// GuestTree is as of tree.
	GuestTree
	// GuestHash is as of sha256sum.
	GuestHash
	// GuestStat is a block for each, as of stat.
	GuestStat
)

// GuestListText is a list as text.
type GuestListText struct {
	Form GuestForm
	// Base: only the last part of each path is shown, below a heading for each directory if Headings.
	Base, Headings bool
	// Raw: names are written byte for byte, for other programs; otherwise so that a terminal shows
	// them and does nothing else.
	Raw bool
}

// NewGuestListText writes text. What could not be read is not part of it: see GuestTrouble.
func NewGuestListText(w io.Writer, form GuestListText, s Style) GuestList {
	return &guestText{GuestListText: form, out: &out{bufio.NewWriterSize(w, mapBuffer), s}}
}

type guestText struct {
	GuestListText
	*out
	dir    string
	some   bool
	rulers []string
}

func (g *guestText) name(p string) string {
	if g.Base && p != "/" {
		p = path.Base(p)
	}
	if g.Raw {
		return p
	}
	return Text(p)
}

func (g *guestText) Entry(e GuestEntry, l inside.Level) error {
	if g.Headings && g.Form != GuestTree {
		if dir := path.Dir(e.Path); dir != g.dir || !g.some {
			if g.some {
				g.line()
			}
			g.dir = dir
			shown := dir
			if !g.Raw {
				shown = Text(dir)
			}
			g.line(g.paint(bold, shown+":"))
		}
	}
	g.some = true
	switch g.Form {
	case GuestNames:
		g.line(g.name(e.Path))
	case GuestZero:
		g.w.WriteString(e.Path)
		g.w.WriteByte(0)
	case GuestLong:
		g.long(e)
	case GuestTree:
		g.tree(e, l)
	case GuestHash:
		g.hash(e)
	case GuestStat:
		g.stat(e)
	}
	return nil
}

// long writes a line of ls -l.
func (g *guestText) long(e GuestEntry) {
	size := fmt.Sprint(e.Size)
	if e.Type == "block" || e.Type == "char" {
		size = fmt.Sprintf("%d, %d", e.Major, e.Minor)
	}
	g.line(fmt.Sprintf("%s %3d %5d %5d %12s %s ", modeText(e), e.Links, e.UID, e.GID, size,
		shortTime(e.Mtime)), g.name(e.Path), g.arrow(e))
}

// arrow says where a link leads.
func (g *guestText) arrow(e GuestEntry) string {
	switch {
	case e.Type != "link":
		return ""
	case g.Raw:
		return " -> " + e.Target
	}
	return " -> " + Text(e.Target)
}

// shortTime is a time to the second.
func shortTime(t string) string {
	if i := strings.IndexByte(t, '.'); i > 0 {
		return t[:i] + "Z"
	}
	if t == "" {
		return strings.Repeat("?", len("2006-01-02T15:04:05Z"))
	}
	return t
}

// modeText is the first column of ls -l.
func modeText(e GuestEntry) string {
	if e.Type == "" {
		return "?---------"
	}
	var mode uint32
	if _, err := fmt.Sscanf(e.Mode, "%o", &mode); err != nil {
		return "?---------"
	}
	letter := map[string]byte{"file": '-', "directory": 'd', "link": 'l', "block": 'b', "char": 'c',
		"fifo": 'p', "socket": 's'}[e.Type]
	text := []byte{letter}
	for i, c := range "rwxrwxrwx" {
		if mode>>(8-i)&1 == 0 {
			c = '-'
		}
		text = append(text, byte(c))
	}
	for i, special := range []byte{'s', 's', 't'} {
		if mode>>(11-i)&1 == 0 {
			continue
		}
		at := 3 + 3*i
		if text[at] == '-' {
			special -= 'a' - 'A'
		}
		text[at] = special
	}
	return string(text)
}

// tree writes a line with the lines that lead to it.
func (g *guestText) tree(e GuestEntry, l inside.Level) {
	if l.Depth == 0 {
		g.line(g.name(e.Path))
		return
	}
	for len(g.rulers) <= l.Depth {
		g.rulers = append(g.rulers, "")
	}
	branch := "├── "
	g.rulers[l.Depth] = "│   "
	if l.Last {
		branch, g.rulers[l.Depth] = "└── ", "    "
	}
	for _, r := range g.rulers[1:l.Depth] {
		g.w.WriteString(r)
	}
	g.line(branch, Text(path.Base(e.Path)), g.arrow(e))
}

// hash writes a line as sha256sum does, which begins with a backslash where the name had to be
// escaped.
func (g *guestText) hash(e GuestEntry) {
	if e.SHA256 == "" {
		return
	}
	name, mark := e.Path, ""
	if strings.ContainsAny(name, "\\\n\r") {
		mark = "\\"
		name = strings.NewReplacer("\\", "\\\\", "\n", "\\n", "\r", "\\r").Replace(name)
	}
	if !g.Raw {
		name = Text(name)
	}
	g.line(mark, e.SHA256, "  ", name)
}

// stat writes all that is known of one name.
func (g *guestText) stat(e GuestEntry) {
	o := g.out
	fact(o, "path", Text(e.Path)+g.arrow(e))
	fact(o, "type", e.Type)
	fact(o, "inode", fmt.Sprintf("%d, %s", e.Inode, Count(e.Links, "name", "names")))
	fact(o, "size", fmt.Sprintf("%s, takes %s", BytesExact(e.Size), Bytes(e.Allocated)))
	if e.Type == "block" || e.Type == "char" {
		fact(o, "device", fmt.Sprintf("%d:%d", e.Major, e.Minor))
	}
	fact(o, "mode", fmt.Sprintf("%s (%s)", modeText(e), e.Mode))
	fact(o, "owner", fmt.Sprintf("uid %d, gid %d", e.UID, e.GID))
	fact(o, "modified", e.Mtime)
	fact(o, "changed", e.Ctime)
	fact(o, "accessed", e.Atime)
	if e.Birth != "" {
		fact(o, "born", e.Birth)
	}
	for _, x := range e.Xattrs {
		fact(o, "attribute", Text(x.Name)+" = "+Text(fmt.Sprintf("%q", cutTo(x.Value, 200))))
	}
	for i, x := range e.Extents {
		if i == maxOfAKind && !o.s.All {
			fact(o, "extent", fmt.Sprintf("and %d more (--json lists all)", len(e.Extents)-i))
			break
		}
		text := Bytes(x.Length) + " at " + Place(x.Offset) + " of the file: " + Place(x.Place) + " of the part"
		if x.Unwritten {
			text += ", reserved"
		}
		if x.Shared {
			text += ", shared"
		}
		fact(o, "extent", text)
	}
	o.line()
}

func (g *guestText) End(GuestEnd) error { return g.flush() }

// GuestTrouble says, for stderr, why a list may not be whole; nothing if it is.
func GuestTrouble(w io.Writer, e GuestEnd, s Style) error {
	o := newOut(w, s)
	for _, n := range e.Notes {
		o.prose("shisa: ", Text(n))
	}
	switch {
	case e.View.State == files.Recovered:
		o.prose("shisa: ", fmt.Sprintf("the guest was not shut down: %s of its journal replayed in memory",
			Count(e.View.Transactions, "transaction", "transactions")))
	case e.View.State == files.Incomplete:
		o.prose("shisa: ", "INCOMPLETE: something could not be read or does not fit together, so more may be"+
			" there than is shown:")
	}
	for i, p := range e.View.Problems {
		if i == maxOfAKind && !s.All {
			o.prose("  ", fmt.Sprintf("and %d more (--json lists them)",
				int64(len(e.View.Problems)-i)+e.View.More))
			break
		}
		o.prose("  - ", Text(p.What))
	}
	for _, f := range e.Findings {
		o.prose("shisa: ", Text(f.Code+" "+f.Summary))
		o.prose("  next: ", Text(f.Next))
	}
	if e.MissingBytes > 0 {
		o.prose("shisa: ", MissingText(e.MissingBytes))
	}
	for _, c := range e.Changed {
		o.prose("shisa: ", Text(changedText(c)))
	}
	return o.flush()
}

// MissingText says what it means that bytes were read past the end of an image.
func MissingText(bytes int64) string {
	return Bytes(bytes) + " that were read lie past the end of an image that was cut: they are zeros here"
}

// changedText says of an image what a change of it means.
func changedText(name string) string {
	return name + " was changed while it was read: what is shown may never have been true at one time; read a " +
		"snapshot instead"
}
