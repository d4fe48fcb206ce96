// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"github.com/shisa-vm/shisa/internal/finding"
)

func refcountFaults() []Fault {
	return []Fault{
		{"refcount-zero", "the refcount of a cluster in use became 0", func(p *patient) error {
			return p.anyRefcount(func(v uint64) (uint64, bool) { return 0, v > 0 }, finding.QC04)
		}},
		{"refcount-low", "a refcount became too small", func(p *patient) error {
			return p.anyRefcount(func(v uint64) (uint64, bool) { return v - 1, v > 1 }, finding.QC02)
		}},
		{"refcount-high", "a refcount became too large", func(p *patient) error {
			return p.anyRefcount(func(v uint64) (uint64, bool) { return v + 1, v < p.h.MaxRefcount() },
				finding.QC03, finding.QC14)
		}},
		{"refcount-metadata-zero", "the refcount of metadata became 0", func(p *patient) error {
			p.want(finding.QC04, finding.QC15)
			return p.setRefcount(p.anyOf(p.metadata())>>p.h.ClusterBits, 0)
		}},
		{"tail-leak", "a program died after it had reserved clusters at the end", tailLeak},
		{"reftable-entry-zero", "an entry of the refcount table became zero", func(p *patient) error {
			return p.anyReftable(func(uint64) uint64 { return 0 }, finding.QC15, finding.QC04)
		}},
		{"reftable-entry-misaligned", "a refcount block is misaligned", func(p *patient) error {
			if p.h.ClusterBits == 9 {
				return ErrNotApplicable
			}
			return p.anyReftable(func(e uint64) uint64 { return e + 512 }, finding.QC15)
		}},
		{"reftable-entry-reserved",
			"an entry of the refcount table has a reserved bit set", func(p *patient) error {
				return p.anyReftable(func(e uint64) uint64 { return e | 1<<p.r.IntN(9) }, finding.QC15, finding.QC09)
			}},
		{"reftable-entry-past-end", "a refcount block lies past the end of the file", func(p *patient) error {
			return p.anyReftable(func(e uint64) uint64 { return e + p.beyond() }, finding.QC15, finding.QC11)
		}},
		{"reftable-entry-shared", "two entries of the refcount table name one block", func(p *patient) error {
			at := p.blocks()
			if len(at) < 2 {
				return ErrNotApplicable
			}
			p.want(finding.QC15)
			return p.reftable(at[0], p.reft[at[1]])
		}},
		{"refblock-wiped", "a refcount block became zeros", func(p *patient) error {
			return p.anyBlock(make([]byte, p.cs()), finding.QC15, finding.QC04)
		}},
		{"refblock-overwritten-text",
			"a refcount block was overwritten by a line of a log", func(p *patient) error {
				return p.anyBlock(p.foreign("text"), finding.QC15)
			}},
		{"refblock-overwritten-random",
			"a refcount block was overwritten by encrypted data", func(p *patient) error {
				return p.anyBlock(p.foreign("random"), finding.QC15)
			}},
	}
}

// anyRefcount changes the refcount of a data cluster.
func (p *patient) anyRefcount(change func(uint64) (uint64, bool), rules ...finding.Rule) error {
	var v uint64
	var ioErr error
	e, err := p.pick(func(e entry) bool {
		if !e.stored() {
			return false
		}
		old, err := p.refcount(e.host() >> p.h.ClusterBits)
		if err != nil {
			ioErr = err
			return false
		}
		_, ok := change(old)
		return ok
	})
	if ioErr != nil {
		return ioErr
	}
	if err != nil {
		return err
	}
	if v, err = p.refcount(e.host() >> p.h.ClusterBits); err != nil {
		return err
	}
	p.want(rules...)
	p.guest(p.guestOf(e), p.cs())
	v, _ = change(v)
	return p.setRefcount(e.host()>>p.h.ClusterBits, v)
}

// tailLeak makes the file longer by clusters that are counted and that nothing names.
func tailLeak(p *patient) error {
	end := (p.size + p.cs() - 1) >> p.h.ClusterBits
	n := int64(0)
	for want := 1 + p.r.Int64N(20); n < want; n++ {
		if block, _ := p.refblock(end + n); block == 0 {
			break
		}
		if err := p.setRefcount(end+n, 1); err != nil {
			return err
		}
	}
	if n == 0 {
		return ErrNotApplicable
	}
	p.want(finding.QC14, finding.QC03)
	p.hit.Host = []finding.Range{{Offset: end << p.h.ClusterBits, Length: n << p.h.ClusterBits}}
	return p.f.Truncate((end + n) << p.h.ClusterBits)
}

// blocks gives the indexes of the refcount blocks in a random order.
func (p *patient) blocks() []int64 {
	var at []int64
	for i, e := range p.reft {
		if e != 0 {
			at = append(at, int64(i))
		}
	}
	p.r.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
	return at
}

func (p *patient) reftable(i int64, v uint64) error {
	return p.put64(int64(p.h.ReftableOff)+i*8, v)
}

func (p *patient) anyReftable(change func(uint64) uint64, rules ...finding.Rule) error {
	p.want(rules...)
	i := p.blocks()[0]
	return p.reftable(i, change(p.reft[i]))
}

func (p *patient) anyBlock(content []byte, rules ...finding.Rule) error {
	p.want(rules...)
	if p.h.RefcountBits() <= 4 { // any bytes are plausible refcounts then
		p.want(finding.QC02, finding.QC03, finding.QC04, finding.QC05)
	}
	return p.write(int64(p.reft[p.blocks()[0]]&^0x1ff), content)
}
