// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"syscall"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// Repairer plans and carries out what check -r asks for. This package only reads.
type Repairer interface {
	// Plan plans the repair of an image. Where an earlier change of it is unfinished, that is an
	// error.
	Plan(ctx context.Context, j RepairJob) (*plan.Plan, error)
	// Apply carries a plan out and gives the path of the undo file. After an error the image is as it
	// was, unless the error says otherwise. Of its errors diskio.ErrInUse and those of the system are
	// told in the words of qemu-img.
	Apply(ctx context.Context, p *plan.Plan, opts qcow2.CheckOptions) (undoPath string, err error)
}

// RepairJob says what is to be repaired.
type RepairJob struct {
	// Path is the image's file, as the command line led to it; File has it open for reading.
	Path string
	File *diskio.File
	// Leaks: only leaks (-r leaks), and the flags that depend on them.
	Leaks bool
	// Check has the options for checks of the image.
	Check qcow2.CheckOptions
}

// repair is check -r: it mends what it can, and checks again.
func (s *session) repair(n *node, name string, f *imageFlags, opts qcow2.CheckOptions) (
	qcow2.Mended, error,
) {
	p, err := s.planRepair(n, name, f, opts)
	if err != nil {
		return qcow2.Mended{}, err
	}
	found, err := s.traceRepair(n, f, opts, p)
	if err != nil {
		switch {
		case s.ctx.Err() != nil:
		case p.Empty():
			s.explain(p, f)
		default:
			s.note("the check could not be finished, so nothing was changed; \"shisa repair\" may mend more")
		}
		return found, err
	}
	if p.Empty() {
		s.explain(p, f)
		return found, nil
	}
	undo, err := s.env.Repairer.Apply(s.ctx, p, opts)
	if err != nil {
		return found, s.repairFailed(name, n, err)
	}
	if !f.quiet && !f.json && (found.CorruptionsFixed != 0 || found.LeaksFixed != 0) {
		s.printf("The following inconsistencies were found and repaired:\n\n"+
			"    %d leaked clusters\n    %d corruptions\n\n"+
			"Double checking the fixed image now...\n", found.LeaksFixed, found.CorruptionsFixed)
	}
	s.note("what was changed can be taken back: \"shisa undo\" with %s", plainly(undo))
	s.explain(p, f)
	if found.CorruptionsFixed == 0 && found.LeaksFixed == 0 {
		return found, nil // marks in the header, which qemu-img clears without a word
	}
	fixed := found
	if found.Counts, err = s.countAgain(n, opts); err != nil {
		return qcow2.Mended{}, err
	}
	return qcow2.Mended{Counts: found.Counts, CorruptionsFixed: fixed.CorruptionsFixed,
		LeaksFixed: fixed.LeaksFixed}, nil
}

// planRepair plans the repair of an image, whose file must be its own.
func (s *session) planRepair(n *node, name string, f *imageFlags, opts qcow2.CheckOptions) (
	*plan.Plan, error,
) {
	if n.file.f == nil {
		s.report("check -r: '%s' is a part of another image or file, and this program repairs files only", name)
		return nil, errDone{codeFailed}
	}
	p, err := s.env.Repairer.Plan(s.ctx, RepairJob{Path: n.file.exact, File: n.file.f,
		Leaks: f.repair == "leaks", Check: opts})
	if err != nil {
		return nil, s.repairFailed(name, n, err)
	}
	if p.Empty() {
		return p, nil
	}
	// Half of a change is nothing that anybody should read.
	if locks, err := n.file.f.Locks(); err == nil && (locks.Writer() || locks.Reader()) {
		return nil, s.repairFailed(name, n, &diskio.InUseError{Path: n.file.exact, State: locks})
	}
	return p, nil
}

// traceRepair says what qemu-img says while it repairs, and counts what a plan mends.
func (s *session) traceRepair(n *node, f *imageFlags, opts qcow2.CheckOptions, p *plan.Plan) (
	m qcow2.Mended, err error,
) {
	var told bool
	m.Counts, told, err = s.look(n.q.r, n.q.size, n.q.h, opts)
	if err != nil || told {
		m.CorruptionsFixed = max(0, p.Before.Corruptions-p.After.Corruptions)
		m.LeaksFixed = max(0, p.Before.Leaks-p.After.Leaks)
		return m, err
	}
	after := newAfterwards(n.q.r, n.q.size, p)
	return qcow2.TraceMend(s.ctx, n.q.r, n.q.size, opts, qcow2.Mend{Errors: f.repair == "all",
		After: after, AfterBytes: p.SizeAfterBytes}, s.line)
}

// countAgain checks the image as it is on the disk by now.
func (s *session) countAgain(n *node, opts qcow2.CheckOptions) (qcow2.Counts, error) {
	open := diskio.Open
	if n.direct {
		open = diskio.OpenDirect
	}
	f, err := open(n.file.exact)
	if err != nil {
		return qcow2.Counts{}, err
	}
	defer f.Close()
	h, err := qcow2.ReadHeader(f, f.Size())
	if err != nil {
		return qcow2.Counts{}, err
	}
	c, told, err := s.look(f, f.Size(), h, opts)
	if err != nil || told {
		return c, err
	}
	return qcow2.Trace(s.ctx, f, f.Size(), opts, s.line)
}

// repairFailed says why nothing was repaired, in qemu's words where it has some.
func (s *session) repairFailed(name string, n *node, err error) error {
	var use *diskio.InUseError
	var errno syscall.Errno
	switch {
	case s.ctx.Err() != nil:
		return err
	case errors.As(err, &use) && use.State.NotShared[diskio.PermWrite]:
		s.reportOpen(name, n.file.locked(`Failed to get "%s" lock`, diskio.PermWrite))
	case errors.As(err, &use) && use.State.Writer():
		s.reportOpen(name, n.file.locked(`Failed to get shared "%s" lock`, diskio.PermWrite))
	case errors.As(err, &use):
		s.note("%s; nothing is repaired while somebody reads it", oneLine(err))
	case errors.As(err, &errno):
		s.note("%s", oneLine(err))
		s.report("Check failed: %s", strerror(err))
	default:
		s.note("%s", oneLine(err))
		s.report("Check failed")
	}
	if hint := finding.HintOf(err); hint != "" {
		s.note("%s", plainly(hint))
	}
	return errDone{codeFailed}
}

// note is a line of this program's own, which qemu-img has nothing like.
func (s *session) note(format string, args ...any) {
	s.stderr("shisa: %s\n", fmt.Sprintf(format, args...))
}

// leakRules are those whose findings qemu-img counts as leaks, and what earlier repairs left.
var leakRules = []string{finding.QC03.Code, finding.QC13.Code, finding.QC14.Code, finding.QC25.Code}

// explain says what was left alone and why, one line for each rule, and what no repair can mend.
func (s *session) explain(p *plan.Plan, flags *imageFlags) {
	var order []string
	count := map[string]int64{}
	next := map[string]finding.Finding{}
	for _, f := range p.Remains {
		if f.Severity == finding.Note || flags.repair == "leaks" && !slices.Contains(leakRules, f.Code) {
			continue
		}
		if count[f.Code] == 0 {
			order = append(order, f.Code)
			next[f.Code] = f
		}
		count[f.Code] += max(1, f.Count)
	}
	slices.Sort(order)
	for _, code := range order {
		f := next[code]
		s.note("left as it is: %s %s (%d): %s", f.Code, f.Name, count[code], plainly(f.Next))
	}
	lost, mixed := 0, 0
	for _, h := range p.Hurt {
		if h.Kind == "mixed" {
			mixed += len(h.Guest)
		} else {
			lost += len(h.Guest)
		}
	}
	if lost+mixed > 0 && flags.repair == "all" {
		s.note("the tables are not all: %d guest ranges lost their data, and %d share clusters with others, "+
			"so at most one of each group holds its own; \"shisa check\" names them", lost, mixed)
	}
}

// oneLine is the text of an error on one line.
func oneLine(err error) string { return plainly(err.Error()) }

// plainly is text that may come from outside, without what a terminal would obey.
func plainly(text string) string {
	q := strconv.QuoteToGraphic(text)
	if q[1:len(q)-1] == text {
		return text
	}
	return q
}

// afterwards reads an image as it is after a plan.
type afterwards struct {
	r            io.ReaderAt
	before, size int64
	writes       []plan.Write // by offset; none overlaps another
}

func newAfterwards(r io.ReaderAt, size int64, p *plan.Plan) *afterwards {
	a := &afterwards{r, size, p.SizeAfterBytes, slices.Clone(p.Writes)}
	slices.SortFunc(a.writes, func(x, y plan.Write) int {
		if x.Offset < y.Offset {
			return -1
		}
		return 1
	})
	return a
}

// ReadAt is io.ReaderAt.
func (a *afterwards) ReadAt(p []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(p)), a.size-off)))
	below := int(max(0, min(int64(n), a.before-off)))
	if below > 0 {
		if got, err := a.r.ReadAt(p[:below], off); got < below {
			return got, err
		}
	}
	clear(p[below:n])
	i, _ := slices.BinarySearchFunc(a.writes, off, func(w plan.Write, off int64) int {
		if w.End() <= off {
			return -1
		}
		return 1
	})
	for ; i < len(a.writes) && a.writes[i].Offset < off+int64(n); i++ {
		w := a.writes[i]
		at := max(off, w.Offset)
		copy(p[at-off:n], w.New[at-w.Offset:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
