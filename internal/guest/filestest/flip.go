// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// OpenFS opens a file system, as the packages of the readers do.
type OpenFS func(ctx context.Context, volume io.ReaderAt, size int64) (files.FS, error)

// Flip says how Flips spoils a file system.
type Flip struct {
	// Short and Long are how many copies are spoiled, by one bit each; Long is of the long sweeps.
	Short, Long int
	// Checked: all metadata has checksums, so that whatever differs must be said. Without, what
	// [listing.lacks] counts.
	Checked bool
}

// The bounds of one round.
const (
	// MaxFlipBytes is how much memory a reader may take.
	MaxFlipBytes = 256 << 20
	// moreNames and moreBytes are how many times the names of the intact file system, and the bytes
	// that were read of it, a spoilt one may have.
	moreNames = 20
	moreBytes = 50
	// roundSeconds is long beyond any doubt: whoever needs it hangs without reading.
	roundSeconds = 120
	// gcPercent is how much garbage may lie about where memory is measured, of what is in use.
	gcPercent = 10
	// maxFindings is when a sweep is given up.
	maxFindings = 40
	// seedName names the variable of the environment that says from where random bits are taken.
	seedName    = "SHISA_FLIP_SEED"
	defaultSeed = 1
)

// Flips turns single bits of the metadata of a file system over, each in a view of its own, and
// requires that it still opens or is refused, in bounded time and memory, and that what is read then
// is either as before or said to be incomplete. Which bytes are metadata the reader itself tells, of
// the intact volume; each kind of them gets as many flips as any other.
func Flips(t *testing.T, d *Disk, open OpenFS, flip Flip) {
	t.Helper()
	seed := uint64(defaultSeed)
	if text := os.Getenv(seedName); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedName, err)
		}
	}
	rounds := flip.Short
	if testenv.Long() {
		rounds = flip.Long
	}
	s, err := newSweep(t.Context(), d, open, flip.Checked)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for round := range rounds {
		bit := s.pick(random(seed, uint64(round)))
		if what := s.round(t.Context(), bit); what != "" {
			t.Errorf("%s=%d, round %d, bit %d of byte 0x%x (%s): %s", seedName, seed, round, bit%8,
				bit/8, s.kindOf(bit/8), what)
			if s.findings++; s.findings == maxFindings {
				t.Fatal("and so on")
			}
		}
	}
	t.Logf("%s=%d: %d flips in %d kinds of metadata of %d names: %d said to be incomplete, "+
		"%d refused, %d whole; no view took more than %d KiB in all; %.0f seconds", seedName, seed, rounds,
		len(s.kinds), s.want.names, s.said, s.refused, s.same, s.taken>>10, time.Since(begin).Seconds())
}

// kind is a kind of metadata and where it lies.
type kind struct {
	name   string
	ranges []files.Range
}

// sweep is what rounds have in common.
type sweep struct {
	disk    *Disk
	open    OpenFS
	checked bool
	want    *listing
	kinds   []kind
	read    int64 // bytes of the intact volume
	meter   *meter
	buf     []byte

	said, refused, same, findings int
	// taken is the most memory that one round took in all, which bounds what it had at once.
	taken int64
}

// newSweep reads the intact file system.
func newSweep(ctx context.Context, d *Disk, open OpenFS, checked bool) (*sweep, error) {
	s := &sweep{disk: d, open: open, checked: checked, buf: make([]byte, readBytes)}
	v := &spoilt{disk: d, bit: -1, limit: 1 << 40}
	fs, err := open(ctx, v, d.Size())
	if err != nil {
		return nil, err
	}
	if s.want, err = s.list(ctx, fs, 1<<30); err != nil {
		return nil, err
	}
	if view := s.want.view; view.State == files.Incomplete || len(view.Problems) > 0 {
		return nil, fmt.Errorf("the intact volume is %s: %+v", view.State, view.Problems)
	}
	s.read = v.read
	found := map[string]*kind{}
	err = fs.Owners(ctx, []files.Range{{Length: d.Size()}}, func(o files.Owner) error {
		switch o.Use {
		case files.UseUnknown:
			return fmt.Errorf("of the intact volume 0x%x+0x%x is unknown: %s", o.Range.Offset,
				o.Range.Length, o.What)
		case files.UseInode, files.UseMetadata, files.UseJournal:
			name := kindName(o.What)
			if found[name] == nil {
				found[name] = &kind{name: name}
			}
			found[name].ranges = append(found[name].ranges, o.Range)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		s.kinds = append(s.kinds, *found[name])
	}
	s.meter = newMeter()
	return s, nil
}

// kindName takes the numbers out of what names metadata.
func kindName(what string) string {
	return strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' {
			return -1
		}
		return c
	}, what)
}

// kindOf names what a byte is for.
func (s *sweep) kindOf(at int64) string {
	for _, k := range s.kinds {
		for _, r := range k.ranges {
			if at >= r.Offset && at < r.Offset+r.Length {
				return k.name
			}
		}
	}
	return ""
}

// random gives the source of random numbers of a round.
func random(seed, round uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, round)) }

// pick chooses a bit: a kind of metadata, a piece of it, and a place in that, which is one where
// something is, mostly.
func (s *sweep) pick(rng *rand.Rand) int64 {
	const cellBytes, tries = 16, 16
	k := s.kinds[rng.IntN(len(s.kinds))]
	var cell [cellBytes]byte
	at := int64(0)
	for try := range tries {
		r := k.ranges[rng.IntN(len(k.ranges))]
		at = r.Offset + rng.Int64N(r.Length)
		if rng.IntN(4) == 0 {
			at = r.Offset + rng.Int64N(min(r.Length, 64)) // the head of a block
		}
		begin := at - at%cellBytes
		if n, err := s.disk.ReadAt(cell[:], begin); err != nil || n < cellBytes || try == tries-1 ||
			cell != [cellBytes]byte{} || rng.IntN(8) == 0 {
			break
		}
	}
	return at*8 + rng.Int64N(8)
}

// round reads the file system with one bit turned over, and gives what is wrong with that.
func (s *sweep) round(ctx context.Context, bit int64) string {
	s.meter.begin()
	what := s.look(ctx, bit, false)
	taken := s.meter.taken()
	s.taken = max(s.taken, taken)
	if what == "" && taken > MaxFlipBytes {
		// It took that much in all, but perhaps little at a time: once more, with a collector that
		// leaves nothing lying about.
		defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
		s.meter.watch()
		s.look(ctx, bit, true)
		s.meter.watched = false
		if s.meter.peak > MaxFlipBytes {
			what = fmt.Sprintf("%d bytes of heap are in use, more than %d", s.meter.peak, MaxFlipBytes)
		}
	}
	return what
}

// look is one look at a spoilt file system; again says that it was counted before.
func (s *sweep) look(ctx context.Context, bit int64, again bool) (what string) {
	ctx, stop := context.WithTimeout(ctx, roundSeconds*time.Second)
	defer stop()
	// What loops without asking for more, or for its context, can only be ended from outside.
	hang := time.AfterFunc(2*roundSeconds*time.Second, func() {
		panic(fmt.Sprintf("bit %d of byte 0x%x: the reader does not end", bit%8, bit/8))
	})
	defer hang.Stop()
	defer func() {
		if p := recover(); p != nil { // with the bit that did it
			what = fmt.Sprintf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	v := &spoilt{disk: s.disk, bit: bit, limit: s.read*moreBytes + 8*s.disk.Size(), meter: s.meter}
	fs, err := s.open(ctx, v, s.disk.Size())
	var got *listing
	if err == nil {
		got, err = s.list(ctx, fs, s.want.names*moreNames)
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Sprintf("it does not end: %v", ctx.Err())
	case v.read > v.limit:
		return fmt.Sprintf("it read more than %d bytes, and %d when intact", v.limit, s.read)
	case errors.Is(err, errNames):
		return err.Error()
	case again:
	case got == nil:
		s.refused++
	case err != nil:
		return err.Error()
	case got.view.State == files.Incomplete:
		s.said++
	default:
		s.same++
	}
	if got == nil || got.view.State == files.Incomplete {
		return ""
	}
	if s.checked {
		what = got.differs(s.want)
	}
	if what = cmp.Or(what, got.lacks(s.want)); what != "" {
		what = fmt.Sprintf("the view is %s, and %s", got.view.State, what)
	}
	return what
}

// spoilt is a volume with one bit turned over, -1 for none, that counts what is read of it.
type spoilt struct {
	disk        *Disk
	bit         int64
	read, limit int64
	meter       *meter
}

var errEndless = errors.New("more was read than can be needed")

func (s *spoilt) ReadAt(p []byte, off int64) (int, error) {
	s.meter.look()
	if s.read += int64(len(p)); s.read > s.limit {
		return 0, errEndless
	}
	n, err := s.disk.ReadAt(p, off)
	if at := s.bit/8 - off; s.bit >= 0 && at >= 0 && at < int64(n) {
		p[at] ^= 1 << (s.bit % 8)
	}
	return n, err
}
