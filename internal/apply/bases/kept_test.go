// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/vault"
)

// stays tells of a file that does not have the state that it should have among the bases, by its inode.
func (f *stock) stays(ino uint64, want refs.State) {
	f.t.Helper()
	c, err := f.look(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	var got []refs.State
	for i := range c.All {
		if c.All[i].File.Ino == ino {
			got = append(got, c.All[i].State)
		}
	}
	if len(got) != 1 || got[0] != want {
		f.t.Errorf("inode %d is %q, want %s", ino, got, want)
	}
}

// TestQuarantineOfKept: what was removed and only its shield keeps is set aside without its name coming back, and is
// removed for good, or brought back, as any other; a new file under its name does not matter.
func TestQuarantineOfKept(t *testing.T) {
	for _, anew := range []bool{false, true} {
		f := newStock(t, "a", "b", "used")
		f.image("disk", "used")
		files := f.files("a", "b")
		f.remove("a")
		f.remove("b")
		if anew {
			f.write("a", "made anew")
			f.protect(ProtectOptions{NoRecord: true}, "a")
		}
		f.stays(files["a"], refs.ByShield)
		f.plan()
		f.reports()
		p := f.plan("a", "b")
		d, err := Quarantine(t.Context(), p, f.decision(), f.options())
		want := 2
		if anew {
			want = 3
		}
		if err != nil || len(d.Quarantined) != want || len(d.Left) > 0 {
			t.Fatalf("anew %v: Quarantine = %+v, %v by %+v %+v", anew, d, err, p.Blockers, p.All)
		}
		f.stays(files["a"], refs.Quarantined)
		for _, h := range f.state().Held {
			if h.Links != 2 {
				t.Errorf("anew %v: %+v, want the name in quarantine and that of the shield", anew, h)
			}
		}
		if got := f.problems(files, true); got != nil {
			t.Error(got)
		}
		if anew {
			continue
		}
		if _, err := Restore(t.Context(), "b", RestoreOptions{}, f.options()); err != nil || f.files("b")["b"] != files["b"] {
			t.Errorf("Restore = %v", err)
		}
		f.reports()
		if d, err := f.purge(f.options()); err != nil || len(d.Purged) != 1 {
			t.Fatalf("Purge = %+v, %v", d, err)
		}
		for _, h := range f.state().Shields {
			if h.ID.Ino == files["a"] {
				t.Errorf("%s is there still", h.Path)
			}
		}
	}
}

// TestKeptNotSetAside: what only its shield keeps stays where somebody wants it, whatever name that is by.
func TestKeptNotSetAside(t *testing.T) {
	for name, want := range map[string]func(f *stock, ino uint64){
		"a pin by its name": func(f *stock, _ uint64) { f.pin("a") },
		"a pin by its inode": func(f *stock, ino uint64) {
			p := &pool.Pin{Schema: pool.PinSchema, ID: strings.Repeat("a", 32), Name: "other", Inode: ino, Reason: "x", Node: "n1",
				Time: f.state().Clock, Uses: []pool.Use{}}
			if err := newKeeper(f.options()).pin(f.t.Context(), p, &pool.Done{}); err != nil {
				f.t.Fatal(err)
			}
		},
		"a name that nobody knows": func(f *stock, _ uint64) {
			if err := os.Link(f.state().ShieldsOf("a")[0].Path, f.path("../mine")); err != nil {
				f.t.Fatal(err)
			}
		},
		"an image that rests on its shield": func(f *stock, _ uint64) {
			if err := writeOverlay(f.path("../new"), f.state().ShieldsOf("a")[0].Path); err != nil {
				f.t.Fatal(err)
			}
		},
		"an image that rests on its name": func(f *stock, _ uint64) { f.image("new", "a") },
	} {
		f := newStock(t, "a", "b")
		files := f.files("a")
		f.remove("a")
		p := f.plan("a")
		if all := p.With(judge.MayQuarantine); len(all) != 1 || all[0].State != refs.ByShield {
			t.Fatalf("may be set aside: %+v, want a", all)
		}
		want(f, files["a"])
		d, err := Quarantine(t.Context(), p, f.decision(), f.options())
		if err != nil || len(d.Quarantined) > 0 || len(d.Left) != 1 || len(f.state().Held) > 0 {
			t.Errorf("%s: Quarantine = %+v, %v, want it left", name, d, err)
		}
		f.wantKept(files, name)
	}
}

// linked does something after each link.
type linked struct {
	diskio.Links
	after func(to string)
}

func (l linked) Link(id diskio.ID, from, to string) error {
	err := l.Links.Link(id, from, to)
	l.after(to)
	return err
}

// TestKeptBroughtBackMeanwhile: who brings back what is set aside at this very moment has it, under whatever name, and
// nothing of it is in quarantine.
func TestKeptBroughtBackMeanwhile(t *testing.T) {
	for _, as := range []string{"a", "as"} {
		f := newStock(t, "a", "b")
		files := f.files("a")
		f.remove("a")
		o := f.options()
		o.Links = linked{diskio.HostLinks(), func(to string) {
			if strings.Contains(to, "/"+pool.Quarantine+"/") {
				if err := os.Link(to, f.path(as)); err != nil {
					t.Fatal(err)
				}
			}
		}}
		d, err := Quarantine(t.Context(), f.plan("a"), f.decision(), o)
		if err != nil || len(d.Quarantined) > 0 || len(d.Left) != 1 || !strings.Contains(d.Left[0].Why, "a name meanwhile") {
			t.Errorf("%s: Quarantine = %+v, %v", as, d, err)
		}
		if f.files(as)[as] != files["a"] || len(f.state().Held) > 0 {
			t.Errorf("%s: it is another file, or %+v are in quarantine", as, f.state().Held)
		}
		if got := f.problems(nil, true); got != nil {
			t.Errorf("%s: %q", as, got)
		}
	}
}

// TestKeptLosesShield: where its shield vanishes at this very moment, its name in quarantine is the last, and stays.
func TestKeptLosesShield(t *testing.T) {
	f := newStock(t, "a", "b")
	ino := f.files("a")["a"]
	f.remove("a")
	o := f.options()
	o.Links = linked{diskio.HostLinks(), func(to string) {
		if strings.Contains(to, "/"+pool.Quarantine+"/") {
			if err := os.Remove(f.state().ShieldsOf("a")[0].Path); err != nil {
				t.Fatal(err)
			}
		}
	}}
	d, err := Quarantine(t.Context(), f.plan("a"), f.decision(), o)
	if err != nil || len(d.Quarantined) != 1 {
		t.Errorf("Quarantine = %+v, %v", d, err)
	}
	if held := f.state().Held; len(held) != 1 || held[0].File.Ino != ino {
		t.Errorf("%+v are in quarantine, want inode %d", held, ino)
	}
}

// TestKeptInterrupted: who ends the act finds what only shields kept kept by those again, and nothing of it is told as done.
func TestKeptInterrupted(t *testing.T) {
	for _, words := range []string{"intend quarantine a", "rename a", "rename b", "note quarantine b", "look again"} {
		f := newStock(t, "a", "b")
		files := f.files("a", "b")
		f.remove("a")
		f.remove("b")
		f.write("a", "made anew") // that there is another one by now is nothing to this
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		o := f.receipts()
		o.Step = at(words, cancel)
		p := f.plan("a", "b")
		d, err := Quarantine(ctx, p, f.decision(), o)
		if !errors.Is(err, context.Canceled) || d != nil && len(d.Quarantined) > 0 {
			t.Errorf("%s: Quarantine = %+v, %v, want %v", words, d, err, context.Canceled)
		}
		f.stays(files["a"], refs.ByShield)
		f.stays(files["b"], refs.ByShield)
		if got := f.problems(files, true); got != nil {
			t.Errorf("%s: %q", words, got)
		}
		all, err := o.Receipts.BaseReceipts(t.Context())
		if err != nil || len(all) > 1 {
			t.Errorf("%s: receipts %+v, %v, want that of protect", words, all, err)
		}
	}
}

// TestUndoOfKept: what was set aside and only its shield kept is as it was, or has its name where somebody needs it by now;
// its last name is never taken.
func TestUndoOfKept(t *testing.T) {
	for _, c := range []struct {
		name   string
		before func(f *stock)
		want   refs.State
		undone bool
	}{
		{"nobody needs it", func(*stock) {}, refs.ByShield, true},
		{"its name is another file's", func(f *stock) { f.write("a", "made anew") }, refs.ByShield, true},
		{"somebody needs it", func(f *stock) { f.image("new", "a") }, refs.Live, true},
		{"its shield is gone", func(f *stock) { f.mustRemove("_base/.shisa/shields/" + shieldOf(f, "a")) }, refs.Quarantined, false},
	} {
		f := newStock(t, "a", "b")
		files := f.files("a")
		f.remove("a")
		o := f.receipts()
		d, err := Quarantine(t.Context(), f.plan("a"), f.decision(), o)
		if err != nil || len(d.Quarantined) != 1 || !d.CanUndo {
			t.Fatalf("Quarantine = %+v, %v", d, err)
		}
		c.before(f)
		r, err := Undo(t.Context(), d.Receipt, UndoOptions{Census: f.look}, o)
		if err != nil || (r.State == vault.Undone) != c.undone {
			t.Errorf("%s: Undo = %+v, %v", c.name, r, err)
		}
		f.stays(files["a"], c.want)
		if len(f.state().Intents) > 0 {
			t.Errorf("%s: an intent is left", c.name)
		}
	}
}

func shieldOf(f *stock, name string) string {
	_, file, _ := strings.Cut(f.state().ShieldsOf(name)[0].Path, "/"+pool.Shields+"/")
	return file
}

// TestUndoOfKeptLosesShield: its shield is removed in the moment in which its name in quarantine is taken away. It is kept.
func TestUndoOfKeptLosesShield(t *testing.T) {
	for _, words := range []string{"take away a", "unlink"} {
		f := newStock(t, "a", "b")
		f.remove("a")
		o := f.receipts()
		d, err := Quarantine(t.Context(), f.plan("a"), f.decision(), o)
		if err != nil || len(d.Quarantined) != 1 {
			t.Fatalf("Quarantine = %+v, %v", d, err)
		}
		shield := f.state().ShieldsOf("a")[0].Path
		lose := func() {
			if err := os.Remove(shield); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		o.Step = at(words, lose)
		if words == "unlink" {
			o.Links = unlinking{diskio.HostLinks(), lose}
		}
		r, err := Undo(t.Context(), d.Receipt, UndoOptions{Census: f.look}, o)
		if err != nil || r.State == vault.Undone {
			t.Errorf("%s: Undo = %+v, %v, want that it is not taken back", words, r, err)
		}
		s := f.state()
		if len(s.Held)+len(s.ShieldsOf("a")) != 1 || len(s.Intents) > 0 {
			t.Errorf("%s: %+v in quarantine, %+v shields, %+v intents", words, s.Held, s.ShieldsOf("a"), s.Intents)
		}
	}
}

// unlinking does something before a name is taken away.
type unlinking struct {
	diskio.Links
	before func()
}

func (u unlinking) Unlink(id diskio.ID, name string) error {
	u.before()
	return u.Links.Unlink(id, name)
}

// TestKeptKilledAtEveryStep is TestKilledAtEveryStep for bases that only their shields keep.
func TestKeptKilledAtEveryStep(t *testing.T) {
	killed(t, testenv.Rounds(2, 1, 1), func(f *stock) {
		f.image("disk", "used")
		f.remove("a")
		f.remove("b")
	}, func(f *stock, o Options) { f.story(o) })
}

// TestKeptUndoKilledAtEveryStep is the same for the undo of that.
func TestKeptUndoKilledAtEveryStep(t *testing.T) {
	killed(t, testenv.Rounds(2, 1, 1), func(f *stock) {
		f.remove("a")
		f.remove("b")
		if d, err := Quarantine(t.Context(), f.plan("a", "b"), f.decision(), f.receipts()); err != nil || len(d.Quarantined) != 2 {
			t.Fatalf("Quarantine = %+v, %v", d, err)
		}
	}, func(f *stock, o Options) {
		o.Receipts = f.receipts().Receipts
		all, err := o.Receipts.BaseReceipts(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("receipts %+v, %v", all, err)
		}
		if r, err := Undo(t.Context(), all[0].ID, UndoOptions{Census: f.look}, o); err != nil || r.State != vault.Undone {
			t.Fatalf("Undo = %+v, %v", r, err)
		}
	})
}

// TestRecoverOfKept tells truly of an act that was cut off before anything was done.
func TestRecoverOfKept(t *testing.T) {
	f := newStock(t, "a", "b")
	f.remove("a")
	o := f.options()
	o.Step = func(what string) error {
		if what == "rename a" {
			return ErrStopped
		}
		return nil
	}
	if _, err := Quarantine(t.Context(), f.plan("a"), f.decision(), o); !errors.Is(err, ErrStopped) {
		t.Fatal(err)
	}
	d, err := Recover(t.Context(), f.decision(), f.options())
	if err != nil || len(d.Recovered) != 1 || !strings.HasSuffix(d.Recovered[0], "nothing had been done: its shield keeps it") {
		t.Errorf("Recover = %+v, %v", d, err)
	}
}

// TestLastOfLive: what had the name of a base before is not what was removed now.
func TestLastOfLive(t *testing.T) {
	a := &watcher{last: &refs.Census{All: []refs.Base{{Name: "a", State: refs.ByShield}, {Name: "a", State: refs.Live, Path: "/b/a"}}}}
	if b := a.lastOf("a"); b == nil || b.Path != "/b/a" {
		t.Errorf("lastOf = %+v, want the one that was there", b)
	}
}

// TestWantedByShieldName: what is about to be removed is wanted by who means one of its shields, and not by who means the
// file that has that name by now.
func TestWantedByShieldName(t *testing.T) {
	id := diskio.ID{Dev: 1, Ino: 7}
	for _, c := range []struct {
		inode  uint64
		wanted bool
	}{{0, true}, {7, true}, {9, false}} {
		a := &claimed{Held: pool.Held{Name: "a", File: id}}
		s := &pool.State{Policy: &pool.Policy{AllowPurge: true}, Shields: []pool.Shield{{Name: "a", ID: id}, {Name: "b", ID: id}}}
		s.Pins = []pool.Pin{{Name: "b", Inode: c.inode, Reason: "x"}}
		if err := wantedNow(a, s); (err != nil) != c.wanted {
			t.Errorf("a pin of b, inode %d: %v, want wanted %v", c.inode, err, c.wanted)
		}
		s.Pins = nil
		s.Members = []pool.Member{{Node: "n1"}}
		s.Reports = []pool.Report{{Node: "n1", Uses: []pool.Use{{Name: "b", Inode: c.inode, Holder: "qemu"}}}}
		if err := wantedNow(a, s); (err != nil) != c.wanted {
			t.Errorf("a use of b, inode %d: %v, want wanted %v", c.inode, err, c.wanted)
		}
	}
}

// TestMissingNotLookedAt: a base that is missing, and whose name is something that cannot be told, is left and told.
func TestMissingNotLookedAt(t *testing.T) {
	f := newStock(t, "a")
	f.image("disk", "a")
	f.remove("a")
	c, err := f.look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(f.path("a"), 0o700); err != nil {
		t.Fatal(err)
	}
	k, s := newKeeper(f.options()), f.state()
	d := newDone(k.Bases, s)
	if todo := k.missing(c, s, s.Clock, d); len(todo) > 0 || len(d.Left) != 1 || d.Left[0].Name != "a" {
		t.Errorf("missing() = %+v, and left %+v, want a left", todo, d.Left)
	}
}
