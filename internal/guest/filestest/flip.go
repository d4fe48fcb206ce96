// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// OpenFS opens a file system, as the packages of the readers do.
type OpenFS func(ctx context.Context, volume io.ReaderAt, size int64) (files.FS, error)

// Flip says how Flips spoils a file system.
type Flip struct {
	// Rounds is how many copies are spoiled, each from a seed of its own from Seed on.
	Rounds int
	Seed   uint64
	// Checked: all metadata has checksums, so that whatever differs must be said; without, only
	// names that are missing.
	Checked bool
}

// Flips changes single bits of the metadata of a file system and requires that it still opens or
// is refused, and that what is read then is either as before or said to be incomplete. Which bytes
// are metadata the reader itself tells, of the intact volume.
func Flips(t *testing.T, disk string, open OpenFS, flip Flip) {
	t.Helper()
	ctx := t.Context()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	whole, err := open(ctx, f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	want, view, err := ReadView(ctx, whole)
	if err != nil || view.State == files.Incomplete {
		t.Fatalf("the intact volume: %v, %+v", err, view)
	}
	meta := metadata(t, whole, st.Size())
	var said, refused, same int
	for round := range flip.Rounds {
		seed := flip.Seed + uint64(round)
		s := &spoilt{under: f, bits: pick(meta, rand.New(rand.NewPCG(seed, 7)))}
		fs, err := open(ctx, s, st.Size())
		if err != nil {
			refused++
			continue
		}
		got, view, err := ReadView(ctx, fs)
		if err != nil {
			t.Fatalf("seed %d (%v): %v", seed, s.bits, err)
		}
		if view.State == files.Incomplete {
			said++
			continue
		}
		same++
		if d := missing(got, want, flip.Checked); d != "" {
			t.Errorf("seed %d (bits %v): the view is %s, and %s", seed, s.bits, view.State, d)
		}
	}
	t.Logf("%d rounds: %d said to be incomplete, %d refused, %d whole", flip.Rounds, said, refused, same)
}

// missing names the first difference that was not said.
func missing(got, want Tree, all bool) string {
	if all {
		if d := Differences(got, want, Loose{}); len(d) > 0 {
			return d[0]
		}
		return ""
	}
	for p := range want {
		if _, in := got[p]; in {
			continue
		}
		// A name may have been changed to another one, with all that is below it; what must not be is
		// that there are fewer.
		if _, same := got[path.Dir(p)]; !same && len(got) >= len(want) {
			continue
		}
		if count(got, path.Dir(p)) < count(want, path.Dir(p)) {
			return fmt.Sprintf("%q is not listed", p)
		}
	}
	return ""
}

// count is how many names a directory has.
func count(tree Tree, dir string) int {
	n := 0
	for p := range tree {
		if path.Dir(p) == dir {
			n++
		}
	}
	return n
}

// metadata asks the reader which bytes of the volume are metadata.
func metadata(t *testing.T, fs files.FS, size int64) []files.Range {
	t.Helper()
	var meta []files.Range
	err := fs.Owners(t.Context(), []files.Range{{Length: size}}, func(o files.Owner) error {
		if o.Use == files.UseInode || o.Use == files.UseMetadata {
			meta = append(meta, o.Range)
		}
		return nil
	})
	if err != nil || len(meta) == 0 {
		t.Fatalf("%d ranges of metadata: %v", len(meta), err)
	}
	return meta
}

// pick chooses one to eight bits, most of them close to one another.
func pick(meta []files.Range, rng *rand.Rand) []int64 {
	var bits []int64
	for range 1 + rng.IntN(2) {
		r := meta[rng.IntN(len(meta))]
		// The first bytes of a block are its header.
		at := r.Offset*8 + rng.Int64N(min(r.Length, 256)*8)
		if rng.IntN(3) > 0 {
			at = r.Offset*8 + rng.Int64N(r.Length*8)
		}
		for range 1 + rng.IntN(4) {
			bits = append(bits, at)
			at = min(at+rng.Int64N(64), (r.Offset+r.Length)*8-1)
		}
	}
	slices.Sort(bits)
	return slices.Compact(bits)
}

// spoilt is a volume with bits that are turned over.
type spoilt struct {
	under io.ReaderAt
	bits  []int64
}

func (s *spoilt) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.under.ReadAt(p, off)
	for _, bit := range s.bits {
		if at := bit/8 - off; at >= 0 && at < int64(n) {
			p[at] ^= 1 << (bit % 8)
		}
	}
	return n, err
}
