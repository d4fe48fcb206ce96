// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"encoding/binary"
	"os"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// snapshotFault changes an entry of the snapshot table, which begins at off.
func snapshotFault(name, text string, change func(p *patient, off int64) error, rules ...finding.Rule) Fault {
	return Fault{name, text, func(p *patient) error {
		if p.h.Snapshots == 0 {
			return ErrNotApplicable
		}
		t, err := qcow2.ReadSnapshots(p.f, p.size, p.h)
		if err != nil {
			return err
		}
		p.want(append(rules, finding.QC16)...)
		return change(p, int64(t.Snapshots[p.r.IntN(len(t.Snapshots))].EntryOff))
	}}
}

func snapshotFaults() []Fault {
	return []Fault{
		snapshotFault("snapshot-l1-misaligned", "the L1 table of a snapshot is misaligned",
			func(p *patient, off int64) error {
				return p.change64(off, func(v uint64) uint64 { return v + 8 })
			}),
		snapshotFault("snapshot-l1-past-end", "the L1 table of a snapshot lies past the end of the file",
			func(p *patient, off int64) error {
				return p.change64(off, func(v uint64) uint64 { return v + p.beyond() })
			}, finding.QC11),
		snapshotFault("snapshot-l1-large", "the L1 table of a snapshot is too large",
			func(p *patient, off int64) error { return p.put32(off+8, 1<<30) }),
		snapshotFault("snapshot-extra-short", "the extra data of a snapshot is missing",
			func(p *patient, off int64) error {
				if p.h.Version < 3 {
					return ErrNotApplicable
				}
				return p.put32(off+36, 0)
			}),
		snapshotFault("snapshot-entry-wiped", "an entry of the snapshot table became zeros",
			func(p *patient, off int64) error { return p.write(off, make([]byte, 40)) },
			finding.QC03, finding.QC13, finding.QC14),
		{"snapshot-offset", "the snapshot table is misaligned", func(p *patient) error {
			if p.h.Snapshots == 0 {
				return ErrNotApplicable
			}
			p.want(finding.QC16, finding.QC01)
			return p.put64(64, p.h.SnapshotsOff+8)
		}},
		{"snapshot-count", "the number of snapshots became too large", func(p *patient) error {
			p.want(finding.QC16, finding.QC01)
			return p.put32(60, 70000)
		}},
	}
}

func (p *patient) change64(off int64, change func(uint64) uint64) error {
	w, err := p.words(off, 1)
	if err != nil {
		return err
	}
	return p.put64(off, change(w[0]))
}

// bitmapFaultAt changes the entry of a bitmap in the directory, which begins at off.
func bitmapFaultAt(name, text string, change func(p *patient, off int64) error, rules ...finding.Rule) Fault {
	return Fault{name, text, func(p *patient) error {
		b := p.h.Bitmaps
		if b == nil || !b.Trusted {
			return ErrNotApplicable
		}
		p.want(append(rules, finding.QC17)...)
		return change(p, int64(b.DirOff))
	}}
}

func bitmapFaults() []Fault {
	tableEntry := func(change func(p *patient, v uint64) (uint64, bool)) func(p *patient, off int64) error {
		return func(p *patient, off int64) error {
			at, err := p.words(off, 2)
			if err != nil {
				return err
			}
			table, err := p.words(int64(at[0]), int64(at[1]>>32))
			if err != nil {
				return err
			}
			for _, i := range p.r.Perm(len(table)) {
				if v, ok := change(p, table[i]); ok {
					return p.put64(int64(at[0])+int64(i)*8, v)
				}
			}
			return ErrNotApplicable
		}
	}
	return []Fault{
		bitmapFaultAt("bitmap-directory-wiped", "the bitmap directory became zeros",
			func(p *patient, off int64) error { return p.write(off, make([]byte, p.h.Bitmaps.DirSize)) }),
		bitmapFaultAt("bitmap-table-misaligned", "the table of a bitmap is misaligned",
			func(p *patient, off int64) error { return p.change64(off, func(v uint64) uint64 { return v + 8 }) }),
		bitmapFaultAt("bitmap-table-past-end", "the table of a bitmap lies past the end of the file",
			func(p *patient, off int64) error {
				return p.change64(off, func(v uint64) uint64 { return v + p.beyond() })
			}, finding.QC11),
		bitmapFaultAt("bitmap-in-use", "a bitmap was not saved",
			func(p *patient, off int64) error {
				flags, err := p.bytes(off+12, 4)
				if err != nil {
					return err
				}
				v := binary.BigEndian.Uint32(flags)
				if v&1 != 0 {
					return ErrNotApplicable
				}
				return p.put32(off+12, v|1)
			}),
		bitmapFaultAt("bitmap-entry-reserved", "an entry of a bitmap's table has a reserved bit set",
			tableEntry(func(p *patient, v uint64) (uint64, bool) { return v | 1<<(56+p.r.IntN(8)), true })),
		bitmapFaultAt("bitmap-entry-misaligned", "an entry of a bitmap's table points into a cluster",
			tableEntry(func(p *patient, v uint64) (uint64, bool) {
				return v + 512, v > 1 && p.h.ClusterBits > 9
			})),
		bitmapFaultAt("bitmap-entry-past-end", "an entry of a bitmap's table points past the end of the file",
			tableEntry(func(p *patient, v uint64) (uint64, bool) { return v&^1 + p.beyond(), v > 1 }),
			finding.QC11),
	}
}

func fileFaults() []Fault {
	return []Fault{
		{"two-writers", "two programs wrote to the image at once", twoWriters},
		{"truncated", "the end of the file is missing", truncated},
		{"data-file-missing", "the external data file is gone", func(p *patient) error {
			path, err := p.dataFile()
			if err != nil {
				return err
			}
			p.guest(0, p.h.SizeBytes)
			return os.Remove(path)
		}},
		{"data-file-short", "the end of the external data file is missing", func(p *patient) error {
			e, err := p.pick(func(e entry) bool { return e.typ == qcow2.EntryNormal })
			if err != nil {
				return err
			}
			path, err := p.dataFile()
			if err != nil {
				return err
			}
			p.guest(p.guestOf(e), p.h.SizeBytes)
			return os.Truncate(path, e.host())
		}},
		{"encryption-header-past-end",
			"the encryption header lies past the end of the file", func(p *patient) error {
				if p.h.CryptLen == 0 {
					return ErrNotApplicable
				}
				raw, err := p.bytes(0, p.cs())
				if err != nil {
					return err
				}
				ptr := binary.BigEndian.AppendUint64(nil, uint64(p.h.CryptOff))
				ptr = binary.BigEndian.AppendUint64(ptr, uint64(p.h.CryptLen))
				for off := int64(p.h.Length); off < p.cs()-16; off += 8 {
					if string(raw[off:off+16]) == string(ptr) {
						p.want(finding.QC24)
						p.guest(0, p.h.SizeBytes)
						return p.put64(off, uint64(p.h.CryptOff)+p.beyond())
					}
				}
				return ErrNotApplicable
			}},
	}
}

// dataFile is the path of the external data file.
func (p *patient) dataFile() (string, error) {
	if !p.h.HasDataFile() || p.h.DataFile == "" {
		return "", ErrNotApplicable
	}
	p.want(finding.QC20)
	if filepath.IsAbs(p.h.DataFile) {
		return p.h.DataFile, nil
	}
	return filepath.Join(filepath.Dir(p.f.Name()), p.h.DataFile), nil
}

// twoWriterClusters is how many clusters both writers take at least.
const twoWriterClusters = 16

// twoWriters lets a second program, which saw the refcounts before the first one changed them, give
// the same clusters to another range of the guest.
func twoWriters(p *patient) error {
	for _, i := range p.l1Order(mapped) {
		t, err := p.table(i)
		if err != nil {
			return err
		}
		first, n := p.longestRun(t)
		if n < twoWriterClusters {
			continue
		}
		n = twoWriterClusters + p.r.Int64N(n-twoWriterClusters+1)
		to, err := p.freeRange(n)
		if err != nil {
			return err
		}
		p.want(finding.QC07)
		p.guest(p.guestOf(entry{t: t, i: first}), n<<p.h.ClusterBits)
		p.guest(p.guestOf(to), n<<p.h.ClusterBits)
		eb := p.h.L2EntryBytes()
		return p.write(p.at(to), append([]byte(nil), t.raw[first*eb:(first+n)*eb]...))
	}
	return ErrNotApplicable
}

// longestRun finds the longest run of guest clusters whose host clusters follow each other.
func (p *patient) longestRun(t *table) (first, n int64) {
	var at, length int64
	for i := range p.h.L2Entries() {
		e := p.entry(t, i)
		switch {
		case !e.stored() || e.word&qcow2.FlagCopied == 0 || e.typ != qcow2.EntryNormal:
			length = 0
			continue
		case length > 0 && p.entry(t, i-1).host()+p.cs() == e.host():
			length++
		default:
			at, length = i, 1
		}
		if length > n {
			first, n = at, length
		}
	}
	return first, n
}

// freeRange finds n guest clusters in a row that nothing is allocated for, in a table that only the
// active view has.
func (p *patient) freeRange(n int64) (entry, error) {
	for _, l1 := range p.l1Order(func(e uint64) bool { return mapped(e) && e&qcow2.FlagCopied != 0 }) {
		t, err := p.table(l1)
		if err != nil {
			return entry{}, err
		}
		length := int64(0)
		for i := range p.h.L2Entries() {
			e := p.entry(t, i)
			if e.word != 0 || e.bitmap != 0 || p.guestOf(e) >= p.h.SizeBytes {
				length = 0
				continue
			}
			if length++; length == n {
				return p.entry(t, i-n+1), nil
			}
		}
	}
	return entry{}, ErrNotApplicable
}

// truncated cuts the file so that at least one cluster in use is gone.
func truncated(p *patient) error {
	last := int64(0)
	for c := p.size >> p.h.ClusterBits; c > 0; c-- {
		v, err := p.refcount(c)
		if err != nil {
			return err
		}
		if v > 0 {
			last = c
			break
		}
	}
	// The header, the refcount table and the L1 table stay: without them nothing can be said.
	keep := max(int64(p.h.L1Off)+p.h.L1Entries*8, int64(p.h.ReftableOff)+p.h.ReftableClusters<<p.h.ClusterBits)
	low := keep>>p.h.ClusterBits + 2
	if last <= low {
		return ErrNotApplicable
	}
	p.hit.Cut = (low + p.r.Int64N(last-low)) << p.h.ClusterBits
	p.hit.Host = []finding.Range{{Offset: p.hit.Cut, Length: p.size - p.hit.Cut}}
	p.want(finding.QC11, finding.QC12, finding.QC15, finding.QC16, finding.QC17, finding.QC18)
	return p.f.Truncate(p.hit.Cut)
}
