// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// deflateWindow is the window of qcow2's zlib streams (qcow2.txt, "Compressed Clusters").
const deflateWindow = 4096

// Content fills p with what the guest wrote at that place, a multiple of 512, in an image made
// with Spec.Data: each sector repeats its own number and a word drawn from the seed.
func (s Spec) Content(p []byte, guest int64) {
	for len(p) > 0 {
		sector := uint64(guest) / 512
		n := min(512, len(p))
		var rec [16]byte
		binary.BigEndian.PutUint64(rec[:], sector)
		binary.BigEndian.PutUint64(rec[8:], (sector^s.Seed)*0x9e3779b97f4a7c15)
		for i := 0; i < n; i += len(rec) {
			copy(p[i:n], rec[:])
		}
		p, guest = p[n:], guest+512
	}
}

func (b *builder) writeContent(guest, host int64) {
	p := make([]byte, b.clusterSize())
	b.Content(p, guest<<b.ClusterBits)
	if b.DataFile != "" {
		b.data.put(host<<b.ClusterBits, p)
		return
	}
	b.out.put(host<<b.ClusterBits, p)
}

// packer puts compressed streams one behind the other, across clusters where these are neighbours.
type packer struct {
	off int64 // where the next stream may begin, 0 if nowhere
	// streams is how many streams touch the cluster of off.
	streams uint64
	blobs   [][]byte // used in turn where the content does not matter
	turn    int
	plain   []byte
	zw      *flate.Writer
	zs      *zstd.Encoder
	buf     bytes.Buffer
}

func (p *packer) init(b *builder) (err error) {
	p.plain = make([]byte, b.clusterSize())
	if b.Zstd {
		p.zs, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	} else {
		p.zw, err = flate.NewWriterWindow(&p.buf, deflateWindow)
	}
	if err != nil || b.Data {
		return err
	}
	// Streams of several sizes, so that they begin and end everywhere in their clusters.
	for i := range 4 {
		Spec{Seed: b.Seed}.Content(p.plain[:b.clusterSize()>>i], int64(i)<<b.ClusterBits)
		clear(p.plain[b.clusterSize()>>i:])
		blob, err := p.squeeze()
		if err != nil {
			return err
		}
		p.blobs = append(p.blobs, bytes.Clone(blob))
	}
	return nil
}

// squeeze compresses p.plain.
func (p *packer) squeeze() ([]byte, error) {
	p.buf.Reset()
	var out []byte
	if p.zs != nil {
		out = p.zs.EncodeAll(p.plain, p.buf.AvailableBuffer())
	} else {
		p.zw.Reset(&p.buf)
		if _, err := p.zw.Write(p.plain); err != nil {
			return nil, err
		}
		if err := p.zw.Close(); err != nil {
			return nil, err
		}
		out = p.buf.Bytes()
	}
	if len(out) >= len(p.plain) {
		return nil, fmt.Errorf("a cluster of %d bytes does not compress", len(p.plain))
	}
	return out, nil
}

// pack stores the compressed content of a guest cluster and gives its L2 entry.
func (b *builder) pack(guest int64) uint64 {
	p := &b.packer
	var blob []byte
	if b.Data {
		b.Content(p.plain, guest<<b.ClusterBits)
		var err error
		if blob, err = p.squeeze(); err != nil && b.out.err == nil {
			b.out.err = err
		}
	} else {
		blob = p.blobs[p.turn%len(p.blobs)]
		p.turn++
	}
	size, cs := int64(len(blob)), b.clusterSize()
	// A refcount that is full ends the use of a cluster, as in qemu.
	room, views := int64(0), uint64(b.Snapshots)+1
	if p.off%cs != 0 && p.streams < qcow2MaxRefcount(b.RefcountBits)/views {
		room = cs - p.off%cs
	}
	p.streams++
	if size > room {
		c := b.alloc(0)
		if room == 0 || c != p.off>>b.ClusterBits+1 {
			p.off = c << b.ClusterBits
		}
		p.streams = 1
	}
	off := p.off
	b.out.put(off, blob)
	for c := off >> b.ClusterBits; c <= (off+size-1)>>b.ClusterBits; c++ {
		b.counts.add(c, b.weight)
	}
	p.off = off + size
	sectors := (off+size-1)>>9 - off>>9
	return qcow2.FlagCompressed | uint64(sectors)<<(62-(b.ClusterBits-8)) | uint64(off)
}
