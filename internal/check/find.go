// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// maxImages bounds a report.
const maxImages = 1 << 20

// errNoImage: a file that was named, and that nothing shows to be a disk.
var errNoImage = finding.WithHint(errors.New("is not a disk image: "+
	"it has no known magic, and does not look like a raw disk"),
	"a raw disk without partitions must be called .raw or .img; if this was an image, "+
		"its beginning was overwritten")

// candidate is a file that may be an image.
type candidate struct {
	path  string
	id    diskio.ID
	named bool // by the user or by a header: it is an image, whatever it looks like
	depth int  // below an image that was found otherwise
}

// job is an image to examine.
type job struct {
	candidate
	stat diskio.Stat
	real string // without symbolic links, "" if that could not be told
	// header of a qcow2 image, or why it cannot be used.
	header    *qcow2.Header
	headerErr error
	// dataPath is where the external data file lies, "" if that is not known.
	dataPath string
	// base is what it rests on, nil without one or where it is not followed.
	base *job
	img  Image
	// done: what can be looked at was looked at.
	done bool
	// why is the first error that made a blind spot.
	why error
}

// find looks for images at and below the paths. Its error is that of ctx.
func (r *runner) find(ctx context.Context, paths []string) error {
	r.progress(func(p *Progress) { p.Walking = true })
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan candidate, 4*r.workers)
	for range r.workers {
		g.Go(func() error {
			for c := range queue {
				if err := r.probe(ctx, c); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(queue)
		offer := func(c candidate) error {
			select {
			case queue <- c:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		w := diskio.NewWalker(r.timeout, r.visitor(offer))
		for _, path := range paths {
			if err := r.start(ctx, candidate{path: path, named: true}, w, offer); err != nil {
				return err
			}
		}
		for _, path := range r.opts.Maybe {
			if err := r.start(ctx, candidate{path: path}, w, offer); err != nil {
				return err
			}
		}
		return nil
	})
	return g.Wait()
}

// start looks at one of the paths that were named.
func (r *runner) start(ctx context.Context, c candidate, w *diskio.Walker,
	offer func(candidate) error) error {
	st, err := diskio.Within(ctx, r.timeout, func() (diskio.Stat, error) {
		return diskio.Look(c.path)
	}, nil)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, diskio.ErrDirectory) && c.named:
		r.dirs = append(r.dirs, c.path)
		return w.Walk(ctx, c.path)
	case err != nil && !c.named && (errors.Is(err, diskio.ErrDirectory) ||
		errors.Is(err, diskio.ErrSpecial) || errors.Is(err, fs.ErrNotExist)):
		return nil
	case err != nil:
		r.blindSpot(c.path, "file", err)
		return nil
	}
	r.progress(func(p *Progress) { p.Files++ })
	c.id = st.ID
	return offer(c)
}

// visitor takes what a walk meets.
func (r *runner) visitor(offer func(candidate) error) diskio.WalkFunc {
	return func(kind diskio.WalkKind, path string, st diskio.Stat, err error) error {
		r.progress(func(p *Progress) { p.Files++ })
		switch kind {
		case diskio.WalkFile:
			return offer(candidate{path: path, id: st.ID})
		case diskio.WalkBlind:
			what := "directory"
			if imageSuffix(path) {
				what = "file"
			}
			r.blindSpot(path, what, err)
		case diskio.WalkSymlink:
			r.skipLink()
		default:
			r.skip()
		}
		return nil
	}
}

// probe looks whether a file is an image, and makes a job of it if it is one. Its error is that of
// ctx.
func (r *runner) probe(ctx context.Context, c candidate) error {
	j := &job{candidate: c}
	j.img = newImage(c.path)
	isImage, err := r.recognise(ctx, j)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, fs.ErrNotExist) && !c.named:
		r.skip() // removed since the directory was read
		return nil
	case err != nil && !c.named && !imageSuffix(c.path):
		// It may be an image or not; that is not known.
		r.blindSpot(c.path, "file", err)
		return nil
	case err != nil:
		j.blind("file", err)
	case !isImage && c.named:
		r.blindSpot(c.path, "file", errNoImage)
		return nil
	case !isImage:
		r.skip()
		return nil
	}
	r.add(j)
	return nil
}

// recognise opens a file and tells its format. The error says why that could not be done.
func (r *runner) recognise(ctx context.Context, j *job) (isImage bool, err error) {
	f, err := r.open(ctx, j.candidate, false)
	if err != nil {
		return false, err
	}
	if f.Stat().ID != j.id {
		f.Close()
		return false, diskio.ErrChanged
	}
	j.stat = f.Stat()
	j.img.FileBytes, j.img.AllocatedBytes = j.stat.SizeBytes, j.stat.AllocatedBytes
	g := r.guard(ctx, f)
	look := &looking{path: j.path, named: j.named, based: j.depth > 0, block: j.stat.Block, size: f.Size()}
	_, err = during(ctx, g, func() (struct{}, error) {
		return struct{}{}, look.at(g)
	}, func() { f.Close() })
	if err != nil {
		return false, err
	}
	j.img.Format, j.img.VirtualBytes = string(look.format), look.virtual
	j.img.Findings = append(j.img.Findings, look.findings...)
	j.img.Notes = append(j.img.Notes, look.notes...)
	j.header, j.headerErr = look.header, look.headerErr
	if h := j.header; h != nil {
		j.img.VirtualBytes, j.img.ClusterBytes = h.SizeBytes, h.ClusterSize()
	}
	if look.isImage {
		j.real = r.realPath(ctx, j.path)
	}
	return look.isImage, nil
}

// looking is what the first look at a file tells. It is apart from the job, so that a look which
// hangs and goes on later changes nothing.
type looking struct {
	path  string
	size  int64
	block bool
	// named by the user or by an overlay, based by an overlay.
	named, based bool

	isImage   bool
	format    image.Format
	virtual   int64
	header    *qcow2.Header
	headerErr error
	findings  []finding.Finding
	notes     []string
}

func (l *looking) at(r io.ReaderAt) error {
	l.virtual = -1
	var err error
	if l.format, err = image.Probe(r, l.size, l.path); err != nil {
		return err
	}
	switch l.format {
	case image.Qcow2:
		l.isImage = true
		l.header, l.headerErr = qcow2.ReadHeader(r, l.size)
		return nil
	case image.Raw:
		if hint, err := image.Hint(r, l.size); err != nil {
			return err
		} else if hint != image.Raw {
			l.format = hint
			break
		}
		return l.atRaw(r)
	}
	l.isImage = true
	l.virtual, err = image.VirtualSize(r, l.size, l.format)
	return err
}

// atRaw decides about a file without any magic: a raw disk, an image whose header is gone, or
// something else.
func (l *looking) atRaw(r io.ReaderAt) error {
	head := make([]byte, min(headBytes, l.size))
	if n, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	} else if n < len(head) {
		head = head[:n]
	}
	disk := isPartitioned(head)
	switch {
	case hasSuffix(l.path, qcow2Suffixes) && !disk && !l.block:
		l.lostHeader(head)
		return nil
	case disk, l.block, l.based, hasSuffix(l.path, rawSuffixes), l.named && l.size > 0 && l.size%512 == 0:
		l.isImage = true
	default:
		return nil
	}
	if hasSuffix(l.path, qcow2Suffixes) {
		l.notes = append(l.notes, "is called like a qcow2 image, but holds a raw disk")
	}
	l.notes = append(l.notes, "a raw disk has no metadata, so there is nothing to check")
	var err error
	l.virtual, err = image.VirtualSize(r, l.size, image.Raw)
	return err
}

// lostHeader reports a file that is called like a qcow2 image and does not begin like one, or ends
// before its format can be told.
func (l *looking) lostHeader(head []byte) {
	l.isImage, l.format = true, ""
	kind, text := "no_magic", fmt.Sprintf("the file is called like a qcow2 image, but does not begin like one (%q)",
		head[:min(len(head), 4)])
	sure := finding.Likely
	switch {
	case l.size == 0:
		kind, text, sure = "empty", "the file is called like a qcow2 image, but is empty", finding.Sure
	case bytes.HasPrefix(head, []byte("QFI\xfb")):
		kind, sure = "cut_short", finding.Sure
		text = fmt.Sprintf("the file begins like a qcow2 image, but ends after %d bytes", l.size)
	}
	f := finding.New(finding.QC01, l.path, sure, kind, text)
	if l.size > 0 {
		f.Host = []finding.Range{{Offset: 0, Length: min(l.size, 4)}}
	}
	l.findings = append(l.findings, f)
}

// headBytes holds a boot sector and the header of a GPT behind it, for sectors of 4096 bytes too.
const headBytes = 4096 + 512

// isPartitioned reports whether a disk begins with a partition table.
func isPartitioned(head []byte) bool {
	for _, at := range []int{512, 4096} {
		if len(head) >= at+8 && bytes.HasPrefix(head[at:], []byte("EFI PART")) {
			return true
		}
	}
	if len(head) < 512 || head[510] != 0x55 || head[511] != 0xaa {
		return false
	}
	used := false
	for i := range 4 {
		e := head[446+16*i:][:16]
		if e[0] != 0 && e[0] != 0x80 {
			return false
		}
		used = used || e[4] != 0 && binary.LittleEndian.Uint32(e[12:]) != 0
	}
	return used
}

// Suffixes only add evidence: an image is told by its magic.
const (
	qcow2Suffixes = ".qcow2 .qcow .qc2"
	rawSuffixes   = ".raw .img .iso .dd .hdd"
	otherSuffixes = ".vmdk .vhdx .vhd .vdi .qed .hds"
)

func hasSuffix(path, suffixes string) bool {
	ext := strings.ToLower(filepath.Ext(path))
	for s := range strings.FieldsSeq(suffixes) {
		if s == ext {
			return true
		}
	}
	return false
}

func imageSuffix(path string) bool {
	return hasSuffix(path, qcow2Suffixes) || hasSuffix(path, rawSuffixes) || hasSuffix(path, otherSuffixes)
}
