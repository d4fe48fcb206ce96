// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"bytes"
	"encoding/binary"
	"math"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// foreign is what overwrites a table: the kinds of content seen in real damage.
func (p *patient) foreign(kind string) []byte {
	b := make([]byte, p.cs())
	switch kind {
	case "refcounts": // a refcount block: numbers of 16 bits, nearly all 1
		for i := 0; i < len(b); i += 2 {
			if p.r.IntN(20) > 0 {
				b[i+1] = 1
			}
		}
	case "text":
		line := []byte("Jul 14 03:12:07 vm-17 systemd[1]: Started Session 4711 of user root.\n")
		copy(b, bytes.Repeat(line, len(b)/len(line)+1))
	case "random":
		for i := 0; i < len(b); i += 8 {
			binary.LittleEndian.PutUint64(b[i:], p.r.Uint64())
		}
	}
	return b
}

func tableFaults() []Fault {
	overwritten := func(kind, text string) Fault {
		return Fault{"l2-overwritten-" + kind, "an L2 table was overwritten by " + text, func(p *patient) error {
			t, err := p.pickTable(entry.placed)
			if err != nil {
				return err
			}
			p.want(finding.QC12)
			return p.overwrite(t, 0, p.foreign(kind))
		}}
	}
	return []Fault{
		{"l2-wiped", "an L2 table became zeros", func(p *patient) error {
			t, err := p.pickTable(entry.stored)
			if err != nil {
				return err
			}
			p.want(finding.QC12)
			p.lostMapping(len(p.entriesOf(t, entry.stored)))
			if p.h.Snapshots > 0 {
				p.want(finding.QC03, finding.QC14) // data that a snapshot shares is leaked in part
			}
			return p.overwrite(t, 0, make([]byte, p.cs()))
		}},
		{"l2-sector-wiped", "a sector of an L2 table became zeros", func(p *patient) error {
			e, err := p.pick(entry.stored)
			if err != nil {
				return err
			}
			at := e.i * p.h.L2EntryBytes() / 512 * 512
			p.want(finding.QC12, finding.QC13, finding.QC03, finding.QC14)
			return p.overwrite(e.t, at, make([]byte, 512))
		}},
		overwritten("refcounts", "a refcount block"),
		overwritten("text", "a line of a log"),
		overwritten("random", "encrypted or compressed data"),
	}
}

// overwrite changes a part of a table.
func (p *patient) overwrite(t *table, at int64, b []byte) error {
	first := at / p.h.L2EntryBytes()
	p.guest((t.l1*p.h.L2Entries()+first)<<p.h.ClusterBits, int64(len(b))/p.h.L2EntryBytes()<<p.h.ClusterBits)
	return p.write(t.host+at, b)
}

// entryFault changes one entry of those that are wanted.
func entryFault(name, text string, want func(entry) bool, change func(p *patient, e entry) (uint64, error),
	rules ...finding.Rule) Fault {
	return Fault{name, text, func(p *patient) error {
		e, err := p.pick(want)
		if err != nil {
			return err
		}
		p.want(rules...)
		word, err := change(p, e)
		if err != nil {
			return err
		}
		return p.setEntry(e, word)
	}}
}

func (p *patient) setEntry(e entry, word uint64) error {
	p.guest(p.guestOf(e), p.cs())
	return p.put64(p.at(e), word)
}

func compressed(e entry) bool { return e.typ == qcow2.EntryCompressed }

func entryFaults() []Fault {
	fixed := func(f func(uint64) uint64) func(*patient, entry) (uint64, error) {
		return func(_ *patient, e entry) (uint64, error) { return f(e.word), nil }
	}
	return []Fault{
		entryFault("l2-entry-wiped", "an L2 entry became zero", entry.stored,
			fixed(func(uint64) uint64 { return 0 }), finding.QC03, finding.QC13, finding.QC14, finding.QC19),
		entryFault("l2-entry-reserved", "an L2 entry has a reserved bit set", entry.placed,
			func(p *patient, e entry) (uint64, error) { return e.word | 1<<(56+p.r.IntN(6)), nil }, finding.QC09),
		entryFault("l2-entry-misaligned", "an L2 entry points into a cluster", entry.placed,
			func(p *patient, e entry) (uint64, error) {
				if p.h.ClusterBits == 9 {
					return 0, ErrNotApplicable
				}
				return e.word + 512, nil
			}, finding.QC10),
		entryFault("l2-entry-past-end", "an L2 entry points past the end of the file", entry.stored,
			func(p *patient, e entry) (uint64, error) { return e.word + p.beyond(), nil }, finding.QC11),
		entryFault("l2-entry-copied", "the COPIED flag of an L2 entry is wrong", entry.placed,
			fixed(func(w uint64) uint64 { return w ^ 1<<63 }), finding.QC05),
		{"l2-entry-cross-link", "an L2 entry points to the cluster of another", crossLink},
		entryFault("l2-entry-into-metadata", "an L2 entry points into metadata", entry.stored,
			func(p *patient, e entry) (uint64, error) {
				m := p.metadata()
				delete(m, "header") // offset 0 is no place
				return e.word&^qcow2.OffsetMask | uint64(p.anyOf(m)), nil
			}, finding.QC08),
		entryFault("compressed-past-end", "a compressed cluster lies past the end of the file", compressed,
			func(p *patient, e entry) (uint64, error) {
				off, _ := p.h.CompressedRange(e.word)
				mask := uint64(1)<<(62-(p.h.ClusterBits-8)) - 1
				return e.word&^mask | (uint64(off)+p.beyond())&mask, nil
			}, finding.QC11, finding.QC18),
		entryFault("compressed-copied", "a compressed cluster has the COPIED flag", compressed,
			fixed(func(w uint64) uint64 { return w | 1<<63 }), finding.QC18, finding.QC05),
	}
}

// crossLink makes two guest clusters share a host cluster; that of the second leaks.
func crossLink(p *patient) error {
	a, err := p.pick(entry.stored)
	if err != nil {
		return err
	}
	b, err := p.pick(func(e entry) bool { return e.stored() && e.host() != a.host() })
	if err != nil {
		return err
	}
	p.want(finding.QC06, finding.QC07, finding.QC23)
	p.guest(p.guestOf(a), p.cs())
	return p.setEntry(b, b.word&^qcow2.OffsetMask|uint64(a.host()))
}

func subclusterFaults() []Fault {
	bitmapFault := func(name, text string, want func(entry) bool, change func(uint64) uint64) Fault {
		return Fault{name, text, func(p *patient) error {
			if !p.h.ExtendedL2() {
				return ErrNotApplicable
			}
			e, err := p.pick(want)
			if err != nil {
				return err
			}
			p.want(finding.QC19, finding.QC18)
			p.guest(p.guestOf(e), p.cs())
			return p.put64(p.at(e)+8, change(e.bitmap))
		}}
	}
	return []Fault{
		bitmapFault("subcluster-both", "a subcluster is allocated and zero at once",
			func(e entry) bool { return e.stored() && e.bitmap&math.MaxUint32 != 0 },
			func(b uint64) uint64 { return b | b<<32 }),
		bitmapFault("subcluster-unallocated", "subclusters of an unallocated cluster are allocated",
			func(e entry) bool { return e.typ == qcow2.EntryUnallocated },
			func(uint64) uint64 { return 0xff }),
		bitmapFault("subcluster-compressed", "a compressed cluster has a subcluster bitmap", compressed,
			func(uint64) uint64 { return 1 }),
	}
}
