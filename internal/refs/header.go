// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// headBytes is how much of each file is read at first: the header of a qcow2 image with the name of its
// backing file, for all but odd ones.
const headBytes = 4096

// errMore: the first bytes do not tell, and the file has to be read further.
var errMore = errors.New("more of the file is needed")

// header is what the beginning of a file tells.
type header struct {
	format image.Format
	// backing is the name of the backing file, data that of an external data file; "" for none.
	backing, data string
	backingFormat string
}

// head is the beginning of a file that may be longer.
type head struct {
	b    []byte
	size int64
}

// ReadAt is io.ReaderAt; what is not there but in the file is errMore.
func (h *head) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(h.b)) {
		n = copy(p, h.b[off:])
	}
	switch {
	case n == len(p):
		return n, nil
	case off+int64(n) < h.size:
		return n, errMore
	}
	return n, io.EOF
}

// The header of QED (docs/interop/qed_spec.txt of QEMU); all numbers are little-endian:
//
//	0  magic "QED\0"       16  features            56  backing name: offset
//	                           bit 0: has a backing file   60  backing name: length
const (
	qedFeatures   = 16
	qedBackingOff = 56
	qedBackingLen = 60
	qedHeaderEnd  = 64
	qedHasBacking = 1
	maxBackingLen = 1023
)

// parse reads what the beginning of a file of size bytes tells. The error is errMore, or why the file is
// no image that can be understood.
func parse(b []byte, size int64, name string) (header, error) {
	r := &head{b, size}
	if len(b) < 4 {
		return header{format: image.Raw}, nil
	}
	if bytes.HasPrefix(b, []byte("QFI\xfb")) && len(b) >= 8 && binary.BigEndian.Uint32(b[4:]) >= 2 {
		q, err := qcow2.ReadHeader(r, size)
		if err != nil {
			if errors.Is(err, errMore) {
				err = errMore
			}
			return header{format: image.Qcow2}, err
		}
		return header{image.Qcow2, q.Backing, q.DataFile, q.BackingFormat}, nil
	}
	f, err := image.Probe(&head{b, min(size, int64(len(b)))}, min(size, int64(len(b))), name)
	if err != nil {
		return header{}, err
	}
	switch f {
	case image.QED:
		return parseQED(r)
	case image.Qcow:
		return parseQcow(r)
	case image.VMDK, image.VHDX, image.VPC, image.VDI:
		return header{format: f}, errMore
	}
	return header{format: f}, nil
}

func parseQED(r *head) (header, error) {
	h := header{format: image.QED}
	if len(r.b) < qedHeaderEnd {
		return h, io.ErrUnexpectedEOF
	}
	if binary.LittleEndian.Uint64(r.b[qedFeatures:])&qedHasBacking == 0 {
		return h, nil
	}
	return h, h.name(r, uint64(binary.LittleEndian.Uint32(r.b[qedBackingOff:])),
		binary.LittleEndian.Uint32(r.b[qedBackingLen:]))
}

// parseQcow reads the header of the first version of qcow (block/qcow.c of QEMU); all numbers are big-endian:
//
//	0  magic "QFI\xfb"    4  version 1    8  backing name: offset, 0 for none    16  backing name: length
func parseQcow(r *head) (header, error) {
	h := header{format: image.Qcow}
	if len(r.b) < 20 {
		return h, io.ErrUnexpectedEOF
	}
	off := binary.BigEndian.Uint64(r.b[8:])
	if off == 0 {
		return h, nil
	}
	return h, h.name(r, off, binary.BigEndian.Uint32(r.b[16:]))
}

// name reads the name of the backing file.
func (h *header) name(r *head, off uint64, n uint32) error {
	if n == 0 || n > maxBackingLen || off >= uint64(max(r.size, 0)) {
		return errors.New("the name of the backing file cannot be where the header says")
	}
	p := make([]byte, n)
	_, err := r.ReadAt(p, int64(off))
	h.backing = string(p)
	return err
}

// errPseudo: it is not opened, since reading there may never end, or do things.
var errPseudo = errors.New("it is in a file system of the kernel, such as /proc")

// walk reads the header of one image, whatever its format. The error is that of ctx.
func (t *taking) walk(ctx context.Context, path string) error {
	dir, err := t.dirOf(ctx, path)
	if err != nil || dir == "" {
		return err
	}
	return t.header(ctx, named{img: imgOf(dir, filepath.Base(path))})
}

// dirOf is the directory of a name without symbolic links, since QEMU leaves it to the kernel where ".." leads from it;
// "" with a gap where that cannot be told. The error is that of ctx.
func (t *taking) dirOf(ctx context.Context, path string) (string, error) {
	dir, err := diskio.WithinAt(ctx, path, t.o.Timeout, func() (string, error) {
		return diskio.RealPath(path[:strings.LastIndexByte(path, '/')+1] + ".")
	}, nil)
	if err != nil && ctx.Err() == nil {
		t.gap(path, "header", reason(err))
	}
	return dir, ctx.Err()
}

// opened is the header of an image with what is known of its file.
type opened struct {
	disk.Layer
	real string
	born time.Time
}

// header is walk for an image that relative names in its header are seen from n.dir() by. The error is that of ctx.
func (t *taking) header(ctx context.Context, n named) error {
	path := n.path
	l, err := diskio.WithinAt(ctx, path, t.o.Timeout, func() (l opened, err error) {
		if l.real, err = diskio.RealPath(path); err != nil {
			return l, err
		}
		if diskio.InPseudo(l.real) {
			return l, errPseudo
		}
		layers, err := disk.Walk(ctx, path, disk.Options{Single: true})
		if err == nil {
			l.Layer = layers[0]
			_, l.born, err = diskio.LookBorn(path)
		}
		return l, err
	}, nil)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, syscall.ENOMEDIUM): // a drive without a disk in it, which rests on nothing
		return nil
	case err != nil:
		t.gap(path, "header", reason(err))
		return nil
	}
	t.read[l.Stat.ID] = true
	names := []string{}
	if l.Backing != nil {
		names = append(names, l.Backing.Name)
	}
	switch b := l.Backing; {
	case b == nil || n.again || !headed(b.Name, b.Format) || t.address(b.Name) >= 0:
	case bySocket(b.Name):
		t.gap(path, "backing file", "a program of this host serves it as "+b.Name+", of which nobody can tell on which file that rests")
	default:
		t.gap(path, "header of its backing file", "it was not read: "+b.Name+" is no file of this host, and its format is "+
			cmp.Or(b.Format, "not said"))
	}
	if l.Data != nil {
		n.data = l.Data.Name
	}
	for k := range l.Extents {
		if l.Extents[k].Name != "" {
			names = append(names, l.Extents[k].Name)
		}
	}
	if n.id = l.Stat.ID; !l.Stat.Block { // nobody knows when what is on a device came there
		n.since = since(l.born, l.Stat.ChangeTime)
	}
	if n.data != "" && len(names) == 0 {
		names = append(names, "")
	}
	for _, n.backing = range names {
		if err := t.image(ctx, &n); err != nil {
			return err
		}
		n.data = ""
	}
	if !n.aside && !n.again {
		t.views = append(t.views, view{n.id, l.real})
	}
	return nil
}
