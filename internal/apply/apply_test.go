// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab/cut"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/vault"
)

func TestApplyAndUndo(t *testing.T) {
	d, p, before, after := world(t)
	o := options(d)
	o.Verify = isNew(after)
	r, err := Apply(t.Context(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	if r.State != vault.Committed || r.Finished == nil || r.UndoPath != imagePath+vault.Suffix {
		t.Errorf("Apply = receipt %+v", r)
	}
	settled(t, d, "after Apply", after)
	if _, err := Apply(t.Context(), p, o); !errors.Is(err, ErrUsed) {
		t.Errorf("a second Apply = %v, want %v", err, ErrUsed)
	}
	for range 2 {
		r, err = Undo(t.Context(), imagePath, "", o)
		if err != nil || r.State != vault.Undone || r.Undone == nil {
			t.Errorf("Undo = %+v, %v", r, err)
		}
		settled(t, d, "after Undo", before)
	}
	if _, err := Apply(t.Context(), p, o); !errors.Is(err, ErrUsed) {
		t.Errorf("Apply of an undone plan = %v, want %v", err, ErrUsed)
	}
}

// The list of operations is what safety rests on: it is read as code.
func TestOperations(t *testing.T) {
	d, p, _, _ := world(t)
	var b strings.Builder
	note := func(what string, fn func() error) {
		fault(t, d, "")
		if err := fn(); err != nil {
			t.Fatal(err)
		}
		b.WriteString(what + ":\n  " + strings.Join(d.Ops(), "\n  ") + "\n")
	}
	note("apply", func() error { _, err := Apply(t.Context(), p, options(d)); return err })
	note("undo", func() error { _, err := Undo(t.Context(), imagePath, "", options(d)); return err })

	d, p, _, _ = world(t)
	fault(t, d, "crash after op "+lastBefore(t))
	if _, err := Apply(t.Context(), p, options(d)); err == nil {
		t.Fatal("the power was not cut")
	}
	for s := range d.Survivors(1) {
		d = s
		break
	}
	note("recover before the switch", func() error {
		_, err := Recover(t.Context(), imagePath, options(d))
		return err
	})
	golden(t, "testdata/ops.txt", b.String())
}

// lastBefore gives the number of the operation before the switch.
func lastBefore(t *testing.T) string {
	t.Helper()
	d, p, _, _ := world(t)
	fault(t, d, "")
	mustApply(t, d, p)
	ops := d.Ops()
	for i := len(ops) - 1; i > 0; i-- {
		if ops[i] == "write "+imagePath+" 0x0+512" {
			return strconv.Itoa(i)
		}
	}
	t.Fatal("no switch")
	return ""
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if os.Getenv("SHISA_UPDATE") == "1" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
}

func TestRefused(t *testing.T) {
	flip := func(off int) func(*cut.Disk, *plan.Plan, *Options) {
		return func(d *cut.Disk, _ *plan.Plan, _ *Options) { poke(t, d, imagePath, off) }
	}
	for _, tc := range []struct {
		name  string
		spoil func(d *cut.Disk, p *plan.Plan, o *Options)
		want  error
	}{
		{"a byte that it replaces", flip(countAt + 10), ErrChanged},
		{"a byte that it relies on", flip(watchAt), ErrChanged},
		{"a byte of the fence", flip(75), ErrChanged},
		{"another file", func(d *cut.Disk, p *plan.Plan, _ *Options) { p.Object.Ino = 77 }, ErrChanged},
		{"another length", func(d *cut.Disk, _ *plan.Plan, _ *Options) {
			w, _ := d.OpenForRepair(imagePath)
			w.Truncate(5000)
			w.Close()
		}, ErrChanged},
		{"no room", func(d *cut.Disk, _ *plan.Plan, _ *Options) { d.SetFree(1000) }, ErrNoRoom},
		{"in use", func(d *cut.Disk, _ *plan.Plan, _ *Options) {
			if _, err := d.OpenForRepair(imagePath); err != nil {
				t.Fatal(err)
			}
		}, diskio.ErrInUse},
		{"no locks", func(d *cut.Disk, _ *plan.Plan, _ *Options) { d.SetNoLocks() }, diskio.ErrNoLocks},
		{"no plan", func(_ *cut.Disk, p *plan.Plan, _ *Options) { p.ID = "x" }, plan.ErrNotPlan},
		{"nothing", func(_ *cut.Disk, p *plan.Plan, _ *Options) {
			p.Writes, p.Fence = nil, nil
		}, ErrEmpty},
		{"relies on too much", func(_ *cut.Disk, p *plan.Plan, _ *Options) {
			p.Relies[0].Length = 1 << 60
		}, plan.ErrNotPlan},
		{"an unfinished undo file", func(d *cut.Disk, _ *plan.Plan, _ *Options) {
			d.Put(imagePath+vault.Suffix, nil)
		}, ErrUnfinished},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, p, _, _ := world(t)
			o := options(d)
			tc.spoil(d, p, &o)
			before, paths := content(t, d), d.Paths()
			r, err := Apply(t.Context(), p, o)
			if !errors.Is(err, tc.want) || r != nil {
				t.Errorf("Apply = %v, %v, want %v", r, err, tc.want)
			}
			if !bytes.Equal(before, content(t, d)) || !slices.Equal(paths, d.Paths()) {
				t.Errorf("Apply changed the image, or left %q", d.Paths())
			}
		})
	}
}

// poke changes one byte of a file.
func poke(t testing.TB, d *cut.Disk, path string, off int) {
	t.Helper()
	w, err := d.OpenWithoutLocks(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var b [1]byte
	if _, err := w.ReadAt(b[:], int64(off)); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x55
	if _, err := w.WriteAt(b[:], int64(off)); err != nil {
		t.Fatal(err)
	}
}

func TestChangedErrorNamesRanges(t *testing.T) {
	d, p, _, _ := world(t)
	poke(t, d, imagePath, lowAt+7)
	_, err := Apply(t.Context(), p, options(d))
	var changed *ChangedError
	if !errors.As(err, &changed) || !slices.Contains(changed.Ranges, finding.Range{Offset: lowAt, Length: 512}) {
		t.Errorf("Apply = %v, want it to name the 512 bytes at %#x", err, lowAt)
	}
}

func TestNoLocksAccepted(t *testing.T) {
	d, p, before, after := world(t)
	d.SetNoLocks()
	o := options(d)
	o.AcceptNoLocks = true
	if _, err := Apply(t.Context(), p, o); err != nil || !bytes.Equal(after, content(t, d)) {
		t.Errorf("Apply = %v", err)
	}
	if _, err := Undo(t.Context(), imagePath, "", o); err != nil || !bytes.Equal(before, content(t, d)) {
		t.Errorf("Undo = %v", err)
	}
}

func TestVerifyRollsBack(t *testing.T) {
	d, p, before, _ := world(t)
	cause := errors.New("it is worse now")
	o := options(d)
	o.Verify = func(context.Context, io.ReaderAt, int64) error { return cause }
	r, err := Apply(t.Context(), p, o)
	if !errors.Is(err, ErrRolledBack) || !errors.Is(err, cause) {
		t.Errorf("Apply = %v, want %v and %v", err, ErrRolledBack, cause)
	}
	if r == nil || r.State != vault.RolledBack || r.Failure != cause.Error() {
		t.Errorf("Apply = receipt %+v", r)
	}
	settled(t, d, "rolled back", before)
	if _, err := Undo(t.Context(), imagePath, "", o); !errors.Is(err, ErrNothing) {
		t.Errorf("Undo of what was rolled back = %v, want %v", err, ErrNothing)
	}
}

func TestCancel(t *testing.T) {
	d, p, before, _ := world(t)
	ctx, cancel := context.WithCancel(t.Context())
	o := options(d)
	o.Verify = func(ctx context.Context, _ io.ReaderAt, _ int64) error {
		cancel()
		return ctx.Err()
	}
	_, err := Apply(ctx, p, o)
	if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrRolledBack) {
		t.Errorf("Apply = %v, want both %v and %v", err, context.Canceled, ErrRolledBack)
	}
	settled(t, d, "cancelled", before)
}

func TestBlockDevice(t *testing.T) {
	d := cut.New(t.Context())
	p, before, _ := makeUp(t, 1, 1, imagePath)
	d.PutBlock(imagePath, before)
	_, err := Apply(t.Context(), p, options(d))
	var room *RoomError
	if !errors.As(err, &room) || room.NeedBytes != p.SizeAfterBytes || room.FreeBytes != int64(len(before)) {
		t.Errorf("Apply = %v, want the room that it needs", err)
	}
	p.SizeAfterBytes, p.Fence = p.Object.SizeBytes, nil
	p.Writes = slices.DeleteFunc(p.Writes, func(w plan.Write) bool { return w.Phase != plan.Count })
	r, err := Apply(t.Context(), p, options(d))
	if err != nil {
		t.Fatal(err)
	}
	if want := stateDir + "/undo/a.img." + p.ID + vault.Suffix; r.UndoPath != want {
		t.Errorf("the undo file of a device is %s, want %s", r.UndoPath, want)
	}
	if _, err := Undo(t.Context(), "", p.ID, options(d)); err != nil || !bytes.Equal(before, content(t, d)) {
		t.Errorf("Undo = %v", err)
	}
}

func TestUndoElsewhere(t *testing.T) {
	const other = "/else/b.img"
	for _, tc := range []struct {
		name  string
		setup func(d *cut.Disk)
		path  string
	}{
		{"renamed", func(d *cut.Disk) { d.Move(imagePath, other) }, other},
		{"renamed with the undo file", func(d *cut.Disk) {
			d.Move(imagePath, other)
			d.Move(imagePath+vault.Suffix, "/else/x"+vault.Suffix)
		}, other},
		{"copied", func(d *cut.Disk) { d.Put(other, content(t, d)) }, other},
		{"without receipts", func(d *cut.Disk) { d.Remove(stateDir + "/undo/00112233445566778899aabbccddeeff.json") }, imagePath},
		{"copied, without receipts, with the undo file", func(d *cut.Disk) {
			d.Put(other, content(t, d))
			d.Move(imagePath+vault.Suffix, "/else/y"+vault.Suffix+".2")
			d.Remove(stateDir + "/undo/00112233445566778899aabbccddeeff.json")
		}, other},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, p, before, _ := world(t)
			mustApply(t, d, p)
			tc.setup(d)
			if _, err := Undo(t.Context(), tc.path, "", options(d)); err != nil {
				t.Fatal(err)
			}
			if got, _ := d.Get(tc.path); !bytes.Equal(got, before) {
				t.Error("Undo did not give back the bytes")
			}
		})
	}
}

func TestUndoRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		off  int
	}{
		{"a byte that was written", lowAt + 1}, {"a byte that was relied on", watchAt},
		{"the gap in what was added", gapAt}, {"the first sector", 100},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, p, _, _ := world(t)
			mustApply(t, d, p)
			poke(t, d, imagePath, tc.off)
			was := content(t, d)
			_, err := Undo(t.Context(), imagePath, "", options(d))
			var changed *ChangedError
			if !errors.As(err, &changed) || len(changed.Ranges) == 0 {
				t.Fatalf("Undo = %v, want a list of ranges", err)
			}
			if r := changed.Ranges[0]; r.Offset > int64(tc.off) || r.End() <= int64(tc.off) {
				t.Errorf("Undo names %+v, want the byte at %d in it", changed.Ranges, tc.off)
			}
			if !bytes.Equal(was, content(t, d)) {
				t.Error("a refused Undo changed the image")
			}
		})
	}
	t.Run("longer", func(t *testing.T) {
		d, p, _, after := world(t)
		mustApply(t, d, p)
		w, err := d.OpenForRepair(imagePath)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if err := w.Truncate(int64(len(after)) + 1); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if _, err := Undo(t.Context(), imagePath, "", options(d)); !errors.Is(err, ErrChanged) {
			t.Errorf("Undo = %v, want %v", err, ErrChanged)
		}
	})
}

// Two changes, one after the other, are undone in the other order.
func TestUndoStack(t *testing.T) {
	d, p, before, after := world(t)
	mustApply(t, d, p)
	q := *p
	q.ID, q.Fence, q.Relies = "ff112233445566778899aabbccddeeff", nil, nil
	q.Object.SizeBytes = int64(len(after))
	q.Writes = []plan.Write{{Phase: plan.Count, Offset: freeAt, Old: slices.Clone(after[freeAt : freeAt+6]), New: []byte("second")}}
	o := options(d)
	o.Now = func() time.Time { return options(d).Now().Add(1) }
	r, err := Apply(t.Context(), &q, o)
	if err != nil || r.UndoPath != imagePath+vault.Suffix+".2" {
		t.Fatalf("Apply = %+v, %v", r, err)
	}
	for _, want := range [][]byte{after, before, before} {
		if _, err := Undo(t.Context(), imagePath, "", o); err != nil || !bytes.Equal(want, content(t, d)) {
			t.Errorf("Undo = %v, or not the image that was before", err)
		}
	}
}

func TestHurt(t *testing.T) {
	d, p, _, _ := world(t)
	v, err := vault.New(vault.Options{Disk: d, StateDir: stateDir})
	if err != nil {
		t.Fatal(err)
	}
	hurt := func(want int) {
		t.Helper()
		if n := hurtOf(t, d, imagePath); n != want {
			t.Errorf("%d changes are remembered, want %d", n, want)
		}
	}
	hurt(0)
	mustApply(t, d, p)
	hurt(1)
	poke(t, d, imagePath, 50) // a machine ran since: the file is the same
	hurt(1)
	poke(t, d, imagePath, 50)
	if _, err := v.Resolve(p.ID, options(d).Now()); err != nil {
		t.Fatal(err)
	}
	hurt(0)
	if _, err := Undo(t.Context(), imagePath, "", options(d)); err != nil {
		t.Fatal(err)
	}
	hurt(0)
	if r, err := v.Receipt(p.ID); err != nil || r.Resolved == nil || r.State != vault.Undone {
		t.Errorf("Receipt = %+v, %v", r, err)
	}
}

// liar is a disk that says of one write to the image that it was made, and does nothing.
type liar struct {
	*cut.Disk
	at int
}

type liarFile struct {
	diskio.Writable
	l *liar
}

func (l *liar) OpenForRepair(path string) (diskio.Writable, error) {
	f, err := l.Disk.OpenForRepair(path)
	if err != nil || path != imagePath {
		return f, err
	}
	return &liarFile{f, l}, nil
}

func (f *liarFile) WriteAt(p []byte, off int64) (int, error) {
	if f.l.at--; f.l.at == 0 {
		return len(p), nil
	}
	return f.Writable.WriteAt(p, off)
}

// What was written is read back, and not taken for granted.
func TestDiskThatLies(t *testing.T) {
	for n := 2; n <= 6; n++ {
		d, p, before, _ := world(t)
		o := options(d)
		o.Disk = &liar{d, n}
		if _, err := Apply(t.Context(), p, o); !errors.Is(err, ErrRolledBack) {
			t.Errorf("Apply without write %d = %v, want %v", n, err, ErrRolledBack)
		}
		settled(t, d, "after a write that was not made", before)

		d, p, before, _ = world(t)
		mustApply(t, d, p)
		o.Disk = &liar{d, n - 1}
		_, err := Undo(t.Context(), imagePath, "", o)
		if n-1 == 1 {
			// The fence: the last write ends it, and nothing is missing.
			if err != nil {
				t.Errorf("Undo without the fence = %v", err)
			}
			continue
		}
		if !errors.Is(err, ErrInterrupted) {
			t.Errorf("Undo without write %d = %v, want %v", n-1, err, ErrInterrupted)
		}
		if _, err := Recover(t.Context(), imagePath, options(d)); err != nil {
			t.Errorf("Recover = %v", err)
		}
		settled(t, d, "after an undo with a write that was not made", before)
	}
}

// Somebody writes while the undo file is being made.
func TestChangedMeanwhile(t *testing.T) {
	d, p, _, _ := world(t)
	o := options(d)
	o.Progress = func(what string, _, _ int64) {
		if what == "write the undo file" {
			poke(t, d, imagePath, lowAt)
		}
	}
	_, err := Apply(t.Context(), p, o)
	if !errors.Is(err, ErrChanged) || errors.Is(err, ErrRolledBack) || errors.Is(err, ErrInterrupted) {
		t.Errorf("Apply = %v, want %v alone", err, ErrChanged)
	}
	if paths := d.Paths(); len(paths) != 1 {
		t.Errorf("Apply left %q", paths)
	}
}
