// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
)

// The bounds of looking at one piece.
const (
	// MaxPieceBytes bounds what is read of a piece: all that a table of 64 KiB clusters maps, with
	// what is read twice at the ends of chunks. A guest may have a single block that tells its place
	// in that. Of a piece that has more, samples are read, see [Evidence.Cut].
	MaxPieceBytes = 640 << 20
	// chunkBytes is read at once.
	chunkBytes = 1 << 20
	// lookBytes is what the longest block has, read past the end of a chunk for those that begin
	// in it.
	lookBytes = 64 << 10
	// enoughBlocks that agree, and none that does not, end the reading of a piece early.
	enoughBlocks = 64
	// maxPending bounds the claims that are kept until a volume that they fit is learned.
	maxPending = 4096
	// maxLearned bounds the superblocks of unknown volumes that are kept.
	maxLearned = 16
	// maxHeads bounds the places that are looked at because a volume has something there.
	maxHeads = 1 << 16
	// minSpan is what the smallest table maps, 64 clusters of 512 bytes.
	minSpan = 32 << 10
	// defaultUnit is the size of a cluster where nothing else is said.
	defaultUnit = 64 << 10
	// minLearned is how many blocks must agree on the place of a volume that is not on the disk.
	minLearned = 2
	// learnedSlack is what may be left free at the end of a partition or disk: mkfs.xfs drops a last
	// group of less than 16 MiB, partitioning tools align to 1 MiB.
	learnedSlack = 16 << 20
)

// Piece is a part of a guest's disk whose place is not known: what an orphaned L2 table maps.
type Piece struct {
	// Data reads it; position 0 is its first byte.
	Data io.ReaderAt
	// Mapped lists the parts that have data, in any order. Nothing else is read.
	Mapped []finding.Range
	// SpanBytes is the size of the piece: what one table maps. It lies at a multiple of that.
	SpanBytes int64
	// DiskBytes is the size of the virtual disk.
	DiskBytes int64
	// UnitBytes is what one entry of the table maps, a cluster; 0 is taken for 64 KiB. Blocks in
	// different units prove different entries.
	UnitBytes int64
	// LimitBytes bounds what is read below [MaxPieceBytes], for those who have many pieces; 0: that.
	LimitBytes int64
	// Possible tells whether the piece may lie at a guest offset: false where another table lies.
	// nil: anywhere. With it a block that may have two places counts for the one that is possible.
	Possible func(base int64) bool
}

// Proof says that blocks in a piece agree where it begins.
type Proof struct {
	// Base is the guest offset of the piece's first byte, a multiple of its span.
	Base int64
	// Kind and UUID are those of the volume whose blocks they are.
	Kind Kind
	UUID UUID
	// Count is the number of different blocks; Units is in how many clusters they are.
	Count, Units int
	// Learned: the volume is known from this piece alone, see the package's comment.
	Learned bool
	// Independent: two blocks in different clusters say so, or another proof of the same place does.
	Independent bool
	// What names the blocks, the most frequent first, as "inode (40)".
	What []string
	// At is the place of one of them in the piece.
	At int64
	// Text is one sentence.
	Text string
}

// Evidence is what looking at a piece gave.
type Evidence struct {
	// Proofs are in order of their count, greatest first. Several with different bases contradict
	// each other.
	Proofs []Proof
	// Ambiguous counts blocks that are right but may have more than one place.
	Ambiguous int
	// Foreign counts blocks that are right but of no volume that is known to be on the disk, or that
	// would put the piece where it cannot lie: of an image stored inside, for example.
	Foreign int
	// ReadBytes is how much of the piece was read. Cut: there is more that was not looked at.
	ReadBytes int64
	Cut       bool
	// Unreadable lists parts that could not be read, up to a bound, and UnreadableWhy the first cause.
	Unreadable    []finding.Range
	UnreadableWhy string
}

// Place gives the base on which all proofs agree. independent: as [Proof.Independent]. Not ok if
// there is no proof, or they contradict each other.
func (e *Evidence) Place() (base int64, independent, ok bool) {
	for i, p := range e.Proofs {
		if i > 0 && p.Base != base {
			return 0, false, false
		}
		base, ok, independent = p.Base, true, independent || p.Independent
	}
	return base, independent, ok
}

// ErrPiece: the numbers of a piece make no sense.
var ErrPiece = errors.New("no piece of a disk")

// Proofs looks into a piece for blocks that say where it lies. vols is what [Volumes] gave for the
// disk. No more is read than the piece's limit. The error is [ErrPiece] or that of ctx; what cannot
// be read of the piece is in the evidence. It may block as long as reading does.
func Proofs(ctx context.Context, vols []Volume, piece Piece) (*Evidence, error) {
	if piece.SpanBytes < minSpan || piece.SpanBytes > maxBytes ||
		piece.DiskBytes <= 0 || piece.DiskBytes > maxBytes {
		return nil, fmt.Errorf("look into a piece of %d bytes of a disk of %d bytes: %w",
			piece.SpanBytes, piece.DiskBytes, ErrPiece)
	}
	if piece.LimitBytes <= 0 || piece.LimitBytes > MaxPieceBytes {
		piece.LimitBytes = MaxPieceBytes
	}
	if piece.UnitBytes <= 0 {
		piece.UnitBytes = defaultUnit
	}
	e := &examiner{ctx: ctx, vols: vols, p: piece, ev: &Evidence{}, tallies: map[tallyKey]*tally{}}
	e.mapped = joined(piece.Mapped, piece.SpanBytes)
	e.heads()
	e.extTables()
	e.sweep()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("look into a piece: %w", err)
	}
	e.learn()
	e.conclude()
	return e.ev, nil
}

// joined gives the ranges in order, clipped to [0, span), those that touch made one.
func joined(rs []finding.Range, span int64) []finding.Range {
	var in []finding.Range
	for _, r := range rs {
		from := max(0, min(r.Offset, span))
		to := from
		if r.Length > 0 {
			to = min(span, max(from, r.Offset+min(r.Length, maxBytes)))
		}
		if r.Offset < maxBytes && to > from {
			in = append(in, finding.Range{Offset: from, Length: to - from})
		}
	}
	slices.SortFunc(in, func(a, b finding.Range) int { return cmp.Compare(a.Offset, b.Offset) })
	var out []finding.Range
	for _, r := range in {
		if n := len(out); n > 0 && r.Offset <= out[n-1].End() {
			out[n-1].Length = max(out[n-1].End(), r.End()) - out[n-1].Offset
			continue
		}
		out = append(out, r)
	}
	return out
}

// examiner is the work on one piece.
type examiner struct {
	ctx     context.Context
	vols    []Volume
	p       Piece
	mapped  []finding.Range
	ev      *Evidence
	tallies map[tallyKey]*tally
	pending []pendingClaim
	learned []Claim // superblocks of volumes that are not known
	looked  map[int64]bool
}

// pendingClaim is a claim of no known volume, and where in the piece its block begins.
type pendingClaim struct {
	at int64
	c  Claim
}

// tallyKey is what blocks must share to be counted together.
type tallyKey struct {
	base    int64
	kind    Kind
	uuid    UUID
	learned bool
}

// tally counts blocks that agree.
type tally struct {
	name   string // of the volume
	blocks map[int64]bool
	units  map[int64]bool
	what   map[string]int
	first  int64
	weak   int // blocks that count only with another beside them
}

// blockGrain is the size by which blocks are told apart: what lies in the same 4096 bytes was
// written together.
const blockGrain = 4096

// count takes in a block at a place of the piece that says that the piece begins at base.
func (e *examiner) count(k tallyKey, v *Volume, at int64, what string) *tally {
	t := e.tallies[k]
	if t == nil {
		t = &tally{name: v.name(), blocks: map[int64]bool{}, units: map[int64]bool{},
			what: map[string]int{}, first: at}
		e.tallies[k] = t
	}
	if grain := at / blockGrain; !t.blocks[grain] {
		t.blocks[grain] = true
		t.what[what]++
	}
	t.units[at/e.p.UnitBytes] = true
	t.first = min(t.first, at)
	return t
}

// base gives where the piece begins if what lies at a place of it belongs at a guest offset.
func (e *examiner) base(at, disk, length int64) (int64, bool) {
	base := disk - at
	inside := length <= e.p.DiskBytes && disk <= e.p.DiskBytes-length
	return base, inside && base >= 0 && base%e.p.SpanBytes == 0 &&
		(e.p.Possible == nil || e.p.Possible(base))
}

// claim takes in what a block at a place of the piece says of itself.
func (e *examiner) claim(at int64, c *Claim) {
	at += c.At
	if e.resolve(at, c, e.vols, false) {
		return
	}
	if len(e.pending) < maxPending && c.Unit != Nowhere {
		e.pending = append(e.pending, pendingClaim{at, *c})
	}
	if c.super() && len(e.learned) < maxLearned && !slices.ContainsFunc(e.learned, c.sameSuper) {
		e.learned = append(e.learned, *c)
	}
}

// resolve counts a claim for the one place that it can mean in vols. known: it is of one of them,
// so there is nothing to learn from it.
func (e *examiner) resolve(at int64, c *Claim, vols []Volume, learned bool) (known bool) {
	bases := map[int64]*Volume{}
	for i := range vols {
		v := &vols[i]
		for _, disk := range v.Places(c) {
			if base, ok := e.base(at, disk, c.Length); ok {
				bases[base] = v
			}
		}
		known = known || v.owns(c)
	}
	switch {
	case len(bases) > 1 && !learned:
		e.ev.Ambiguous++
	case len(bases) == 1:
		for base, v := range bases {
			e.count(tallyKey{base, v.Kind, v.UUID, learned}, v, at, c.What)
		}
	case known && c.Unit != Nowhere:
		e.ev.Foreign++
	}
	return known
}

// owns tells whether a claim is of a volume with the identity of v.
func (v *Volume) owns(c *Claim) bool {
	switch c.Kind {
	case GPT:
		return v.gpt != nil && v.UUID == c.UUID
	case XFS:
		return v.xfs != nil && v.xfs.meta == c.UUID
	case Btrfs:
		return v.btrfs != nil && v.btrfs.tree == c.UUID
	}
	return v.ext != nil && v.ext.uuid == c.UUID
}

// enough tells whether reading on would add nothing.
func (e *examiner) enough() bool {
	most, bases := 0, map[int64]bool{}
	for k, t := range e.tallies {
		bases[k.base] = true
		if len(t.units) > 1 && !k.learned {
			most = max(most, len(t.blocks))
		}
	}
	return len(bases) == 1 && most >= enoughBlocks
}

// conclude turns what was counted into proofs.
func (e *examiner) conclude() {
	for k, t := range e.tallies {
		if len(t.blocks) <= t.weak && t.weak < minLearned || k.learned && len(t.blocks) < minLearned {
			e.ev.Foreign += len(t.blocks)
			continue
		}
		p := Proof{Base: k.base, Kind: k.kind, UUID: k.uuid, Count: len(t.blocks), Units: len(t.units),
			Learned: k.learned, Independent: len(t.units) > 1, What: t.names(), At: t.first}
		p.Text = p.sentence(t)
		e.ev.Proofs = append(e.ev.Proofs, p)
	}
	for i := range e.ev.Proofs {
		p := &e.ev.Proofs[i]
		for j, q := range e.ev.Proofs {
			other := i != j && (q.Kind != p.Kind || q.UUID != p.UUID)
			p.Independent = p.Independent || other && q.Base == p.Base
		}
	}
	slices.SortFunc(e.ev.Proofs, func(a, b Proof) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Base, b.Base),
			cmp.Compare(a.Kind, b.Kind), slices.Compare(a.UUID[:], b.UUID[:]))
	})
}

// names lists what was counted, the most frequent first.
func (t *tally) names() []string {
	var names []string
	for what := range t.what {
		names = append(names, what)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(t.what[b], t.what[a]), cmp.Compare(a, b))
	})
	for i, what := range names {
		if n := t.what[what]; n > 1 {
			names[i] = fmt.Sprintf("%s (%d)", what, n)
		}
	}
	return names
}

// maxNamed bounds the kinds of blocks that a sentence names.
const maxNamed = 4

// sentence says what a proof is made of.
func (p *Proof) sentence(t *tally) string {
	what := p.What
	if len(what) > maxNamed {
		what = append(slices.Clone(what[:maxNamed]), fmt.Sprintf("%d other kinds", len(what)-maxNamed))
	}
	subject, verb := "1 block", "says"
	if p.Count > 1 {
		subject, verb = fmt.Sprintf("%d blocks", p.Count), "say"
	}
	known := ""
	if p.Learned {
		known = ", which is known from here alone and fills its place,"
	}
	return fmt.Sprintf(
		"%s of %s%s %s that this begins at guest offset %#x: %s; the first lies %#x bytes in",
		subject, t.name, known, verb, p.Base, strings.Join(what, ", "), p.At)
}
