// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package fix

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/volume"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/repair"
)

// Engine is the kernel that makes a change.
type Engine string

// The engines.
const (
	// UML is User Mode Linux, confined.
	UML Engine = "User Mode Linux"
	// Host is the driver of this host's kernel, for disks that one trusts.
	Host Engine = "this host's kernel"
)

// kinds are the file systems that are written to, as mount(2) calls them, and with which options: errors do
// not make the kernel panic, and nothing is begun that is not needed.
var kinds = map[volume.Kind]struct{ name, data string }{
	volume.Ext2:  {"ext4", "errors=remount-ro,noinit_itable"},
	volume.Ext3:  {"ext4", "errors=remount-ro,noinit_itable"},
	volume.Ext4:  {"ext4", "errors=remount-ro,noinit_itable"},
	volume.XFS:   {"xfs", ""},
	volume.Btrfs: {"btrfs", "skip_balance"},
}

// Target is the volume of a guest that is changed.
type Target struct {
	// Volume is the one with the guest's /etc, and Pieces where it lies, in order. It has to lie on disk 0 alone,
	// which Disk reads through the backing chain.
	Volume *volume.Volume
	Pieces []volume.Piece
	Disk   io.ReaderAt
	// Image is disk 0 as a file: its bytes, length and format ("raw" or "qcow2"). Name is for messages.
	Image     io.ReaderAt
	SizeBytes int64
	Format    string
	Name      string

	copies [][]volume.Piece // Pieces by copy, where each byte of the volume is in each
}

// Options of Image. StateDir must be set.
type Options struct {
	// StateDir is where it is noted what is mounted meanwhile.
	StateDir string
	Engine   Engine
	// LayerBytes bounds what the kernel may write, all of it in memory; 0 is 512 MiB.
	LayerBytes int64
	// Program is User Mode Linux; "" looks for it.
	Program string
	// Self is the program whose Serve runs in the guest, static. "" is this one.
	Self string
	// Step says why the change is made: its Code, Name and Proofs are in the plan.
	Step plan.Step
	// Repair has options for qcow2 images.
	Repair repair.Options
	// Log is told what could not be read of the volume.
	Log func(text string)
}

// Made is a plan and what else came of it.
type Made struct {
	// Plan is that of the image; of its Object only Format and SizeBytes are set.
	Plan *plan.Plan
	// Done are the changes that it makes, Already those for which there was nothing to do.
	Done, Already []Change
	// Kept are files of the guest that a mask took the place of, by their new names.
	Kept []string
	// Kernel is the version of the kernel that made it, "" for the host's.
	Kernel string
	// Mounted names the subvolume of a Btrfs that was changed, with other options of the mount.
	Mounted string
}

// Image makes a plan of how units are kept from being started in the guest on an image. It writes nothing
// to it. It blocks while a kernel makes the change, for seconds. The errors are ErrRefused, ErrNothing,
// ErrEngine, those of PlanWrites for qcow2 images, uml.ErrUnavailable, uml.ErrConfine, mount.ErrFull, those
// of reading and of ctx.
func Image(ctx context.Context, t Target, changes []Change, o Options) (m *Made, err error) {
	if err := errors.Join(Check(changes), t.check()); err != nil {
		return nil, err
	}
	v := t.Volume
	seen := newSeen(&t)
	q := request{Kind: kinds[v.Kind].name, Data: kinds[v.Kind].data, Changes: changes}
	if v.Kind == volume.XFS {
		if q.Data, err = xfsQuotas(seen); err != nil {
			return nil, err
		}
		if q.Data != "" && o.Engine == Host {
			return nil, fmt.Errorf("%w: %s: its XFS has quotas, and the driver of this host may not keep them", ErrRefused, t.Name)
		}
	}
	var blocks []repair.GuestWrite
	collect := func(off int64, p []byte) error {
		blocks = append(blocks, t.onDisk(off, p)...)
		return nil
	}
	run := throughUML
	if o.Engine == Host {
		run = throughHost
	}
	a, err := run(ctx, &t, seen, q, o, collect)
	if err != nil {
		return nil, err
	}
	m = &Made{Kept: a.Kept, Kernel: a.Kernel, Mounted: a.Mounted}
	for _, i := range a.Done {
		m.Done = append(m.Done, changes[i])
	}
	for _, i := range a.Already {
		m.Already = append(m.Already, changes[i])
	}
	if len(a.Done) == 0 {
		return m, fmt.Errorf("%w: %s is so already", ErrNothing, words(changes))
	}
	slices.SortFunc(blocks, func(a, b repair.GuestWrite) int { return cmp.Compare(a.Offset, b.Offset) })
	step := o.Step
	step.Summary = words(m.Done)
	if m.Plan, err = t.plan(ctx, blocks, seen, step, o); err != nil {
		return nil, err
	}
	return m, m.Plan.Seal()
}

// xfsQuotas gives the options of a mount that leaves the quotas of an XFS as they are: one without them would
// turn them off, and the guest would count all anew. Superblock: sb_qflags, 2 bytes at 176, big-endian
// (fs/xfs/libxfs/xfs_format.h and xfs_log_format.h of Linux 6.1).
func xfsQuotas(r io.ReaderAt) (string, error) {
	var sb [256]byte
	if _, err := r.ReadAt(sb[:], 0); err != nil {
		return "", fmt.Errorf("read the superblock: %w", err)
	}
	const old = 0x10 // of version 4, for both
	flags := binary.BigEndian.Uint16(sb[176:])
	var all []string
	for _, q := range []struct {
		counted, enforced uint16
		name              string
	}{{0x1, 0x2, "uq"}, {0x40, 0x80 | old, "gq"}, {0x8, 0x200 | old, "pq"}} {
		switch {
		case flags&q.counted == 0:
		case flags&q.enforced != 0:
			all = append(all, q.name+"uota")
		default:
			all = append(all, q.name+"noenforce")
		}
	}
	return strings.Join(all, ","), nil
}

// check refuses volumes that are not changed.
func (t *Target) check() error {
	no := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s: %s", ErrRefused, t.Name, fmt.Sprintf(format, args...))
	}
	v := t.Volume
	_, known := kinds[v.Kind]
	switch {
	case t.Format != "raw" && t.Format != "qcow2":
		return no("images in the format %s are not changed, only raw and qcow2", t.Format)
	case !known && v.NotExamined != "":
		return no("part %s: %s", v.Name, v.NotExamined)
	case !known:
		return no("part %s holds %s, which is not changed", v.Name, cmp.Or(v.Kind, volume.Unknown))
	}
	ends := map[int]int64{} // of the pieces of each copy
	for _, p := range t.Pieces {
		switch {
		case p.Disk < 0:
			return no("part %s is not whole: %s", v.Name, p.Missing)
		case p.Disk > 0:
			return no("part %s lies on several disks: a plan is for one", v.Name)
		case p.Length <= 0 || p.At < 0 || p.Copy < 0 || p.Offset != ends[p.Copy]:
			return no("part %s: where it lies is not told in order", v.Name)
		}
		ends[p.Copy] += p.Length
	}
	for _, end := range ends {
		if end != v.Size {
			return no("part %s is not whole: of its %d bytes %d are there", v.Name, v.Size, end)
		}
	}
	if v.Size == 0 || len(ends) == 0 {
		return no("part %s is not there", v.Name)
	}
	t.copies = make([][]volume.Piece, len(ends))
	for _, p := range t.Pieces {
		if p.Copy >= len(ends) {
			return no("part %s: copy %d of %d", v.Name, p.Copy, len(ends))
		}
		t.copies[p.Copy] = append(t.copies[p.Copy], p)
	}
	return nil
}

// over gives the pieces of one copy that touch a range of the volume, cut to it.
func over(pieces []volume.Piece, off, length int64) iter.Seq[volume.Piece] {
	return func(yield func(volume.Piece) bool) {
		i := sort.Search(len(pieces), func(i int) bool { return pieces[i].Offset+pieces[i].Length > off })
		for ; i < len(pieces) && pieces[i].Offset < off+length; i++ {
			p := pieces[i]
			from, to := max(off, p.Offset), min(off+length, p.Offset+p.Length)
			p.At, p.Offset, p.Length = p.At+from-p.Offset, from, to-from
			if !yield(p) {
				return
			}
		}
	}
}

// ReadAt reads the volume, from its first copy.
func (t *Target) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off >= t.Volume.Size {
		return 0, io.EOF
	}
	want := b[:min(int64(len(b)), t.Volume.Size-off)]
	for p := range over(t.copies[0], off, int64(len(want))) {
		to := want[p.Offset-off:][:p.Length]
		if n, err := t.Disk.ReadAt(to, p.At); n < len(to) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return int(p.Offset-off) + n, fmt.Errorf("read %d bytes of the disk at %#x: %w", len(to), p.At, err)
		}
	}
	if len(want) < len(b) {
		return len(want), io.EOF
	}
	return len(want), nil
}

// onDisk gives where bytes of the volume lie on the disk, in all their copies.
func (t *Target) onDisk(off int64, p []byte) (all []repair.GuestWrite) {
	for _, pieces := range t.copies {
		for x := range over(pieces, off, int64(len(p))) {
			all = append(all, repair.GuestWrite{Offset: x.At, Data: slices.Clone(p[x.Offset-off:][:x.Length])})
		}
	}
	return all
}

// plan makes the plan of blocks, which are in order.
func (t *Target) plan(ctx context.Context, blocks []repair.GuestWrite, seen *seen, step plan.Step, o Options,
) (p *plan.Plan, err error) {
	if len(blocks) == 0 {
		return nil, fmt.Errorf("%w: it said that it made the change, and wrote nothing", ErrEngine)
	}
	if t.Format == "raw" {
		return rawPlan(t, blocks, seen, step)
	}
	r := o.Repair
	r.Name, r.Disk = t.Name, t.Disk
	if p, err = repair.PlanWrites(ctx, t.Image, t.SizeBytes, blocks, step, r); err != nil {
		return nil, err
	}
	// What the kernel read decides what it wrote. It is held against the guest's disk.
	p.Below = merge(p.Below, seen.digests())
	return p, nil
}

// merge joins two lists of digests, in order, without what is there twice.
func merge(a, b []plan.Digest) []plan.Digest {
	all := slices.Concat(a, b)
	slices.SortFunc(all, func(x, y plan.Digest) int {
		return cmp.Or(cmp.Compare(x.Offset, y.Offset), cmp.Compare(x.Length, y.Length))
	})
	return slices.Compact(all)
}

// rawPlan is the plan of a raw image, whose bytes are the disk's.
func rawPlan(t *Target, blocks []repair.GuestWrite, seen *seen, step plan.Step) (*plan.Plan, error) {
	id, err := plan.NewID()
	if err != nil {
		return nil, err
	}
	p := &plan.Plan{Schema: plan.Schema, ID: id, Object: plan.Object{Format: "raw", SizeBytes: t.SizeBytes},
		SizeAfterBytes: t.SizeBytes, Relies: seen.digests()}
	clean := plan.State{Verdict: finding.Clean}
	p.Before, p.After = clean, clean
	step.Action, step.Count = "write", int64(len(blocks))
	step.Certainty = cmp.Or(step.Certainty, finding.Sure)
	var first []plan.Write
	for _, b := range blocks {
		if b.End() > t.SizeBytes {
			return nil, fmt.Errorf("%w: %s: it is shorter than the disk's file system", ErrRefused, t.Name)
		}
		old := make([]byte, len(b.Data))
		if n, err := t.Image.ReadAt(old, b.Offset); n < len(old) {
			return nil, fmt.Errorf("read %d bytes of %s at %#x: %w", len(old), t.Name, b.Offset, cmp.Or(err, io.ErrUnexpectedEOF))
		}
		w := plan.Write{Phase: plan.Point, Offset: b.Offset, Old: old, New: b.Data}
		if head := int(plan.SectorBytes - b.Offset); head > 0 { // the first sector is written last
			head = min(head, len(old))
			first = append(first, plan.Write{Phase: plan.Switch, Offset: b.Offset, Old: old[:head], New: b.Data[:head]})
			w.Offset, w.Old, w.New = w.Offset+int64(head), w.Old[head:], w.New[head:]
		}
		if len(w.New) > 0 {
			p.Writes = append(p.Writes, w)
		}
		step.Host, step.HostCut = addRange(step.Host, step.HostCut, b)
	}
	step.Guest, step.GuestCut = slices.Clone(step.Host), step.HostCut // the file's bytes are the disk's
	p.Writes, p.Steps = append(p.Writes, first...), []plan.Step{step}
	return p, nil
}

// seen reads the volume, and remembers digests of the ranges of the disk that were read.
type seen struct {
	t   *Target
	mu  sync.Mutex
	all map[[2]int64]uint32
}

// maxSeen bounds the ranges that are remembered. What is read beyond is not relied on.
const maxSeen = 1 << 18

func newSeen(t *Target) *seen { return &seen{t: t, all: map[[2]int64]uint32{}} }

// ReadAt is io.ReaderAt, of the volume.
func (s *seen) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.t.ReadAt(p, off)
	for x := range over(s.t.copies[0], off, int64(n)) {
		key := [2]int64{x.At, x.Length}
		sum := plan.Checksum(p[x.Offset-off:][:x.Length])
		s.mu.Lock()
		if _, known := s.all[key]; !known && len(s.all) < maxSeen {
			s.all[key] = sum
		}
		s.mu.Unlock()
	}
	return n, err
}

// digests gives what was read of the disk, in order.
func (s *seen) digests() []plan.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]plan.Digest, 0, len(s.all))
	for k, sum := range s.all {
		all = append(all, plan.Digest{Offset: k[0], Length: k[1], CRC32C: sum})
	}
	return merge(all, nil)
}

// maxRanges is how many ranges a step lists.
const maxRanges = 20

// addRange adds a range to those of a step.
func addRange(list []finding.Range, cut int64, w repair.GuestWrite) ([]finding.Range, int64) {
	if n := len(list); n > 0 && list[n-1].End() == w.Offset {
		list[n-1].Length += int64(len(w.Data))
		return list, cut
	}
	if len(list) == maxRanges {
		return list, cut + 1
	}
	return append(list, finding.Range{Offset: w.Offset, Length: int64(len(w.Data))}), cut
}
