// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// extension is a header extension as it stands.
type extension struct {
	typ  uint32
	data []byte
}

// remains is what is left of the old header cluster behind the numbers of the header.
type remains struct {
	// chain: header extensions were found, up to their end at end.
	chain bool
	at    int64 // where the first one stands
	end   int64
	exts  []extension
	backing,
	format, dataFile string
	backingAt int64 // where the name stands, 0 if there is none
	// named: the header's own numbers lead to the name.
	named bool
	// bare: behind the extensions nothing stands, so there is no name.
	bare bool
}

const (
	// maxRemainsBytes is how much of the old header cluster is looked at.
	maxRemainsBytes = 64 << 10
	// maxExtensions bounds a chain of extensions.
	maxExtensions = 64
)

// knownExtension reports whether typ is a type of extension that qemu writes, with such a length.
func knownExtension(typ uint32, length int64) bool {
	switch typ {
	case extBackingFormat:
		return length > 0 && length <= maxBackingFormatBytes
	case extFeatureNames:
		return length > 0 && length%featureNameBytes == 0 && length <= maxFeatureNames*featureNameBytes
	case extCrypt:
		return length == cryptExtBytes
	case extBitmaps:
		return length == bitmapsExtBytes
	case extDataFile:
		return length > 0 && length <= maxDataFileBytes
	}
	return false
}

// readRemains looks for extensions and names in p, the old header cluster.
func readRemains(p []byte) remains {
	var m remains
	for at := int64(72); at+extHeadBytes <= int64(len(p)); at += 8 {
		typ := binary.BigEndian.Uint32(p[at:])
		if !knownExtension(typ, int64(binary.BigEndian.Uint32(p[at+4:]))) {
			continue
		}
		if m.follow(p, at) {
			break
		}
	}
	m.findName(p)
	return m
}

// follow reads the chain of extensions that begins at at.
func (m *remains) follow(p []byte, at int64) bool {
	x := remains{chain: true, at: at}
	for len(x.exts) < maxExtensions && at+extHeadBytes <= int64(len(p)) {
		typ, length := binary.BigEndian.Uint32(p[at:]), int64(binary.BigEndian.Uint32(p[at+4:]))
		at += extHeadBytes
		if typ == extEnd {
			if length != 0 {
				return false
			}
			x.end = at
			*m = x
			return true
		}
		if length > int64(len(p))-at {
			return false
		}
		data := p[at : at+length]
		switch typ {
		case extBackingFormat:
			x.format = cString(data)
		case extDataFile:
			x.dataFile = cString(data)
		}
		x.exts = append(x.exts, extension{typ, slices.Clone(data)})
		at += (length + 7) &^ 7
	}
	return false
}

// findName finds the name of the backing file: where the header says, or behind the extensions.
func (m *remains) findName(p []byte) {
	if len(p) < 72 {
		return
	}
	off, n := binary.BigEndian.Uint64(p[8:]), int64(binary.BigEndian.Uint32(p[16:]))
	if off >= 72 && off < uint64(len(p)) && n > 0 && n <= min(MaxBackingNameBytes, int64(len(p))-int64(off)) {
		if s := string(p[off : int64(off)+n]); readable(s) {
			m.backing, m.backingAt, m.named = s, int64(off), true
			return
		}
	}
	end := m.end
	if !m.chain {
		// A header without extensions has their end right behind it.
		if len(p) < headerBytes+extHeadBytes || binary.BigEndian.Uint32(p) != Magic {
			return
		}
		length := int64(binary.BigEndian.Uint32(p[100:]))
		if binary.BigEndian.Uint32(p[4:]) == 2 {
			length = 72
		} else if length != minHeader3 && length != headerBytes {
			return
		}
		if binary.BigEndian.Uint64(p[length:]) != 0 {
			return
		}
		end = length + extHeadBytes
	}
	s := cString(p[min(end, int64(len(p))):min(end+MaxBackingNameBytes+1, int64(len(p)))])
	switch {
	case s == "":
		m.bare = true
	case len(s) <= MaxBackingNameBytes && readable(s):
		m.backing, m.backingAt = s, end
	}
}

// find gives the extension of that type.
func (m *remains) find(typ uint32) []byte {
	for _, e := range m.exts {
		if e.typ == typ {
			return e.data
		}
	}
	return nil
}

// unknown are the extensions that are not understood.
func (m *remains) unknown() (list []extension) {
	for _, e := range m.exts {
		switch e.typ {
		case extBackingFormat, extFeatureNames, extCrypt, extBitmaps, extDataFile:
		default:
			list = append(list, e)
		}
	}
	return list
}

// featureTable is the table of feature names that qemu 7.2 writes.
func featureTable() []byte {
	var table []byte
	for _, f := range []FeatureName{
		{0, 0, "dirty bit"}, {0, 1, "corrupt bit"}, {0, 2, "external data file"},
		{0, 3, "compression type"}, {0, 4, "extended L2 entries"},
		{1, 0, "lazy refcounts"}, {2, 0, "bitmaps"}, {2, 1, "raw external data"},
	} {
		row := make([]byte, featureNameBytes)
		row[0], row[1] = f.Type, f.Bit
		copy(row[2:], f.Name)
		table = append(table, row...)
	}
	return table
}

// errHeaderRoom: what belongs into the header cluster is longer than a cluster.
var errHeaderRoom = errors.New("the header does not fit into its cluster")

// encode gives the header cluster: the header, its extensions, those of unknown as they are, and
// the name of the backing file.
func (h *Header) encode(unknown []extension) ([]byte, error) {
	be := binary.BigEndian
	p := make([]byte, headerBytes)
	be.PutUint32(p, Magic)
	be.PutUint32(p[4:], h.Version)
	be.PutUint32(p[20:], h.ClusterBits)
	be.PutUint64(p[24:], uint64(h.SizeBytes))
	be.PutUint32(p[32:], uint32(h.Crypt))
	be.PutUint32(p[36:], uint32(h.L1Entries))
	be.PutUint64(p[40:], uint64(h.L1Off))
	be.PutUint64(p[48:], uint64(h.ReftableOff))
	be.PutUint32(p[56:], uint32(h.ReftableClusters))
	be.PutUint32(p[60:], h.Snapshots)
	be.PutUint64(p[64:], h.SnapshotsOff)
	if h.Version == 2 {
		p = p[:72]
	} else {
		be.PutUint64(p[72:], h.Incompatible)
		be.PutUint64(p[80:], h.Compatible)
		be.PutUint64(p[88:], h.Autoclear)
		be.PutUint32(p[96:], h.RefcountOrder)
		be.PutUint32(p[100:], h.Length)
		p[104] = byte(h.Compression)
	}
	add := func(typ uint32, data []byte) {
		p = be.AppendUint32(p, typ)
		p = be.AppendUint32(p, uint32(len(data)))
		p = append(p, data...)
		p = append(p, make([]byte, -len(data)&7)...)
	}
	if h.HasBacking && h.BackingFormat != "" {
		add(extBackingFormat, []byte(h.BackingFormat))
	}
	if h.DataFile != "" {
		add(extDataFile, []byte(h.DataFile))
	}
	if h.CryptLen > 0 {
		add(extCrypt, be.AppendUint64(be.AppendUint64(nil, uint64(h.CryptOff)), uint64(h.CryptLen)))
	}
	if b := h.Bitmaps; b != nil {
		ext := be.AppendUint32(nil, b.Count)
		ext = be.AppendUint32(ext, 0)
		add(extBitmaps, be.AppendUint64(be.AppendUint64(ext, uint64(b.DirSize)), uint64(b.DirOff)))
	}
	for _, e := range unknown {
		add(e.typ, e.data)
	}
	// The names of features help programs that do not know them; small clusters have no room.
	if names := featureTable(); h.Version == 3 &&
		int64(len(p)+2*extHeadBytes+len(names)+len(h.Backing)) <= h.ClusterSize() {
		add(extFeatureNames, names)
	}
	add(extEnd, nil)
	if h.HasBacking {
		be.PutUint64(p[8:], uint64(len(p)))
		be.PutUint32(p[16:], uint32(len(h.Backing)))
		p = append(p, h.Backing...)
	}
	if int64(len(p)) > h.ClusterSize() {
		return nil, fmt.Errorf("%w: %d bytes", errHeaderRoom, len(p))
	}
	return append(p, make([]byte, h.ClusterSize()-int64(len(p)))...), nil
}
