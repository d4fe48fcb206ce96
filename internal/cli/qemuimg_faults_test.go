// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"bytes"
	"encoding/binary"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// qimage is the bytes of a qcow2 image with refcounts of 16 bits and one refcount block.
type qimage []byte

func (q qimage) u32(off uint64) uint64 { return uint64(binary.BigEndian.Uint32(q[off:])) }
func (q qimage) u64(off uint64) uint64 { return binary.BigEndian.Uint64(q[off:]) }
func (q qimage) put32(off uint64, v uint32) {
	binary.BigEndian.PutUint32(q[off:], v)
}
func (q qimage) put(off, v uint64)     { binary.BigEndian.PutUint64(q[off:], v) }
func (q qimage) flip(off, bits uint64) { q.put(off, q.u64(off)^bits) }

const (
	qOffset = 0x00fffffffffffe00
	qCopied = 1 << 63
)

func (q qimage) cluster() uint64 { return 1 << q.u32(20) }

// l1 and reftable are where the tables begin.
func (q qimage) l1() uint64       { return q.u64(40) }
func (q qimage) reftable() uint64 { return q.u64(48) }

// l2 is where entry i of the first L2 table lies.
func (q qimage) l2(i uint64) uint64 { return q.u64(q.l1())&qOffset + 8*i }

// data is the cluster that entry i names.
func (q qimage) data(i uint64) uint64 { return q.u64(q.l2(i)) & qOffset / q.cluster() }

func (q qimage) setRef(cluster uint64, n uint16) {
	binary.BigEndian.PutUint16(q[q.u64(q.reftable())+2*cluster:], n)
}

// end is the number of clusters of the file.
func (q qimage) end() uint64 { return (uint64(len(q)) + q.cluster() - 1) / q.cluster() }

// grow adds clusters to the end, filled with b.
func (q qimage) grow(n int, b byte) qimage {
	q = append(q, make([]byte, q.end()*q.cluster()-uint64(len(q)))...)
	return append(q, bytes.Repeat([]byte{b}, n*int(q.cluster()))...)
}

// mended is a fault, and why shisa's repair of it is not qemu-img's; "" where both say and do the same.
type mended struct {
	name  string
	base  string // the image that is broken
	fault func(q qimage) qimage
	leaks string // -r leaks
	all   string // -r all
}

// The differences, as doc/formats/qcow2.md lists them.
const (
	keepsContent = "leaked clusters with content that nothing explains"
	keepsCounts  = "refcounts that are too high beside snapshots"
	keepsLost    = "clusters that lost their mapping"
	inItsBlock   = "a refcount of 0 in a sound block"
	badBlocks    = "a refcount block that cannot be used"
	marksNothing = "a misaligned refcount block"
	mendsMore    = "faults that qemu-img cannot mend"
	keepsTables  = "snapshots of a table that is too long or cannot be read"
)

// at makes a fault of what is changed in place.
func at(fn func(q qimage)) func(qimage) qimage {
	return func(q qimage) qimage {
		fn(q)
		return q
	}
}

// leak adds a cluster to the end that nothing refers to.
func leak(q qimage) qimage {
	q = q.grow(2, 0)
	q.setRef(q.end()-1, 1)
	return q
}

// mendedFaults are the faults that both repairs are held against one another with.
func mendedFaults() []mended {
	return slices.Concat(countFaults(), flagFaults(), structureFaults(), entryFaults())
}

func countFaults() []mended {
	return []mended{
		{name: "sound", base: "base", fault: at(func(qimage) {})},
		{name: "leaks that are zero", base: "base", fault: func(q qimage) qimage {
			q = q.grow(3, 0)
			for c := range uint64(3) {
				q.setRef(q.end()-1-c, 1)
			}
			return q
		}},
		{name: "leaks at the end", base: "base", fault: func(q qimage) qimage {
			q = q.grow(2, 7)
			q.setRef(q.end()-1, 1)
			q.setRef(q.end()-2, 3)
			return q
		}},
		{name: "leak between data", base: "base", fault: func(q qimage) qimage {
			q = q.grow(2, 7)
			q.setRef(q.end()-1, 1)
			q.setRef(q.end()-2, 1)
			q.put(q.l2(40), (q.end()-1)*q.cluster()|qCopied)
			return q
		}, leaks: keepsContent, all: keepsContent},
		{name: "refcount too high", base: "base", fault: at(func(q qimage) { q.setRef(q.data(2), 5) })},
		{name: "refcount too high, flag off", base: "base", fault: at(func(q qimage) {
			q.setRef(q.data(2), 2)
			q.flip(q.l2(2), qCopied)
		})},
		{name: "refcount too low", base: "snap", fault: at(func(q qimage) {
			q.setRef(q.data(1), 1)
			q.setRef(q.data(3), 1)
		})},
		{name: "refcount too low, flags on", base: "snap", fault: at(func(q qimage) {
			for i := range uint64(4) {
				q.setRef(q.data(i), 1)
				q.put(q.l2(i), q.u64(q.l2(i))|qCopied)
			}
			q.put(q.l1(), q.u64(q.l1())|qCopied)
		})},
		{name: "refcount zero", base: "base", fault: at(func(q qimage) {
			q.setRef(q.data(1), 0)
			q.setRef(q.data(5), 0)
		}), all: inItsBlock},
		{name: "refcount of the header zero", base: "base", fault: at(func(q qimage) { q.setRef(0, 0) }), all: inItsBlock},
		{name: "refcounts wrong in all ways", base: "snap", fault: func(q qimage) qimage {
			q.setRef(q.data(1), 1)
			q.setRef(q.data(2), 7)
			return leak(q)
		}, leaks: keepsCounts, all: keepsCounts},
		{name: "version 2, leak", base: "v2", fault: leak},
		{name: "version 2, refcount too low", base: "v2snap", fault: at(func(q qimage) { q.setRef(q.data(1), 1) })},
		{name: "version 2, refcount zero", base: "v2", fault: at(func(q qimage) { q.setRef(q.data(1), 0) }), all: inItsBlock},
		{name: "data file, leak", base: "data", fault: leak},
		{name: "64 bits, leak", base: "rc64", fault: func(q qimage) qimage {
			q = q.grow(2, 0)
			q.put(q.u64(q.reftable())+8*(q.end()-1), 1)
			return q
		}},
		{name: "1 bit, leak", base: "rc1", fault: func(q qimage) qimage {
			q = q.grow(2, 0)
			q[q.u64(q.reftable())+(q.end()-1)/8] |= 1 << ((q.end() - 1) % 8)
			return q
		}},
		{name: "one L1 entry wiped", base: "base", fault: at(func(q qimage) { q.put(q.l1(), 0) }),
			leaks: keepsLost, all: keepsLost},
		{name: "one L2 table wiped", base: "base", fault: at(func(q qimage) { clear(q[q.l2(0):][:q.cluster()]) }),
			leaks: keepsLost, all: keepsLost},
		{name: "one L2 entry wiped", base: "base", fault: at(func(q qimage) { q.put(q.l2(3), 0) }),
			leaks: keepsLost, all: keepsLost},
	}
}

func flagFaults() []mended {
	return []mended{
		{name: "flags off", base: "base", fault: at(func(q qimage) {
			q.flip(q.l2(1), qCopied)
			q.flip(q.l2(4), qCopied)
			q.flip(q.l1(), qCopied)
		})},
		{name: "flags on", base: "snap", fault: at(func(q qimage) {
			q.flip(q.l2(1), qCopied)
			q.flip(q.l2(4), qCopied)
		})},
		{name: "flag off, and a leak", base: "base", fault: func(q qimage) qimage {
			q.flip(q.l2(1), qCopied)
			return leak(q)
		}},
		{name: "flag on, and a refcount too low", base: "snap", fault: at(func(q qimage) {
			q.setRef(q.data(1), 1)
			q.flip(q.l2(0), qCopied)
		})},
		{name: "version 2, flag off", base: "v2", fault: at(func(q qimage) { q.flip(q.l2(1), qCopied) })},
		{name: "data file, flag off", base: "data", fault: at(func(q qimage) { q.flip(q.l2(1), qCopied) })},
		{name: "subclusters, flag off", base: "ext", fault: at(func(q qimage) { q.flip(q.l2(2), qCopied) })},
		{name: "1 bit, flag off", base: "rc1", fault: at(func(q qimage) { q.flip(q.l2(2), qCopied) })},
		{name: "dirty", base: "base", fault: at(func(q qimage) { q.put(72, 1) })},
		{name: "corrupt", base: "base", fault: at(func(q qimage) { q.put(72, 2) })},
		{name: "dirty, and a leak", base: "base", fault: func(q qimage) qimage {
			q.put(72, 1)
			return leak(q)
		}},
		{name: "dirty and corrupt, and a refcount too low", base: "snap", fault: at(func(q qimage) {
			q.put(72, 3)
			q.setRef(q.data(1), 1)
		})},
	}
}

func structureFaults() []mended {
	return []mended{
		{name: "refcount table past the end", base: "base", fault: at(func(q qimage) { q.put(48, 1<<30) }), all: badBlocks},
		{name: "refcount table empty", base: "base", fault: at(func(q qimage) { q.put(q.reftable(), 0) }), all: badBlocks},
		{name: "refcount table with reserved bits", base: "base",
			fault: at(func(q qimage) { q.flip(q.reftable(), 4) }), all: badBlocks},
		{name: "refcount block misaligned", base: "base", fault: at(func(q qimage) { q.flip(q.reftable(), 512) }),
			leaks: marksNothing, all: marksNothing},
		{name: "refcount block past the end", base: "base", fault: at(func(q qimage) {
			q.put(q.reftable(), q.end()*q.cluster()+5*q.cluster())
		}), all: badBlocks},
		{name: "refcount block shared", base: "base", fault: at(func(q qimage) { q.put(q.reftable(), q.l1()) }),
			all: badBlocks},
		{name: "refcount block wiped", base: "base", fault: at(func(q qimage) {
			clear(q[q.u64(q.reftable()):][:q.cluster()])
		}), all: inItsBlock},
	}
}

func entryFaults() []mended {
	return []mended{
		{name: "zero clusters misaligned", base: "zeros", fault: at(func(q qimage) {
			q.flip(q.l2(0), 512)
			q.flip(q.l2(1), 1024)
		})},
		{name: "zero clusters misaligned, with content", base: "content", fault: at(func(q qimage) {
			q.flip(q.l2(0), 512)
		}), all: keepsContent},
		{name: "snapshot incomplete", base: "snap", fault: at(func(q qimage) {
			e := q[q.u64(64):]
			extra := binary.BigEndian.Uint32(e[36:])
			binary.BigEndian.PutUint32(e[36:], 0)
			copy(e[40:], e[40+extra:][:100])
		})},
		{name: "too many snapshots", base: "snap", fault: at(func(q qimage) { q.put32(60, 70000) }), all: keepsTables},
		{name: "snapshot with too much extra data", base: "snap", fault: at(func(q qimage) {
			q.put32(q.u64(64)+36, 5000)
		}), all: keepsTables},
		{name: "L1 entry with reserved bits", base: "base", fault: at(func(q qimage) { q.flip(q.l1(), 1<<60) }),
			all: mendsMore},
		{name: "L2 entry with reserved bits", base: "base", fault: at(func(q qimage) { q.flip(q.l2(1), 1<<57) }),
			all: mendsMore},
		{name: "L2 entry past the end", base: "base", fault: at(func(q qimage) { q.flip(q.l2(1), 1<<40) }),
			leaks: keepsContent, all: keepsContent},
		{name: "L2 entry misaligned", base: "base", fault: at(func(q qimage) { q.flip(q.l2(1), 512) }), all: mendsMore},
		{name: "cross-link", base: "base", fault: at(func(q qimage) { q.put(q.l2(1), q.u64(q.l2(2))) }),
			leaks: keepsContent, all: keepsContent},
		{name: "bitmap broken", base: "bitmap", fault: at(func(q qimage) { q[q.u64(q.bitmaps())] = 0xff })},
		{name: "bitmaps stale", base: "bitmap", fault: at(func(q qimage) { q.put(88, 0) })},
	}
}

// bitmaps is where the directory of bitmaps lies.
func (q qimage) bitmaps() uint64 {
	i := bytes.Index(q[:q.cluster()], []byte{0x23, 0x85, 0x28, 0x75})
	return q.u64(uint64(i) + 8 + 16)
}

// makeBases makes sound images in dir.
func makeBases(t *testing.T, dir string) {
	t.Helper()
	for _, line := range []string{
		"= create -q -f qcow2 base 4M", "> base write_-P_1_0_1M",
		"= create -q -f qcow2 snap 4M", "> snap write_-P_2_0_1M", "= snapshot -c one snap", "> snap write_-P_3_512k_128k",
		"= create -q -f qcow2 zeros 4M", "> zeros write_-P_0_0_1M write_-z_0_128k",
		"= create -q -f qcow2 content 4M", "> content write_-P_2_0_1M write_-z_0_128k",
		"= create -q -f qcow2 -o compat=0.10 v2 4M", "> v2 write_-P_1_0_1M",
		"= create -q -f qcow2 -o compat=0.10 v2snap 4M", "> v2snap write_-P_1_0_1M", "= snapshot -c one v2snap",
		"> v2snap write_-P_3_512k_128k",
		"= create -q -f qcow2 -o data_file=data.raw data 4M", "> data write_-P_1_0_1M",
		"= create -q -f qcow2 -o extended_l2=on ext 4M", "> ext write_-P_1_0_1M",
		"= create -q -f qcow2 -o refcount_bits=1 rc1 4M", "> rc1 write_-P_1_0_1M",
		"= create -q -f qcow2 -o refcount_bits=64 rc64 4M", "> rc64 write_-P_1_0_1M",
		"= create -q -f qcow2 bitmap 4M", "= bitmap --add bitmap one", "> bitmap write_-P_1_0_1M",
	} {
		fields := strings.Fields(line)
		argv := append([]string{"qemu-img"}, fields[1:]...)
		if fields[0] == ">" {
			argv = []string{"qemu-io", "-f", "qcow2", fields[1]}
			for _, c := range fields[2:] {
				argv = append(argv, "-c", strings.ReplaceAll(c, "_", " "))
			}
		}
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", argv, err, out)
		}
	}
}
