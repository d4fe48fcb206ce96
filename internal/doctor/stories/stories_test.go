// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stories

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

func stories(t *testing.T) []*Story {
	t.Helper()
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestStories holds that with all evidence there the doctor names what is wrong, how sure it is, and nothing
// else before it.
func TestStories(t *testing.T) {
	all := stories(t)
	if len(all) < 12 {
		t.Errorf("there are %d stories, want 12", len(all))
	}
	for _, s := range all {
		t.Run(s.Name, func(t *testing.T) {
			r, err := s.Examine(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			holdTruth(t, s, r)
			if t.Failed() {
				t.Log(sums(r))
			}
		})
	}
}

// holdTruth compares a report with what is true.
func holdTruth(t *testing.T, s *Story, r *doctor.Report) {
	t.Helper()
	for i, want := range s.Causes {
		if i >= len(r.Causes) {
			t.Errorf("%s is not named", want.Object)
			continue
		}
		c := &r.Causes[i]
		if c.Object.String() != want.Object || c.Certainty != want.Certainty || len(c.Explains) < want.Least {
			t.Errorf("cause %d is %s %s, which explains %d; want %s %s, %d", i+1, c.Certainty, c.Object, len(c.Explains),
				want.Certainty, want.Object, want.Least)
		}
	}
	if len(s.Causes) == 0 && first(r) != nil {
		t.Errorf("all is well, and %s %s is named", first(r).Certainty, first(r).Object)
	}
	if s.Shared != "" && (len(r.Shared) == 0 || r.Shared[0].Object.String() != s.Shared) {
		t.Errorf("the sick have in common %+v, want %s first", r.Shared, s.Shared)
	}
	for _, n := range r.NotLookedAt {
		t.Errorf("of %s %s %s is not known: %s", n.Machine, n.Part, n.Object, n.Reason)
	}
}

// TestStoriesInBundles holds that a bundle of each machine gives the same report.
func TestStoriesInBundles(t *testing.T) {
	for _, s := range stories(t) {
		t.Run(s.Name, func(t *testing.T) {
			want, err := s.Examine(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var all []*evidence.Evidence
			for _, m := range s.Machines {
				all = append(all, bundled(t, m))
			}
			got := doctor.Examine(all, nil)
			if a, b := verdict(got), verdict(want); a != b {
				t.Errorf("of bundles it says\n%s\nof the machines\n%s", a, b)
			}
		})
	}
}

// bundled writes a bundle of a machine and reads it.
func bundled(t *testing.T, m *Machine) *evidence.Evidence {
	t.Helper()
	var b bytes.Buffer
	if err := m.Bundle(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	opened, _, err := tree.ReadBundle(&b)
	if err != nil {
		t.Fatal(err)
	}
	e, err := evidence.Gather(t.Context(), opened, evidence.Options{Now: Noon(), Label: m.Name})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// verdict is what a report says, in lines.
func verdict(r *doctor.Report) string {
	var b strings.Builder
	for _, c := range r.Causes {
		fmt.Fprintln(&b, c.Certainty, c.Object, c.Score)
	}
	for i := range r.Findings {
		fmt.Fprintln(&b, r.Findings[i].Code, r.Findings[i].Object)
	}
	return b.String()
}

// TestLeaksChangeNothing holds that what is harmless never counts: with and without leaks the same is said of
// all else.
func TestLeaksChangeNothing(t *testing.T) {
	said := map[string]string{}
	for _, s := range stories(t) {
		r, err := s.Examine(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if c := first(r); c != nil {
			said[s.Name] = fmt.Sprint(c.Certainty, c.Object, c.Score, c.Explains)
		}
	}
	for _, name := range []string{"full-server", "full-server-not-seen"} {
		if said[name] == "" || said[name] != said[name+"-leaks-gone"] {
			t.Errorf("%s: with leaks %q, without %q", name, said[name], said[name+"-leaks-gone"])
		}
	}
}

// TestAblation takes each source of evidence away from each story. The doctor may know less then; it never names
// a wrong cause, and what it finds no more it says to be not known.
func TestAblation(t *testing.T) {
	counts, silent := map[Said]int{}, map[string][]string{}
	for _, s := range stories(t) {
		whole, err := s.Examine(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range s.Losses() {
			r, err := s.Examine(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			said := s.Judge(r)
			counts[said]++
			if said == Wrong || said == Clean {
				t.Errorf("%s without %s: %s\n%s", s.Name, l, said, sums(r))
			}
			if lost := Silent(whole, r); len(lost) > 0 {
				silent[s.Name+" without "+l.String()] = lost
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(silent)) {
		t.Errorf("%s: no word of %q", name, silent[name])
	}
	t.Log(counts)
	if counts[Right] == 0 || counts[Asks] == 0 {
		t.Errorf("of the answers are %v: that tells nothing", counts)
	}
}

// TestTwoLosses takes two sources away at once, at random.
func TestTwoLosses(t *testing.T) {
	const pairs = 12
	r := rand.New(rand.NewPCG(7, 7))
	counts := map[Said]int{}
	for _, s := range stories(t) {
		all := s.Losses()
		for range pairs {
			two := []Loss{all[r.IntN(len(all))], all[r.IntN(len(all))]}
			if len(s.Machines) == 2 && two[0].From == "" && two[1].From == "" {
				continue // nothing is left
			}
			rep, err := s.Examine(t.Context(), two...)
			if err != nil {
				t.Fatal(err)
			}
			said := s.Judge(rep)
			counts[said]++
			if said == Wrong || said == Clean {
				t.Errorf("%s without %s: %s\n%s", s.Name, two, said, sums(rep))
			}
		}
	}
	t.Log(counts)
}

// TestJudge holds that a wrong answer is called wrong.
func TestJudge(t *testing.T) {
	s := &Story{Causes: []Answer{{doctor.LikelyCause, "device:h:sdb", 1}}, Accept: []string{"filesystem:h:sdb1"}}
	object := func(k doctor.Kind, name string) doctor.Object { return doctor.Object{Kind: k, On: "h", Name: name} }
	sdb, sdc, fs := object(doctor.Device, "sdb"), object(doctor.Device, "sdc"), object(doctor.FileSystem, "sdb1")
	for _, c := range []struct {
		causes []doctor.Cause
		ok     bool
		want   Said
	}{
		{[]doctor.Cause{{Certainty: doctor.LikelyCause, Object: sdb}}, false, Right},
		{[]doctor.Cause{{Certainty: doctor.LikelyCause, Object: fs}}, false, Right},
		{[]doctor.Cause{{Certainty: doctor.NotLookedAt, Object: sdb}}, false, Asks},
		{[]doctor.Cause{{Certainty: doctor.LikelyCause, Object: sdc}, {Certainty: doctor.LikelyCause, Object: sdb}}, false, Wrong},
		{[]doctor.Cause{{Certainty: doctor.NotLookedAt, Object: sdc}}, false, Wrong},
		{[]doctor.Cause{{Certainty: doctor.NotCertain, Object: sdc, Rivals: []doctor.Rival{{Object: sdb}}}}, false, Asks},
		{[]doctor.Cause{{Certainty: doctor.NotCertain, Object: sdc}}, false, Elsewhere},
		{[]doctor.Cause{{Certainty: doctor.Alone, Object: sdc}}, false, Signs},
		{nil, false, Nothing},
		{nil, true, Clean},
	} {
		r := &doctor.Report{Causes: c.causes, Verdict: finding.CannotTell}
		if c.ok {
			r.Verdict = finding.Clean
		}
		if got := s.Judge(r); got != c.want {
			t.Errorf("Judge(%+v) = %s, want %s", c.causes, got, c.want)
		}
	}
	if got := (&Story{}).Judge(&doctor.Report{Causes: []doctor.Cause{{Certainty: doctor.Alone, Object: sdc}}}); got != Wrong {
		t.Errorf("a finding where all is well is %s, want wrong", got)
	}
}

// sums prints all that is said.
func sums(r *doctor.Report) string {
	var b strings.Builder
	for _, c := range r.Causes {
		fmt.Fprintf(&b, "%s %s %.2f\n", c.Certainty, c.Object, c.Score)
		for _, x := range c.Terms {
			fmt.Fprintf(&b, "    %+.2f %s: %s\n", x.Value, x.Object, x.Text)
		}
		for _, x := range c.Rivals {
			fmt.Fprintf(&b, "    rival %s %.2f\n", x.Object, x.Score)
		}
	}
	for _, a := range r.Rules {
		for _, d := range a.Reasons {
			fmt.Fprintf(&b, "? %s %s: %s\n", a.Code, d.Object, d.Why)
		}
	}
	for _, x := range r.Shared {
		fmt.Fprintf(&b, "shared %s %v %v\n", x.Object, x.Sick, x.Healthy)
	}
	for _, x := range r.NotLookedAt {
		fmt.Fprintf(&b, "gap %s %s %s: %s\n", x.Machine, x.Part, x.Object, x.Reason)
	}
	return b.String()
}

// TestWorlds holds that the ranking finds what random worlds are made with, and is seldom sure and wrong.
func TestWorlds(t *testing.T) {
	const n = 300
	seen, hidden := Worlds(1, n, 0), Worlds(1, n, 30)
	t.Logf("seen %+v, a part not %+v", seen, hidden)
	if seen.First < n*80/100 || seen.First < 2*seen.Harm {
		t.Errorf("of %d worlds it finds %d, the harm alone %d", n, seen.First, seen.Harm)
	}
	if seen.Wrong > n*3/100 || hidden.Wrong > n*5/100 {
		t.Errorf("it is sure and wrong in %d of %d, and in %d where causes are not seen", seen.Wrong, n, hidden.Wrong)
	}
	if again := Worlds(1, n, 30); again != hidden {
		t.Errorf("the same seed gives %+v and %+v", hidden, again)
	}
}
