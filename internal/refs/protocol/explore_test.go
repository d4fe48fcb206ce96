// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package protocol

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// begin is where every story begins: all nodes are up, nothing is launched.
func (m *model) begin() state {
	var s state
	for i := range s.nodes[:m.nodes] {
		s.nodes[i].up = true
	}
	return s
}

// explored is what came out of going through all states.
type explored struct {
	states int
	// story leads to the first state that is bad, nil if none is. It is one of the shortest.
	story []string
	// purged: the base was removed in some state.
	purged bool
}

// bits makes of a state a number, and the same of states that are alike but for the order of nodes.
func (m *model) bits(s *state) uint64 {
	var nodes [maxNodes]uint64
	width := 15
	if m.rules.raises {
		width = 17
	}
	for i := range s.nodes[:m.nodes] {
		n := &s.nodes[i]
		b := uint64(n.launch) | uint64(n.pass)<<2 | uint64(n.seen)<<4 | uint64(n.observed)<<6
		for k, f := range []bool{n.up, n.cached, n.overlay, n.reported, n.uses, n.retired, n.expired, n.hasty, n.short} {
			if f {
				b |= 1 << (8 + k)
			}
		}
		nodes[i] = b
	}
	if !m.rules.stranger {
		slices.Sort(nodes[:m.nodes])
	}
	var cs [maxControllers]uint64
	for i := range s.controllers[:m.controllers] {
		cs[i] = uint64(s.controllers[i].act) | uint64(s.controllers[i].id)<<2
	}
	slices.Sort(cs[:m.controllers])
	b := uint64(s.at) | uint64(s.id)<<2 | uint64(s.used)<<4
	if s.pinned {
		b |= 1 << 6
	}
	if s.aged {
		b |= 1 << 7
	}
	for _, c := range cs {
		b = b<<4 | c
	}
	raised := uint64(0)
	if s.raised {
		raised = 1
	}
	b = b<<1 | raised
	for _, n := range nodes[:m.nodes] {
		b = b<<width | n
	}
	return b
}

// explore goes through every state that can be reached, those with the fewest steps first.
func (m *model) explore() explored {
	type at struct {
		s    state
		from int32
	}
	start := m.begin()
	seen := map[uint64]struct{}{m.bits(&start): {}}
	all := []at{{start, -1}}
	var out explored
	for i := 0; i < len(all); i++ {
		s := all[i].s
		out.purged = out.purged || s.at == gone
		if s.lost(m) {
			out.states = len(all)
			for k := int32(i); all[k].from >= 0; k = all[k].from {
				out.story = append(out.story, m.between(&all[all[k].from].s, &all[k].s))
			}
			slices.Reverse(out.story)
			return out
		}
		m.next(&s, func(_ func() string, to state) {
			b := m.bits(&to)
			if _, ok := seen[b]; !ok {
				seen[b] = struct{}{}
				all = append(all, at{to, int32(i)})
			}
		})
	}
	out.states = len(all)
	return out
}

// between gives the name of the step from one state to another.
func (m *model) between(from, to *state) (text string) {
	m.next(from, func(what func() string, s state) {
		if text == "" && s == *to {
			text = what()
		}
	})
	return text
}

// TestProtocolHolds goes through all that can happen with the protocol as it is: no order of steps loses
// a base that is in use, and yet one that is not can be removed.
func TestProtocolHolds(t *testing.T) {
	sizes := []model{{nodes: 1, controllers: 1}, {nodes: 2, controllers: 1}, {nodes: 1, controllers: 1, rules: rules{raises: true}},
		{nodes: 2, controllers: 1, rules: rules{raises: true}}}
	if testenv.Long() {
		// A million states, and 15 million, which take 4 GiB.
		sizes = append(sizes, model{nodes: 2, controllers: 2}, model{nodes: 3, controllers: 1})
	}
	for _, m := range sizes {
		t.Run(fmt.Sprintf("%d nodes, %d controllers, longer grace %v", m.nodes, m.controllers, m.rules.raises), func(t *testing.T) {
			got := m.explore()
			t.Logf("%d states", got.states)
			if got.story != nil {
				t.Errorf("a base that is in use is lost:\n%s", strings.Join(got.story, "\n"))
			}
			if !got.purged {
				t.Error("nothing is ever removed")
			}
		})
	}
}

// TestEveryRuleIsNeeded leaves each rule out: there is a story in which a base is lost then, and the
// shortest is kept in testdata.
func TestEveryRuleIsNeeded(t *testing.T) {
	for _, c := range []struct {
		name string
		m    model
	}{
		{"nova", model{nodes: 2, rules: rules{nova: true}}},
		{"without-quarantine", model{nodes: 2, controllers: 1, rules: rules{direct: true}}},
		{"without-the-silent", model{nodes: 2, controllers: 1, rules: rules{ignoreDown: true}}},
		{"without-draining", model{nodes: 2, controllers: 1, rules: rules{noDrain: true}}},
		{"without-looking-up", model{nodes: 2, controllers: 1, rules: rules{noLookUp: true}}},
		{"wrong-order", model{nodes: 2, controllers: 1, rules: rules{wrongOrder: true}}},
		{"epochs", model{nodes: 2, controllers: 2, rules: rules{epochs: true}}},
		{"fixed-name", model{nodes: 2, controllers: 1, rules: rules{fixedName: true}}},
		{"retiring-forgets", model{nodes: 2, controllers: 1, rules: rules{retireDrops: true}}},
		{"short-grace", model{nodes: 2, controllers: 1, rules: rules{raises: true, keepsShort: true}}},
		{"stranger", model{nodes: 2, controllers: 1, rules: rules{stranger: true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.m.explore()
			t.Logf("%d states", got.states)
			if got.story == nil {
				t.Fatalf("%d states, and the base is lost in none", got.states)
			}
			golden(t, c.name, strings.Join(got.story, "\n")+"\n")
		})
	}
}

// TestNovaWithoutPowerCuts: it is the node that is down which Nova's rule forgets.
func TestNovaWithoutPowerCuts(t *testing.T) {
	m := model{nodes: 2, rules: rules{nova: true, noPowerLoss: true}}
	if got := m.explore(); got.story != nil || !got.purged {
		t.Errorf("explore() = %+v, want no loss, and a base that is removed", got)
	}
}

// TestDownForEver: while a node is down that has not seen the base in quarantine, it stays.
func TestDownForEver(t *testing.T) {
	q := &Question{
		Members: []Member{{Node: "a"}, {Node: "b"}},
		Reports: []Report{{Node: "a", Observed: []string{"q1"}, Complete: true}, {Node: "b", Complete: true}},
	}
	if got := MayPurge(q, "q1"); !slices.Equal(got, []Blocker{{NotSeen, "b"}}) {
		t.Errorf("MayPurge = %v, want that b has not seen it", got)
	}
	if got := MayQuarantine(q); len(got) > 0 {
		t.Errorf("MayQuarantine = %v, want nothing against it", got)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".txt")
	if os.Getenv("SHISA_UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("the shortest story is another one (-want +got):\n%s", d)
	}
}
