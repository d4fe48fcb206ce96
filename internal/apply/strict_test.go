// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/lab/cut"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/vault"
)

// stateSync gives which sync of a run is that of the n-th state that it notes.
func stateSync(ops []string, n int) int {
	syncs := 0
	for i, op := range ops {
		if !strings.HasPrefix(op, "sync") {
			continue
		}
		syncs++
		if op == "sync "+imagePath+vault.Suffix && i > 0 && strings.HasSuffix(ops[i-1], "+512") {
			if n--; n == 0 {
				return syncs
			}
		}
	}
	return 0
}

// The sync of a state failed: programs see the state, and the disk may have the one before. Recovering
// may write to the image only when the disk tells that it is being written, for the power may be cut
// again.
func TestStateMadeSureBeforeTheImage(t *testing.T) {
	for _, undo := range []bool{false, true} {
		do := func(d *cut.Disk, p *plan.Plan) error {
			if undo {
				_, err := Undo(t.Context(), imagePath, "", options(d))
				return err
			}
			_, err := Apply(t.Context(), p, options(d))
			return err
		}
		d, p, before, after := world(t)
		if undo {
			mustApply(t, d, p)
		}
		base := clone(t, d)
		fault(t, d, "")
		if err := do(d, p); err != nil {
			t.Fatal(err)
		}
		for n := 1; ; n++ {
			sync := stateSync(d.Ops(), n)
			if sync == 0 {
				if n < 3 {
					t.Errorf("%d states are noted, want two at least", n-1)
				}
				break
			}
			for _, forward := range []bool{false, true} {
				for k := 0; ; k++ {
					d := clone(t, base)
					fault(t, d, "fsync error "+strconv.Itoa(sync))
					if err := do(d, p); !errors.Is(err, ErrInterrupted) {
						t.Fatalf("undo %v, state %d: %v, want %v", undo, n, err, ErrInterrupted)
					}
					fault(t, d, "crash after op "+strconv.Itoa(k))
					o := options(d)
					o.Forward = forward
					if _, err := Recover(t.Context(), imagePath, o); err == nil {
						break
					}
					survivors(d, k, func(_ int, s *cut.Disk) {
						recovered(t, s, false, fmt.Sprintf("undo %v, the sync of state %d failed, recovery forward=%v "+
							"cut after %d", undo, n, forward, k), before, after)
					})
				}
			}
		}
	}
}

// An error of the write of "committed" may come although it is on its way to the disk. It must not be
// there while the image is being taken back.
func TestCommittedThatWasNotMeant(t *testing.T) {
	d, p, _, _ := world(t)
	fault(t, d, "")
	mustApply(t, d, p)
	writes, commit := 0, 0
	for _, op := range d.Ops() {
		if strings.HasPrefix(op, "write ") {
			writes++
		}
		if strings.HasPrefix(op, "write "+imagePath+vault.Suffix) {
			commit = writes
		}
	}
	ended := false
	for k := 1; !ended; k++ {
		d, p, before, after := world(t)
		fault(t, d, fmt.Sprintf("EIO after write %d; crash after op %d", commit, k))
		_, err := Apply(t.Context(), p, options(d))
		if ended = errors.Is(err, ErrRolledBack); ended {
			settled(t, d, "rolled back", before)
		}
		survivors(d, k, func(_ int, s *cut.Disk) {
			recovered(t, s, false, fmt.Sprintf("committed failed, cut after %d", k), before, after)
		})
	}
}

// After a sync that failed the machine may forget what it was to write, and programs see old bytes.
func TestEvicted(t *testing.T) {
	for k := 1; k <= 30; k++ {
		for _, forward := range []bool{false, true} {
			d, p, before, after := world(t)
			fault(t, d, "fsync error "+strconv.Itoa(k))
			if _, err := Apply(t.Context(), p, options(d)); err == nil {
				return
			}
			d.Evict()
			recovered(t, d, forward, fmt.Sprintf("fsync error %d, evicted, forward=%v", k, forward), before, after)
			side := content(t, d)
			few(d, k, 20, func(s *cut.Disk) {
				recovered(t, s, false, fmt.Sprintf("fsync error %d, evicted, recovered, cut", k), side)
			})
		}
	}
	t.Error("Apply has more than 30 syncs, or none that may fail")
}

// The sync after the last write failed, and then somebody wrote to the image, which looked whole. It
// is taken for whole only where that last write is on the disk, and stays there.
func TestForwardAfterLastSyncFailed(t *testing.T) {
	for _, evicted := range []bool{false, true} {
		d, p, _, _ := world(t)
		syncs, last := 0, 0
		fault(t, d, "")
		mustApply(t, d, p)
		for _, op := range d.Ops() {
			if strings.HasPrefix(op, "sync") {
				syncs++
			}
			if op == "sync "+imagePath {
				last = syncs
			}
		}
		d, p, before, after := world(t)
		fault(t, d, "fsync error "+strconv.Itoa(last))
		if _, err := Apply(t.Context(), p, options(d)); !errors.Is(err, ErrInterrupted) {
			t.Fatalf("Apply = %v, want %v", err, ErrInterrupted)
		}
		o := options(d)
		if evicted {
			// Programs see it until the cache is dropped.
			o.Disk = &forgetful{d}
		}
		poke(t, d, imagePath, lowAt)
		after[lowAt] ^= 0x55
		o.Forward = true
		out, err := Recover(t.Context(), imagePath, o)
		if evicted {
			if !errors.Is(err, ErrChanged) || bytes.Equal(content(t, d)[:512], before[:512]) {
				t.Errorf("Recover of an image without its last write = %+v, %v, want %v", out, err, ErrChanged)
			}
			continue
		}
		if err != nil || len(out) != 1 || out[0].Did != DidCommit {
			t.Fatalf("Recover = %+v, %v, want it committed", out, err)
		}
		for s := range d.Survivors(1) {
			if got := content(t, s); !bytes.Equal(got[:512], after[:512]) {
				t.Error("the last write of what is committed is not on the disk")
			}
		}
	}
}

// forgetful is a disk whose cache, once dropped, has lost what a sync could not write.
type forgetful struct{ *cut.Disk }

type forgetfulFile struct {
	diskio.Writable
	d *cut.Disk
}

func (d *forgetful) OpenForRepair(path string) (diskio.Writable, error) {
	f, err := d.Disk.OpenForRepair(path)
	if err != nil {
		return nil, err
	}
	return forgetfulFile{f, d.Disk}, nil
}

func (f forgetfulFile) DropCache() error {
	f.d.Evict()
	return f.Writable.DropCache()
}

// A plan that was changed after its approval is not carried out.
func TestEditedInMemory(t *testing.T) {
	for name, edit := range map[string]func(*plan.Plan){
		"a byte":      func(p *plan.Plan) { p.Writes[4].New[0] ^= 1 },
		"a write":     func(p *plan.Plan) { p.Writes = slices.Delete(p.Writes, 2, 3) },
		"the summary": func(p *plan.Plan) { p.Steps[0].Summary = "nothing at all" },
		"the fence":   func(p *plan.Plan) { p.Fence.New[0] ^= 1 },
	} {
		d, p, before, after := world(t)
		if err := p.Seal(); err != nil {
			t.Fatal(err)
		}
		sum := p.SHA256
		edit(p)
		if _, err := Apply(t.Context(), p, options(d)); !errors.Is(err, plan.ErrEdited) {
			t.Errorf("Apply of a plan of which %s was changed = %v, want %v", name, err, plan.ErrEdited)
		}
		if !bytes.Equal(before, content(t, d)) || len(d.Paths()) != 1 {
			t.Errorf("%s: the image was touched, or %q is left", name, d.Paths())
		}
		_, q, _, _ := world(t)
		if err := q.Seal(); err != nil {
			t.Fatal(err)
		}
		if r := mustApply(t, d, q); r.PlanDigest != sum || !bytes.Equal(after, content(t, d)) {
			t.Errorf("the receipt names the plan %s, want %s", r.PlanDigest, sum)
		}
	}
}

// A file system that can be read only does not know which file is missing, and says so of any.
type readOnly struct {
	*cut.Disk
	below string
}

func (d *readOnly) refuse(path string) error {
	if strings.HasPrefix(path, d.below) {
		return fmt.Errorf("%s: %w", path, syscall.EROFS)
	}
	return nil
}

func (d *readOnly) MakeDir(path string, perm fs.FileMode) error {
	return errors.Join(d.refuse(path), d.Disk.MakeDir("/nothing", perm))
}
func (d *readOnly) Remove(path string) error {
	if err := d.refuse(path); err != nil {
		return err
	}
	return d.Disk.Remove(path)
}

// Where no receipt can be written nothing is changed and nothing is left; a recovery, which may have
// to do without, puts the image right all the same.
func TestReadOnlyState(t *testing.T) {
	d, p, before, _ := world(t)
	o := options(d)
	o.Disk = &readOnly{d, stateDir}
	if _, err := Apply(t.Context(), p, o); !errors.Is(err, syscall.EROFS) || errors.Is(err, ErrInterrupted) {
		t.Errorf("Apply = %v, want %v", err, syscall.EROFS)
	}
	if got := d.Paths(); !slices.Equal(got, []string{imagePath}) || !bytes.Equal(before, content(t, d)) {
		t.Errorf("Apply touched the image, or left %q", got)
	}
	d, before, _ = cutAt(t, 4)
	o = options(d)
	o.Disk = &readOnly{d, stateDir}
	if _, err := Recover(t.Context(), imagePath, o); !errors.Is(err, syscall.EROFS) {
		t.Errorf("Recover = %v, want it to say that the receipt could not be written", err)
	}
	if !bytes.Equal(before, content(t, d)) {
		t.Error("Recover did not put the image right")
	}
	if _, err := Recover(t.Context(), imagePath, options(d)); err != nil {
		t.Errorf("Recover with a state directory = %v", err)
	}
	settled(t, d, "after both", before)
}

// noSync is a disk with a directory that the file system does not write to the disk when told to.
type noSync struct {
	*cut.Disk
	dir string
}

func (d *noSync) SyncDir(path string) error {
	if path == d.dir {
		return fmt.Errorf("%w: %s", diskio.ErrNoSync, path)
	}
	return d.Disk.SyncDir(path)
}

// Where nobody knows whether the undo file or the receipt is found after a power cut nothing is
// changed, and nothing is left.
func TestNoSync(t *testing.T) {
	for _, dir := range []string{"/img", "/journal", stateDir + "/undo"} {
		d, p, before, after := world(t)
		d.Put("/journal/note", nil)
		o := options(d)
		o.Disk = &noSync{d, dir}
		if dir == "/journal" {
			o.JournalDir = dir
		}
		_, err := Apply(t.Context(), p, o)
		if !errors.Is(err, diskio.ErrNoSync) || errors.Is(err, ErrInterrupted) {
			t.Errorf("Apply without sync of %s = %v, want %v", dir, err, diskio.ErrNoSync)
		}
		want := []string{imagePath, "/journal/note"}
		if got := d.Paths(); !slices.Equal(got, want) || !bytes.Equal(before, content(t, d)) {
			t.Errorf("Apply without sync of %s touched the image, or left %q", dir, got)
		}
		if dir != "/img" {
			continue
		}
		o.JournalDir = "/journal"
		if _, err := Apply(t.Context(), p, o); err != nil || !bytes.Equal(after, content(t, d)) {
			t.Errorf("Apply with a journal elsewhere = %v, or other bytes", err)
		}
	}
}

// The clock went back between two changes: what is undone is known by the bytes, not by the time.
func TestClockGoesBack(t *testing.T) {
	d, p, before, after := world(t)
	mustApply(t, d, p)
	q := second(t, p, after)
	o := options(d)
	o.Now = func() time.Time { return options(d).Now().Add(-time.Hour) }
	if _, err := Apply(t.Context(), q, o); err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]byte{after, before} {
		if r, err := Undo(t.Context(), imagePath, "", o); err != nil || !bytes.Equal(want, content(t, d)) {
			t.Errorf("Undo = %+v, %v, or not the image that was before", r, err)
		}
	}
}

// second is a plan of another change, made from the image that the first one left.
func second(t *testing.T, p *plan.Plan, after []byte) *plan.Plan {
	t.Helper()
	q := *p
	q.ID, q.Fence, q.Relies, q.SHA256 = "ff112233445566778899aabbccddeeff", nil, nil, ""
	q.Object.SizeBytes, q.SizeAfterBytes = int64(len(after)), int64(len(after))
	q.Writes = []plan.Write{
		{Phase: plan.Count, Offset: lowAt, Old: slices.Clone(after[lowAt : lowAt+6]), New: []byte("second")},
		{Phase: plan.Switch, Offset: 8, Old: slices.Clone(after[8:14]), New: []byte("switch")},
	}
	if err := q.Validate(); err != nil {
		t.Fatal(err)
	}
	return &q
}

// Two changes were left in the middle, the second one by somebody who did not know of the first.
// They are taken back in the right order, wherever they are found.
func TestRecoverTwo(t *testing.T) {
	for _, target := range []string{imagePath, "/img", "/", ""} {
		d, before, _ := cutAt(t, 4)
		hidden, _ := d.Get(imagePath + vault.Suffix)
		receipt, _ := d.Get(stateDir + "/undo/" + planID + ".json")
		if err := errors.Join(d.Remove(imagePath+vault.Suffix),
			d.Remove(stateDir+"/undo/"+planID+".json"),
			d.SyncDir("/img"), d.SyncDir(stateDir+"/undo")); err != nil {
			t.Fatal(err)
		}
		_, p, _, _ := world(t)
		q := second(t, p, content(t, d))
		o := options(d)
		o.Now = func() time.Time { return options(d).Now().Add(time.Hour) }
		fault(t, d, "")
		d2 := clone(t, d)
		o.Disk = d2
		if _, err := Apply(t.Context(), q, o); err != nil {
			t.Fatal(err)
		}
		fault(t, d, "crash after op "+strconv.Itoa(len(d2.Ops())-6)) // before it is committed
		o.Disk = d
		if _, err := Apply(t.Context(), q, o); !errors.Is(err, cut.ErrCut) {
			t.Fatalf("the second Apply = %v", err)
		}
		d = clone(t, d)
		newer, _ := d.Get(imagePath + vault.Suffix)
		// The name says nothing of the order.
		d.Put(imagePath+vault.Suffix, hidden)
		d.Put(imagePath+vault.Suffix+".2", newer)
		d.Put(stateDir+"/undo/"+planID+".json", receipt)
		if r, err := vaultOf(t, d).Receipt(q.ID); err != nil {
			t.Fatal(err)
		} else if r.UndoPath = imagePath + vault.Suffix + ".2"; vaultOf(t, d).Put(r) != nil {
			t.Fatal("the receipt was not written")
		}
		out, err := Recover(t.Context(), target, options(d))
		if err != nil || len(out) != 2 || out[0].ID != q.ID {
			t.Errorf("Recover(%q) = %+v, %v, want the newer change first", target, out, err)
		}
		settled(t, d, "two, "+target, before)
	}
}

func vaultOf(t *testing.T, d *cut.Disk) *vault.Vault {
	t.Helper()
	v, err := vault.New(vault.Options{Disk: d, StateDir: stateDir})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A change that ended is no business of a machine that runs by now.
func TestRecoverOfWhatRuns(t *testing.T) {
	d, p, _, _ := world(t)
	mustApply(t, d, p)
	w, err := d.OpenForRepair(imagePath)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, lost := range []bool{false, true} {
		if lost {
			if err := d.Remove(stateDir + "/undo/" + planID + ".json"); err != nil {
				t.Fatal(err)
			}
		}
		out, err := Recover(t.Context(), "/img", options(d))
		if err != nil || len(out) != 1 || out[0].Did != DidNothing || out[0].ID != planID {
			t.Errorf("Recover of a directory with an image that runs, receipt lost %v = %+v, %v", lost, out, err)
		}
	}
}

// A backup of the image, made before a change that was then cut off, is not what has to be recovered.
func TestRecoverOfBackup(t *testing.T) {
	const backup = "/img/backup.img"
	for n := 1; n <= switched; n++ {
		for _, made := range []string{"before", "in the middle"} {
			d, before, _ := cutAt(t, n)
			if made == "before" {
				d.Put(backup, before)
			} else {
				d.Put(backup, content(t, d))
			}
			was, _ := d.Get(backup)
			out, err := Recover(t.Context(), backup, options(d))
			got, _ := d.Get(backup)
			if err != nil || len(out) > 0 && !bytes.Equal(got, before) || len(out) == 0 && !bytes.Equal(got, was) {
				t.Errorf("after sync %d, a copy made %s: Recover = %+v, %v", n, made, out, err)
			}
			if out, err := Recover(t.Context(), backup, options(d)); err != nil || len(out) > 0 {
				t.Errorf("after sync %d, a copy made %s: another Recover = %+v, %v", n, made, out, err)
			}
			if _, ok := d.Get(backup + vault.Suffix); ok {
				t.Errorf("after sync %d, a copy made %s got an undo file", n, made)
			}
			// It has not become the only way back for the image itself.
			out, err = Recover(t.Context(), imagePath, options(d))
			if err != nil || len(out) != 1 || out[0].Did != DidRollBack {
				t.Errorf("after sync %d, a copy made %s: Recover of the image = %+v, %v", n, made, out, err)
			}
			settled(t, d, "with a copy", before)
		}
	}
}

// A copy that was made in the middle of a change, of an image that has no fence, is recovered with an
// undo file of its own.
func TestRecoverOfHalfDoneCopy(t *testing.T) {
	const other = "/else/copy.img"
	build := func() (*cut.Disk, *plan.Plan, []byte, []byte) {
		before := bytes.Repeat([]byte("old."), 20<<10) // what changes is behind what it is known by
		after := slices.Clone(before)
		p := &plan.Plan{Schema: plan.Schema, ID: planID, Tool: "test", SizeAfterBytes: int64(len(before)),
			Object: plan.Object{Path: imagePath, Dev: 1, Ino: 1, SizeBytes: int64(len(before))}}
		for _, ph := range []plan.Phase{plan.Count, plan.Point} {
			off := int64(vault.HeadBytes + 1000*(1+len(p.Writes)))
			p.Writes = append(p.Writes, plan.Write{Phase: ph, Offset: off, New: []byte("new!"),
				Old: slices.Clone(before[off : off+4])})
			copy(after[off:], "new!")
		}
		d := cut.New(t.Context())
		d.Put(imagePath, before)
		return d, p, before, after
	}
	d, p, before, after := build()
	fault(t, d, "")
	mustApply(t, d, p)
	k := slices.Index(d.Ops(), "sync "+imagePath) + 1
	for _, forward := range []bool{false, true} {
		d, p, _, _ = build()
		fault(t, d, "crash after op "+strconv.Itoa(k))
		if _, err := Apply(t.Context(), p, options(d)); !errors.Is(err, cut.ErrCut) {
			t.Fatal(err)
		}
		d = clone(t, d)
		d.Put(other, content(t, d))
		o := options(d)
		o.Forward = forward
		want, did := before, DidRollBack
		if forward {
			want, did = after, DidCommit
		}
		out, err := Recover(t.Context(), other, o)
		if err != nil || len(out) != 1 || out[0].Did != did || out[0].UndoPath != other+vault.Suffix {
			t.Errorf("Recover of the copy = %+v, %v", out, err)
		}
		if got, _ := d.Get(other); !bytes.Equal(got, want) {
			t.Error("the copy is not what it should be")
		}
		if out, err := Recover(t.Context(), other, o); err != nil || len(out) != 0 {
			t.Errorf("another Recover of the copy = %+v, %v", out, err)
		}
		if out, err := Recover(t.Context(), imagePath, options(d)); err != nil || len(out) != 1 || out[0].Did != DidRollBack {
			t.Errorf("Recover of the image = %+v, %v", out, err)
		}
		settled(t, d, "with a half-done copy", before)
	}
}

// An image that was renamed after the crash is not found by its directory, and that is said.
func TestRecoverDirectoryOfRenamed(t *testing.T) {
	d, before, _ := cutAt(t, 3)
	d.Move(imagePath, "/img/b.img")
	if _, err := Recover(t.Context(), "/img", options(d)); err == nil || !strings.Contains(err.Error(), "renamed") {
		t.Errorf("Recover = %v, want a word on the image that is not there", err)
	}
	if out, err := Recover(t.Context(), "/img/b.img", options(d)); err != nil || len(out) != 1 {
		t.Errorf("Recover = %+v, %v", out, err)
	}
	if got, _ := d.Get("/img/b.img"); !bytes.Equal(got, before) {
		t.Error("Recover did not give back the bytes")
	}

	// Before the first write it does not matter where the image is.
	d, p, _, _ := world(t)
	fault(t, d, "")
	mustApply(t, d, p)
	k := slices.Index(d.Ops(), "syncdir "+stateDir+"/undo") + 1
	d, p, before, _ = world(t)
	fault(t, d, "crash after op "+strconv.Itoa(k))
	if _, err := Apply(t.Context(), p, options(d)); !errors.Is(err, cut.ErrCut) {
		t.Fatal(err)
	}
	d = clone(t, d)
	d.Move(imagePath, "/img/b.img")
	for _, want := range []int{1, 0} {
		out, err := Recover(t.Context(), "", options(d))
		if err != nil || len(out) != want || want == 1 && out[0].Did != DidRollBack {
			t.Errorf("Recover of what was prepared = %+v, %v", out, err)
		}
	}
	d.Move("/img/b.img", imagePath)
	settled(t, d, "prepared, renamed", before)
}

// Without locks nobody knows whether a change whose undo file is being made is under way.
func TestRecoverAloneNeedsLocks(t *testing.T) {
	d, _, _ := cutAt(t, 3)
	undo, _ := d.Get(imagePath + vault.Suffix)
	d = cut.New(t.Context())
	d.SetNoLocks()
	d.Put("/journal/a.img."+planID+vault.Suffix, undo[:700])
	if _, err := Recover(t.Context(), "/journal", options(d)); !errors.Is(err, diskio.ErrNoLocks) {
		t.Errorf("Recover = %v, want %v", err, diskio.ErrNoLocks)
	}
	if len(d.Paths()) != 1 {
		t.Error("Recover removed an undo file that may be in the making")
	}
	o := options(d)
	o.AcceptNoLocks = true
	if _, err := Recover(t.Context(), "/journal", o); err != nil || len(d.Paths()) != 0 {
		t.Errorf("Recover = %v, %q is left", err, d.Paths())
	}
}

// Locks that stay on this host say nothing of machines on other ones.
func TestLocalLocks(t *testing.T) {
	d, p, before, after := world(t)
	o := options(d)
	o.Root = t.TempDir()
	self := filepath.Join(o.Root, "proc/self")
	mounts := "40 21 0:1 / /img rw - nfs srv:/a rw,vers=3,nolock,local_lock=all\n"
	if err := errors.Join(os.MkdirAll(self, 0o700),
		os.WriteFile(filepath.Join(self, "mountinfo"), []byte(mounts), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := Apply(t.Context(), p, o); !errors.Is(err, diskio.ErrNoLocks) || !bytes.Equal(before, content(t, d)) {
		t.Errorf("Apply = %v, want %v", err, diskio.ErrNoLocks)
	}
	o.AcceptNoLocks = true
	if _, err := Apply(t.Context(), p, o); err != nil || !bytes.Equal(after, content(t, d)) {
		t.Errorf("Apply at the user's risk = %v", err)
	}
}

// What an undo file says is written to an image only if its owner may write there.
func TestForeignUndoFile(t *testing.T) {
	d, _, _ := cutAt(t, 3)
	d.SetOwner(imagePath+vault.Suffix, 1234567)
	was := content(t, d)
	for _, target := range []string{imagePath, "/img", ""} {
		if _, err := Recover(t.Context(), target, options(d)); !errors.Is(err, vault.ErrForeign) {
			t.Errorf("Recover(%q) = %v, want %v", target, err, vault.ErrForeign)
		}
	}
	_, p, _, _ := world(t)
	p.ID = "ff112233445566778899aabbccddeeff"
	if _, err := Apply(t.Context(), p, options(d)); !errors.Is(err, vault.ErrForeign) {
		t.Errorf("Apply beside it = %v, want %v", err, vault.ErrForeign)
	}
	if !bytes.Equal(was, content(t, d)) {
		t.Error("the image was written to")
	}
	d.SetOwner(imagePath, 1234567) // who may write to the image anyhow
	if _, err := Recover(t.Context(), imagePath, options(d)); err != nil {
		t.Errorf("Recover of an image of the same owner = %v", err)
	}

	d, p, _, after := world(t)
	mustApply(t, d, p)
	d.SetOwner(imagePath+vault.Suffix, 1234567)
	if _, err := Undo(t.Context(), imagePath, "", options(d)); !errors.Is(err, vault.ErrForeign) ||
		!bytes.Equal(after, content(t, d)) {
		t.Errorf("Undo = %v, want %v", err, vault.ErrForeign)
	}
}

// What cannot be read stops what it may concern, and nothing else.
func TestUndoBesideUnreadable(t *testing.T) {
	d, p, before, after := world(t)
	mustApply(t, d, p)
	d.Put(stateDir+"/undo/"+strings.Repeat("2", 32)+".json", []byte(`{"schema":`))
	newer, _ := d.Get(imagePath + vault.Suffix)
	newer[8] = 9
	d.Put(imagePath+vault.Suffix+".2", newer)
	if _, err := Undo(t.Context(), imagePath, "", options(d)); !errors.Is(err, vault.ErrNewer) ||
		!bytes.Equal(after, content(t, d)) {
		t.Errorf("Undo beside a newer undo file = %v, want %v", err, vault.ErrNewer)
	}
	d.Put(imagePath+vault.Suffix+".2", []byte("of somebody else"))
	if _, err := Undo(t.Context(), imagePath, "", options(d)); err != nil || !bytes.Equal(before, content(t, d)) {
		t.Errorf("Undo with a receipt of another image that is damaged = %v", err)
	}
	d.Put("/img/b.img", before)
	if _, err := Undo(t.Context(), "/img/b.img", strings.Repeat("3", 32), options(d)); !errors.Is(err, ErrNothing) ||
		!errors.Is(err, vault.ErrDamaged) {
		t.Errorf("Undo of what is not known = %v, want it to say what could not be read", err)
	}
}

// Room is needed once for each file system, whatever numbers they tell.
func TestRoom(t *testing.T) {
	_, p, _, _ := world(t)
	draft := func() int64 {
		d, p, _, _ := world(t)
		mustApply(t, d, p)
		b, _ := d.Get(imagePath + vault.Suffix)
		return int64(len(b)) + 5*4096
	}()
	grows := p.GrowsBy()
	for _, tc := range []struct {
		name            string
		image, journals int64 // free
		where           string
	}{
		{"enough", grows, draft, ""},
		{"the same numbers, enough for both", grows + draft, grows + draft, ""},
		{"the same numbers, enough for each", max(grows, draft), max(grows, draft), ""},
		{"too little for the image", grows - 1, draft, "/img"},
		{"too little for the undo file", grows, draft / 3, "/journal"},
	} {
		d, p, _, _ := world(t)
		d.SetFree(tc.image)
		d.SetFreeAt("/journal", tc.journals)
		o := options(d)
		o.JournalDir = "/journal"
		_, err := Apply(t.Context(), p, o)
		var room *RoomError
		if errors.As(err, &room) != (tc.where != "") || err != nil && room.Where != tc.where {
			t.Errorf("%s: Apply = %v, want no room at %q", tc.name, err, tc.where)
		}
	}
	d, p, _, _ := world(t)
	d.SetFree(max(grows, draft) + 100) // for either, and not for both
	if _, err := Apply(t.Context(), p, options(d)); !errors.Is(err, ErrNoRoom) {
		t.Errorf("Apply with room for one = %v, want %v", err, ErrNoRoom)
	}
}

// A block device has another inode after the host was started again.
func TestRecoverDeviceAfterRestart(t *testing.T) {
	build := func() (*cut.Disk, *plan.Plan, []byte) {
		d := cut.New(t.Context())
		p, before, _ := makeUp(t, 1, 1, imagePath)
		p.SizeAfterBytes = p.Object.SizeBytes
		p.Writes = slices.DeleteFunc(p.Writes, func(w plan.Write) bool { return w.End() > oldBytes })
		p.Relies = p.Relies[:3]
		d.PutBlock(imagePath, before)
		return d, p, before
	}
	d, p, before := build()
	fault(t, d, "")
	mustApply(t, d, p)
	k := 0
	for i, op := range d.Ops() {
		if op == "sync "+imagePath {
			if k++; k == 3 {
				k = i + 1
				break
			}
		}
	}
	d, p, _ = build()
	fault(t, d, "crash after op "+strconv.Itoa(k))
	if _, err := Apply(t.Context(), p, options(d)); !errors.Is(err, cut.ErrCut) {
		t.Fatal(err)
	}
	d = clone(t, d)
	d.PutBlock(imagePath, content(t, d))
	p.ID = "ff112233445566778899aabbccddeeff"
	p.Object.Ino = 0 // whatever it is by now
	if _, err := Apply(t.Context(), p, options(d)); !errors.Is(err, ErrUnfinished) {
		t.Errorf("Apply = %v, want %v", err, ErrUnfinished)
	}
	out, err := Recover(t.Context(), imagePath, options(d))
	if err != nil || len(out) != 1 || !bytes.Equal(before, content(t, d)) {
		t.Errorf("Recover = %+v, %v, or other bytes", out, err)
	}
	settled(t, d, "a device", before)
}

// Undoing does not wait for a long range that a hostile undo file wants read, when it is stopped.
func TestWatchIsStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	reads := 0
	r := reading{ctx, readerFunc(func(p []byte, _ int64) (int, error) {
		if reads++; reads == 3 {
			cancel()
		}
		return len(p), nil
	})}
	if _, err := plan.DigestOf(r, 1<<50, 0, 1<<50, make([]byte, 10)); !errors.Is(err, context.Canceled) || reads != 3 {
		t.Errorf("DigestOf = %v after %d reads, want %v", err, reads, context.Canceled)
	}
}

type readerFunc func(p []byte, off int64) (int, error)

func (f readerFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

var _ io.ReaderAt = readerFunc(nil)
