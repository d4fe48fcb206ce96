// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/lab/cut"
	"github.com/shisa-vm/shisa/internal/vault"
)

// cutAt gives the disk after an Apply that was cut off at a write to the image: after the n-th one,
// all of which reached the disk.
func cutAt(t *testing.T, n int) (d *cut.Disk, before, after []byte) {
	t.Helper()
	d, p, _, _ := world(t)
	fault(t, d, "")
	mustApply(t, d, p)
	k, seen := 0, 0
	for i, op := range d.Ops() {
		if op == "sync "+imagePath {
			if seen++; seen == n {
				k = i + 1
			}
		}
	}
	d, p, before, after = world(t)
	fault(t, d, "crash after op "+strconv.Itoa(k))
	if _, err := Apply(t.Context(), p, options(d)); !errors.Is(err, cut.ErrCut) {
		t.Fatalf("Apply = %v, want it cut after %d", err, k)
	}
	return clone(t, d), before, after
}

// switched is the number of the sync after the switch in cutAt: fence, new, count, point, lower,
// switch.
const switched = 6

func TestRecoverTargets(t *testing.T) {
	for _, target := range []string{
		imagePath, imagePath + vault.Suffix, "/img", "/", "", "00112233445566778899aabbccddeeff",
		"/state/undo",
	} {
		d, before, _ := cutAt(t, 3)
		out, err := Recover(t.Context(), target, options(d))
		want := 1
		if target == "/state/undo" {
			want = 0
		}
		if err != nil || len(out) != want {
			t.Errorf("Recover(%q) = %+v, %v, want %d outcomes", target, out, err, want)
			continue
		}
		if want == 0 {
			continue
		}
		if o := out[0]; o.Did != DidRollBack || o.Image != imagePath || o.Receipt.State != vault.RolledBack {
			t.Errorf("Recover(%q) = %+v", target, o)
		}
		settled(t, d, target, before)
	}
	d, _, _ := cutAt(t, 3)
	for _, target := range []string{"/nothing", "ff112233445566778899aabbccddeeff"} {
		if _, err := Recover(t.Context(), target, options(d)); err == nil {
			t.Errorf("Recover(%q) finds something", target)
		}
	}
}

// The image was renamed after the crash.
func TestRecoverRenamed(t *testing.T) {
	d, before, _ := cutAt(t, 3)
	d.Move(imagePath, "/else/b")
	out, err := Recover(t.Context(), "/else/b", options(d))
	if got, _ := d.Get("/else/b"); err != nil || len(out) != 1 || !bytes.Equal(got, before) {
		t.Errorf("Recover = %+v, %v, or other bytes", out, err)
	}
}

func TestRecoverRefusesForeignWrites(t *testing.T) {
	for n := 1; n <= switched; n++ {
		for _, forward := range []bool{false, true} {
			d, _, _ := cutAt(t, n)
			poke(t, d, imagePath, lowAt+9)
			was := content(t, d)
			o := options(d)
			o.Forward = forward
			_, err := Recover(t.Context(), imagePath, o)
			if forward && n == switched {
				// All of the change was there before somebody wrote.
				if err != nil || !bytes.Equal(was, content(t, d)) {
					t.Errorf("Recover forward after the switch = %v, or it wrote", err)
				}
				continue
			}
			var changed *ChangedError
			if !errors.As(err, &changed) || changed.Ranges[0].Offset != lowAt {
				t.Errorf("Recover after sync %d, forward=%v = %v, want %v", n, forward, err, ErrChanged)
			}
			if !bytes.Equal(was, content(t, d)) {
				t.Error("a refused Recover changed the image")
			}
			if _, err := Undo(t.Context(), imagePath, "", o); !errors.Is(err, ErrUnfinished) {
				t.Errorf("Undo = %v, want %v", err, ErrUnfinished)
			}
		}
	}
}

func TestRecoverInUse(t *testing.T) {
	d, before, _ := cutAt(t, 2)
	w, err := d.OpenForRepair(imagePath)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(t.Context(), imagePath, options(d)); !errors.Is(err, diskio.ErrInUse) {
		t.Errorf("Recover = %v, want %v", err, diskio.ErrInUse)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(t.Context(), imagePath, options(d)); err != nil {
		t.Fatal(err)
	}
	settled(t, d, "after it was in use", before)
}

// An undo file whose change was begun is never removed, whatever is left of it.
func TestRecoverKeepsDamaged(t *testing.T) {
	d, _, _ := cutAt(t, 3)
	whole, _ := d.Get(imagePath + vault.Suffix)
	for _, spoil := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:len(b)/3] },
		func(b []byte) []byte { return nil },
		func(b []byte) []byte { b[600] ^= 1; return b },
		func(b []byte) []byte { clear(b[:512]); return b },
	} {
		d, _, _ := cutAt(t, 3)
		d.Put(imagePath+vault.Suffix, spoil(slices.Clone(whole)))
		was := content(t, d)
		out, err := Recover(t.Context(), imagePath, options(d))
		if !errors.Is(err, vault.ErrDamaged) || out[0].Did != DidNotRecover {
			t.Errorf("Recover = %+v, %v, want %v", out, err, vault.ErrDamaged)
		}
		if _, ok := d.Get(imagePath + vault.Suffix); !ok || !bytes.Equal(was, content(t, d)) {
			t.Error("Recover removed the undo file, or wrote to the image")
		}
	}
	d, _, _ = cutAt(t, 3)
	if err := d.Remove(imagePath + vault.Suffix); err != nil {
		t.Fatal(err)
	}
	if out, err := Recover(t.Context(), imagePath, options(d)); err == nil || len(out) != 1 {
		t.Errorf("Recover without the undo file = %+v, %v", out, err)
	}
}

// An undo file is not believed where it names files elsewhere.
func TestRecoverBelievesNoForeignPath(t *testing.T) {
	d, _, _ := cutAt(t, 3)
	undo, _ := d.Get(imagePath + vault.Suffix)
	if err := d.Remove(stateDir + "/undo/00112233445566778899aabbccddeeff.json"); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(imagePath + vault.Suffix); err != nil {
		t.Fatal(err)
	}
	d.Put("/tmp/evil"+vault.Suffix, undo)
	was := content(t, d)
	if _, err := Recover(t.Context(), "/tmp", options(d)); err == nil {
		t.Error("Recover takes the path of an image from an undo file")
	}
	if !bytes.Equal(was, content(t, d)) {
		t.Error("Recover wrote to an image that an undo file names")
	}
}

// A copy that is undone leaves the change in force in the image that it was made for.
func TestUndoOfCopyKeepsOriginal(t *testing.T) {
	const other = "/else/copy.img"
	d, p, before, after := world(t)
	mustApply(t, d, p)
	d.Put(other, content(t, d))
	for range 2 {
		if _, err := Undo(t.Context(), other, "", options(d)); err != nil {
			t.Fatal(err)
		}
		if got, _ := d.Get(other); !bytes.Equal(got, before) {
			t.Error("Undo of a copy did not give back the bytes")
		}
	}
	settled(t, d, "the original", after)
	if out, err := Recover(t.Context(), other, options(d)); err != nil || len(out) != 0 {
		t.Errorf("Recover of the copy = %+v, %v", out, err)
	}
	if n := hurtOf(t, d, imagePath); n != 1 {
		t.Errorf("%d changes are remembered of the original, want 1", n)
	}
	if _, err := Undo(t.Context(), imagePath, "", options(d)); err != nil || !bytes.Equal(before, content(t, d)) {
		t.Errorf("Undo of the original = %v", err)
	}
}

// Finished refuses what Apply would, and touches nothing.
func TestFinished(t *testing.T) {
	d, before, _ := cutAt(t, 3)
	fault(t, d, "")
	if err := Finished(t.Context(), imagePath, options(d)); !errors.Is(err, ErrUnfinished) {
		t.Errorf("Finished = %v, want %v", err, ErrUnfinished)
	}
	d.Put("/else/copy.img", content(t, d))
	if err := Finished(t.Context(), "/else/copy.img", options(d)); err != nil {
		t.Errorf("Finished of a copy = %v", err)
	}
	// Another image has the name, and the undo file is still beside it.
	d.Move(imagePath, "/img/old.img")
	d.Put(imagePath, slices.Repeat([]byte("another "), 9000))
	if err := Finished(t.Context(), imagePath, options(d)); err != nil {
		t.Errorf("Finished of an image that took the place = %v", err)
	}
	if err := Finished(t.Context(), "/img/old.img", options(d)); !errors.Is(err, ErrUnfinished) {
		t.Errorf("Finished of the image by its new name = %v, want %v", err, ErrUnfinished)
	}
	// A copy of the undo file makes a copy of the image unfinished: it can be recovered.
	undo, _ := d.Get(imagePath + vault.Suffix)
	d.Put("/else/copy.img"+vault.Suffix, undo)
	if err := Finished(t.Context(), "/else/copy.img", options(d)); !errors.Is(err, ErrUnfinished) {
		t.Errorf("Finished of a copy with a copy of the undo file = %v, want %v", err, ErrUnfinished)
	}
	if ops := d.Ops(); len(ops) != 0 {
		t.Errorf("Finished does %q", ops)
	}
	if _, err := Recover(t.Context(), "/else/copy.img", options(d)); err != nil {
		t.Error(err)
	}
	if got, _ := d.Get("/else/copy.img"); !bytes.Equal(got, before) {
		t.Error("Recover of the copy did not give back the bytes")
	}
}

// The earlier of two changes is not undone before the later one.
func TestUndoEarlier(t *testing.T) {
	d, p, before, after := world(t)
	mustApply(t, d, p)
	q := second(t, p, after)
	o := options(d)
	o.Now = func() time.Time { return options(d).Now().Add(time.Hour) }
	if _, err := Apply(t.Context(), q, o); err != nil {
		t.Fatal(err)
	}
	var later *LaterError
	if _, err := Undo(t.Context(), imagePath, p.ID, o); !errors.As(err, &later) || later.ID != q.ID ||
		later.Wanted != p.ID || !errors.Is(err, ErrLater) {
		t.Errorf("Undo of the earlier change = %v, want that %s is later", err, q.ID)
	}
	for _, id := range []string{q.ID, p.ID} {
		if _, err := Undo(t.Context(), imagePath, id, o); err != nil {
			t.Errorf("Undo of %s = %v", id, err)
		}
	}
	if !bytes.Equal(before, content(t, d)) {
		t.Error("it is not as it was before both")
	}
}

// What Undo says where nothing is in force.
func TestNothingToUndo(t *testing.T) {
	for state, want := range map[vault.State]string{
		"":               "no change of it is known",
		vault.RolledBack: "was rolled back",
		vault.Prepared:   "never begun",
	} {
		d, p, _, _ := world(t)
		switch state {
		case vault.RolledBack:
			fault(t, d, "EIO on write 4")
			if _, err := Apply(t.Context(), p, options(d)); !errors.Is(err, ErrRolledBack) {
				t.Fatalf("Apply = %v", err)
			}
		case vault.Prepared:
			mustApply(t, d, p)
			b, _ := d.Get(imagePath + vault.Suffix)
			at := bytes.Index(b, []byte("SHISASTA"))
			clear(b[at+512:])
			d.Put(imagePath+vault.Suffix, b)
		}
		fault(t, d, "")
		_, err := Undo(t.Context(), imagePath, "", options(d))
		if !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), want) {
			t.Errorf("Undo after %q = %v, want %v with %q", state, err, ErrNothing, want)
		}
	}
}

func TestUndoneAndChangedSince(t *testing.T) {
	d, p, _, _ := world(t)
	mustApply(t, d, p)
	if _, err := Undo(t.Context(), imagePath, "", options(d)); err != nil {
		t.Fatal(err)
	}
	poke(t, d, imagePath, lowAt)
	if _, err := Undo(t.Context(), imagePath, "", options(d)); !errors.Is(err, ErrChanged) {
		t.Errorf("Undo of what was undone, and changed since = %v, want %v", err, ErrChanged)
	}
}

// TestSetAside gives a change up that was cut off, of an image that was written to since: cut off at each
// operation it is as before, or done, and done again it ends.
func TestSetAside(t *testing.T) {
	d, p, _, _ := world(t)
	fault(t, d, "crash after op "+lastBefore(t))
	if _, err := Apply(t.Context(), p, options(d)); err == nil {
		t.Fatal("the power was not cut")
	}
	for s := range d.Survivors(1) {
		d = s
		break
	}
	accept := func(d *cut.Disk, accepted bool) Options {
		o := options(d)
		o.LeaveAsIs = func(image string) bool { return accepted && image == imagePath }
		return o
	}
	// What can be taken back is, whatever is accepted.
	if out, err := Recover(t.Context(), imagePath, accept(clone(t, d), true)); err != nil || len(out) != 1 ||
		out[0].Did != DidRollBack {
		t.Errorf("Recover of an image that nobody wrote to = %+v, %v", out, err)
	}
	poke(t, d, imagePath, countAt)
	w, err := d.OpenWithoutLocks(imagePath)
	if err == nil {
		err = errors.Join(w.Sync(), w.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	was := content(t, d)
	undo, ok := d.Get(imagePath + vault.Suffix)
	if !ok {
		t.Fatal("there is no undo file")
	}
	if _, err := Recover(t.Context(), imagePath, accept(d, false)); !errors.Is(err, ErrChanged) {
		t.Fatalf("Recover, not accepted = %v, want %v", err, ErrChanged)
	}
	aside := imagePath + vault.Suffix + ".aside-" + p.ID
	taken := clone(t, d)
	taken.Put(aside, []byte("of somebody else"))
	if _, err := Recover(t.Context(), imagePath, accept(taken, true)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Recover where the name is taken = %v, want %v", err, fs.ErrExist)
	}
	if b, _ := taken.Get(imagePath + vault.Suffix); !bytes.Equal(b, undo) {
		t.Error("the undo file is gone, and its new name was taken")
	}
	for k := 0; ; k++ {
		s := clone(t, d)
		fault(t, s, "crash after op "+strconv.Itoa(k))
		out, err := Recover(t.Context(), imagePath, accept(s, true))
		if err == nil {
			if k < 3 || len(out) != 1 || out[0].Did != DidSetAside || out[0].UndoPath != aside ||
				out[0].Receipt.State != vault.SetAside {
				t.Errorf("Recover, accepted = %+v after %d operations", out, k)
			}
			fault(t, s, "")
			_, err := Undo(t.Context(), imagePath, "", options(s))
			if !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), "was given up") {
				t.Errorf("Undo of what was given up = %v, want %v", err, ErrNothing)
			}
			return
		}
		survivors(s, k, func(n int, s *cut.Disk) {
			what := fmt.Sprintf("cut after %d, state %d", k, n)
			if _, err := Recover(t.Context(), imagePath, accept(s, true)); err != nil {
				t.Errorf("%s: Recover = %v", what, err)
			}
			if kept, _ := s.Get(aside); !bytes.Equal(kept, undo) || !bytes.Equal(content(t, s), was) {
				t.Errorf("%s: the undo file or the image is another", what)
			}
			if err := Finished(t.Context(), imagePath, options(s)); err != nil {
				t.Errorf("%s: Finished = %v", what, err)
			}
		})
	}
}
