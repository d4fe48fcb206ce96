// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// transaction is transaction_add_job_and_dependencies() of systemd 252 in one order of all its hash tables, without anything
// that saves work.
type transaction struct {
	s    *Set
	more map[string][]Start
	rand *rand.Rand
	met  map[*Unit]bool
}

// add adds a job, and tells whether it could. One that was added before is taken as it is.
func (x *transaction) add(u *Unit) bool {
	if x.met[u] {
		return true
	}
	x.met[u] = true
	hard, soft := map[string][]Start{}, map[string][]Start{} // by the kind of dependency, each a table of its own
	for _, e := range append(u.starts(), x.more[u.Name]...) {
		switch e.By {
		case "Requires=", "requires link", "DefaultDependencies=":
			hard["Requires"] = append(hard["Requires"], e)
		case "BindsTo=":
			hard["BindsTo"] = append(hard["BindsTo"], e)
		case "Upholds=", "upholds link":
			soft["Upholds"] = append(soft["Upholds"], e)
		default:
			soft["Wants"] = append(soft["Wants"], e)
		}
	}
	for _, e := range x.shuffled(hard) {
		if to := x.s.Unit(e.To); to == nil || !present(to) || targetOf(to.Name) == "" && !x.add(to) {
			return false
		}
	}
	for _, e := range x.shuffled(soft) {
		if to := x.s.Unit(e.To); to != nil && present(to) && targetOf(to.Name) == "" {
			x.add(to)
		}
	}
	for _, e := range u.named("Unit", "Requisite") {
		if to := x.s.Unit(e.To); to == nil || !present(to) {
			return false
		}
	}
	return true
}

func (x *transaction) shuffled(tables map[string][]Start) (all []Start) {
	for _, table := range tables { // Go's own order is random, but not by a seed
		x.rand.Shuffle(len(table), func(i, j int) { table[i], table[j] = table[j], table[i] })
		if x.rand.IntN(2) == 0 {
			all = append(table, all...)
		} else {
			all = append(all, table...)
		}
	}
	return all
}

// odds is what came of many transactions of one root.
type odds struct {
	tries, roots int
	units        map[string]int // of those in which the root was started
}

// try starts a root some times more, each in another order.
func (o *odds) try(s *Set, root string, times int) {
	r := rand.New(rand.NewPCG(11, uint64(o.tries)))
	for range times {
		o.tries++
		x := &transaction{s: s, rand: r, met: map[*Unit]bool{}}
		if u := s.Unit(root); u == nil || !present(u) || !x.add(u) {
			continue
		}
		o.roots++
		for u := range x.met {
			o.units[u.Name]++
		}
	}
}

// needless gives what is wrong with a set's doubts about a start of a root: what is doubted and happens in any order or
// in none, what is taken for sure and is luck, and what is denied and happens. Rare orders are tried for.
func needless(s *Set, root string) string {
	o := &odds{units: map[string]int{}}
	wrong := ""
	for _, times := range []int{60, 600, 6000} {
		o.try(s, root, times)
		if wrong = o.held(s, root); wrong == "" {
			return ""
		}
	}
	return wrong
}

// held holds a set's doubts against what came of transactions.
func (o *odds) held(s *Set, root string) string {
	c := course{root: No}
	if u := s.Unit(root); u != nil {
		c = s.outcome(u, nil)
	}
	want := Maybe
	switch o.roots {
	case 0:
		want = No
	case o.tries:
		want = Yes
	}
	if c.root != want {
		return fmt.Sprintf("%s is started: %s; in %d of %d orders it is", root, c.root, o.roots, o.tries)
	}
	reached := s.Reached(root)
	for _, u := range s.Units {
		want, in := Maybe, o.units[u.Name]
		switch in {
		case 0:
			want = No
		case o.roots:
			want = Yes
		}
		got := Yes
		if chain, is := reached[u.Name]; !is {
			got = No
		} else if DoubtOf(chain) != "" {
			got = Maybe
		}
		if t := c.units[u]; (t == "") != (got == No) {
			return fmt.Sprintf("%s is started with %s: %q, and a chain to it says %s", u.Name, root, t, got)
		}
		if c.root == Maybe && want == Yes {
			want = Maybe // with the root
		}
		if got != want {
			return fmt.Sprintf("%s is started with %s: %s; in %d of %d orders in which that is", u.Name, root, got, in, o.roots)
		}
	}
	return ""
}

// wanting makes a system of targets that require, want and bind to one another, and some that are not there.
func (c chance) wanting() map[string]string {
	files := vendor()
	names := []string{"a.target", "b.target", "c.target", "d.target", "e.target", "f.target", "g.target"}
	other := func() string {
		if c.IntN(7) == 0 {
			return c.of("gone.target", "masked.target")
		}
		return c.of(names...)
	}
	files["etc/systemd/system/masked.target"] = ""
	for _, name := range append(names, "basic.target", "multi-user.target") {
		text := files["usr/lib/systemd/system/"+name]
		if text == "" {
			text = "[Unit]\nDefaultDependencies=no\n"
		}
		for n := 1 + c.IntN(3); n > 0; n-- {
			text += c.of("Requires", "Requires", "Requires", "Wants", "Wants", "Wants", "BindsTo", "Upholds", "Requisite") + "=" + other() + "\n"
		}
		files["usr/lib/systemd/system/"+name] = text
	}
	return files
}

// TestDoubtsAreLuck holds each doubt in random trees against many orders of what systemd 252 does: whatever is
// doubted happens in some of them, and in some not.
func TestDoubtsAreLuck(t *testing.T) {
	roots, units, sured := 0, 0, 0
	for seed := range testenv.Rounds(150, 3000, 30000) {
		dir := t.TempDir()
		c := chance{rand.New(rand.NewPCG(9, uint64(seed)))}
		files := c.wanting()
		files["usr/lib/systemd/libsystemd-shared-252.so"] = "x"
		written(t, dir, files)
		s := loaded(t, dir)
		for _, root := range []string{"default.target", "a.target", "b.target"} {
			if wrong := needless(s, root); wrong != "" {
				t.Fatalf("seed %d: %s; the tree:\n%s", seed, wrong, listed(files))
			}
			sure, all := reaches(s, root)
			sured += len(sure)
			if units += len(all) - len(sure); len(all) > 0 && len(sure) == 0 {
				roots++
			}
		}
	}
	t.Logf("%d roots and %d units are luck, %d units are sure", roots, units, sured)
	if roots < 5 || units < 50 || sured < 100 {
		t.Error("too little was luck, or too little sure, to say anything")
	}
}

// TestDoubtsVary holds doubts in random trees against systemd's own manager, which tries again and again: most of what
// is doubted is started in some tries and not in others, and all else is the same in each.
func TestDoubtsVary(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "unshare", "setpriv", "systemctl", "/usr/lib/systemd/systemd")
	if systemdVersion(t) >= "254" {
		testenv.Lacks(t, "a systemd before 254, for which there is luck")
	}
	doubted, varied := 0, 0
	for seed, trees := uint64(0), testenv.Rounds(4, 25, 250); trees > 0; seed++ {
		c := chance{rand.New(rand.NewPCG(13, seed))}
		files := c.wanting()
		files["usr/lib/systemd/libsystemd-shared-252.so"] = "x"
		dir := openDir(t)
		written(t, dir, files)
		s := loaded(t, dir)
		sure, all := reaches(s, "default.target")
		if len(all) == len(sure) {
			continue
		}
		trees--
		starts, tries := tried(t, dir, len(all)-len(sure))
		doubted += len(all) - len(sure)
		for name, n := range starts {
			switch {
			case !slices.Contains(all, name):
				t.Errorf("seed %d: systemd starts %s, we think it never does", seed, name)
			case !slices.Contains(sure, name) && n < tries:
				varied++
			}
		}
		for _, name := range sure {
			if starts[name] != tries {
				t.Errorf("seed %d: systemd starts %s in %d of %d tries, we think in all", seed, name, starts[name], tries)
			}
		}
		if t.Failed() {
			t.Fatalf("the tree:\n%s", listed(files))
		}
	}
	t.Logf("%d of %d doubts are luck in few tries", varied, doubted)
	if varied*3 < doubted*2 {
		t.Errorf("%d of %d doubts are luck, want two of three at least", varied, doubted)
	}
}

// tried has systemd's own manager try default.target often enough that what is luck mostly shows, until as many units
// varied as are doubted. It gives how often each unit was started.
func tried(t *testing.T, dir string, doubted int) (starts map[string]int, tries int) {
	starts = map[string]int{}
	for varied := 0; tries < 24 && varied < doubted; {
		_, jobs, root := judged(t, dir)
		if root == "a cycle" {
			t.Fatalf("a tree of targets without order has a cycle: %s", dir)
		}
		if tries++; root != "default.target" {
			jobs = nil // of rescue.target
		}
		for _, name := range jobs {
			starts[name]++
		}
		varied = 0
		for _, n := range starts {
			if n < tries {
				varied++
			}
		}
	}
	return starts, tries
}

// TestLuckOfManyUnits: a large system with units that lack something is gone through to the end, and one that is made
// to have too many orders is doubted after so many steps.
func TestLuckOfManyUnits(t *testing.T) {
	large := luckyFiles(map[string]string{"hub.target": "[Unit]\nWants=l0.service l1.service l2.service l3.service\n"}, "252")
	for i := range 4 {
		large[fmt.Sprintf("etc/systemd/system/l%d.service", i)] = fmt.Sprintf("[Unit]\nRequires=gone.service m%d.service\n[Service]\nExecStart=/bin/true\n", i)
	}
	for i := range 400 {
		large[fmt.Sprintf("etc/systemd/system/m%d.service", i)] = "[Unit]\nWants=hub.target\n[Service]\nExecStart=/bin/true\n"
		large[fmt.Sprintf("etc/systemd/system/multi-user.target.wants/m%d.service", i)] = fmt.Sprintf("->../m%d.service", i)
	}
	many := luckyFiles(nil, "252")
	for i := range 24 {
		many[fmt.Sprintf("etc/systemd/system/l%d.target", i)] = fmt.Sprintf("[Unit]\nRequires=gone%d.service l%d.target l%d.target l%d.target\n",
			i, (i+5)%24, (i+7)%24, (i+11)%24)
		many[fmt.Sprintf("etc/systemd/system/multi-user.target.wants/l%d.target", i)] = fmt.Sprintf("->../l%d.target", i)
	}
	for name, files := range map[string]map[string]string{"large": large, "many orders": many} {
		dir := t.TempDir()
		written(t, dir, files)
		s := loaded(t, dir)
		l := s.newLuck(s.below(s.Unit("default.target"), nil), nil)
		l.visit(visit{l.of[s.Unit("default.target")], met(make([]byte, (2*len(l.nodes)+7)/8))})
		if cut := l.left <= 0; cut != (name == "many orders") {
			t.Errorf("%s: %d of %d steps are left", name, l.left, maxLuck)
		}
		t.Logf("%s: %d nodes, %d steps", name, len(l.nodes), maxLuck-l.left)
		sure, all := reaches(s, "default.target")
		if len(sure) < 4 || name == "large" && (len(sure) < 400 || len(all) < len(sure)) {
			t.Errorf("%s: %d are started, %d of them for sure", name, len(all), len(sure))
		}
	}
}

// FuzzLuck: whatever targets require of one another, a start comes to an end in a bounded time, and what is said of it holds
// in each order that is tried: what is sure is started, and nothing is that is denied.
func FuzzLuck(f *testing.F) {
	f.Add([]byte{0, 1, 0, 1, 2, 0, 2, 15, 0, 0, 2, 3})
	f.Add([]byte{0, 1, 0, 0, 2, 0, 1, 3, 3, 1, 2, 1, 2, 1, 0, 3, 14, 3})
	f.Add([]byte{0, 0, 0, 0, 15, 2, 1, 14, 3})
	f.Fuzz(func(t *testing.T, graph []byte) {
		const names = 14 // those beyond are not there
		m := memory{"/lib": "->usr/lib", "/usr/lib/systemd/libsystemd-shared-252.so": "x"}
		text := map[byte]string{}
		for ; len(graph) >= 3; graph = graph[3:] {
			from := graph[0] % names
			text[from] += fmt.Sprintf("%s=u%d.target\n", []string{"Requires", "Wants", "BindsTo", "Requisite", "Upholds"}[graph[2]%5], graph[1]%16)
		}
		for i := range byte(names) {
			m[fmt.Sprintf("/etc/systemd/system/u%d.target", i)] = "[Unit]\n" + text[i]
		}
		s, err := Load(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		c := s.outcome(s.Unit("u0.target"), nil)
		for seed := range uint64(20) {
			x := &transaction{s: s, rand: rand.New(rand.NewPCG(seed, 0)), met: map[*Unit]bool{}}
			ok := x.add(s.Unit("u0.target"))
			if ok && c.root == No || !ok && c.root == Yes {
				t.Fatalf("the root is started: %t, want %s", ok, c.root)
			}
			for _, u := range s.Units {
				if met := x.met[u]; ok && (met && c.units[u] == "" || !met && c.units[u] == Yes) {
					t.Fatalf("%s is started: %t, want %q", u.Name, met, c.units[u])
				}
			}
		}
	})
}
