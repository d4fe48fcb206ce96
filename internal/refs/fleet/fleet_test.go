// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

const (
	poolA = "0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3a"
	poolB = "0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3b"
	held  = "0123456789abcdef0123456789abcdef"
)

var (
	sum1 = strings.Repeat("1", 64)
	sum2 = strings.Repeat("2", 64)
)

// said is what a node says of a pool that only it uses.
func said(node, uuid string, needs []string, all ...pool.Stock) Said {
	r := pool.NodeReport{Schema: pool.ReportSchema, Pool: uuid, Node: node, Machine: strings.Repeat("a", 64),
		BootID: "11112222-3333-4444-5555-666677778888", Seq: 1, Time: time.Unix(1e9, 0).UTC(), Observed: []string{},
		Draining: []pool.Draining{}, Complete: true, Gaps: []string{}, Uses: []pool.Use{},
		Storages: []pool.BaseStorage{}}
	for _, n := range needs {
		r.Uses = append(r.Uses, pool.Use{Name: n, How: "header", Holder: "/i/disk", Depth: 1})
	}
	return Said{File: node + ".json", Inventory: pool.Inventory{Schema: pool.InventorySchema, Report: r, Bases: "/b", All: all,
		Nodes: []string{node}, Away: []string{}, Pinned: []string{}}}
}

func have(name, sum string) pool.Stock {
	return pool.Stock{Name: name, State: "live", Path: "/b/" + name, Inode: 7, SizeBytes: 1, SHA256: sum}
}

func lack(name, sum string) pool.Stock {
	return pool.Stock{Name: name, State: "missing", Path: "/b/" + name, SHA256: sum}
}

// lines tell a report in short.
func lines(r *Report) (all []string) {
	for _, b := range r.All {
		text := b.Name + ":"
		for _, c := range b.Copies {
			text += fmt.Sprintf(" %s %s%v", c.Node, c.State, c.Blockers)
		}
		for _, n := range b.Needs {
			text += " needed by " + n.Node
		}
		for _, w := range b.Ways {
			text += fmt.Sprintf(" %s from %s %v", w.For, w.From, w.Exact)
		}
		all = append(all, text)
	}
	for _, g := range r.Gaps {
		all = append(all, "gap "+g)
	}
	return append(all, fmt.Sprint(r.Verdict, r.Status))
}

func TestMerge(t *testing.T) {
	partly := said("n1", poolA, nil, have("a", ""))
	partly.Report.Complete, partly.Report.Gaps = false, []string{"/x (header): broken"}
	alone := said("n1", poolA, nil, have("a", ""))
	alone.Nodes = []string{"n1", "n9"}
	older := said("n1", poolA, []string{"a"}, have("a", ""))
	newer := said("n1", poolA, nil, have("a", ""))
	newer.Report.Seq = 2
	twin := said("n1", poolB, nil)
	twin.Report.Machine = strings.Repeat("b", 64)
	aside := have("a", "")
	aside.ID, aside.State = held, "quarantined"
	seen := said("n1", poolA, nil, aside)
	seen.Report.Observed = []string{held}
	pinned := said("n1", poolA, nil, have("a", ""))
	pinned.Pinned = []string{"a"}
	clone := said("n1", poolA, nil, have("a", ""))
	clone.Report.Machine, clone.Report.Seq = strings.Repeat("b", 64), 9
	back := said("n1", poolA, nil, have("a", ""))
	back.Report.Seq, back.Report.Time = 9, time.Unix(1e8, 0).UTC()
	again := said("n1", poolA, nil, have("a", ""))
	again.Report.SHA256 = sum1
	graces := func(node string, seconds int64) Said {
		s := said(node, poolA, nil, aside)
		s.Nodes, s.Report.Observed, s.Report.LaunchGraceSeconds = []string{"n1", "n2"}, []string{held}, seconds
		return s
	}
	both := func(node string) Said { // two nodes that share a pool
		s := said(node, poolA, nil, have("a", ""))
		s.Nodes = []string{"n1", "n2"}
		return s
	}
	for _, c := range []struct {
		name string
		all  []Said
		want []string
	}{
		{"nobody", nil, []string{"gap no node said anything", "cannot_tell[4]"}},
		{"needed and not", []Said{said("n1", poolA, []string{"a"}, have("a", ""), have("b", ""))},
			[]string{"a: n1 live[used: n1] needed by n1", "b: n1 live[]", "clean[0]"}},
		{"another node has the very same", []Said{said("n1", poolA, []string{"a"}, lack("a", sum1)), said("n2", poolB, nil, have("z", sum1))},
			[]string{"a: n1 missing[used: n1] needed by n1 n1 from n2 true", "z: n2 live[]", "found[3]"}},
		{"another node has the name", []Said{said("n1", poolA, []string{"a"}, lack("a", "")), said("n2", poolB, nil, have("a", sum1))},
			[]string{"a: n1 missing[used: n1] n2 live[] needed by n1 n1 from n2 false", "found[3]"}},
		{"another node has the name of another file", []Said{said("n1", poolA, []string{"a"}, lack("a", sum2)), said("n2", poolB, nil, have("a", sum1))},
			[]string{"a: n1 missing[used: n1] n2 live[] needed by n1", "found[3]"}},
		{"nobody has it", []Said{said("n1", poolA, []string{"a"}, lack("a", sum1)), said("n2", poolB, []string{"a"}, lack("a", sum1))},
			[]string{"a: n1 missing[used: n1] n2 missing[used: n2] needed by n1 needed by n2", "found[3]"}},
		{"not everything was read", []Said{partly},
			[]string{"a: n1 live[incomplete: n1]", "gap n1 could not read all that may need a base: /x (header): broken", "cannot_tell[4]"}},
		{"a member whose report is not there", []Said{alone}, []string{"a: n1 live[no_report: n9]",
			"gap n9 uses the pool " + poolA + " of n1 as well, and no document of it was given", "cannot_tell[4]"}},
		{"two that share a pool", []Said{both("n2"), both("n1")}, []string{"a: n1 live[] n2 live[]", "clean[0]"}},
		{"an old report of the same node", []Said{older, newer}, []string{"a: n1 live[]", "clean[0]"}},
		{"two machines of a name", []Said{said("n1", poolA, nil), twin},
			[]string{"gap two machines call themselves n1: n1.json and n1.json", "cannot_tell[4]"}},
		{"two machines of a name in one pool", []Said{older, clone}, []string{
			"a: n1 live[two_machines: n1 used: n1] n1 live[two_machines: n1 used: n1] needed by n1",
			"gap two machines call themselves n1: n1.json and n1.json", "cannot_tell[4]"}},
		{"a number that is higher, of a time before", []Said{older, back}, []string{
			"a: n1 live[went_back: n1 used: n1] n1 live[went_back: n1 used: n1] needed by n1", "gap which report of n1 is newer cannot " +
				"be told: n1.json is number 9 of 1973-03-03T09:46:40Z, and n1.json number 1 of 2001-09-09T01:46:40Z", "cannot_tell[4]"}},
		{"two of one number", []Said{older, again}, []string{
			"a: n1 live[went_back: n1 used: n1] n1 live[went_back: n1 used: n1] needed by n1", "gap which report of n1 is newer cannot " +
				"be told: n1.json is number 1 of 2001-09-09T01:46:40Z, and n1.json number 1 of 2001-09-09T01:46:40Z", "cannot_tell[4]"}},
		{"one file twice", []Said{seen, seen}, []string{"a: n1 quarantined[]", "clean[0]"}},
		{"seen after a shorter wait than another node knows of", []Said{graces("n1", 60), graces("n2", 3600)}, []string{
			"a: n1 quarantined[not_seen: n1] n2 quarantined[not_seen: n1]", "clean[0]"}},
		{"in quarantine and not seen", []Said{said("n1", poolA, nil, aside)}, []string{"a: n1 quarantined[not_seen: n1]", "clean[0]"}},
		{"in quarantine and seen", []Said{seen}, []string{"a: n1 quarantined[]", "clean[0]"}},
		{"pinned", []Said{pinned}, []string{"a: n1 live[pinned]", "clean[0]"}},
	} {
		if d := cmp.Diff(c.want, lines(Merge(c.all))); d != "" {
			t.Errorf("%s: Merge (-want +got):\n%s", c.name, d)
		}
		slices.Reverse(c.all)
		if d := cmp.Diff(c.want, lines(Merge(c.all))); d != "" {
			t.Errorf("%s, the other way round: Merge (-want +got):\n%s", c.name, d)
		}
	}
}

// TestDescribe: a document of a node reads as it was written.
func TestDescribe(t *testing.T) {
	first := said("n1", poolA, []string{"a"})
	s := &pool.State{Objects: map[uint64]pool.Object{
		7: {Name: "a", Inode: 7, SizeBytes: 3, SHA256: sum1}, 8: {Name: "gone", Inode: 8, SizeBytes: 3, SHA256: sum2},
		9:  {Name: "b", Inode: 9, SizeBytes: 4, SHA256: sum2}, // b is longer by now
		12: {Name: "two", Inode: 12, SHA256: sum1}, 13: {Name: "two", Inode: 13, SHA256: sum2}},
		Members: []pool.Member{{Node: "n1"}, {Node: "n2"}}, Retired: []pool.Retired{{Node: "n3"}}}
	c := &refs.Census{Bases: "/b", All: []refs.Base{
		{Name: "a", State: refs.Live, Path: "/b/a", File: id(7), SizeBytes: 3},
		{Name: "b", State: refs.Live, Path: "/b/b", File: id(9), SizeBytes: 5},
		{Name: "gone", State: refs.Missing, Path: "/b/gone"},
		{Name: "no \xff text", State: refs.Live, Path: "/b/no \xff text", File: id(10), SizeBytes: 5},
		{Name: "two", State: refs.Missing, Path: "/b/two"},
		{Name: "c", State: refs.Live, Path: "/b/c", File: id(11), Shield: "/b/.shisa/shields/11.\xff"},
	}}
	i := Describe(first.Said(), c, s)
	if k := i.All[len(i.All)-1]; k.Shield != "/b/.shisa/shields/11.\uFFFD" {
		t.Errorf("a shield that is no text is told as %q", k.Shield)
	}
	text, err := i.Text()
	if err != nil {
		t.Fatal(err)
	}
	got, err := pool.ParseInventory("x", text)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(*i, got); d != "" {
		t.Errorf("ParseInventory (-want +got):\n%s", d)
	}
	var sums []string
	for _, k := range got.All {
		sums = append(sums, k.SHA256)
	}
	if want := []string{sum1, "", sum2, "", ""}; !slices.Equal(sums, want) {
		t.Errorf("digests = %q, want %q", sums, want)
	}
	if !slices.Equal(got.Nodes, []string{"n1", "n2"}) || !slices.Equal(got.Away, []string{"n3"}) {
		t.Errorf("nodes = %q and %q", got.Nodes, got.Away)
	}
	for _, c := range [][2]string{{`"seq": 1`, `"seq": 2`}, {`"state": "live"`, `"state": "missing"`}, {`/b/a`, `/b/c`}, {`node/1`, `node/2`}} {
		bad := strings.Replace(string(text), c[0], c[1], 1)
		if _, err := pool.ParseInventory("x", []byte(bad)); bad == string(text) || err == nil {
			t.Errorf("%q for %q was taken", c[1], c[0])
		}
	}
}

func id(ino uint64) diskio.ID { return diskio.ID{Dev: 1, Ino: ino} }
