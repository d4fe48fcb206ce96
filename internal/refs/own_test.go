// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

const (
	heldID   = "0123456789abcdef0123456789abcdef"
	otherID  = "1123456789abcdef0123456789abcdef"
	thirdID  = "2123456789abcdef0123456789abcdef"
	poolUUID = "0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3e"
)

// document writes a document of the pool.
func (w *world) document(name string, d interface{ Text() ([]byte, error) }) {
	w.t.Helper()
	text, err := d.Text()
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("pool/_base/.shisa/"+name, text)
}

// report is what a node said an hour after the pool was made. It gives its digest.
func (w *world) report(node string, uses ...pool.Use) string {
	if uses == nil {
		uses = []pool.Use{}
	}
	r := &pool.Report{Schema: pool.ReportSchema, Pool: poolUUID, Node: node, BootID: poolUUID, Seq: 1, Time: time.Unix(3600, 0).UTC(),
		Observed: []string{}, Draining: []pool.Draining{}, Complete: true, Gaps: []string{}, Uses: uses,
		Storages: []pool.BaseStorage{}}
	w.document("nodes/"+pool.NodeFile(node), r)
	return r.SHA256
}

func (w *world) pin(id, name string, until *time.Time) {
	w.document("pins/"+pool.PinName(id), &pool.Pin{Schema: pool.PinSchema, ID: id, Name: name, Reason: "golden", By: "root", Node: "n1",
		Time: time.Unix(0, 0).UTC(), Until: until, Uses: []pool.Use{}})
}

// TestOwn: what was set aside, and what others said, is told as long as the pool lasts.
func TestOwn(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(*world)
		want []string
	}{
		{"set aside, nobody needs it", func(w *world) { w.write("pool/_base/.shisa/q/"+heldID+".b", nil) },
			[]string{"b quarantined:"}},
		{"set aside, and needed", func(w *world) {
			w.write("pool/_base/.shisa/q/"+heldID+".b", nil)
			w.image("pool/i/disk", "qcow2", w.path("pool/_base/b"))
		}, []string{"b missing: header pool/i/disk 1", "b quarantined: header pool/i/disk 1"}},
		{"claimed, and needed through others", func(w *world) {
			w.write("pool/_base/.shisa/purge/"+heldID+".b", nil)
			w.image("pool/i/mid", "qcow2", w.path("pool/_base/b"))
			w.image("pool/i/disk", "qcow2", w.path("pool/i/mid"))
		}, []string{"b missing: header pool/i/mid 1 header pool/i/disk 2", "b claimed: header pool/i/mid 1 header pool/i/disk 2"}},
		{"set aside, and made anew under its name", func(w *world) {
			w.write("pool/_base/.shisa/q/"+heldID+".b", nil)
			w.image("pool/i/disk", "qcow2", w.base("b"))
			w.report("n2", pool.Use{Name: "b", How: "header", Holder: "/x/disk", Depth: 1})
		}, []string{"b live: header pool/i/disk 1 last_report /x/disk 1", "b quarantined:"}},
		{"an image that rests on what was set aside by the name that it has there", func(w *world) {
			w.write("pool/_base/.shisa/q/"+heldID+".b", nil)
			w.image("pool/i/disk", "qcow2", w.path("pool/_base/.shisa/q/"+heldID+".b"))
		}, []string{"b quarantined: header pool/i/disk 1"}},
		{"set aside, and what rests on it as well", func(w *world) {
			w.write("pool/_base/.shisa/q/"+heldID+".b", nil)
			w.image("pool/_base/.shisa/q/"+otherID+".top", "qcow2", w.path("pool/_base/b"))
			w.image("pool/_base/.shisa/q/"+thirdID+".next", "qcow2", "b")
		}, []string{"b quarantined: header pool/_base/.shisa/q/" + otherID + ".top 1 header pool/_base/.shisa/q/" + thirdID + ".next 1",
			"next quarantined:", "top quarantined:"}},
		{"another node said so", func(w *world) {
			w.base("b")
			w.report("n2", pool.Use{Name: "b", How: "open", Holder: "qemu"})
		}, []string{"b live: last_report qemu 0"}},
		{"another node said so, and it is gone", func(w *world) {
			w.report("n2", pool.Use{Name: "b", Inode: 1, How: "header", Holder: "/x/disk", Depth: 1})
		}, []string{"b missing: last_report /x/disk 1"}},
		{"another node needs it by a name that it had", func(w *world) {
			w.base("b")
			e, err := diskio.LookEntry(w.path("pool/_base/b"))
			if err != nil {
				w.t.Fatal(err)
			}
			w.report("n2", pool.Use{Name: "old", Inode: e.Ino, How: "open", Holder: "qemu"})
		}, []string{"b live: last_report qemu 0"}},
		{"a node that was retired needs nothing: its pins do", func(w *world) {
			w.base("b")
			sum := w.report("n2", pool.Use{Name: "b", How: "open", Holder: "qemu"})
			w.document("retired/"+pool.NodeFile("n2"), &pool.Retired{Schema: pool.RetiredSchema, Node: "n2", Reason: "burnt", By: "root",
				Report: sum, Pins: []string{heldID}})
			w.pin(heldID, "b", nil)
		}, []string{"b live: pin golden 0"}},
		{"a node that was retired and came back", func(w *world) {
			w.base("b")
			w.report("n2", pool.Use{Name: "b", How: "open", Holder: "qemu"})
			w.document("retired/"+pool.NodeFile("n2"), &pool.Retired{Schema: pool.RetiredSchema, Node: "n2", Reason: "burnt", By: "root",
				Report: strings.Repeat("0", 64), Pins: []string{}})
		}, []string{"b live: last_report qemu 0"}},
		{"pinned", func(w *world) { w.base("b"); w.pin(heldID, "b", nil) }, []string{"b live: pin golden 0"}},
		{"pinned, and gone for good", func(w *world) { w.pin(heldID, "b", nil) }, []string{}},
		{"pinned for a time that is over", func(w *world) {
			w.base("b")
			until := time.Now().Add(-time.Hour).UTC()
			w.pin(heldID, "b", &until)
			w.write("pool/_base/.shisa/clock", nil)
		}, []string{"b live:"}},
		{"pinned for a time of which nobody knows that it is over", func(w *world) {
			w.base("b")
			until := time.Now().Add(-time.Hour).UTC()
			w.pin(heldID, "b", &until)
		}, []string{"b live: pin golden 0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			p := pool.NewPolicy(poolUUID, time.Unix(0, 0))
			w.document(pool.File, &p)
			c.make(w)
			if d := cmp.Diff(c.want, w.lines(w.look(Options{}))); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestOfNode: what a silent node said is told with how long ago it was, and counts.
func TestOfNode(t *testing.T) {
	w := newWorld(t)
	p := pool.NewPolicy(poolUUID, time.Unix(0, 0))
	w.document(pool.File, &p)
	w.base("b")
	w.report("n2", pool.Use{Name: "b", How: "open", Holder: "qemu", Machine: "m"})
	w.write("pool/_base/.shisa/clock", nil)
	b := w.look(Options{}).All[0]
	want := []Reference{{How: LastReport, Holder: "qemu", Machine: "m", Node: "n2", NodeState: "silent", As: "b", Said: time.Unix(3600, 0).UTC()}}
	if d := cmp.Diff(want, b.Uses); d != "" || b.Links != 1 {
		t.Errorf("%d names, uses (-want +got):\n%s", b.Links, d)
	}
}

// TestMissingIsHeld: a base that is needed and only in quarantine is missing, and it is said where it is.
func TestMissingIsHeld(t *testing.T) {
	w := newWorld(t)
	w.write("pool/_base/.shisa/q/"+heldID+".b", nil)
	w.image("pool/i/disk", "qcow2", w.path("pool/_base/b"))
	c := w.look(Options{})
	if c.Verdict != finding.Found || c.All[0].Held != heldID || c.All[1].ID != heldID || c.All[1].Since.IsZero() {
		t.Errorf("Look = %s, %+v, want found, and where it is", c.Verdict, c.All)
	}
	// What has to come back somewhere else is another file.
	w.image("pool/i/disk", "qcow2", w.path("pool/i/b"))
	if c := w.look(Options{}); c.All[0].State != Missing || c.All[0].Held != "" {
		t.Errorf("Look = %+v, want that what is missing elsewhere is not in this quarantine", c.All)
	}
	if one := c.Only("b"); len(one.All) != 2 || !strings.Contains(one.All[1].Path, heldID) {
		t.Errorf("Only = %+v, want the one that is missing and the one that was set aside", one.All)
	}
}

// TestAside: what a base rests on that was set aside, or that only its shield keeps, is needed, by a name that was
// relative to the directory of the bases as well. Nothing is missing for it.
func TestAside(t *testing.T) {
	for _, c := range []struct{ name, at string }{
		{"in quarantine", "q/" + heldID + ".top"},
		{"claimed", "purge/" + heldID + ".top"},
		{"kept by its shield", "shields/1.top"},
	} {
		for _, backing := range []string{"bottom", "../_base/bottom", "gone"} {
			t.Run(c.name+"/"+backing, func(t *testing.T) {
				w := newWorld(t)
				w.base("bottom")
				at := "pool/_base/.shisa/" + c.at
				w.image(at, "qcow2", backing)
				if strings.HasPrefix(c.at, "shields/") {
					at = w.shield(at)
				}
				got := w.look(Options{})
				uses := 0
				for _, b := range got.All {
					if b.State == Missing {
						t.Errorf("%s is missing", b.Name)
					}
					if b.Name == "bottom" {
						uses = len(b.Uses)
					}
				}
				want := 1
				if backing == "gone" {
					want = 0
				}
				if uses != want || got.Looked.Overlays != 0 {
					t.Errorf("%s: %d uses, want %d; %d overlays, want 0", at, uses, want, got.Looked.Overlays)
				}
			})
		}
	}
}

// shield gives a file the name that its inode demands.
func (w *world) shield(name string) string {
	w.t.Helper()
	st, err := diskio.Look(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	to := filepath.Join(filepath.Dir(name), pool.ShieldName(st.ID.Ino, "top"))
	if err := os.Rename(w.path(name), w.path(to)); err != nil {
		w.t.Fatal(err)
	}
	return to
}

// TestShieldWithNames: a base that is gone comes back from its shield, also where the file has further names.
func TestShieldWithNames(t *testing.T) {
	for _, further := range []int{0, 1} {
		w := newWorld(t)
		w.write("pool/_base/.shisa/shields/1.top", []byte("x"))
		at := w.shield("pool/_base/.shisa/shields/1.top")
		for range further {
			if err := os.Link(w.path(at), w.path("further")); err != nil {
				t.Fatal(err)
			}
		}
		w.image("pool/i/disk", "qcow2", w.path("pool/_base/top"))
		all := w.look(Options{}).All
		if len(all) != 1 || all[0].State != Missing || all[0].Shield != w.path(at) {
			t.Errorf("with %d further names: %+v, want it missing with the shield %s", further, all, at)
		}
	}
}

// TestOwnReadOnce: what the pool keeps is read once in a census, whose parts so all speak of the same time.
func TestOwnReadOnce(t *testing.T) {
	w := newWorld(t)
	w.write("pool/_base/b", nil)
	w.pin(heldID, "b", nil)
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, w.path("pool/_base/.shisa/pins/"+pool.PinName(heldID)), unix.IN_OPEN|unix.IN_CLOSE); err != nil {
		t.Fatal(err)
	}
	if c := w.look(Options{}); len(c.All) != 1 || len(c.All[0].Uses) != 1 {
		t.Errorf("the pin is not told: %q", w.lines(c))
	}
	// It is opened when its directory is listed, and when it is read.
	b := make([]byte, 4096)
	if n, err := unix.Read(fd, b); err != nil || n != 4*unix.SizeofInotifyEvent {
		t.Errorf("%d events, %v, want that the pin is opened and closed twice", n/unix.SizeofInotifyEvent, err)
	}
}

// TestHeldInPlain: in a directory of images a base that was set aside is needed by a machine that names it, as well as by
// images.
func TestHeldInPlain(t *testing.T) {
	w := newWorld(t)
	root := w.path("root")
	w.write("images/.shisa/q/"+heldID+".b", nil)
	w.write("root/etc/libvirt/qemu/m.xml", []byte(`<domain type="kvm"><name>m</name><devices><disk type="file" device="disk"><source file="`+
		`/images/b"/><target dev="vda"/></disk></devices></domain>`))
	w.link(w.path("images"), "root/images")
	tr, err := tree.OpenDirectory(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	all := w.look(Options{Pool: w.path("images"), Host: &Host{Tree: tr, Root: root}}).All
	if len(all) != 1 || all[0].State != Quarantined || len(all[0].Uses) != 1 || all[0].Uses[0].Machine != "m" {
		t.Errorf("Look = %+v, want a use of what was set aside", all)
	}
}
