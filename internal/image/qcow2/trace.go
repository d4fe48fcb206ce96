// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// Line is one line that qemu-img check 7.2 writes to stderr about an image.
type Line struct {
	Text string
}

// StopError says that qemu-img gives the check up at this point, and with which words it does.
type StopError struct {
	// Reason is the text of the errno: "Check failed: Input/output error".
	Reason string
}

func (e *StopError) Error() string { return "qemu-img stops here: " + e.Reason }

// maxTraceClusters is where qemu-img refuses: it counts clusters in 31 bits.
const maxTraceClusters = math.MaxInt32

// Trace goes over an image one step after the other as qemu-img check 7.2 does, and gives the lines
// that it writes to stderr, in its order. It exists for programs that read these lines, and as the
// plain statement of what Check counts: the two must agree. It is slow where Check is fast; call it
// when Check found something. Where qemu-img gives up, the error is a *StopError and the counts are
// those up to there.
func Trace(ctx context.Context, r io.ReaderAt, size int64, opts CheckOptions, emit func(Line) error) (Counts, error) {
	t, err := newTracer(ctx, r, size, opts, emit)
	if err != nil {
		return Counts{}, err
	}
	err = t.trace()
	return t.counts, err
}

func newTracer(ctx context.Context, r io.ReaderAt, size int64, opts CheckOptions,
	emit func(Line) error,
) (*tracer, error) {
	h, err := ReadHeader(r, size)
	if err != nil {
		return nil, err
	}
	memory := opts.MemoryBytes
	if memory <= 0 {
		memory = DefaultMemoryBytes
	}
	t := &tracer{geometry: newGeometry(h, size), ctx: ctx, r: r, emit: emit, blockNo: -1}
	t.refs = newTally(int64(t.clusters)+1, memory)
	t.limit = t.clusters
	return t, nil
}

// tracer is the state of one Trace.
type tracer struct {
	geometry
	ctx  context.Context
	r    io.ReaderAt
	emit func(Line) error

	snapshots *SnapshotTable
	l1        []uint64 // the active L1 table
	refs      *tally
	limit     uint64 // clusters to compare; grows with a reference into a cut last cluster
	reftable  []uint64
	counts    Counts

	blockNo  int64 // the refcount block in block
	block    []byte
	blockErr error
	signaled bool // qemu reports an impossible refcount block once

	// rebuild: qemu would say that the refcount structure has to be made anew.
	rebuild bool
	// mend is nil where nothing is repaired.
	mend *mending
}

func (t *tracer) say(format string, args ...any) error {
	return t.emit(Line{fmt.Sprintf(format, args...)})
}

// corrupt says a line and counts a corruption.
func (t *tracer) corrupt(format string, args ...any) error {
	t.counts.Corruptions++
	return t.say(format, args...)
}

// stop counts an error of the check itself and ends it.
func (t *tracer) stop(reason string) error {
	t.counts.CheckErrors++
	return &StopError{Reason: reason}
}

const (
	reasonIO       = "Input/output error"
	reasonInvalid  = "Invalid argument"
	reasonTooBig   = "File too large"
	reasonNoMemory = "Cannot allocate memory"
)

func (t *tracer) trace() error {
	if err := t.readSnapshots(); err != nil {
		return err
	}
	if t.clusters > maxTraceClusters {
		return t.stop(reasonTooBig)
	}
	t.counts.TotalClusters = (t.h.SizeBytes + int64(t.cs) - 1) >> t.bits
	if t.mend != nil {
		return t.traceMend()
	}
	if err := t.countAll(); err != nil {
		return err
	}
	if err := t.compare(false); err != nil {
		return err
	}
	return t.flags(false)
}

// readSnapshots reads the snapshot table, the first thing that qemu-img does.
func (t *tracer) readSnapshots() error {
	s, err := ReadSnapshots(t.r, int64(t.fileBytes), t.h)
	var open *OpenError
	if errors.As(err, &open) {
		reason := reasonInvalid
		prefix := "ERROR failed to read the snapshot table: "
		switch {
		case open.Kind == ErrRead:
			reason = reasonIO
		case t.h.tableAt(60, "snapshot table", t.h.SnapshotsOff, uint64(t.h.Snapshots),
			snapshotEntryBytes, snapshotEntryBytes*MaxSnapshots) != nil:
			prefix = "ERROR "
			if t.h.Snapshots > MaxSnapshots {
				reason = reasonTooBig
			}
		default:
			reason = reasonTooBig
		}
		if err := t.say("%s%s", prefix, open.Qemu); err != nil {
			return err
		}
		for _, hint := range t.snapshotHints(open) {
			if err := t.say("%s", hint); err != nil {
				return err
			}
		}
		return t.stop(reason)
	}
	if err != nil {
		return err
	}
	t.snapshots = s
	if t.h.Version < 3 {
		return nil
	}
	for i := range s.Len() {
		if i >= int64(len(s.Snapshots)) || s.Snapshots[i].ExtraBytes < 16 {
			if err := t.incomplete(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// snapshotHints is the advice that qemu-img gives behind its refusal of a snapshot table.
func (t *tracer) snapshotHints(e *OpenError) []string {
	const advice = "You can force-remove "
	switch {
	case t.mend != nil && t.mend.errors:
		return nil // no advice to do what is being done
	case t.h.Snapshots > MaxSnapshots:
		return []string{fmt.Sprintf(advice+"all %d overhanging snapshots with qemu-img check -r all",
			t.h.Snapshots-MaxSnapshots)}
	case e.Kind != ErrRead && e.Qemu == "Snapshot table is too big":
		return []string{fmt.Sprintf(advice+"all %d overhanging snapshots with qemu-img check -r all",
			int64(t.h.Snapshots)-t.snapshotsBefore(int64(e.Off)))}
	case e.Kind != ErrRead && strings.HasPrefix(e.Qemu, "Too much extra metadata"):
		return []string{advice + "this extra metadata with qemu-img check -r all"}
	}
	return nil
}

// snapshotsBefore counts the entries of the snapshot table that begin before off.
func (t *tracer) snapshotsBefore(off int64) (n int64) {
	w := &window{r: t.r, size: int64(t.fileBytes)}
	for pos := int64(t.h.SnapshotsOff); pos < off && n < int64(t.h.Snapshots); n++ {
		s, err := t.h.readSnapshot(w, pos, n)
		if err != nil {
			return n
		}
		pos = (pos + s.EntryBytes + 7) &^ 7
	}
	return n
}

// read reads n bytes at off, zeros behind the end of the file.
func (t *tracer) read(off uint64, n int64) ([]byte, error) {
	p := make([]byte, n)
	if off > math.MaxInt64-uint64(n) {
		return nil, errBlockOffset
	}
	_, err := readPadded(t.r, p, int64(off), int64(t.fileBytes))
	return p, err
}

// refcount gives the refcount of a cluster on disk; ok is false where qemu gets an error.
func (t *tracer) refcount(cluster uint64) (n uint64, ok bool, err error) {
	per := uint64(t.h.RefblockEntries())
	i := cluster / per
	if i >= uint64(len(t.reftable)) || t.reftable[i]&reftableOffMask == 0 {
		return 0, true, nil
	}
	off := t.reftable[i] & reftableOffMask
	if off&(t.cs-1) != 0 {
		if !t.signaled {
			t.signaled = true
			err = t.say("qcow2: Image is corrupt: Refblock offset %#x unaligned (reftable index: %s); "+
				"further non-fatal corruption events will be suppressed", off, cHex(i))
		}
		return 0, false, err
	}
	if int64(i) != t.blockNo {
		t.blockNo = int64(i)
		if off >= t.fileBytes && off <= math.MaxInt64-t.cs {
			t.block, t.blockErr = make([]byte, t.cs), nil
		} else {
			t.block, t.blockErr = t.read(off, int64(t.cs))
		}
	}
	if t.blockErr != nil {
		return 0, false, nil
	}
	return refcountAt(t.block, int64(cluster%per), t.h.RefcountOrder), true, nil
}

// cHex is a number as C prints it with "%#x": zero has no prefix.
func cHex(n uint64) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("%#x", n)
}

// compare holds the refcounts against the references, and brings them in line where mend is set.
func (t *tracer) compare(mend bool) error {
	highest := uint64(0)
	for i := uint64(0); i < t.limit; i++ {
		if i%4096 == 0 && t.ctx.Err() != nil {
			return t.ctx.Err()
		}
		have, ok, err := t.refcount(i)
		if err != nil {
			return err
		}
		if !ok {
			t.counts.CheckErrors++
			if err := t.say("Can't get refcount for cluster %d: %s", i, reasonIO); err != nil {
				return err
			}
			continue
		}
		want := t.refs.count(int64(i))
		if have > 0 || want > 0 {
			highest = i
		}
		if have == want {
			continue
		}
		if err := t.differs(i, have, want, mend); err != nil {
			return err
		}
	}
	t.counts.ImageEndOffset = int64((highest + 1) << t.bits)
	return nil
}

// differs says that a refcount is not what it should be.
func (t *tracer) differs(cluster, have, want uint64, mend bool) error {
	t.rebuild = t.rebuild || have == 0
	word := "ERROR"
	switch {
	case mend && t.settled(cluster, have, want):
		word = "Repairing"
		if have > want {
			t.mend.leaksFixed++
		} else {
			t.mend.corruptionsFixed++
		}
	case have > want:
		word = "Leaked"
		t.counts.Leaks++
	default:
		t.counts.Corruptions++
	}
	if word != "Repairing" && mend && t.mend.quiet {
		return nil
	}
	return t.say("%s cluster %d refcount=%d reference=%d", word, cluster, have, want)
}

// flags checks the COPIED flags of the active tables, and sets them right where mend is set.
func (t *tracer) flags(mend bool) error {
	for i, e := range t.l1 {
		off := e & OffsetMask
		if off == 0 {
			continue
		}
		n, ok, err := t.refcountNow(off >> t.bits)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if (n == 1) != (e&FlagCopied != 0) {
			word := t.flagWord(mend && t.mend.l1FlagFits(i))
			if err := t.say("%s OFLAG_COPIED L2 cluster: l1_index=%d l1_entry=%x refcount=%d", word, i, e, n); err != nil {
				return err
			}
		}
		if off >= t.fileBytes {
			continue
		}
		p, err := t.read(off, int64(t.cs))
		if err != nil {
			if err := t.say("ERROR: Could not read L2 table: %s", reasonIO); err != nil {
				return err
			}
			return t.stop(reasonIO)
		}
		var after []byte
		if mend {
			after = t.mend.table(off, int64(t.cs))
		}
		if err := t.tableFlags(p, after); err != nil {
			return err
		}
	}
	return nil
}

// tableFlags checks the flags of an L2 table. after is what a repair makes of it, nil where there is
// none.
func (t *tracer) tableFlags(p, after []byte) error {
	step := int(t.h.L2EntryBytes())
	for j := 0; j < len(p); j += step {
		e := binary.BigEndian.Uint64(p[j:])
		if typ := t.h.TypeOf(e); typ != EntryNormal && typ != EntryZeroAlloc {
			continue
		}
		if after != nil && t.mend.errors && t.wasZeroed(p[j:], after[j:]) {
			continue
		}
		n, ok := uint64(1), true
		if !t.dataFile {
			var err error
			if n, ok, err = t.refcountNow(e & OffsetMask >> t.bits); err != nil {
				return err
			}
		}
		if ok && (n == 1) != (e&FlagCopied != 0) {
			word := t.flagWord(after != nil && t.mend.flagFits(binary.BigEndian.Uint64(after[j:])))
			if err := t.say("%s OFLAG_COPIED data cluster: l2_entry=%x refcount=%d", word, e, n); err != nil {
				return err
			}
		}
	}
	return nil
}
