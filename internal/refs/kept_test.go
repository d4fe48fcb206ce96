// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

const shields = "pool/_base/.shisa/shields/"

// kept makes a file that only shields keep, each of which was made for a base of some name. It gives its inode, and the
// first shield.
func (w *world) kept(names ...string) (inode uint64, shield string) {
	w.t.Helper()
	w.write("made", []byte(strings.Repeat("x", 4096)))
	st, err := diskio.Look(w.path("made"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.mkdir(shields)
	for _, n := range names {
		if err := os.Link(w.path("made"), w.path(shields+pool.ShieldName(st.ID.Ino, n))); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := os.Remove(w.path("made")); err != nil {
		w.t.Fatal(err)
	}
	return st.ID.Ino, w.path(shields + pool.ShieldName(st.ID.Ino, names[0]))
}

// TestKept: what only shields keep is a base of its own, with all that may mean it; where somebody needs it by a name that
// no other file has, it is the one that is missing.
func TestKept(t *testing.T) {
	use := func(name string, inode uint64) pool.Use {
		return pool.Use{Name: name, Inode: inode, How: "open", Holder: "qemu"}
	}
	for _, c := range []struct {
		name string
		make func(*world)
		want []string
	}{
		{"nobody needs it", func(w *world) { w.kept("b") }, []string{"b kept:"}},
		{"an image rests on its name", func(w *world) {
			w.kept("b")
			w.image("pool/i/disk", "qcow2", w.path("pool/_base/b"))
		}, []string{"b missing: header pool/i/disk 1"}},
		{"an image rests on its name, which is another file's", func(w *world) {
			w.kept("b")
			w.image("pool/i/disk", "qcow2", w.base("b"))
		}, []string{"b kept:", "b live: header pool/i/disk 1"}},
		{"an image rests on its shield", func(w *world) {
			_, shield := w.kept("b")
			w.image("pool/i/disk", "qcow2", shield)
		}, []string{"b kept: header pool/i/disk 1"}},
		{"what is in quarantine rests on it", func(w *world) {
			w.kept("b")
			w.image("pool/_base/.shisa/q/"+heldID+".top", "qcow2", w.path("pool/_base/b"))
		}, []string{"b kept: header pool/_base/.shisa/q/" + heldID + ".top 1", "top quarantined:"}},
		{"a node says so by its name", func(w *world) {
			w.kept("b")
			w.report("n2", use("b", 0))
		}, []string{"b missing: last_report qemu 0"}},
		{"a node says so by its name and inode", func(w *world) {
			ino, _ := w.kept("b")
			w.report("n2", use("b", ino))
		}, []string{"b missing: last_report qemu 0"}},
		{"a node says so by its inode, and another file has the name", func(w *world) {
			ino, _ := w.kept("b")
			w.base("b")
			w.report("n2", use("b", ino))
		}, []string{"b kept: last_report qemu 0", "b live: last_report qemu 0"}},
		{"a node says so by its inode, under a name that no shield has", func(w *world) {
			ino, _ := w.kept("b")
			w.report("n2", use("old", ino))
		}, []string{"b kept: last_report qemu 0", "old missing: last_report qemu 0"}},
		{"a node says so of the other file", func(w *world) {
			w.kept("b")
			w.base("b")
			w.report("n2", use("b", 0))
		}, []string{"b kept:", "b live: last_report qemu 0"}},
		{"pinned", func(w *world) { w.kept("b"); w.pin(heldID, "b", nil) }, []string{"b kept: pin golden 0"}},
		{"two shields", func(w *world) { w.kept("b", "c") }, []string{"b kept:"}},
		{"two shields, and a pin of the second name", func(w *world) {
			w.kept("b", "c")
			w.pin(heldID, "c", nil)
		}, []string{"b kept: pin golden 0"}},
		{"two shields, and an image that rests on the second name", func(w *world) {
			w.kept("b", "c")
			w.image("pool/i/disk", "qcow2", w.path("pool/_base/c"))
		}, []string{"c missing: header pool/i/disk 1"}},
		{"two shields, and what is in quarantine rests on the second name", func(w *world) {
			w.kept("b", "c")
			w.image("pool/_base/.shisa/q/"+heldID+".top", "qcow2", w.path("pool/_base/c"))
		}, []string{"b kept: header pool/_base/.shisa/q/" + heldID + ".top 1", "top quarantined:"}},
		{"two files had the name that an image rests on", func(w *world) {
			w.kept("b")
			w.kept("b")
			w.image("pool/i/disk", "qcow2", w.path("pool/_base/b"))
		}, []string{"b kept: header pool/i/disk 1", "b missing: header pool/i/disk 1"}},
		{"set aside, and needed by the name of its other shield", func(w *world) {
			_, shield := w.kept("b", "c")
			w.mkdir("pool/_base/.shisa/q")
			if err := os.Link(shield, w.path("pool/_base/.shisa/q/"+heldID+".b")); err != nil {
				w.t.Fatal(err)
			}
			w.image("pool/i/disk", "qcow2", w.path("pool/_base/c"))
		}, []string{"b quarantined: header pool/i/disk 1", "c missing: header pool/i/disk 1"}},
		{"a name that is no shield", func(w *world) {
			_, shield := w.kept("b")
			if err := os.Link(shield, w.path("mine")); err != nil {
				w.t.Fatal(err)
			}
		}, []string{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			p := pool.NewPolicy(poolUUID, time.Unix(0, 0))
			w.document(pool.File, &p)
			c.make(w)
			got := w.look(Options{})
			if d := cmp.Diff(c.want, w.lines(got)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			for _, b := range got.All {
				if (b.State == ByShield || b.State == Missing && b.Name != "old") && b.Shield == "" {
					t.Errorf("%s, which is %s, has no shield", b.Name, b.State)
				}
			}
		})
	}
}

// TestKeptIs: what is told of it, and that it is neither a fault nor a gap.
func TestKeptIs(t *testing.T) {
	w := newWorld(t)
	ino, shield := w.kept("b")
	e, err := diskio.LookEntry(shield)
	if err != nil {
		t.Fatal(err)
	}
	c := w.look(Options{})
	want := []Base{{Name: "b", Path: shield, State: ByShield, File: e.ID, SizeBytes: 4096, AllocatedBytes: e.AllocatedBytes,
		Modified: e.ModTime, Changed: e.ChangeTime, Links: 1, Shield: shield, Uses: []Reference{}}}
	if d := cmp.Diff(want, c.All); d != "" || c.Verdict == finding.Found || c.Kept.Files != 1 || e.Ino != ino {
		t.Errorf("Look is %s with %+v, (-want +got):\n%s", c.Verdict, c.Kept, d)
	}
}

// TestKeptIsThere: what is there, or was when the directory was read, is listed as that alone, whatever number of names a file
// system tells.
func TestKeptIsThere(t *testing.T) {
	base, other, kept := diskio.ID{Dev: 1, Ino: 7}, diskio.ID{Dev: 1, Ino: 8}, diskio.ID{Dev: 1, Ino: 9}
	tk := &taking{c: &Census{All: []Base{{Name: "b", State: Live, File: base}}}, files: []baseFile{{name: "c", stat: diskio.Stat{ID: other}}}}
	tk.keptOnly(&pool.State{Shields: []pool.Shield{{Name: "b", ID: base, Links: 1}, {Name: "c", ID: other, Links: 1},
		{Name: "d", ID: kept, Links: 1}}})
	if all := tk.c.All; len(all) != 2 || all[1].Name != "d" {
		t.Errorf("%+v, want b that is there and d", all)
	}
}

// TestKeptOfNova: a machine of Nova's database needs what has the name, and what had it where none has.
func TestKeptOfNova(t *testing.T) {
	made := time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC)
	for _, live := range []bool{false, true} {
		w := newWorld(t)
		w.kept("0first", sumOfImage)
		want := []string{"0first kept: nova export 0"}
		if live {
			w.base(sumOfImage)
			want = []string{"0first kept:", sumOfImage + " live: nova export 0"}
		}
		o := Options{Nova: []string{w.export("export", made)}, Now: func() time.Time { return made }}
		if d := cmp.Diff(want, w.lines(w.look(o))); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
}

// TestKeptAndOpen: what a process has open that was removed is missing, with its shield; where another file has the name by
// now, its shield keeps a file that is needed.
func TestKeptAndOpen(t *testing.T) {
	for _, anew := range []bool{false, true} {
		w := newWorld(t)
		w.write("pool/_base/b", make([]byte, 4096))
		e, err := diskio.LookEntry(w.path("pool/_base/b"))
		if err != nil {
			t.Fatal(err)
		}
		shield := w.path(shields + pool.ShieldName(e.Ino, "b"))
		w.mkdir(shields)
		if err := os.Link(w.path("pool/_base/b"), shield); err != nil {
			t.Fatal(err)
		}
		w.hold("pool/_base/b")
		if err := os.Remove(w.path("pool/_base/b")); err != nil {
			t.Fatal(err)
		}
		want := map[State]int{Missing: 1}
		if anew {
			w.base("b")
			want = map[State]int{ByShield: 2, Missing: 1, Live: 0} // it is open, and was removed
		}
		tr, err := tree.OpenDirectory(t.Context(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		c := w.look(Options{Host: &Host{Linux: linux.Open(""), Tree: tr, Root: t.TempDir()}})
		got := map[State]int{}
		for _, b := range c.All {
			got[b.State] = len(b.Uses)
			if b.State != Live && (b.Shield == shield) != (b.State == ByShield || !anew) {
				t.Errorf("made anew %v: the shield of what is %s is %q", anew, b.State, b.Shield)
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("made anew %v: (-want +got):\n%s", anew, d)
		}
	}
}
