// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

// A VMDK image that is one file ("Virtual Disk Format 5.0", "Hosted Sparse Extents"); all numbers are
// little-endian, offsets in sectors:
//
//	 0 magic "KDMV"       4 version uint32    8 flags uint32     12 capacity uint64    20 grain uint64
//	28 descriptor: offset uint64, length uint64                  44 entries of a table uint32
//	48 second directory uint64               56 directory uint64  64 first grain uint64   77 compression uint16
//
// The descriptor is text behind the header, with lines such as CID=0123abcd. Images in several files,
// whose descriptor is a file of its own, are refused: info would have to open the others.

import (
	"encoding/binary"
	"io"
	"math"
	"strconv"
	"strings"
)

const (
	vmdkDescriptor      = 512 // where it stands
	vmdkDescriptorBytes = 20 * sector
	vmdkAtEnd           = math.MaxUint64
	vmdkMaxDirectory    = 32 << 20 // entries
)

func readVMDK(r io.ReaderAt, size int64, name string) (*foreign, error) {
	p := make([]byte, sector)
	if err := readPadded(r, size, p, 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if string(p[:4]) != "KDMV" || le.Uint64(p[12:]) == 0 {
		return nil, nil
	}
	if le.Uint64(p[56:]) == vmdkAtEnd {
		// The header counts that stands between two markers at the end.
		foot := make([]byte, 3*sector)
		if size%sector != 0 || size < int64(len(foot)) {
			return nil, nil
		}
		if err := readPadded(r, size, foot, size-int64(len(foot))); err != nil {
			return nil, err
		}
		const footer = 3
		end := foot[2*sector:]
		if le.Uint32(foot[8:]) != 0 || le.Uint32(foot[12:]) != footer || string(foot[sector:][:4]) != "KDMV" ||
			le.Uint64(end) != 0 || le.Uint32(end[8:]) != 0 || le.Uint32(end[12:]) != 0 {
			return nil, nil
		}
		p = foot[sector:][:sector]
	}
	f := vmdkExtent(p, size, name)
	if f == nil {
		return nil, nil
	}
	text := make([]byte, vmdkDescriptorBytes)
	if err := readPadded(r, size, text, vmdkDescriptor); err != nil {
		return nil, err
	}
	if !f.describeVMDK(text[:len(text)-1]) {
		return nil, nil
	}
	return f, nil
}

// vmdkExtent checks a header, nil if it is not right.
func vmdkExtent(p []byte, size int64, name string) *foreign {
	const secondDirectory, deflate = 2, 1
	le := binary.LittleEndian
	capacity, grain, entries := le.Uint64(p[12:]), le.Uint64(p[20:]), uint64(le.Uint32(p[44:]))
	if le.Uint32(p[4:]) > 3 || entries == 0 || entries > 512 || grain == 0 || grain > 0x200000 ||
		capacity == 0 || capacity > maxDisk/sector || le.Uint64(p[64:]) > uint64(size)/sector {
		return nil
	}
	directory := (capacity + entries*grain - 1) / (entries * grain)
	places := []uint64{le.Uint64(p[56:])}
	if le.Uint32(p[8:])&secondDirectory != 0 {
		places = append(places, le.Uint64(p[48:]))
	}
	for _, at := range places {
		if directory > vmdkMaxDirectory || at > uint64(size)/sector || !fits(at*sector, 4*directory, size) {
			return nil
		}
	}
	f := &foreign{length: int64(capacity * sector), cluster: int64(grain * sector), specific: &dict{}}
	extent := &dict{}
	extent.put("filename", name)
	extent.put("format", "")
	extent.put("virtual-size", f.length)
	extent.put("cluster-size", f.cluster)
	kind := "monolithicSparse"
	if le.Uint16(p[77:]) == deflate {
		extent.put("compressed", true)
		kind = "streamOptimized"
	}
	f.specific.put("create-type", kind)
	f.specific.put("cid", int64(0)) // keeps the place
	f.specific.put("parent-cid", int64(0))
	f.specific.put("extents", []any{extent})
	return f
}

// describeVMDK takes over what the descriptor says: the identifiers and the name of the backing file.
func (f *foreign) describeVMDK(p []byte) bool {
	text, _, _ := strings.Cut(string(p), "\x00")
	for key, word := range map[string]string{"cid": "CID", "parent-cid": "parentCID"} {
		_, rest, ok := strings.Cut(text, word)
		if !ok || rest == "" {
			return false
		}
		rest = rest[1:] // whatever stands for "="
		n := 0
		for n < len(rest) && strings.IndexByte("0123456789abcdefABCDEF", rest[n]) >= 0 {
			n++
		}
		id, err := strconv.ParseUint(rest[:n], 16, 32)
		if err != nil || strings.HasPrefix(rest[n:], "x") {
			return false
		}
		f.specific.put(key, int64(id))
	}
	_, rest, ok := strings.Cut(text, "parentFileNameHint")
	if !ok {
		return true
	}
	if len(rest) < 2 {
		return false
	}
	name, _, ended := strings.Cut(rest[2:], `"`)
	if !ended || len(name) > maxVMDKName {
		return false
	}
	f.backing, f.backingFormat = name, drvVMDK
	return true
}

// maxVMDKName bounds the name of a backing file; qemu has room for a longer one.
const maxVMDKName = 1023
