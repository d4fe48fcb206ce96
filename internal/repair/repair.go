// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package repair decides how a damaged qcow2 image is mended. It reads the image, mends it in
// memory, checks what came out, and gives the difference as a [plan.Plan]; it cannot write.
//
// What it keeps to:
//
//   - A refcount is never lowered below what is known of a cluster: what nothing explains stays.
//   - Nothing is punched out of the file, and the file never becomes shorter.
//   - A pointer that is taken away stays in the plan, with the part of the disk that it stood for.
//   - What is a guess is left alone and named, with what would decide it.
package repair

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// Options say what is mended. The zero value mends what is sure and gives no space back.
type Options struct {
	// Name is the object that findings and steps speak of.
	Name string
	// Only names the rules whose findings are mended; empty means all.
	Only []string
	// Leaks mends nothing but leaks that are proved to be worthless.
	Leaks bool
	// Reclaim frees leaks that are proved to be worthless, beside mending the rest.
	Reclaim bool
	// CompareData reads all data to find leaked clusters that equal one in use.
	CompareData bool
	// Split gives each of several guest ranges that share a cluster a copy of its own.
	Split bool
	// ZeroLost lets what points past the end of the file read as zeros.
	ZeroLost bool
	// Subclusters says what counts where a bitmap says of subclusters that they are stored and
	// zero: "data" or "zero"; "" leaves them alone.
	Subclusters string
	// Snapshots names a snapshot table in the header again that the header has forgotten. They may have
	// been deleted just before a crash.
	Snapshots bool
	// Place puts the orphaned L2 tables at these offsets of the file into these entries of the
	// active L1 table.
	Place map[int64]int64
	// Lost says that an earlier repair of the image took something out of use that leaked clusters
	// may hold: then only those are freed that read as zeros.
	Lost bool
	// Disk is the guest's view through the whole backing chain; nil means that of the image alone.
	Disk io.ReaderAt
	// Check has the options of the checks that a repair makes.
	Check qcow2.CheckOptions
	// MemoryBytes bounds the memory for what is changed; 0 means DefaultMemoryBytes.
	MemoryBytes int64
}

const (
	// DefaultMemoryBytes bounds the memory for what is changed where the caller does not.
	DefaultMemoryBytes = 4 << 30
	// maxRounds bounds how often the image is mended and checked again. Each round that changes
	// something leaves fewer faults than the one before.
	maxRounds = 16
)

// ErrUnreadable: the header cannot be used, and what it should say is not proved.
var ErrUnreadable = errors.New("the header cannot be mended in place")

// wants reports whether findings of a rule are to be mended.
func (o *Options) wants(r finding.Rule) bool {
	if o.Leaks {
		return r == finding.QC03 || r == finding.QC14
	}
	return len(o.Only) == 0 || slices.Contains(o.Only, r.Code)
}

// reclaims reports whether leaks are to be freed.
func (o *Options) reclaims() bool {
	return (o.Leaks || o.Reclaim) && (o.wants(finding.QC03) || o.wants(finding.QC14))
}

// mender is the state of one repair.
type mender struct {
	opts Options
	ov   *overlay
	ex   *qcow2.Exam
	h    *qcow2.Header
	// entries are those of ex, ordered by cluster.
	entries []qcow2.Entry
	// near is where entriesAt found something last.
	near int
	// steps are in the order of planning; phases are those in which they begin.
	steps  []plan.Step
	phases []plan.Phase
	hurt   []plan.Hurt
	// kept says why what remains was left alone, by code of the rule.
	kept map[string]string
	// keptTables says the same of tables without an L1 entry, by their place.
	keptTables map[int64]string
	// placed are orphans that have found their entry, and reclaimed leaks that were freed.
	placed map[int64]bool
	// mixed are the parts of the disk that shared tables.
	mixed [][]finding.Range
	// said are hurt ranges that were remembered in an earlier round.
	said map[string]bool
	// tables are those of ex; shared are the places of those that something else claims as well, or
	// that cannot be where they are said to be: nothing is written into them.
	tables []qcow2.Table
	shared map[image.HostOff]bool
	// l1s are the L1 entries of ex, and trust which tables read as what they are called.
	l1s   []qcow2.L1Entry
	trust trust
	// sought: the file was searched for the L1 table, and soughtL1 is where it is, 0 if none was found.
	sought   bool
	soughtL1 image.HostOff
	search   *fieldMender
	// dangling is what points past the end of the file, in order of the places.
	dangling []dangling
	// stuck: others point there that cannot be taken away.
	stuck bool
	// gone are the entries that were taken away in this round.
	gone map[image.HostOff]bool
	// l1Lost are the entries of an L1 table that was made anew for which nothing is known, oldL1 is where
	// the one before lay.
	l1Lost map[int64]bool
	oldL1  qcow2.Clusters
	// moved: it was tried to put the places of tables right.
	moved bool
	// headless: the header could not be used before.
	headless bool
	// forgot is a snapshot table that the header does not name, if it was looked for and found.
	forgot       *fieldFix
	forgotLooked bool
	// counted are clusters whose refcount was changed, where flags are not to be mended in general.
	counted map[int64]bool
	// leakNames are clusters that the content of leaked ones may refer to; see namedByLeaks.
	leakNames *leakNames
	// old are leaked clusters of an old refcount structure, nil if they were not looked for; rebuilt: a
	// new one was made.
	old     map[int64]bool
	rebuilt bool
	// blockBuf is the refcount block at blockOff, 0 if none.
	blockBuf []byte
	blockOff int64
	// volumes are the guest's file systems, nil if they were not looked for.
	volumes *[]guest.Volume
	// below is what was read of the backing files, nil if nothing was; askedGuest: a table was put back
	// where the guest's blocks told something of its place.
	below      *recorder
	askedGuest bool
	// bad are the refcount blocks that cannot be used, by index.
	bad map[int64]blockFault
}

// Plan makes a plan of how the image of size bytes that r reads is mended. Its Object has only the
// size: the caller knows the file. The error is an *qcow2.OpenError or ErrUnreadable where the
// image cannot be opened, ErrMemory, or that of ctx.
func Plan(ctx context.Context, r io.ReaderAt, size int64, opts Options) (*plan.Plan, error) {
	if opts.MemoryBytes <= 0 {
		opts.MemoryBytes = DefaultMemoryBytes
	}
	opts.Check.Name = opts.Name
	rec := newRecorder(r)
	m := &mender{opts: opts, ov: newOverlay(rec, size, opts.MemoryBytes), kept: map[string]string{}, keptTables: map[int64]string{},
		placed: map[int64]bool{}, said: map[string]bool{}, counted: map[int64]bool{}}
	if err := m.mendHeader(ctx); err != nil {
		return nil, err
	}
	before, err := m.rounds(ctx)
	if err != nil {
		return nil, err
	}
	if now := stateOf(m.ex.Result()); now.Corruptions+now.CheckErrors > before.Corruptions+before.CheckErrors {
		if err := m.giveUp(ctx); err != nil {
			return nil, err
		}
	}
	if m.headless { // nothing could be checked
		before = plan.State{CheckErrors: 1, Verdict: finding.Found}
	}
	return m.finish(ctx, rec, before)
}

// rounds mends and checks until nothing is left that may be mended, and gives the state before.
func (m *mender) rounds(ctx context.Context) (before plan.State, err error) {
	for round := 0; ; round++ {
		if err := m.examine(ctx); err != nil {
			return before, err
		}
		if round == 0 {
			before = stateOf(m.ex.Result())
		}
		if round == maxRounds {
			return before, nil
		}
		changed, err := m.round(ctx)
		if !changed || err != nil {
			return before, err
		}
	}
}

// giveUp drops everything: what was mended brought more faults to light than there were, so that it
// was not understood.
func (m *mender) giveUp(ctx context.Context) error {
	m.ov, m.ex = newOverlay(m.ov.base, m.ov.baseSize, m.opts.MemoryBytes), nil
	m.steps, m.phases, m.hurt, m.l1Lost = nil, nil, nil, nil
	if err := m.mendHeader(ctx); err != nil {
		return err
	}
	if err := m.examine(ctx); err != nil {
		return err
	}
	for _, f := range m.ex.Result().Findings {
		m.kept[f.Code] = "these faults are entangled: to mend some would bring up more; mend some of them " +
			"alone with --only, or copy the file and look at it by hand"
	}
	return nil
}

func (m *mender) examine(ctx context.Context) error {
	var ex *qcow2.Exam
	var err error
	if m.ex == nil {
		ex, err = qcow2.Examine(ctx, m.ov, m.ov.size, m.opts.Check)
	} else {
		ex, err = m.ex.Again(ctx, m.ov, m.ov.size, m.opts.Check, m.ov.changed)
	}
	m.ov.settle()
	if err != nil {
		return err
	}
	m.ex, m.h, m.entries, m.tables, m.l1s = ex, ex.Header(), ex.Entries(), ex.Tables(), ex.L1Entries()
	m.near, m.blockOff, m.leakNames, m.old = 0, 0, nil, nil
	m.weighTables()
	if !m.trust.l1[0] && !m.sought {
		if err := m.seek(ctx); err != nil {
			return err
		}
		m.weighTables()
	}
	m.findDangling()
	return nil
}

// ownL1 reports whether an L1 entry may be written: its table reads as one, and nothing else claims the
// cluster that it is in.
func (m *mender) ownL1(l qcow2.L1Entry) bool {
	c := int64(l.Off) >> m.h.ClusterBits
	if !m.trusted(l) {
		return false
	}
	if l.Active {
		// An entry that names the L1 table itself as an L2 table is wrong, and is no other owner; nor
		// is what that table then maps.
		refs := m.ex.References(c) - m.tableRefs(c)
		for _, e := range m.entriesAt(c, 1) {
			if int64(e.Table)>>m.h.ClusterBits == c {
				refs -= e.Refs
			}
		}
		return refs == 1
	}
	return len(m.ex.OwnersOf(c)) == 1 && !slices.ContainsFunc(m.ex.Overlaps(), func(o qcow2.Clusters) bool {
		return o.First <= c && c < o.First+o.N
	})
}

// tableRefs is how many L1 entries name an L2 table at the beginning of a cluster.
func (m *mender) tableRefs(c int64) uint64 {
	tb, _ := m.tableAt(image.HostOff(c << m.h.ClusterBits))
	return tb.Refs
}

// round mends what can be mended at once, and reports whether it did something. Counts are right
// only where pointers are, so they wait for a round in which no pointer changed.
func (m *mender) round(ctx context.Context) (bool, error) {
	if m.opts.Leaks {
		if changed, err := m.lowerExcess(ctx); changed || err != nil {
			if err == nil {
				_, err = m.mendFlags(ctx)
			}
			return changed, err
		}
		return m.reclaim(ctx)
	}
	for _, mend := range []func(context.Context) (bool, error){
		m.mendPlaces, m.mendL1Table, m.mendTables, m.mendPointers, m.mendRest, m.mendOrphans, m.mendOverlaps, m.mendCounts,
		m.reclaim,
	} {
		if changed, err := mend(ctx); changed || err != nil {
			return changed, err
		}
	}
	return false, nil
}

// finish turns what was written into a plan.
func (m *mender) finish(ctx context.Context, rec *recorder, before plan.State) (*plan.Plan, error) {
	m.tellL1Lost()
	if m.rebuilt && m.ex.Complete() {
		if _, err := m.oldStructure(ctx, maxLeakBytes); err != nil {
			return nil, err
		}
	}
	res := m.ex.Result()
	remains := m.clearBits(slices.Clone(res.Findings))
	id, err := plan.NewID()
	if err != nil {
		return nil, err
	}
	p := &plan.Plan{Schema: plan.Schema, ID: id,
		Object: plan.Object{Format: "qcow2", SizeBytes: m.ov.baseSize},
		Steps:  m.inOrder(), Before: before, Remains: remains, Blind: res.Blind, Hurt: m.hurt,
		SizeAfterBytes: m.ov.size, After: stateOf(res)}
	p.After.Verdict = finding.VerdictOf(remains, res.Blind)
	if p.Writes, err = m.ov.writes(ctx); err != nil {
		return nil, err
	}
	if err := m.fence(p); err != nil {
		return nil, err
	}
	if rec.full || m.below != nil && m.below.full {
		return nil, fmt.Errorf("%w: the plan would rely on more than %d ranges of the file", ErrMemory,
			maxRelied)
	}
	p.Relies, p.Below = rec.digests(), []plan.Digest{}
	if m.askedGuest && m.below != nil {
		p.Below = m.below.digests()
	}
	for i := range p.Remains {
		f := &p.Remains[i]
		why := m.kept[f.Code]
		if f.Code == finding.QC13.Code && len(f.Host) > 0 {
			why = cmp.Or(m.keptTables[f.Host[0].Offset], why)
		}
		f.Next = cmp.Or(why, f.Next)
		if (f.Code == finding.QC03.Code || f.Code == finding.QC14.Code) && m.lostHere() {
			f.Summary = fmt.Sprintf("%d leaked clusters may hold what was taken out of use", f.Count)
			f.Certainty = finding.Possible
			f.Next = "do not free them before the parts of the disk named as lost are restored"
		} else if f.Code == finding.QC03.Code || f.Code == finding.QC14.Code {
			f.Next = cmp.Or(m.tellOld(), f.Next)
		}
	}
	normalise(p)
	return p, nil
}

// lostHere reports whether something was taken out of use that leaked clusters may hold.
func (m *mender) lostHere() bool {
	return m.opts.Lost || len(m.l1Lost) > 0 || slices.ContainsFunc(m.hurt, func(h plan.Hurt) bool { return h.Kind == "lost" })
}

// normalise turns lists that are nil into empty ones, as the document has them.
func normalise(p *plan.Plan) {
	if p.Hurt == nil {
		p.Hurt = []plan.Hurt{}
	}
	if p.Writes == nil {
		p.Writes = []plan.Write{}
	}
	if p.Remains == nil {
		p.Remains = []finding.Finding{}
	}
}

// stateOf counts what a check found.
func stateOf(r *qcow2.Result) plan.State {
	return plan.State{CheckErrors: r.Counts.CheckErrors, Corruptions: r.Counts.Corruptions,
		Leaks: r.Counts.Leaks, Verdict: finding.VerdictOf(r.Findings, r.Blind)}
}

// Verify checks the image that a plan was carried out on, and returns an error if it is not what
// the plan said. Its other errors are those of qcow2.Check.
func Verify(ctx context.Context, r io.ReaderAt, size int64, p *plan.Plan, opts qcow2.CheckOptions) error {
	res, err := qcow2.Check(ctx, r, size, opts)
	if err != nil {
		return fmt.Errorf("check the repaired image: %w", err)
	}
	if size != p.SizeAfterBytes {
		return fmt.Errorf("the repaired image has %d bytes, planned were %d", size, p.SizeAfterBytes)
	}
	got := stateOf(res)
	if got != p.After {
		return fmt.Errorf("the check of the repaired image found %d check errors, %d corruptions and "+
			"%d leaks (%s), planned were %d, %d and %d (%s)", got.CheckErrors, got.Corruptions, got.Leaks,
			got.Verdict, p.After.CheckErrors, p.After.Corruptions, p.After.Leaks, p.After.Verdict)
	}
	return nil
}
