// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/shisa-vm/shisa/internal/image"
)

const (
	// maxInflatedBytes bounds the unpacked clusters that one disk keeps, one of them at least.
	maxInflatedBytes = 1 << 20
	// maxZstdWindow is what qemu's zstd accepts.
	maxZstdWindow = 128 << 20
	// minZstdMemory: with less, the decoder refuses frames that fit.
	minZstdMemory = 64 << 10
)

// errCompressed says what an unpacked cluster must be: whole, and no longer.
var errCompressed = errors.New("the compressed data does not give one cluster")

// inflater unpacks compressed clusters and keeps the last ones: a cluster is often read in several
// pieces. It may be used by several goroutines at once.
type inflater struct {
	h       *Header
	buffers sync.Pool // *[]byte, for what is read
	zlib    sync.Pool // io.ReadCloser of package flate
	zstd    sync.Pool // *zstd.Decoder

	mu   sync.Mutex
	kept []inflated // the last ones, newest first
}

type inflated struct {
	entry uint64
	data  []byte // never changes
}

func (u *inflater) init(h *Header) { u.h = h }

// find gives the unpacked cluster of that L2 entry if it is still there.
func (u *inflater) find(entry uint64) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, k := range u.kept {
		if k.entry == entry {
			return k.data
		}
	}
	return nil
}

func (u *inflater) keep(entry uint64, data []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	most := max(1, min(16, int(maxInflatedBytes>>u.h.ClusterBits)))
	if len(u.kept) < most {
		u.kept = append(u.kept, inflated{})
	}
	copy(u.kept[1:], u.kept)
	u.kept[0] = inflated{entry, data}
}

// readCompressed fills p from e, which lies in one compressed cluster.
func (d *Disk) readCompressed(p []byte, e extent) error {
	cs := d.h.ClusterSize()
	skip := int64(e.Guest) & (cs - 1)
	if data := d.inflate.find(e.entry); data != nil {
		copy(p, data[skip:])
		return nil
	}
	if int64(len(p)) == cs {
		return d.unpack(p, e)
	}
	data := make([]byte, cs)
	if err := d.unpack(data, e); err != nil {
		return err
	}
	d.inflate.keep(e.entry, data)
	copy(p, data[skip:])
	return nil
}

// unpack reads and unpacks the compressed cluster of e into out, which is one cluster long.
func (d *Disk) unpack(out []byte, e extent) error {
	host, length := d.h.CompressedRange(e.entry)
	// What lies past the end of the file reads as zeros, as in qemu, but takes no memory.
	have := min(length, max(d.size-int64(host), 0))
	d.miss(int64(host), length, d.size)
	src := d.inflate.buffer(int(have))
	defer d.inflate.buffers.Put(src)
	n, err := readPadded(d.r, *src, int64(host), d.size)
	if err != nil {
		return fmt.Errorf("read compressed data at %#x, for %#x of the disk: %w", int64(host),
			int64(e.Guest), err)
	}
	if err := d.inflate.unpack(out, padded{*src, length - have}); err != nil {
		return &EntryError{
			Guest: e.Guest &^ image.GuestOff(d.h.ClusterSize()-1), Length: d.h.ClusterSize(),
			Off: host, Entry: e.entry, Level: 2,
			Msg: fmt.Sprintf("%d bytes of %v data, %d of them in the file: %v", length,
				d.h.Compression, n, err),
		}
	}
	return nil
}

// buffer gives a buffer of n bytes that goes back to u.buffers.
func (u *inflater) buffer(n int) *[]byte {
	b, ok := u.buffers.Get().(*[]byte)
	if !ok {
		b = new([]byte)
	}
	if cap(*b) < n {
		*b = make([]byte, n)
	}
	*b = (*b)[:n]
	return b
}

// padded is data with zeros behind it.
type padded struct {
	data  []byte
	zeros int64
}

// unpack fills out from src, as the image's kind of compression says.
func (u *inflater) unpack(out []byte, src padded) error {
	if u.h.Compression == Zstd {
		return u.unzstd(out, src)
	}
	return u.unzlib(out, src)
}

// unzlib unpacks a raw deflate stream. What follows once out is full does not matter: the length of
// the stream is only known up to a sector.
func (u *inflater) unzlib(out []byte, src padded) error {
	var in io.Reader = bytes.NewReader(src.data) // which package flate reads fastest
	if src.zeros > 0 {
		in = &paddedReader{src}
	}
	z, ok := u.zlib.Get().(io.ReadCloser)
	if ok {
		if err := z.(flate.Resetter).Reset(in, nil); err != nil {
			return fmt.Errorf("%w: %w", errCompressed, err)
		}
	} else {
		z = flate.NewReader(in)
	}
	defer u.zlib.Put(z)
	if n, err := io.ReadFull(z, out); err != nil {
		return fmt.Errorf("%w but %d bytes: %w", errCompressed, n, err)
	}
	return nil
}

// paddedReader reads a padded. It reads single bytes too, or package flate would read ahead.
type paddedReader struct{ padded }

func (r *paddedReader) ReadByte() (byte, error) {
	switch {
	case len(r.data) > 0:
		b := r.data[0]
		r.data = r.data[1:]
		return b, nil
	case r.zeros > 0:
		r.zeros--
		return 0, nil
	}
	return 0, io.EOF
}

func (r *paddedReader) Read(p []byte) (int, error) {
	n := copy(p, r.data)
	r.data = r.data[n:]
	if n == 0 && r.zeros > 0 {
		n = int(min(int64(len(p)), r.zeros))
		clear(p[:n])
		r.zeros -= int64(n)
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// unzstd unpacks one or more zstd frames, which must end exactly where out is full. What follows is
// not looked at: it may be the frame of another cluster.
func (u *inflater) unzstd(out []byte, src padded) error {
	z, ok := u.zstd.Get().(*zstd.Decoder)
	if !ok {
		var err error
		z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecodeAllCapLimit(true),
			zstd.WithDecoderMaxMemory(max(uint64(len(out)), minZstdMemory)))
		if err != nil {
			return fmt.Errorf("%w: %w", errCompressed, err)
		}
	}
	defer u.zstd.Put(z)
	in := src.data
	for n := 0; n < len(out); {
		length, err := zstdFrameBytes(in)
		if err == io.ErrUnexpectedEOF && src.zeros > 0 {
			// Only a stream cut off by the end of the file gets here: zeros may complete it.
			in = append(bytes.Clone(in), make([]byte, src.zeros)...)
			src.zeros = 0
			continue
		}
		if err != nil {
			return fmt.Errorf("%w but %d bytes: %w", errCompressed, n, err)
		}
		part, err := z.DecodeAll(in[:length], out[n:n:len(out)])
		if err != nil {
			return fmt.Errorf("%w but %d bytes: %w", errCompressed, n+len(part), err)
		}
		n += copy(out[n:], part)
		in = in[length:]
	}
	return nil
}

// zstdFrameBytes is the length of the zstd frame at the front of in (RFC 8878, section 3.1).
func zstdFrameBytes(in []byte) (int64, error) {
	var h zstd.Header
	if err := h.Decode(in); err != nil {
		return 0, err
	}
	pos, size := int64(h.HeaderSize), int64(len(in))
	if h.Skippable {
		if pos += int64(h.SkippableSize); pos > size {
			return 0, io.ErrUnexpectedEOF
		}
		return pos, nil
	}
	for last := false; !last; {
		if size-pos < 3 {
			return 0, io.ErrUnexpectedEOF
		}
		head := uint32(in[pos]) | uint32(in[pos+1])<<8 | uint32(in[pos+2])<<16
		last = head&1 != 0
		length := int64(head >> 3)
		if head>>1&3 == 1 { // one byte, repeated
			length = 1
		}
		if pos += 3 + length; pos > size {
			return 0, io.ErrUnexpectedEOF
		}
	}
	if h.HasCheckSum {
		pos += 4
	}
	if pos > size {
		return 0, io.ErrUnexpectedEOF
	}
	return pos, nil
}
