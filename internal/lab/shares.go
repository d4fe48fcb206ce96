// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import "math/rand/v2"

// shares says which data clusters of the guest live in the cluster of another. Data clusters are
// numbered in the order of the guest; the owner of a shared cluster comes first.
type shares struct {
	copyOf map[int64]int64 // number of a copy: number of its owner
	copies map[int64]int64 // number of an owner: how many copies
	hosts  map[int64]int64 // number of an owner: its host cluster, once that is known
	placed int64           // data clusters seen while places are handed out
	filled int64           // and while tables are filled
	// isCopy tells whether the last cluster of at was a copy.
	isCopy bool
}

func (b *builder) planShares(n census) error {
	d := b.Duplicates
	if d == 0 {
		return nil
	}
	if d > n.data/2 {
		return refuse("%d of %d data clusters shared", d, n.data)
	}
	s := shares{copyOf: map[int64]int64{}, copies: map[int64]int64{}, hosts: map[int64]int64{}}
	most := int64(1 << 30)
	if top := qcow2MaxRefcount(b.RefcountBits); top < 1<<30 {
		most = int64(top)/int64(b.Snapshots+1) - 1
	}
	r := rand.New(rand.NewPCG(b.Seed, 0xd0b))
	for k := range d {
		s.copyOf[(k+1)*n.data/(d+1)] = -1
	}
	for k := range d {
		dup := (k + 1) * n.data / (d + 1)
		owner, tries := r.Int64N(dup), int64(0)
		for ; ; owner, tries = (owner+dup-1)%dup, tries+1 {
			if tries > dup {
				return refuse("%d shared clusters with refcounts of %d bits", d, b.RefcountBits)
			}
			if _, isCopy := s.copyOf[owner]; !isCopy && s.copies[owner] < most {
				break
			}
		}
		s.copyOf[dup] = owner
		s.copies[owner]++
	}
	b.shares = s
	return nil
}

// skip says that the next data cluster needs no place of its own.
func (s *shares) skip() bool {
	_, yes := s.copyOf[s.placed]
	s.placed++
	return yes
}

// at gives the place of the next data cluster, and whether it has more than one reference in each
// view of the disk.
func (s *shares) at(c *cursor) (host int64, shared bool) {
	n := s.filled
	s.filled++
	owner, isCopy := s.copyOf[n]
	s.isCopy = isCopy
	if isCopy {
		return s.hosts[owner], true
	}
	host = c.host()
	if s.copies[n] > 0 {
		s.hosts[n] = host
		return host, true
	}
	return host, false
}
