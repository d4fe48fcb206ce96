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
