// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// Walk reads the headers of the image at path and of its backing files, as far as they can be
// followed, and opens nothing else. The Backing of the last layer, if it has one, says why the
// walk ended there. The error is for the image itself, or that of ctx.
func Walk(ctx context.Context, path string, o Options) ([]Layer, error) {
	layers, err := o.descend(ctx, path)
	for i := range layers {
		err = errors.Join(err, layers[i].close())
	}
	if err != nil {
		return nil, err
	}
	return layers, nil
}

// answerTimeout is how long storage may take to answer before an image or a link counts as
// unreadable. A disk's own retries take up to 30 s, a change of paths of multipath up to 60 s.
const answerTimeout = 60 * time.Second

// descend opens the image at path and those below it. After an error nothing is left open.
func (o Options) descend(ctx context.Context, path string) ([]Layer, error) {
	from := FormatAsked
	if o.Format == "" {
		from = FormatProbed
	}
	top, err := openLayer(ctx, path, o.open, Layer{Path: path, Format: plainFormat(o.Format), FormatFrom: from})
	if errors.Is(err, diskio.ErrDirectory) && (o.Format == "" || o.Format == formatVMDK) {
		if path, err = o.descriptorIn(ctx, path, err); err == nil {
			top, err = openLayer(ctx, path, o.open, Layer{Path: path, Format: formatVMDK, FormatFrom: from})
		}
	}
	if err != nil {
		return nil, withPath(path, err)
	}
	layers, seen := []Layer{top}, []diskio.ID{top.Stat.ID}
	for {
		last := &layers[len(layers)-1]
		last.resolve(ctx, o.Policy, seen)
		if err := ctx.Err(); err != nil {
			return nil, errors.Join(err, closeAll(layers))
		}
		link := last.Backing
		if o.Single || link == nil || link.State != LinkOK {
			return layers, nil
		}
		next, err := link.open(ctx, o)
		if err == nil {
			if err = last.fits(&next); err != nil {
				err = errors.Join(err, next.close())
			}
		}
		if err != nil {
			*link = link.fail(err)
			continue // and end there, unless it was ctx
		}
		layers, seen = append(layers, next), append(seen, next.Stat.ID)
	}
}

// withPath puts the path before err, unless err has one.
func withPath(path string, err error) error {
	if errors.As(err, new(*fs.PathError)) {
		return err
	}
	return fmt.Errorf("%s: %w", path, err)
}

// openLayer opens a file at path for l, whose Path and Format are set, tells its format, and reads
// its header.
func openLayer(ctx context.Context, path string, open opener, l Layer) (Layer, error) {
	return diskio.WithinAt(ctx, path, answerTimeout, func() (Layer, error) {
		f, err := open(path)
		if err != nil {
			return Layer{}, err
		}
		l.file, l.Stat, l.SizeBytes = f, f.Stat(), -1
		if err := l.read(); err != nil {
			return Layer{}, errors.Join(err, l.close())
		}
		return l, nil
	}, func(l Layer) {
		// Nobody waits for the file any more, nor for what closing it says.
		_ = l.close()
	})
}

// openFile is diskio.Open with an end to waiting.
func openFile(ctx context.Context, path string, open opener) (*diskio.File, error) {
	return diskio.WithinAt(ctx, path, answerTimeout, func() (*diskio.File, error) { return open(path) },
		func(f *diskio.File) { _ = f.Close() }) // nobody waits for it any more
}

// open opens the image that a link of state ok leads to.
func (l *Link) open(ctx context.Context, o Options) (Layer, error) {
	from := FormatHeader
	if l.Format == "" {
		from = FormatProbed
	}
	path, open := l.target(o)
	next, err := openLayer(ctx, path, open, Layer{Path: l.Path, Format: plainFormat(l.Format), FormatFrom: from})
	if err == nil && next.Stat.ID != l.Stat.ID {
		return Layer{}, errors.Join(diskio.ErrChanged, next.close())
	}
	return next, err
}

// opener is diskio.Open, or one that is stricter.
type opener func(path string) (*diskio.File, error)

// target is the path to open, and how. Under a policy that is the one that was judged, so that a
// symbolic link that is turned around meanwhile leads nowhere else.
func (l *Link) target(o Options) (string, opener) {
	if o.Policy.Follow {
		return l.Path, o.open
	}
	return l.Real, func(path string) (*diskio.File, error) { return diskio.OpenResolved(path, o.Direct) }
}

func (l *Layer) read() error {
	var err error
	// Only what links lead to is compared by this name; without it, it is not known.
	if l.Real, err = diskio.RealPath(l.Path); err != nil {
		l.Real = ""
	}
	probed, err := image.Probe(l.file, l.file.Size(), l.Path)
	if err != nil {
		return fmt.Errorf("tell the format: %w", err)
	}
	l.Probed = string(probed)
	if l.Format == "" {
		l.Format = l.Probed
	}
	if !knownFormat(l.Format) {
		return fmt.Errorf("%w %q", ErrUnknownFormat, l.Format)
	}
	return driverOf(l.Format).head(l)
}

// resolve finds out where the names in the header lead. seen are the files from the top down to l.
func (l *Layer) resolve(ctx context.Context, p Policy, seen []diskio.ID) {
	// Once is enough: this is called again when the link could not be opened.
	if l.resolved {
		return
	}
	l.resolved = true
	find := func(name string, find func() Link) Link {
		link, err := diskio.WithinAt(ctx, fullName(l.Path, name), answerTimeout, func() (Link, error) { return find(), nil }, nil)
		if err != nil {
			link = Link{Name: name, Full: fullName(l.Path, name)}.fail(err)
		}
		return link
	}
	if b := l.backing; b != nil {
		link := find(b.name, func() Link { return p.Resolve(l.Path, b.name, b.format, seen) })
		l.Backing = &link
	}
	if h := l.Header; h != nil && h.HasDataFile() {
		link := find(h.DataFile, func() Link { return p.ResolveData(l.Path, h.DataFile, seen) })
		l.Data = &link
	}
	if l.vmdk == nil {
		return
	}
	guest := image.GuestOff(0)
	for _, e := range l.vmdk.Extents {
		x := Extent{Link: Link{State: LinkOK}, Type: e.Type, Guest: guest, Length: e.Bytes, Offset: image.HostOff(e.Start)}
		if e.Name != "" {
			x.Link = find(e.Name, func() Link { return p.resolveExtent(l.Path, e.Name, seen) })
		}
		l.Extents = append(l.Extents, x)
		guest += image.GuestOff(e.Bytes)
	}
}

func (l *Layer) close() error {
	var err error
	if l.file != nil {
		err = l.file.Close()
	}
	for _, f := range l.data {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	l.file, l.data = nil, nil
	return err
}

func closeAll(layers []Layer) error {
	var err error
	for i := range layers {
		err = errors.Join(err, layers[i].close())
	}
	return err
}

// Chain is a disk opened for reading: an image and all that it rests on. It may be used by several
// goroutines at once.
type Chain struct {
	// Layers from the image itself down to the last base.
	Layers []Layer

	scanners scannerPool
}

// Open opens the image at path with its whole chain. It is an error if any file of the chain
// cannot be used: a *LinkError, ErrFormat, ErrNoSnapshot, or one of qcow2, diskio or ctx.
func Open(ctx context.Context, path string, o Options) (*Chain, error) {
	layers, err := o.descend(ctx, path)
	if err != nil {
		return nil, err
	}
	for i := range layers {
		if i > 0 {
			o.Snapshot = "" // that of the image itself
		}
		if err := layers[i].ready(ctx, o); err != nil {
			return nil, errors.Join(err, closeAll(layers))
		}
	}
	return &Chain{Layers: layers}, nil
}

// snapshot finds an internal snapshot, by its id first, as qemu does.
func (l *Layer) snapshot(want string) (*qcow2.Snapshot, error) {
	t, err := qcow2.ReadSnapshots(l.file, l.file.Size(), l.Header)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.Path, err)
	}
	for i := range t.Snapshots {
		if t.Snapshots[i].ID == want {
			return &t.Snapshots[i], nil
		}
	}
	for i := range t.Snapshots {
		if t.Snapshots[i].Name == want {
			return &t.Snapshots[i], nil
		}
	}
	return nil, noSnapshot(l.Path, want)
}

// Size is the size of the virtual disk in bytes.
func (c *Chain) Size() int64 { return c.Layers[0].SizeBytes }

// Missing is how many bytes were read or mapped so far whose place lies past the end of their
// file. They read as zeros, as in qemu; more than 0 means that a file was cut.
func (c *Chain) Missing() int64 {
	var n int64
	for i := range c.Layers {
		if d, ok := c.Layers[i].disk.(interface{ Missing() int64 }); ok {
			n += d.Missing()
		}
	}
	return n
}

// Notes are those of all layers, each with the path of its image.
func (c *Chain) Notes() []string {
	notes := []string{}
	for i := range c.Layers {
		for _, n := range c.Layers[i].Notes {
			notes = append(notes, c.Layers[i].Path+": "+n)
		}
	}
	return notes
}

// Changed gives the files of the chain that another program changed since they were opened: what
// was read of them may never have been true at one time. A file that cannot be looked at again
// counts as changed.
func (c *Chain) Changed() []string {
	changed := []string{}
	look := func(f *diskio.File, path string) {
		if f == nil {
			return
		}
		if now, err := f.StatNow(); err != nil || changedSince(now, f.Stat()) || f.Written() {
			changed = append(changed, path)
		}
	}
	for i := range c.Layers {
		l := &c.Layers[i]
		look(l.file, l.Path)
		for part, f := range l.data {
			look(f, l.dataLink(part).Path)
		}
	}
	return changed
}

func changedSince(now, then diskio.Stat) bool {
	return now.SizeBytes != then.SizeBytes || !now.ModTime.Equal(then.ModTime)
}

// Close closes all files.
func (c *Chain) Close() error { return closeAll(c.Layers) }
