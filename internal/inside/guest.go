// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package inside opens the disks of a guest from outside, whether it runs, is off or is dead: the
// images with their chains, what they are divided into, and the file systems, which a child without
// rights reads. Nothing is booted, mounted or written.
package inside

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/volume"
	"github.com/shisa-vm/shisa/internal/jail"
)

// Errors for errors.Is.
var (
	// ErrPart: no volume, or several, have the name that was given, or none was given where there
	// are several.
	ErrPart = errors.New("which part is meant is not known")
	// ErrUnread: there is no file system that can be read.
	ErrUnread = errors.New("no file system here can be read")
	// ErrPath: nothing in the guest has that path.
	ErrPath = errors.New("no such file in the guest")
)

// maxLinks is how many symbolic links a path may lead through, as in Linux.
const maxLinks = 40

// Options say how disks are opened. The zero value is the safe one.
type Options struct {
	// Policy limits which files the images may make us open.
	Policy disk.Policy
	// Format of the images, "" to tell it by their content.
	Format string
	// More are further disks of the same guest, as of a volume group.
	More []string
}

// Guest is the disks of a guest, opened for looking into them. It is for one goroutine.
type Guest struct {
	Layout *volume.Layout

	snapshot string
	chains   []*disk.Chain
	jail     *jail.Jail
	opened   map[int]*jail.FS
	crash    *jail.CrashError // of a reader that was started again
}

// Open opens the disk that a name means, and further ones. The errors are those of disk.Open, and of
// jail.Start.
func Open(ctx context.Context, name Name, o Options) (g *Guest, err error) {
	g = &Guest{snapshot: name.Snapshot}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	var disks []volume.Disk
	for i, path := range append([]string{name.Disk}, o.More...) {
		opts := disk.Options{Policy: o.Policy, Format: o.Format}
		if i == 0 {
			opts.Snapshot = name.Snapshot
		}
		c, err := disk.Open(ctx, path, opts)
		if err != nil {
			return g, err
		}
		g.chains = append(g.chains, c)
		disks = append(disks, volume.Disk{Name: path, Data: c, Size: c.Size()})
	}
	if g.jail, err = jail.Start(ctx, disks); err != nil {
		return g, err
	}
	g.Layout, err = g.jail.Layout(ctx)
	return g, err
}

// Close ends the child and closes the images.
func (g *Guest) Close() error {
	var err error
	if g.jail != nil {
		err = g.jail.Close()
	}
	for _, c := range g.chains {
		err = errors.Join(err, c.Close())
	}
	return err
}

// Changed gives the files of the disks that another program changed since they were opened: what was
// read may never have been true at one time.
func (g *Guest) Changed() []string {
	all := []string{}
	for _, c := range g.chains {
		all = append(all, c.Changed()...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Notes are what is not as it should be with the images and did not hinder reading them, as a log
// that was replayed in memory or a copy that stands in for a damaged header.
func (g *Guest) Notes() []string {
	all := []string{}
	for _, c := range g.chains {
		all = append(all, c.Notes()...)
	}
	return all
}

// Divided says in a line or two what is wrong with how the disks are divided: it hinders no reading,
// and what is read may not be what the guest sees. It is empty where all is well.
func (g *Guest) Divided() []string {
	all := []string{}
	say := func(n int, one, many, first string) {
		if n > 1 {
			one = fmt.Sprintf("%d %s", n, many)
		}
		all = append(all, fmt.Sprintf("%s (shisa disk parts tells all): %s", one, first))
	}
	if p := g.Layout.Problems; len(p) > 0 {
		text := p[0].String()
		if p[0].Disk >= 0 {
			text = g.Layout.Disks[p[0].Disk].Name + ": " + text
		}
		say(len(p), "something is broken in how the disk is divided",
			"things are broken in how the disk is divided", text)
	}
	if b := g.Layout.Blind; len(b) > 0 {
		say(len(b), "a place that tells how the disk is divided could not be read",
			"places that tell how the disk is divided could not be read",
			b[0].Object+": "+b[0].What+": "+b[0].Reason)
	}
	return all
}

// Missing is how many bytes were read so far that lie past the end of a file which was cut; they
// read as zeros.
func (g *Guest) Missing() int64 {
	n := int64(0)
	for _, c := range g.chains {
		n += c.Missing()
	}
	return n
}

// Crash is the finding that the child crashed, none if it did not.
func (g *Guest) Crash() []finding.Finding {
	if crash := cmp.Or(g.crash, g.jail.Crash()); crash != nil {
		return []finding.Finding{crashed(g.Layout.Disks[0].Name, crash)}
	}
	return []finding.Finding{}
}

// crashed is the finding about a disk whose reader crashed.
func crashed(path string, crash *jail.CrashError) finding.Finding {
	f := finding.New(finding.GR01, path, finding.Sure, "crash", crash.Error())
	f.Evidence = append(f.Evidence, finding.Evidence{Source: "child process", Offset: -1, Text: crash.How})
	return f
}

// Crashed gives the finding that an error about a disk stands for, none if it is none.
func Crashed(path string, err error) []finding.Finding {
	crash := new(jail.CrashError)
	if !errors.As(err, &crash) {
		return nil
	}
	return []finding.Finding{crashed(path, crash)}
}

// readable tells whether a volume has a file system with a reader.
func readable(v *volume.Volume) bool {
	return slices.Contains([]volume.Kind{volume.Ext2, volume.Ext3, volume.Ext4, volume.XFS}, v.Kind)
}

// Readable gives the indexes of the volumes with a file system that has a reader.
func Readable(g *Guest) []int {
	var can []int
	for i, v := range g.Layout.Volumes {
		if readable(v) {
			can = append(can, i)
		}
	}
	return can
}

// Pieces tells where a volume lies on the disks, in order.
func (g *Guest) Pieces(ctx context.Context, part int) ([]volume.Piece, error) {
	all, err := g.jail.Pieces(ctx, part)
	if err != nil {
		return nil, fmt.Errorf("part %s: %w", g.Layout.Volumes[part].Name, err)
	}
	return all, nil
}

// Part gives the index of a volume: by its name, or by LABEL=, UUID=, PARTLABEL= or PARTUUID= as in
// fstab. Where there are several disks, the number that a partition has on its own disk is enough if
// only one has it. With no name it is the only one with a file system that can be read, or the only one of
// those that holds a Linux system. The error is ErrPart or ErrUnread.
func (g *Guest) Part(ctx context.Context, name string) (int, error) {
	if name == "" {
		return g.only(ctx)
	}
	var found, short []int
	for i, v := range g.Layout.Volumes {
		if v.Name == name || g.tagged(i, name) {
			found = append(found, i)
		}
	}
	for i, v := range g.Layout.Volumes {
		if v.Short() == name {
			short = append(short, i)
		}
	}
	if len(found) == 0 {
		found = short
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return 0, fmt.Errorf("%w: there is no part %q; there are: %s", ErrPart, name, g.names(nil))
	}
	return 0, fmt.Errorf("%w: %d parts are called %q: %s", ErrPart, len(found), name, g.names(found))
}

// tagged tells whether LABEL=, UUID=, PARTLABEL= or PARTUUID= means a volume.
func (g *Guest) tagged(volume int, name string) bool {
	key, value, tagged := strings.Cut(name, "=")
	if !tagged || value == "" {
		return false
	}
	key, v := strings.ToUpper(key), g.Layout.Volumes[volume]
	is := map[string]string{"LABEL": v.Label, "UUID": v.UUID, "PARTLABEL": v.PartName,
		"PARTUUID": v.PartUUID}[key]
	return is == value || strings.HasSuffix(key, "UUID") && strings.EqualFold(is, value)
}

// names lists volumes for a message, all of them for nil.
func (g *Guest) names(which []int) string {
	var names []string
	for i, v := range g.Layout.Volumes {
		if which == nil || slices.Contains(which, i) {
			names = append(names, fmt.Sprintf("%s (%s)", v.Name, v.Kind))
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// only chooses where nothing was said.
func (g *Guest) only(ctx context.Context) (int, error) {
	can := Readable(g)
	var system []int
	switch len(can) {
	case 1:
		return can[0], nil
	case 0:
		return 0, fmt.Errorf("%w; there are: %s", ErrUnread, g.names(nil))
	}
	for _, i := range can {
		if g.holdsSystem(ctx, i) {
			system = append(system, i)
		}
	}
	if len(system) == 1 {
		return system[0], nil
	}
	err := fmt.Errorf("%w: several file systems can be read: %s", ErrPart, g.names(can))
	return 0, finding.WithHint(err, "name one behind the disk, as DISK:"+
		g.Layout.Volumes[can[0]].Name+", or with --part")
}

// holdsSystem tells whether a volume is the root of a Linux system.
func (g *Guest) holdsSystem(ctx context.Context, part int) bool {
	fs, err := g.jail.FS(ctx, part)
	if err != nil {
		return false
	}
	for _, path := range []string{"/etc/fstab", "/etc/os-release", "/usr/lib/os-release"} {
		if _, err := Lookup(ctx, fs, path, true); err == nil {
			return true
		}
	}
	return false
}

// FS opens the file system on a volume.
func (g *Guest) FS(ctx context.Context, part int) (files.FS, error) {
	fs, err := g.jail.FS(ctx, part)
	if err != nil {
		return nil, fmt.Errorf("part %s: %w", g.Layout.Volumes[part].Name, err)
	}
	if g.opened == nil {
		g.opened = make(map[int]*jail.FS)
	}
	g.opened[part] = fs
	return fs, nil
}

// View joins the views of all file systems that were opened: it is as whole as the least of them.
func (g *Guest) View() files.View {
	var n files.Notes
	for _, part := range slices.Sorted(maps.Keys(g.opened)) {
		join(&n, "part "+g.Layout.Volumes[part].Name, g.opened[part].View())
	}
	return n.View()
}

// join notes what the view of one file system says.
func join(n *files.Notes, name string, v files.View) {
	if v.State == files.Recovered || v.Transactions > 0 {
		n.Replayed(v.Transactions, v.Blocks)
	}
	for _, p := range v.Problems {
		p.What = name + ": " + p.What
		n.Note(p)
	}
	if v.More > 0 { // what makes it incomplete may be among those that are not kept
		n.Note(files.Problem{What: fmt.Sprintf("%s: %d problems more, which are not listed", name, v.More),
			Offset: -1, Hides: v.State == files.Incomplete})
	}
}

// Lookup finds a path in a file system. Symbolic links lead to where they would in the guest, all
// below the root of this file system; the last one is followed only on request. The error is
// ErrPath where nothing is there, and that of reading otherwise.
func Lookup(ctx context.Context, fs files.FS, path string, follow bool) (*files.Found, error) {
	l := &lookup{ctx: ctx, fs: fs}
	root, err := fs.Open(ctx, fs.Info().Root)
	if err != nil {
		return nil, err
	}
	at := []*files.Found{{Path: "/", Entry: files.Entry{Name: "/", Ino: fs.Info().Root}, File: root}}
	at, err = l.walk(at, path, follow)
	if err != nil {
		return nil, err
	}
	return at[len(at)-1], nil
}

type lookup struct {
	ctx   context.Context
	fs    files.FS
	links int
}

// walk goes from the last of at along path, and gives the way from the root.
func (l *lookup) walk(at []*files.Found, path string, follow bool) ([]*files.Found, error) {
	if strings.HasPrefix(path, "/") {
		at = at[:1]
	}
	names := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	for i, name := range names {
		switch name {
		case ".":
			continue
		case "..":
			at = at[:max(len(at)-1, 1)]
			continue
		}
		next, err := l.child(at[len(at)-1], name)
		if err != nil {
			return nil, err
		}
		last := i == len(names)-1 && !strings.HasSuffix(path, "/")
		if next.File.Stat().Mode&files.TypeMask != files.TypeLink || last && !follow {
			if len(at) > files.MaxDepth {
				return nil, fmt.Errorf("%s: %w", path, files.ErrLoop)
			}
			at = append(slices.Clone(at), next)
			continue
		}
		if at, err = l.link(at, next); err != nil {
			return nil, err
		}
	}
	return at, nil
}

// link goes where a symbolic link leads.
func (l *lookup) link(at []*files.Found, link *files.Found) ([]*files.Found, error) {
	if l.links++; l.links > maxLinks {
		return nil, fmt.Errorf("%s: more than %d symbolic links lead to one another", link.Path, maxLinks)
	}
	to, err := ReadLink(link.File)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", link.Path, err)
	}
	return l.walk(at, to, true)
}

// child finds a name in a directory.
func (l *lookup) child(dir *files.Found, name string) (*files.Found, error) {
	path := strings.TrimSuffix(dir.Path, "/") + "/" + name
	if !dir.File.Stat().IsDir() {
		return nil, fmt.Errorf("%w: %s: %s is no directory", ErrPath, path, dir.Path)
	}
	folds := files.FoldOf(l.fs.Info(), dir.File.Stat())
	var found, folded *files.Entry
	unsure := false
	err := dir.File.Entries(l.ctx, func(e files.Entry) error {
		switch {
		case e.Name == name:
			found = &e
			return errFound
		case folded == nil && folds.Same(e.Name, name):
			folded = &e
		}
		unsure = unsure || folds.Unsure(e.Name, name)
		return nil
	})
	if found == nil && folded != nil && err == nil {
		found = folded
		path = strings.TrimSuffix(dir.Path, "/") + "/" + found.Name
	}
	switch {
	case found != nil:
	case err != nil:
		return nil, fmt.Errorf("%s: not seen in what could be read of its directory: %w", path, err)
	case unsure:
		return nil, fmt.Errorf("%w: %s; the guest does not care for case in %s, and may find it by rules of "+
			"Unicode that are not known here", ErrPath, path, dir.Path)
	default:
		return nil, fmt.Errorf("%w: %s", ErrPath, path)
	}
	f, err := l.fs.Open(l.ctx, found.Ino)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &files.Found{Path: path, Dir: dir.Entry.Ino, Entry: *found, File: f}, nil
}

var errFound = errors.New("found")

// ReadLink gives the target of a symbolic link.
func ReadLink(f files.File) (string, error) {
	size := f.Stat().Size
	if size < 0 || size > files.MaxLinkBytes {
		return "", fmt.Errorf("the target of a symbolic link has %d bytes", size)
	}
	to := make([]byte, size)
	if n, err := f.ReadAt(to, 0); n < len(to) {
		return "", err
	}
	return string(to), nil
}
