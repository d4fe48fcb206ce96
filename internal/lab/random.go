// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import "math/rand/v2"

// RandomSpec draws a small image that is possible, of any kind but those with a second file. The
// same seed gives the same image. It has neither leaks nor shared clusters, so nothing is to be found.
func RandomSpec(seed uint64) Spec {
	r := rand.New(rand.NewPCG(seed, 0x5bec))
	for {
		s := randomSpec(r)
		s.Seed = seed
		n, err := s.normal()
		if err != nil {
			continue
		}
		b := &builder{Spec: n}
		if b.plan() == nil {
			return s
		}
	}
}

func randomSpec(r *rand.Rand) Spec {
	share := func(chance float64) float64 {
		if r.Float64() < chance {
			return r.Float64() / 3
		}
		return 0
	}
	s := Spec{
		ClusterBits:  []int{9, 10, 12, 14, 16, 16, 16, 18, 21}[r.IntN(9)],
		RefcountBits: []int{1, 2, 4, 8, 16, 16, 16, 32, 64}[r.IntN(9)],
		Version:      3,
		Layout:       []Layout{Sequential, Random, Runs(2 + r.IntN(15))}[r.IntN(3)],
		Fill:         .05 + .95*r.Float64(),
		Front:        r.IntN(3) == 0,
		EmptyTables:  share(.3),
		ZeroPlain:    share(.3),
		ZeroAlloc:    share(.3),
		Compressed:   share(.3),
		Zstd:         r.IntN(4) == 0,
		Snapshots:    max(0, r.IntN(7)-3),
		Bitmaps:      max(0, r.IntN(5)-2),
	}
	if r.IntN(5) == 0 {
		s.Version, s.RefcountBits, s.Zstd, s.Bitmaps, s.ZeroPlain, s.ZeroAlloc = 2, 16, false, 0, 0, 0
	}
	s.VirtualBytes = (16 + r.Int64N(1500)) << s.ClusterBits
	if r.IntN(3) == 0 {
		s.VirtualBytes -= 512 * r.Int64N(1<<s.ClusterBits/512)
	}
	if s.ClusterBits >= 14 && s.Version == 3 && r.IntN(4) == 0 {
		s.ExtendedL2, s.Partial = true, share(.7)
	}
	if s.Snapshots > 0 {
		s.Rewrite = share(.7)
		s.VMState = max(0, r.Int64N(40)-20) << s.ClusterBits
	}
	return s
}
