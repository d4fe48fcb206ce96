// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
)

// ErrNotApplicable: the image has nothing that could break in this way. It was not changed.
var ErrNotApplicable = errors.New("the image has nothing that could break so")

// Fault is one way in which a sound qcow2 image breaks. Each changes one thing, as one lost or
// stray write does.
type Fault struct {
	Name string
	Text string // what happened to the image
	run  func(*patient) error
}

// Hit says what a fault did.
type Hit struct {
	Fault string
	// Want are codes of rules; a check that is worth its name finds one of them at least. None
	// means that the image cannot be opened any more, and Refused is set.
	Want    []string
	Refused bool
	// Host are the bytes of the image that changed or are gone, Guest what that does to the
	// virtual disk: ranges that are lost, shared or in danger.
	Host, Guest []finding.Range
	// Changes are the writes, in order. Cut is the length the file was cut to, -1 if it was not.
	Changes []Change
	Cut     int64
}

// Change is one write.
type Change struct {
	Offset   int64
	Old, New []byte
}

// Faults lists every fault, in a fixed order.
func Faults() []Fault {
	return slices.Concat(headerFaults(), l1Faults(), tableFaults(), entryFaults(), subclusterFaults(),
		refcountFaults(), snapshotFaults(), bitmapFaults(), fileFaults())
}

// Apply breaks the image at path, which must be a sound qcow2 image that nobody uses. The same
// seed does the same. It returns ErrNotApplicable where the image has nothing to break so.
func (f Fault) Apply(path string, seed uint64) (Hit, error) {
	p, err := openPatient(path, seed)
	if err != nil {
		return Hit{}, err
	}
	p.hit = Hit{Fault: f.Name, Cut: -1}
	err = f.run(p)
	if cerr := p.f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return Hit{}, fmt.Errorf("%s in %s: %w", f.Name, path, err)
	}
	return p.hit, nil
}

// Break applies a random fault that is possible. The same seed does the same.
func Break(path string, seed uint64) (Hit, error) {
	faults := Faults()
	for _, i := range rand.New(rand.NewPCG(seed, 0xf417)).Perm(len(faults)) {
		hit, err := faults[i].Apply(path, seed)
		if !errors.Is(err, ErrNotApplicable) {
			return hit, err
		}
	}
	return Hit{}, fmt.Errorf("break %s: %w", path, ErrNotApplicable)
}

// want sets the rules of which one must be found.
func (p *patient) want(rules ...finding.Rule) {
	for _, r := range rules {
		p.hit.Want = append(p.hit.Want, r.Code)
	}
}

// lostMapping are the rules for data that lost its table: with fewer than a handful of clusters,
// nothing tells it from plain leaks.
func (p *patient) lostMapping(entries int) {
	p.want(finding.QC13)
	if entries < 8 {
		p.want(finding.QC03, finding.QC14)
	}
}

// both runs two steps.
func both(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// headerField is a fault that overwrites a number of the header so that no program may open it.
func headerField(name, text string, change func(p *patient) error) Fault {
	return Fault{name, text, func(p *patient) error {
		p.hit.Refused = true
		p.want(finding.QC01)
		return change(p)
	}}
}

func headerFaults() []Fault {
	return []Fault{
		headerField("header-version", "the version became 9",
			func(p *patient) error { return p.put32(4, 9) }),
		headerField("header-cluster-bits", "the cluster size became impossible",
			func(p *patient) error { return p.put32(20, 40) }),
		headerField("header-size", "the disk became larger than its L1 table",
			func(p *patient) error { return p.put64(24, uint64(p.h.L1Entries+1)*uint64(p.h.L2Span())) }),
		headerField("header-l1-offset", "the L1 table is misaligned",
			func(p *patient) error { return p.put64(40, uint64(p.h.L1Off)+8) }),
		headerField("header-l1-size", "the L1 table is too short for the disk", func(p *patient) error {
			if p.h.SizeBytes == 0 {
				return ErrNotApplicable
			}
			return p.put32(36, 0)
		}),
		headerField("header-reftable-offset", "the refcount table is misaligned",
			func(p *patient) error { return p.put64(48, uint64(p.h.ReftableOff)+8) }),
		headerField("header-reftable-size", "the refcount table is too large",
			func(p *patient) error { return p.put32(56, 1<<24) }),
		headerField("header-backing-offset", "the name of the backing file lies outside the first cluster",
			func(p *patient) error { return p.put64(8, uint64(p.cs())+8) }),
		headerField("header-feature", "an incompatible feature that nobody knows is set", func(p *patient) error {
			if p.h.Version < 3 {
				return ErrNotApplicable
			}
			return p.put64(72, p.h.Incompatible|1<<40)
		}),
		headerField("header-refcount-order", "refcounts became wider than 64 bits", func(p *patient) error {
			if p.h.Version < 3 {
				return ErrNotApplicable
			}
			return p.put32(96, 7)
		}),
		{"header-corrupt-bit", "qemu marked the image as corrupt", func(p *patient) error {
			return p.headerBit(1, finding.QC22)
		}},
		{"header-dirty-bit", "the image was not closed", func(p *patient) error {
			return p.headerBit(0, finding.QC21)
		}},
		{"header-snapshots-forgotten", "the number of snapshots became 0", func(p *patient) error {
			if p.h.Snapshots == 0 {
				return ErrNotApplicable
			}
			p.want(finding.QC03, finding.QC13, finding.QC14, finding.QC15, finding.QC16)
			return both(p.put32(60, 0), p.put64(64, 0))
		}},
	}
}

func (p *patient) headerBit(bit int, rule finding.Rule) error {
	if p.h.Version < 3 || p.h.Incompatible>>bit&1 == 1 {
		return ErrNotApplicable
	}
	p.want(rule)
	return p.put64(72, p.h.Incompatible|1<<bit)
}

func l1Faults() []Fault {
	return []Fault{
		{"l1-entry-wiped", "an L1 entry became zero", func(p *patient) error {
			t, err := p.pickTable(entry.placed)
			if err != nil {
				return err
			}
			p.lostMapping(len(p.entriesOf(t, entry.stored)))
			if p.h.Snapshots > 0 {
				p.want(finding.QC03, finding.QC02, finding.QC05) // a snapshot may still have the table
			}
			return p.l1Entry(t.l1, 0)
		}},
		{"l1-reserved", "an L1 entry has a reserved bit set", func(p *patient) error {
			return p.anyL1(finding.QC09, func(e uint64) uint64 { return e | 1<<(56+p.r.IntN(7)) })
		}},
		{"l1-misaligned", "an L1 entry points into a cluster", func(p *patient) error {
			if p.h.ClusterBits == 9 {
				return ErrNotApplicable
			}
			return p.anyL1(finding.QC10, func(e uint64) uint64 { return e + 512 })
		}},
		{"l1-past-end", "an L1 entry points past the end of the file", func(p *patient) error {
			return p.anyL1(finding.QC11, func(e uint64) uint64 { return e + p.beyond() })
		}},
		{"l1-copied", "the COPIED flag of an L1 entry is wrong", func(p *patient) error {
			return p.anyL1(finding.QC05, func(e uint64) uint64 { return e ^ 1<<63 })
		}},
		{"l1-shared", "two L1 entries name one table", func(p *patient) error {
			at := p.l1Order(mapped)
			if len(at) < 2 {
				return ErrNotApplicable
			}
			p.want(finding.QC06, finding.QC02, finding.QC23)
			p.guest(at[1]*p.h.L2Span(), p.h.L2Span())
			return p.l1Entry(at[0], p.l1[at[1]])
		}},
		{"l1-into-data", "an L1 entry points to a data cluster", func(p *patient) error {
			e, err := p.pick(entry.stored)
			if err != nil {
				return err
			}
			at := p.l1Order(mapped)
			p.want(finding.QC02, finding.QC06, finding.QC08, finding.QC12, finding.QC13, finding.QC23)
			return p.l1Entry(at[0], uint64(e.host())|1<<63)
		}},
		{"l1-into-metadata", "an L1 entry points to other metadata", func(p *patient) error {
			at := p.l1Order(mapped)
			if len(at) == 0 {
				return ErrNotApplicable
			}
			m := p.metadata()
			delete(m, "header")
			delete(m, "L2 table")
			p.want(finding.QC08, finding.QC02, finding.QC12, finding.QC15, finding.QC23)
			return p.l1Entry(at[0], uint64(p.anyOf(m))|1<<63)
		}},
	}
}

// beyond is a distance that leads past the end of the file from anywhere in it.
func (p *patient) beyond() uint64 {
	c := uint64(p.cs())
	return (uint64(p.size)/c + 2 + uint64(p.r.IntN(1000))) * c
}

// l1Entry overwrites an L1 entry; what it mapped is hurt.
func (p *patient) l1Entry(i int64, v uint64) error {
	p.guest(i*p.h.L2Span(), p.h.L2Span())
	return p.put64(int64(p.h.L1Off)+i*8, v)
}

func (p *patient) anyL1(rule finding.Rule, change func(uint64) uint64) error {
	at := p.l1Order(mapped)
	if len(at) == 0 {
		return ErrNotApplicable
	}
	p.want(rule)
	return p.l1Entry(at[0], change(p.l1[at[0]]))
}

// anyOf draws a cluster, every kind being as likely as the others.
func (p *patient) anyOf(m map[string][]int64) int64 {
	kinds := make([]string, 0, len(m))
	for k := range m {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	of := m[kinds[p.r.IntN(len(kinds))]]
	return of[p.r.IntN(len(of))]
}
