// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zlib"

	"github.com/shisa-vm/shisa/internal/image"
)

const (
	markerBytes = 12 // sector of the disk uint64, length uint32

	// maxKeptBytes bounds the unpacked grains that one disk keeps, one of them at least: a grain is
	// often read in several pieces. maxKept is how many they are at most, since they are searched.
	maxKeptBytes = 1 << 20
	maxKept      = 16
)

var errPacked = errors.New("the compressed data is not one grain")

// inflater unpacks grains and keeps the last ones. It may be used by several goroutines at once.
type inflater struct {
	readers sync.Pool // zlib.Resetter

	mu   sync.Mutex
	kept []unpacked // newest first
}

type unpacked struct {
	part  int32
	host  image.HostOff
	grain []byte // never changes; less than a grain at the end of a disk
}

func (u *inflater) find(part int32, host image.HostOff) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, k := range u.kept {
		if k.part == part && k.host == host {
			return k.grain
		}
	}
	return nil
}

func (u *inflater) keep(k unpacked, grainBytes int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if int64(len(u.kept)) < max(1, min(maxKept, maxKeptBytes/grainBytes)) {
		u.kept = append(u.kept, unpacked{})
	}
	copy(u.kept[1:], u.kept)
	u.kept[0] = k
}

// unpacked fills p from e, which lies in one compressed grain of q.
func (d *Disk) unpacked(p []byte, q *part, e image.Extent) error {
	s := q.sparse
	off := int64(e.Guest) - q.start
	inside := off % s.grain
	grain := d.inflate.find(e.Part, e.Host)
	if grain == nil {
		var err error
		if grain, err = d.inflate.grain(s, int64(e.Host)); err != nil && !errors.Is(err, errPacked) {
			return fmt.Errorf("read a grain at %#x, for %#x of the disk: %w", int64(e.Host), int64(e.Guest), err)
		} else if err != nil {
			return packedError(e, q, err)
		}
		d.inflate.keep(unpacked{e.Part, e.Host, grain}, s.grain)
	}
	if int64(len(grain)) < inside+int64(len(p)) {
		return packedError(e, q, fmt.Errorf("%w but %d bytes", errPacked, len(grain)))
	}
	copy(p, grain[inside:])
	return nil
}

func packedError(e image.Extent, q *part, err error) error {
	start := (int64(e.Guest) - q.start) / q.sparse.grain * q.sparse.grain
	return &image.BlockError{Guest: image.GuestOff(q.start + start), Length: q.sparse.grain, Table: "compressed grain",
		Off: e.Host, Msg: err.Error()}
}

// grain reads and unpacks the grain at host.
func (u *inflater) grain(s *sparse, host int64) ([]byte, error) {
	// As in qemu, what is packed may be twice as long as the grain, with the marker.
	length := s.grain
	if s.markers {
		var marker [markerBytes]byte
		if err := image.ReadPadded(s.r, s.size, marker[:], host); err != nil {
			return nil, err
		}
		host += markerBytes
		length = int64(binary.LittleEndian.Uint32(marker[8:]))
		if length == 0 || length > 2*s.grain {
			return nil, fmt.Errorf("%w: it has %d bytes", errPacked, length)
		}
	}
	packed := make([]byte, min(length, max(0, s.size-host)))
	if err := image.ReadPadded(s.r, s.size, packed, host); err != nil {
		return nil, err
	}
	z, err := u.reader(packed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPacked, err)
	}
	defer u.readers.Put(z)
	grain, n := make([]byte, s.grain+1), 0
	for n < len(grain) {
		m, err := z.Read(grain[n:])
		n += m
		if err == io.EOF { // with a checksum that is right
			return grain[:n:n], nil
		} else if err != nil {
			return nil, fmt.Errorf("%w but %d bytes: %w", errPacked, n, err)
		}
	}
	return nil, fmt.Errorf("%w: it is longer", errPacked)
}

// reader gives a reader of the zlib stream packed, to be put back into u.readers.
func (u *inflater) reader(packed []byte) (io.ReadCloser, error) {
	r := bytes.NewReader(packed)
	if z, ok := u.readers.Get().(io.ReadCloser); ok {
		return z, z.(zlib.Resetter).Reset(r, nil)
	}
	return zlib.NewReader(r)
}
