// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package judge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/refs/protocol"
)

const (
	uuid  = "0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3e"
	boot1 = "11111111-7c55-4c7e-9b0a-3f6c8f1c2d3e"
	boot2 = "22222222-7c55-4c7e-9b0a-3f6c8f1c2d3e"
	heldA = "0123456789abcdef0123456789abcdef"
)

// now is the time of the file server.
var now = time.Date(2026, 3, 20, 12, 0, 0, 0, time.UTC)

// world is all that a decision rests on: as it is made, base a may be set aside, and h be removed for good.
type world struct {
	c *refs.Census
	s *pool.State
	o Options
}

func newWorld() *world {
	old := now.Add(-20 * 24 * time.Hour)
	p := pool.NewPolicy(uuid, old)
	p.AllowPurge = true
	file := func(n uint64) diskio.ID { return diskio.ID{Dev: 1, Ino: n} }
	w := &world{
		c: &refs.Census{Bases: "/p/_base", Pool: uuid, Gaps: []finding.Blind{}, Looked: refs.Looked{Overlays: 3}, Storages: storages(), All: []refs.Base{
			{Name: "a", Path: "/p/_base/a", State: refs.Live, File: file(10), SizeBytes: 9, Modified: old, Changed: old, Links: 2, Shield: "/s/a"},
			{Name: "u", Path: "/p/_base/u", State: refs.Live, File: file(11), SizeBytes: 9, Modified: old, Changed: old, Links: 2, Shield: "/s/u",
				Uses: []refs.Reference{{How: refs.Header, Holder: "/p/i/disk", Depth: 1}}},
			{Name: "h", ID: heldA, Path: "/p/_base/.shisa/q/" + heldA + ".h", State: refs.Quarantined, File: file(12), SizeBytes: 9,
				Modified: old, Changed: old, Since: old, Links: 2, Shield: "/s/h"},
		}},
		s: &pool.State{Bases: "/p/_base", Policy: &p, Objects: map[uint64]pool.Object{}},
		o: Options{Node: "n1", Now: now, Local: now},
	}
	for _, i := range []uint64{10, 11, 12} {
		w.s.Shields = append(w.s.Shields, pool.Shield{Name: "x", ID: file(i), Links: 2})
	}
	for _, n := range []string{"n1", "n2"} {
		w.s.Members = append(w.s.Members, pool.Member{Node: n, Machine: strings.Repeat("a", 64)})
		w.s.Reports = append(w.s.Reports, pool.Report{Node: n, Seq: 5, Time: now.Add(-time.Minute), BootID: boot1, Complete: true,
			Machine: strings.Repeat("a", 64), Observed: []string{heldA}, LaunchGraceSeconds: 900, Overlays: 3, Storages: storages()})
	}
	w.s.Notes = []pool.Notes{{Pool: uuid, Node: "n1", Overlays: 3, Storages: storages(),
		Nodes: []pool.Spoke{{Node: "n1", Seq: 4, BootIDs: []string{boot1}, Storages: []pool.BaseStorage{}},
			{Node: "n2", Seq: 4, BootIDs: []string{boot1}, Overlays: 3, Storages: storages()}},
		Candidates: []pool.Candidate{{Name: "a", Inode: 10, SizeBytes: 9, Seqs: []pool.NodeSeq{{Node: "n1", Seq: 4}, {Node: "n2", Seq: 4}}}}}}
	return w
}

// storages are two directories that are looked through, with something mounted below the first.
func storages() []pool.BaseStorage {
	return []pool.BaseStorage{{What: pool.OfBases, Path: "/p/_base", Type: "0xef53", ID: "11"},
		{What: pool.OfRoot, Path: "/p", Type: "0xef53", ID: "11", Overlays: 1},
		{What: pool.OfRoot, Path: "/q", Type: "0xef53", ID: "12", Overlays: 1},
		{What: pool.Below, Path: "/p", Type: "0xef53", ID: "13", Overlays: 1}}
}

// nfs is a share that is mounted below a directory that is looked through.
var nfs = pool.BaseStorage{What: pool.AtMount, Path: "/p/i", Type: "0x6969", Source: "filer:/i"}

// TestStoragesStay: what a breaker speaks of stays in the notes until it is as before or a person says so.
func TestStoragesStay(t *testing.T) {
	for name, c := range map[string]struct {
		change, accept func(*world)
		rule           Rule
	}{
		"other": {func(w *world) { w.c.Storages[2].ID, w.s.Reports[1].Storages[0].ID = "22", "22" },
			func(w *world) { w.o.OtherStorage = []string{"n1", "n2"} }, OtherStorage},
		"mount": {func(w *world) {
			w.s.Notes[0].Storages = append(w.s.Notes[0].Storages, nfs)
			w.s.Notes[0].Nodes[1].Storages = append(w.s.Notes[0].Nodes[1].Storages, nfs)
		}, func(w *world) { w.o.OtherStorage = []string{"n1", "n2"} }, OtherStorage},
		"mounted over": {func(w *world) {
			w.c.Storages, w.s.Reports[1].Storages = append(w.c.Storages, nfs), append(w.s.Reports[1].Storages, nfs)
		}, func(w *world) { w.o.OtherStorage = []string{"n1", "n2"} }, OtherStorage},
		"none": {func(w *world) { w.c.Storages[2].Overlays, w.s.Reports[1].Storages[2].Overlays = 0, 0 },
			func(w *world) { w.o.NoOverlays = []string{"n1", "n2"} }, NoOverlays},
	} {
		w := newWorld()
		again := func() (told int) {
			p, n := Judge(w.c, w.s, w.o)
			text, err := n.Text()
			if err != nil {
				t.Fatal(err)
			}
			read, err := pool.ParseNotes("x", text)
			if err != nil {
				t.Fatal(err)
			}
			w.s.Notes = []pool.Notes{read}
			for _, b := range p.Blockers {
				if b.Rule == c.rule && b.Path != "" {
					told++
				}
			}
			return told
		}
		again()
		c.change(w)
		if a, b := again(), again(); a != 2 || b != 2 {
			t.Errorf("%s: %d and then %d breakers, want those of both nodes each time", name, a, b)
		}
		c.accept(w)
		if n := again(); n != 0 {
			t.Errorf("%s: %d breakers though a person said so", name, n)
		}
		w.o.OtherStorage, w.o.NoOverlays = nil, nil
		if n := again(); n != 0 {
			t.Errorf("%s: %d breakers after a person said so", name, n)
		}
	}
	// One that was not seen this time, for whatever reason, is not forgotten.
	w := newWorld()
	far := nfs
	far.Path = "/elsewhere/i"
	w.s.Notes[0].Storages = append(w.s.Notes[0].Storages, far)
	w.c.Storages = w.c.Storages[1:]
	_, n := Judge(w.c, w.s, w.o)
	if !slices.Contains(n.Storages, storages()[0]) || !slices.Contains(n.Storages, far) {
		t.Errorf("the notes are %+v, and have no file system of the bases, or none of what was mounted", n.Storages)
	}
}

// TestIndexed: headers that were remembered permit nothing; the same census without an index does.
func TestIndexed(t *testing.T) {
	for _, indexed := range []bool{false, true} {
		w := newWorld()
		w.c.Indexed = indexed
		for name, want := range map[string]Verdict{"a": MayQuarantine, "h": MayPurge} {
			b := w.judge()[name]
			if indexed {
				want = Keep
			}
			blocked := slices.ContainsFunc(b.Blockers, func(k Blocker) bool { return k.Rule == Indexed })
			if b.Verdict != want || blocked != indexed {
				t.Errorf("indexed %v: %s is %s, %+v, want %s", indexed, name, b.Verdict, b.Blockers, want)
			}
		}
	}
}

func (w *world) judge() map[string]*Decided {
	p, _ := Judge(w.c, w.s, w.o)
	all := map[string]*Decided{}
	for i := range p.All {
		b := &p.All[i]
		b.Blockers = slices.Concat(p.Blockers, b.Blockers)
		all[b.Name] = b
	}
	return all
}

// TestPolicyUnread: where it could not be read which pool it is nobody says that there is none.
func TestPolicyUnread(t *testing.T) {
	for _, c := range []struct {
		err  error
		next string
	}{
		{&fs.PathError{Op: "open", Path: "/p/_base/.shisa/pool.json", Err: fs.ErrPermission}, "run it as root, or as a user who may read all of /p/_base/.shisa"},
		{fmt.Errorf("pool.json:3: %w", pool.ErrPool), "have /p/_base/.shisa/pool.json as it was"},
	} {
		w := newWorld()
		*w.s = pool.State{Bases: w.s.Bases, NoPolicy: c.err, Unread: []error{c.err}, Objects: map[uint64]pool.Object{}}
		p, n := Judge(w.c, w.s, w.o)
		if n != nil || !slices.Equal(p.Status, []int{finding.StatusCannotTell}) {
			t.Errorf("%v: status %v, notes %v", c.err, p.Status, n)
		}
		if len(p.Blockers) != 1 || p.Blockers[0].Rule != Unreadable || !strings.Contains(p.Blockers[0].Why, c.err.Error()) {
			t.Errorf("%v: against everything speaks %+v, want that alone", c.err, p.Blockers)
		}
		if len(p.Next) != 1 || !strings.Contains(p.Next[0], c.next) {
			t.Errorf("%v: next %q, want %q", c.err, p.Next, c.next)
		}
		for i := range p.All {
			if b := &p.All[i]; b.Verdict != Keep || strings.Contains(p.Against(b), "has no members") {
				t.Errorf("%v: %s is %s, for %s", c.err, b.Name, b.Verdict, p.Against(b))
			}
		}
		if err := p.Of(w.s.Bases, w.s); !errors.Is(err, c.err) || errors.Is(err, ErrOther) {
			t.Errorf("Of = %v, want %v", err, c.err)
		}
	}
}

func (b *Decided) rules() (all []string) {
	for _, k := range b.Blockers {
		all = append(all, strings.TrimSpace(string(k.Rule)+" "+k.Node))
	}
	return all
}

// TestNothingSpeaksAgainst: with everything in order it is possible at all.
func TestNothingSpeaksAgainst(t *testing.T) {
	got := newWorld().judge()
	for name, want := range map[string]Verdict{"a": MayQuarantine, "u": Keep, "h": MayPurge} {
		if got[name].Verdict != want {
			t.Errorf("%s: %s %v, want %s", name, got[name].Verdict, got[name].rules(), want)
		}
	}
}

// TestBlockers has each reason why a base may not be set aside, and why one may not be removed for good.
func TestBlockers(t *testing.T) {
	young := now.Add(-time.Hour)
	for _, c := range []struct {
		name   string
		change func(*world)
		// a and h are the blockers of those bases, "" where nothing changes for it.
		a, h string
	}{
		{"no members", func(w *world) { w.s.Members, w.s.Reports, w.s.Notes[0].Nodes = nil, nil, nil }, "nobody", "nobody"},
		{"this host is no member", func(w *world) { w.o.Node = "n3" }, "stranger n3|new_candidate", "stranger n3"},
		{"Nova knows another", func(w *world) { w.o.Known = []Known{{"n9", "compute_nodes"}} }, "stranger n9", "stranger n9"},
		{"who uses it could not be read", func(w *world) { w.o.Unknown = []error{errors.New("torn")} }, "unreadable", "unreadable"},
		{"a member is silent", func(w *world) {
			w.s.Members = append(w.s.Members, pool.Member{Node: "n3"})
		}, "no_report n3", "no_report n3"},
		{"a member read not all", func(w *world) { w.s.Reports[1].Complete = false }, "incomplete n2", "incomplete n2"},
		{"a member waited by a shorter grace", func(w *world) { w.s.Policy.LaunchGrace++ }, "", "not_seen n1|not_seen n2"},
		{"a member has not seen it", func(w *world) { w.s.Reports[1].Observed = nil }, "", "not_seen n2"},
		{"a member needs it", func(w *world) {
			w.s.Reports[1].Uses = []pool.Use{{Name: "a", How: "open"}, {Inode: 12, How: "open"}}
		}, "used n2", "used n2"},
		{"a retired one needed it, and its pin stands for it", func(w *world) {
			w.s.Reports[1].Complete, w.s.Reports[1].Uses = false, []pool.Use{{Name: "a", How: "open"}}
			w.s.Retired = []pool.Retired{retired(&w.s.Reports[1])}
			w.s.Pins = []pool.Pin{{ID: heldA, Name: "a"}}
		}, "pinned", ""},
		{"a retired one is not waited for", func(w *world) {
			w.s.Reports[1].Complete, w.s.Reports[1].Observed = false, nil
			w.s.Retired = []pool.Retired{retired(&w.s.Reports[1])}
		}, "", ""},
		{"pinned", func(w *world) { w.s.Pins = []pool.Pin{{Name: "a"}, {Name: "x", Inode: 12}} }, "pinned", "pinned"},
		{"pinned until now", func(w *world) { w.s.Pins = []pool.Pin{{Name: "a", Until: &now}} }, "", ""},
		{"something was not seen", func(w *world) {
			w.c.Gaps = append(w.c.Gaps, finding.Blind{Object: "/x", What: "file", Reason: "EIO"})
		}, "unreadable", "unreadable"},
		{"a document of the pool was not read", func(w *world) { w.s.Unread = []error{pool.ErrChain} }, "unreadable", "unreadable"},
		{"no pool: an empty directory where it should be mounted", func(w *world) {
			w.s, w.c.Pool = &pool.State{Bases: w.c.Bases}, ""
		}, "no_pool|nobody|new_candidate|linked", "no_pool|nobody|linked"},
		{"another pool while it was looked at", func(w *world) { w.c.Pool = strings.Replace(uuid, "0", "1", 1) }, "no_pool", "no_pool"},
		{"the clock was not asked", func(w *world) { w.o.Now = time.Time{} }, "no_clock", "no_clock"},
		{"the server's clock is years ahead", func(w *world) { w.o.Now = now.AddDate(5, 0, 0) }, "clock_off", "clock_off"},
		{"the server's clock is years behind", func(w *world) { w.o.Now = now.AddDate(-5, 0, 0) }, "clock_off|time_ahead|time_ahead", "clock_off|not_long_enough"},
		{"this host's clock is years behind", func(w *world) { w.o.Local = now.AddDate(-5, 0, 0) }, "clock_off", "clock_off"},
		{"an act came to no end", func(w *world) { w.s.Intents = []pool.Intent{{Node: "n2"}} }, "unfinished n2", "unfinished n2"},
		{"the mtime trap: touched a moment ago", func(w *world) { w.c.All[0].Modified = young }, "too_young", ""},
		{"the mtime trap: a new file with an old time", func(w *world) { w.c.All[0].Changed = young }, "too_young", ""},
		{"its time is yet to come", func(w *world) { w.c.All[0].Modified = now.AddDate(1, 0, 0) }, "time_ahead", ""},
		{"set aside yesterday", func(w *world) { w.c.All[2].Changed = now.Add(-25 * time.Hour) }, "", "not_long_enough"},
		{"no second name", func(w *world) { w.c.All[0].Shield = "" }, "no_shield", ""},
		{"the hard-link trap: a third name", func(w *world) { w.c.All[0].Links, w.c.All[2].Links = 3, 3 }, "linked", "linked"},
		{"nobody needs it for the first time", func(w *world) { w.s.Notes[0].Candidates = nil }, "new_candidate", ""},
		{"a new file under the old name", func(w *world) { w.c.All[0].File.Ino = 99; w.c.All[0].Links = 1 }, "new_candidate", ""},
		{"a node has not spoken since", func(w *world) { w.s.Notes[0].Candidates[0].Seqs[1].Seq = 5 }, "not_since n2", ""},
		{"another was asked for", func(w *world) { w.o.Only = []string{heldA} }, "not_chosen", ""},
		{"the pool does not allow it", func(w *world) { w.s.Policy.AllowPurge = false }, "", "purge_off"},
		{"claimed by somebody", func(w *world) { w.c.All[2].State = refs.Claimed }, "", "claimed"},
		{"a name that no document can tell", func(w *world) { w.c.All[0].Name = "a\xff" }, "new_candidate|no_name", ""},
		{"too many at once", func(w *world) { w.c.All[2].Changed = now.Add(-time.Hour); w.s.Policy.MaxFraction = 0.4 },
			"too_many", "too_many|not_long_enough"},
		{"none at all", func(w *world) { w.s.Policy.MaxFraction = 0 }, "too_many", "too_many"},
		{"the node count fell", func(w *world) {
			w.s.Notes[0].Nodes = append(w.s.Notes[0].Nodes, pool.Spoke{Node: "n3", Seq: 1})
		}, "node_gone n3", "node_gone n3"},
		{"a report is gone", func(w *world) { w.s.Reports = w.s.Reports[:1] }, "node_gone n2|no_report n2", "node_gone n2|no_report n2"},
		{"a report is older than one before", func(w *world) { w.s.Notes[0].Nodes[1].Seq = 6 }, "went_back n2", "went_back n2"},
		{"two boot ids in turn", func(w *world) { w.s.Notes[0].Nodes[1].BootIDs = []string{boot1, boot2} }, "two_machines n2", "two_machines n2"},
		{"two boot ids in turn, the last time", func(w *world) {
			w.s.Notes[0].Nodes[1].BootIDs, w.s.Notes[0].Nodes[1].Turned = []string{boot2, boot1}, true
		}, "two_machines n2", "two_machines n2"},
		{"a machine that started anew", func(w *world) { w.s.Notes[0].Nodes[1].BootIDs = []string{boot2} }, "", ""},
		{"two machines of one name", func(w *world) { w.s.Reports[1].Machine = strings.Repeat("b", 64) }, "two_machines n2", "two_machines n2"},
		{"no overlays any more, another node's", func(w *world) { w.s.Reports[1].Overlays = 0 }, "no_overlays n2", "no_overlays n2"},
		{"no overlays any more", func(w *world) { w.c.Looked.Overlays = 0 }, "no_overlays n1", "no_overlays n1"},
		{"the bases lie on another file system", func(w *world) { w.c.Storages[0].ID = "22" }, "other_storage n1", "other_storage n1"},
		{"the bases lie on a file system of another type", func(w *world) { w.c.Storages[0].Type = "0x6969" },
			"other_storage n1", "other_storage n1"},
		{"a root lies on another file system", func(w *world) { w.c.Storages[2].ID = "22" }, "other_storage n1", "other_storage n1"},
		{"a root lies on another file system, another node's", func(w *world) { w.s.Reports[1].Storages[2].ID = "22" },
			"other_storage n2", "other_storage n2"},
		{"a retired node's", func(w *world) {
			w.s.Reports[1].Storages[2].ID = "22"
			w.s.Retired = []pool.Retired{retired(&w.s.Reports[1])}
		}, "", ""},
		{"it is another, and a person knows", func(w *world) {
			w.s.Reports[1].Storages[0].ID, w.o.OtherStorage = "22", []string{"n2"}
		}, "", ""},
		{"it is another, and a person knows of another node's", func(w *world) {
			w.s.Reports[1].Storages[0].ID, w.o.OtherStorage, w.o.NoOverlays = "22", []string{"n1"}, []string{"n2"}
		}, "other_storage n2", "other_storage n2"},
		{"a root has no overlays any more, and others have", func(w *world) { w.c.Storages[2].Overlays = 0 },
			"no_overlays n1", "no_overlays n1"},
		{"a root has no overlays any more, another node's", func(w *world) { w.s.Reports[1].Storages[2].Overlays = 0 },
			"no_overlays n2", "no_overlays n2"},
		{"a root is not looked through any more", func(w *world) { w.c.Storages = slices.Delete(w.c.Storages, 2, 3) },
			"no_overlays n1", "no_overlays n1"},
		{"what was mounted below a root is gone", func(w *world) { w.c.Storages = w.c.Storages[:3] }, "no_overlays n1", "no_overlays n1"},
		{"they moved from below a root to its own file system", func(w *world) {
			w.c.Storages[3].ID, w.c.Storages[3].What = w.c.Storages[1].ID, pool.OfRoot
		}, "no_overlays n1", "no_overlays n1"},
		{"they moved, and a person knows", func(w *world) {
			w.c.Storages, w.o.NoOverlays = w.c.Storages[:3], []string{"n1"}
		}, "", ""},
		{"what was mounted is gone, though no image was seen on it", func(w *world) { w.s.Notes[0].Storages = append(storages(), nfs) },
			"other_storage n1", "other_storage n1"},
		{"what was mounted is gone, another node's", func(w *world) { w.s.Notes[0].Nodes[1].Storages = append(storages(), nfs) },
			"other_storage n2", "other_storage n2"},
		{"what was mounted is gone, and a person knows", func(w *world) {
			w.s.Notes[0].Storages, w.o.OtherStorage = append(storages(), nfs), []string{"n1"}
		}, "", ""},
		{"another share is mounted there", func(w *world) {
			w.s.Notes[0].Storages, w.c.Storages = append(storages(), nfs), append(storages(), nfs)
			w.c.Storages[4].Source = "filer:/other"
		}, "other_storage n1", "other_storage n1"},
		{"the same share", func(w *world) {
			w.s.Notes[0].Storages, w.c.Storages = append(storages(), nfs), append(storages(), nfs)
		}, "", ""},
		{"a share where nothing was mounted", func(w *world) { w.c.Storages = append(storages(), nfs) }, "other_storage n1", "other_storage n1"},
		{"a share where nothing was mounted, another node's", func(w *world) { w.s.Reports[1].Storages = append(storages(), nfs) },
			"other_storage n2", "other_storage n2"},
		{"a share where nothing was mounted, and a person knows", func(w *world) {
			w.c.Storages, w.o.OtherStorage = append(storages(), nfs), []string{"n1"}
		}, "", ""},
		{"a share below what was not looked through before", func(w *world) {
			other := nfs
			other.Path = "/elsewhere/i"
			w.c.Storages = append(storages(), other, pool.BaseStorage{What: pool.OfRoot, Path: "/elsewhere", Type: "0xef53", ID: "11"})
		}, "", ""},
		{"what was mounted below what is not looked through any more", func(w *world) {
			other := nfs
			other.Path = "/elsewhere/i"
			w.s.Notes[0].Storages = append(storages(), other)
		}, "", ""},
		{"a root lies on another share", func(w *world) {
			w.s.Notes[0].Storages = storages()
			for _, s := range [][]pool.BaseStorage{w.s.Notes[0].Storages, w.c.Storages} {
				s[2].ID, s[2].Type, s[2].Source = "", "0x6969", "filer:/q"
			}
			w.c.Storages[2].Source = "other:/q"
		}, "other_storage n1", "other_storage n1"},
		{"more overlays, and one more root", func(w *world) {
			w.c.Storages[2].Overlays = 9
			w.c.Storages = append(w.c.Storages, pool.BaseStorage{What: pool.OfRoot, Path: "/r", Type: "0xef53", ID: "1"})
		}, "", ""},
		{"no overlays any more, and a person knows", func(w *world) {
			w.c.Looked.Overlays, w.o.NoOverlays = 0, []string{"n1"}
		}, "", ""},
	} {
		w := newWorld()
		c.change(w)
		got := w.judge()
		for name, want := range map[string]string{"a": c.a, "h": c.h} {
			var b *Decided
			for n := range got {
				if strings.HasPrefix(n, name) {
					b = got[n]
				}
			}
			if s := strings.Join(b.rules(), "|"); s != want || (want == "") != (b.Verdict == MayQuarantine || b.Verdict == MayPurge) {
				t.Errorf("%s: %s is %s by %q, want %q", c.name, name, b.Verdict, s, want)
			}
		}
	}
}

func retired(r *pool.Report) pool.Retired {
	return pool.Retired{Schema: pool.RetiredSchema, Node: r.Node, Reason: "burnt", Report: r.SHA256}
}

// TestBringBack: what is needed and was set aside is to be brought back, whoever needs it and by whatever it shows.
func TestBringBack(t *testing.T) {
	for name, change := range map[string]func(*world){
		"a header": func(w *world) { w.c.All[2].Uses = []refs.Reference{{How: refs.Header, Holder: "/d"}} },
		"a report": func(w *world) { w.s.Reports[1].Uses = []pool.Use{{Name: "h", How: "open"}} },
		"a pin":    func(w *world) { w.s.Pins = []pool.Pin{{Name: "h"}} },
		"of one that was claimed": func(w *world) {
			w.c.All[2].State = refs.Claimed
			w.s.Pins = []pool.Pin{{Name: "h"}}
		},
	} {
		w := newWorld()
		change(w)
		if b := w.judge()["h"]; b.Verdict != RestoreNow {
			t.Errorf("%s: %s, want %s", name, b.Verdict, RestoreNow)
		}
	}
	// A name that another file has by now is not the one that was set aside.
	w := newWorld()
	w.c.All[0].Name = "h"
	w.s.Reports[1].Uses = []pool.Use{{Name: "h", Inode: 10, How: "open"}}
	p, _ := Judge(w.c, w.s, w.o)
	if b := p.All[2]; b.Verdict != MayPurge {
		t.Errorf("made anew under its name: %s %v, want %s", b.Verdict, b.rules(), MayPurge)
	}
}

// TestNameTaken: an image that names a base may rest on the one that was set aside, if another has its name by now.
func TestNameTaken(t *testing.T) {
	same := func(was, is string, size int64) func(*world) {
		return func(w *world) {
			w.s.Objects[12], w.s.Objects[11] = pool.Object{SHA256: was, SizeBytes: 9}, pool.Object{SHA256: is, SizeBytes: size}
		}
	}
	for name, c := range map[string]struct {
		change func(*world)
		may    bool
	}{
		"nothing is recorded":            {func(*world) {}, false},
		"nobody needs the new one":       {func(w *world) { w.c.All[1].Uses = nil }, true},
		"it holds the same":              {same("d", "d", 9), true},
		"it holds something else":        {same("d", "e", 9), false},
		"the record is of a former file": {same("d", "d", 8), false},
		"a pool that allows less":        {func(w *world) { w.s.Policy.AllowPurge = false }, false},
	} {
		w := newWorld()
		w.c.All[1].Name = "h"
		c.change(w)
		p, _ := Judge(w.c, w.s, w.o)
		b := &p.All[2]
		if (b.Verdict == MayPurge) != c.may || b.Verdict == RestoreNow {
			t.Errorf("%s: %s %v", name, b.Verdict, b.rules())
		}
		if told := slices.ContainsFunc(p.Next, func(s string) bool { return strings.Contains(s, "--as") }); told == c.may {
			t.Errorf("%s: told what to do is %v: %q", name, told, p.Next)
		}
	}
}

// TestWord: what is proposed to be typed is one word, whatever a base is called.
func TestWord(t *testing.T) {
	w := newWorld()
	w.c.Bases = "/p;x/_base"
	w.c.All = append(w.c.All, refs.Base{Name: "m'$(id)", State: refs.Missing, Held: heldA})
	p, _ := Judge(w.c, w.s, w.o)
	if want := `bring back what is needed: shisa base restore '/p;x/_base' 'm'\''$(id)'`; !slices.Contains(p.Next, want) {
		t.Errorf("Next = %q, want %q", p.Next, want)
	}
}

// TestNotes: what is noted makes the next decision possible, and no breaker forgets what it is about.
func TestNotes(t *testing.T) {
	w := newWorld()
	w.s.Notes = nil
	again := func() {
		_, n := Judge(w.c, w.s, w.o)
		text, err := n.Text()
		if err != nil {
			t.Fatal(err)
		}
		read, err := pool.ParseNotes("n", text)
		if err != nil {
			t.Fatal(err)
		}
		w.s.Notes = []pool.Notes{read}
	}
	again()
	if b := w.judge()["a"]; b.Verdict != Keep || strings.Join(b.rules(), "|") != "not_since n1|not_since n2" {
		t.Errorf("before anybody spoke: %s by %v", b.Verdict, b.rules())
	}
	w.s.Reports[0].Seq, w.s.Reports[1].Seq = 6, 6
	again()
	if b := w.judge()["a"]; b.Verdict != MayQuarantine {
		t.Errorf("after everybody spoke: %s by %v", b.Verdict, b.rules())
	}
	w.c.All[0].Uses = []refs.Reference{{How: refs.Open}}
	again()
	w.c.All[0].Uses = nil
	if b := w.judge()["a"]; strings.Join(b.rules(), "|") != "new_candidate" {
		t.Errorf("needed in between: %s by %v, want that it begins anew", b.Verdict, b.rules())
	}
	w.c.Looked.Overlays, w.s.Reports[1].Overlays = 0, 0
	w.s.Members, w.s.Reports[1].BootID = w.s.Members[:1], boot2
	again()
	w.s.Reports[1].BootID = boot1
	again()
	again()
	if got := strings.Join(w.judge()["a"].rules(), "|"); !strings.Contains(got, "two_machines n2|no_overlays n2|no_overlays n1") {
		t.Errorf("after three more decisions: %s, want all breakers still", got)
	}
	w.o.NoOverlays = []string{"n1", "n2"}
	w.s.Reports[0].Overlays = 0
	w.s.Reports[1].BootID = uuid // a run of the machine that nobody saw yet
	again()
	w.o.NoOverlays = nil
	if got := strings.Join(w.judge()["a"].rules(), "|"); strings.Contains(got, "two_machines") || strings.Contains(got, "no_overlays") {
		t.Errorf("after a person said so, and a new run: %s", got)
	}
}

// TestPlan: a plan that was kept is read as it was, and whatever was changed in it is told.
func TestPlan(t *testing.T) {
	w := newWorld()
	p, _ := Judge(w.c, w.s, w.o)
	if err := p.Seal(); err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	q, err := Read(bytes.NewReader(text))
	if err != nil || q.SHA256 != p.SHA256 || len(q.With(MayQuarantine)) != 1 || q.Find(&p.All[2]) == nil {
		t.Fatalf("Read = %+v, %v", q, err)
	}
	for what, c := range map[string]struct {
		old, new string
		want     error
	}{
		"a verdict": {`"keep"`, `"may_quarantine"`, plan.ErrEdited}, "a digest": {p.SHA256, strings.Repeat("0", 64), plan.ErrEdited},
		"a key": {`"blockers"`, `"blocker"`, plan.ErrNotPlan}, "a later one": {"base-plan/1", "base-plan/2", plan.ErrNewer},
		"another": {"shisa.base-plan", "shisa.plan", plan.ErrNotPlan}, "cut": {"\n}", "", plan.ErrNotPlan},
	} {
		bad := strings.Replace(string(text), c.old, c.new, 1)
		if what == "cut" {
			bad = string(text[:len(text)-3])
		}
		if _, err := Read(strings.NewReader(bad)); !errors.Is(err, c.want) {
			t.Errorf("%s: Read = %v, want %v", what, err, c.want)
		}
	}
	for ago, want := range map[time.Duration]error{0: nil, 59 * time.Minute: nil, 61 * time.Minute: ErrTooOld, -time.Hour: ErrTooOld} {
		if err := q.Fresh(now.Add(ago)); !errors.Is(err, want) {
			t.Errorf("Fresh after %v = %v, want %v", ago, err, want)
		}
	}
	if err := q.Of("/p/_base", w.s); err != nil {
		t.Error(err)
	}
	w.s.Policy.UUID = boot1
	for _, err := range []error{q.Of("/p/_base", w.s), q.Of("/q/_base", newWorld().s), q.Of("/p/_base", &pool.State{})} {
		if !errors.Is(err, ErrOther) {
			t.Errorf("Of = %v, want %v", err, ErrOther)
		}
	}
}

// TestNext: in every case that is blocked it is said what to do next.
func TestNext(t *testing.T) {
	for want, change := range map[string]func(*world){
		"shisa base quarantine": func(*world) {}, "shisa base purge": func(*world) {},
		"shisa base protect":                      func(w *world) { w.c.All[0].Shield = "" },
		"shisa base agent":                        func(w *world) { w.s.Members, w.s.Reports, w.s.Notes[0].Nodes = nil, nil, nil },
		"on n2: shisa base agent --once /p/_base": func(w *world) { w.s.Reports[1].Complete = false },
		"shisa base recover /p/_base":             func(w *world) { w.s.Intents = []pool.Intent{{Node: "n2"}} },
		"shisa base restore /p/_base h":           func(w *world) { w.s.Pins = []pool.Pin{{Name: "h"}} },
		"when every node has reported once more":  func(w *world) { w.s.Notes[0].Candidates = nil },
		"--only NAME":                             func(w *world) { w.s.Policy.MaxFraction = 0 },
		"allow_purge":                             func(w *world) { w.s.Policy.AllowPurge = false },
		"--accept-risk=no-overlays":               func(w *world) { w.c.Looked.Overlays = 0 },
		"--accept-risk=other-storage":             func(w *world) { w.c.Storages[0].ID = "22" },
		"shisa base node join":                    func(w *world) { w.s.Members, w.s.Reports = w.s.Members[:1], w.s.Reports[:1] },
		"some bases are to wait":                  func(w *world) { w.c.All[0].Modified = now },
	} {
		w := newWorld()
		change(w)
		p, _ := Judge(w.c, w.s, w.o)
		if !slices.ContainsFunc(p.Next, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("Next = %q, want %q", p.Next, want)
		}
	}
}

// TestEvidence: the digest changes with what a decision rests on, and with nothing else.
func TestEvidence(t *testing.T) {
	digest := func(change func(*world)) string {
		w := newWorld()
		change(w)
		p, _ := Judge(w.c, w.s, w.o)
		return p.All[0].EvidenceDigest
	}
	same := digest(func(*world) {})
	if again := digest(func(w *world) { w.o.Now = now.Add(time.Second); w.o.Local = w.o.Now }); again != same || len(same) != 64 {
		t.Errorf("a second later it is %s, want %s", again, same)
	}
	for i, change := range []func(*world){
		func(w *world) { w.s.Reports[1].SHA256 = "x" }, func(w *world) { w.c.All[0].SizeBytes++ }, func(w *world) { w.c.Looked.Files++ },
		func(w *world) { w.c.All[0].Uses = []refs.Reference{{How: refs.Open}} },
	} {
		if got := digest(change); got == same {
			t.Errorf("%s: change %d does not change it", fmt.Sprint(same[:8]), i)
		}
	}
}

// TestRulesOfProtocol: the rules of the nodes have the words that they have there.
func TestRulesOfProtocol(t *testing.T) {
	for got, want := range map[Rule]protocol.Reason{NoReport: protocol.NoReport, Incomplete: protocol.Incomplete, Used: protocol.Used,
		NotSeen: protocol.NotSeen, Pinned: protocol.Pinned, Stranger: protocol.Stranger, Nobody: protocol.Nobody} {
		if string(got) != string(want) {
			t.Errorf("%s is %s there", got, want)
		}
	}
}
