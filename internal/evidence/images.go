// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

const (
	// maxImages bounds the images whose headers are read, with all that they rest on.
	maxImages = 1 << 14
	// maxChain bounds one chain, as qemu's own users do.
	maxChain = 512
)

// The states of what an image rests on, as of check.BackingState.
const (
	backingOK       = "ok"
	backingMissing  = "missing"
	backingUnread   = "unreadable"
	backingElse     = "not_followed"
	backingTooDeep  = "too_deep"
	incompatDirty   = 1 << 0 // qcow2.txt, "Header", incompatible features
	incompatCorrupt = 1 << 1
)

// opener opens an image by its name on the machine.
type opener func(ctx context.Context, name string) (tree.File, error)

// linker gives the text of a symbolic link.
type linker func(ctx context.Context, name string) (string, error)

// describeAll reads the headers of images, and of all that they rest on. Nothing but headers is read. Each is there
// once, by whatever names it is found.
func describeAll(ctx context.Context, paths []string, open opener, link linker, gaps *[]Gap) []Image {
	d := &describer{open: open, link: link, at: map[string]int{}, real: map[string]int{}}
	for _, p := range paths {
		if ctx.Err() != nil {
			return d.all
		}
		d.chain(ctx, path.Clean(p))
	}
	if d.left > 0 {
		*gaps = append(*gaps, Gap{PartImages, "", "there are more images than are looked at"})
	}
	return d.all
}

type describer struct {
	open opener
	link linker
	all  []Image
	at   map[string]int // path -> index, what was looked at
	real map[string]int // the same without symbolic links
	left int
}

// chain describes an image and what it rests on, each once.
func (d *describer) chain(ctx context.Context, name string) {
	for range maxChain {
		if _, known := d.at[name]; known {
			return
		}
		if len(d.all) == maxImages {
			d.left++
			return
		}
		real := realPath(ctx, d.link, name)
		if i, known := d.real[real]; known {
			d.at[name] = i
			d.all[i].Names = append(d.all[i].Names, name)
			return
		}
		img := d.one(ctx, name)
		img.Real = real
		d.at[name], d.real[real] = len(d.all), len(d.all)
		d.all = append(d.all, img)
		if img.BackingPath == "" {
			return
		}
		d.chainState(ctx, d.at[name])
		name = img.BackingPath
	}
}

// chainState tells how it stands with what an image rests on, by opening it.
func (d *describer) chainState(ctx context.Context, i int) {
	img := &d.all[i]
	f, err := d.open(ctx, img.BackingPath)
	switch {
	case err == nil:
		f.Close()
		img.BackingState = backingOK
	case errors.Is(err, fs.ErrNotExist):
		img.BackingState = backingMissing
	default:
		img.BackingState = backingUnread
	}
}

// one reads the header of an image.
func (d *describer) one(ctx context.Context, name string) Image {
	img := Image{Path: name, Mount: -1, From: Source{Path: name}}
	f, err := d.open(ctx, name)
	if err != nil {
		img.Unread = Reason(err)
		if errors.Is(err, fs.ErrNotExist) {
			img.Unread = notThere
		}
		return img
	}
	defer f.Close()
	img.Changed, img.Made = f.Mtime(), tree.Born(f)
	format, err := image.Probe(f, f.Size(), name)
	if err != nil {
		img.Unread = Reason(err)
		return img
	}
	img.Format = string(format)
	if format != image.Qcow2 {
		return img
	}
	h, err := qcow2.ReadHeader(f, f.Size())
	if err != nil {
		img.Unread = err.Error()
		return img
	}
	img.Dirty, img.Corrupt = h.Incompatible&incompatDirty != 0, h.Incompatible&incompatCorrupt != 0
	if h.HasBacking && h.Backing != "" {
		img.Backing, img.BackingFormat = h.Backing, h.BackingFormat
		img.BackingPath, img.BackingState = backingOf(name, h.Backing)
	}
	return img
}

// Is tells whether a name is one of the image's.
func (i *Image) Is(name string) bool {
	return name != "" && (i.Path == name || i.Real == name || slices.Contains(i.Names, name))
}

// maxImageLinks is how many symbolic links a name may lead through, as in Linux.
const maxImageLinks = 40

// realPath is a name without symbolic links, as far as these may be looked at: what lies on a mount that is avoided
// stays as it is.
func realPath(ctx context.Context, link linker, name string) string {
	at, links := "/", 0
	for rest := strings.Split(path.Clean(name), "/"); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		next := path.Join(at, part)
		if part == "" || part == ".." || links == maxImageLinks {
			at = next
			continue
		}
		to, err := link(ctx, next)
		if err != nil {
			at = next
			continue
		}
		links++
		if path.IsAbs(to) {
			at = "/"
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	return at
}

// notThere is why an image is not read that is not there.
const notThere = "is not there"

// Gone tells whether the image itself is not there.
func (i *Image) Gone() bool { return i.Unread == notThere }

// backingOf gives the file that a backing name means: relative to the image, as qemu takes it. A name of
// something that is no file is not followed.
func backingOf(of, name string) (file, state string) {
	if rest, ok := strings.CutPrefix(name, "file:"); ok {
		name = rest
	} else if i := strings.IndexByte(name, ':'); i >= 0 && !strings.Contains(name[:i], "/") {
		return "", backingElse
	}
	if !path.IsAbs(name) {
		name = path.Join(path.Dir(of), name)
	}
	return path.Clean(name), ""
}
