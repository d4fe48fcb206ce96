// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package protocol

import (
	"fmt"
	"strconv"
)

// The model is one base, a few nodes that may launch machines from it, and a few controllers that would
// like to remove it. Everything that can happen at a moment is one step, and steps come in any order.

const (
	maxNodes       = 3
	maxControllers = 2
	maxIDs         = 2 // how often the base may be quarantined
)

// place is where the base is.
type place uint8

const (
	live place = iota
	quarantined
	claimed
	gone
)

// launch is how far a node is with a new machine.
type launch uint8

const (
	noLaunch launch = iota
	// early: the base was looked up before the node's pass looked the directory up anew; late: after.
	early
	late
)

// pass is how far a node's agent is.
type pass uint8

const (
	idle   pass = iota
	first       // one of listed and looked up is done
	second      // both are
	drained
)

// node is one node, as small as it goes.
type node struct {
	up      bool
	cached  bool // its cache has the name, from when it was there
	launch  launch
	overlay bool // a machine rests on the base
	pass    pass
	seen    uint8 // the id that this pass saw, 0 for none
	// The latest report.
	reported bool
	observed uint8
	uses     bool
	retired  bool
	expired  bool // Nova: its lease ran out
	// hasty: this pass waited by a grace that is too short; short: the one of the latest report did.
	hasty, short bool
}

// controller is one controller between its decision and its act.
type controller struct {
	act uint8 // 0 nothing, 1 is about to quarantine, 2 to claim, 3 to unlink
	id  uint8
}

// state is everything at one moment.
type state struct {
	nodes       [maxNodes]node
	controllers [maxControllers]controller
	at          place
	id          uint8 // of the quarantine that it is in, or was in last
	used        uint8 // ids that were given away
	pinned      bool
	aged        bool // Nova: the file is old enough
	raised      bool // a person made the grace as long as launches take
}

// lost: a machine rests on a base that is gone.
func (s *state) lost(m *model) bool {
	if s.at != gone {
		return false
	}
	for i := range s.nodes[:m.nodes] {
		if s.nodes[i].overlay {
			return true
		}
	}
	return false
}

// rules says which rules hold. The zero value is the protocol as it is.
type rules struct {
	nova        bool // Nova's: leases and ages, no quarantine
	noPowerLoss bool
	direct      bool // unlink what the reports name no use of, without a quarantine
	ignoreDown  bool // do not wait for nodes that are down
	noDrain     bool // do not wait for launches under way
	noLookUp    bool // do not look the directory up anew
	wrongOrder  bool // look up first, list afterwards
	epochs      bool // acknowledge the number of a wish to quarantine, not what was seen there
	fixedName   bool // one name for all quarantines
	retireDrops bool // what a retired node used is forgotten
	stranger    bool // the last node is no member, and nobody notices
	raises      bool // the grace is shorter than launches take, until a person notices, before anything is removed
	keepsShort  bool // what was waited for by the shorter grace counts all the same
}

// model is a world to go through.
type model struct {
	nodes, controllers int
	rules              rules
}

// next gives all that can happen, with what is so afterwards.
func (m *model) next(s *state, give func(what func() string, to state)) {
	for i := range m.nodes {
		m.nodeSteps(s, i, give)
	}
	if m.rules.nova {
		m.novaSteps(s, give)
		return
	}
	for i := range m.controllers {
		m.controllerSteps(s, i, give)
	}
	if m.rules.raises && !s.raised {
		to := *s
		to.raised = true
		give(say("a person makes launch_grace longer"), to)
	}
	if s.at == quarantined || s.at == claimed {
		to := *s
		to.at = live
		give(say("somebody brings the base back"), to)
	}
}

// say is for a step's name, which only a story needs.
func say(text string) func() string { return func() string { return text } }

// sayNode is say for what a node does.
func sayNode(i int, text string) func() string {
	return func() string { return "node " + strconv.Itoa(i) + " " + text }
}

// nodeSteps are the launches, the power and the agent of a node.
func (m *model) nodeSteps(s *state, i int, give func(func() string, state)) {
	n := &s.nodes[i]
	change := func(text string, f func(to *state, n *node)) {
		to := *s
		f(&to, &to.nodes[i])
		give(sayNode(i, text), to)
	}
	if !n.up {
		if !n.retired {
			change("has power again", func(_ *state, n *node) { n.up, n.expired = true, false })
			m.retire(s, i, change)
		}
		return
	}
	// An entry in a cache leads to a file that was renamed, not to one that was removed.
	if n.launch == noLaunch && !n.overlay && (s.at == live || n.cached && s.at != gone) {
		change("looks the base up to launch a machine", func(to *state, n *node) {
			n.cached, n.launch, to.aged = true, early, false
			if n.pass == second || n.pass == drained || m.rules.wrongOrder && n.pass == first {
				n.launch = late
			}
		})
	}
	if n.launch != noLaunch {
		change("writes the overlay", func(_ *state, n *node) { n.launch, n.overlay = noLaunch, true })
		change("gives its launch up", func(_ *state, n *node) { n.launch = noLaunch })
	}
	if n.overlay {
		change("deletes its machine", func(_ *state, n *node) { n.overlay = false })
	}
	if n.cached {
		change("forgets the entry in its cache", func(_ *state, n *node) { n.cached = false })
	}
	if !m.rules.noPowerLoss {
		change("loses power", func(_ *state, n *node) {
			n.up, n.cached, n.launch, n.pass, n.seen, n.hasty = false, false, noLaunch, idle, 0, false
		})
	}
	if !m.rules.nova {
		m.passSteps(s, i, change)
	}
}

// retire is what a person does about a node that stays away. What it uses is kept by a pin.
func (m *model) retire(s *state, i int, change func(string, func(*state, *node))) {
	if m.rules.nova || s.at == gone {
		return
	}
	change("is retired by a person", func(to *state, n *node) {
		n.retired = true
		if m.rules.retireDrops {
			n.reported, n.uses = false, false
			return
		}
		to.pinned = to.pinned || n.overlay || n.uses
	})
}

// passSteps are those of an agent, in its order.
func (m *model) passSteps(s *state, i int, change func(string, func(*state, *node))) {
	n := &s.nodes[i]
	list := func(to *state, n *node) {
		n.pass++
		n.seen = 0
		switch {
		case m.rules.epochs:
			n.seen = to.used
		case to.at == quarantined:
			n.seen = to.id
		}
	}
	lookUp := func(to *state, n *node) {
		n.pass++
		if !m.rules.noLookUp {
			n.cached = to.at == live
		}
		if n.launch == late {
			n.launch = early
		}
	}
	order := []struct {
		text string
		do   func(*state, *node)
	}{{"lists the quarantine", list}, {"looks the directory up anew", lookUp}}
	if m.rules.wrongOrder {
		order[0], order[1] = order[1], order[0]
	}
	switch n.pass {
	case idle:
		change(order[0].text, order[0].do)
	case first:
		change(order[1].text, order[1].do)
	case second:
		hasty := m.rules.raises && !s.raised
		if n.launch != early || m.rules.noDrain || hasty {
			change("has waited for its launches", func(_ *state, n *node) { n.pass, n.hasty = drained, hasty })
		}
	case drained:
		change("looks for uses and reports", func(_ *state, n *node) {
			n.pass, n.reported, n.observed, n.uses, n.seen = idle, true, n.seen, n.overlay, 0
			n.short, n.hasty = n.hasty, false
		})
	}
}

// question is what a controller has before it, through the eyes of the rules.
func (m *model) question(s *state) *Question {
	q := &Question{Pinned: s.pinned}
	for i := range s.nodes[:m.nodes] {
		n := &s.nodes[i]
		name := strconv.Itoa(i)
		if m.rules.stranger && i == m.nodes-1 || m.rules.ignoreDown && !n.up {
			continue
		}
		q.Members = append(q.Members, Member{Node: name, Retired: n.retired})
		if n.reported {
			r := Report{Node: name, Observed: m.observed(n.observed), Complete: true, Uses: n.uses}
			if n.short && s.raised && !m.rules.keepsShort {
				r.Observed = nil
			}
			q.Reports = append(q.Reports, r)
		}
	}
	return q
}

// observed names what a report saw. By epochs a later number stands for all before.
func (m *model) observed(id uint8) (all []string) {
	low := id
	if m.rules.epochs {
		low = 1
	}
	for ; low > 0 && low <= id; low++ {
		all = append(all, strconv.Itoa(int(low)))
	}
	return all
}

// controllerSteps are a decision, or the act that follows one, whenever that comes.
func (m *model) controllerSteps(s *state, i int, give func(func() string, state)) {
	c := &s.controllers[i]
	change := func(text string, f func(to *state, c *controller)) {
		to := *s
		f(&to, &to.controllers[i])
		give(func() string { return fmt.Sprintf("controller %d %s", i, text) }, to)
	}
	switch c.act {
	case 0:
		m.decide(s, change)
	case 1:
		change("moves the base into quarantine", func(to *state, c *controller) {
			if to.at == live {
				to.at, to.id = quarantined, c.id
			}
			*c = controller{}
		})
	case 2:
		change("claims the base", func(to *state, c *controller) {
			if to.at == quarantined && to.id == c.id {
				to.at, c.act = claimed, 3
				return
			}
			*c = controller{}
		})
	case 3:
		change("unlinks the base", func(to *state, c *controller) {
			if to.at == claimed && to.id == c.id || m.rules.direct && to.at == live {
				to.at = gone
			}
			*c = controller{}
		})
	}
}

// decide is what a controller makes up its mind to do.
func (m *model) decide(s *state, change func(string, func(*state, *controller))) {
	q := m.question(s)
	switch s.at {
	case live:
		if len(MayQuarantine(q)) > 0 {
			return
		}
		if m.rules.direct {
			change("decides to unlink the base", func(_ *state, c *controller) { c.act = 3 })
			return
		}
		if s.used == maxIDs {
			return
		}
		change("decides to quarantine the base", func(to *state, c *controller) {
			to.used++
			*c = controller{act: 1, id: to.used}
			if m.rules.fixedName {
				c.id = 1
			}
		})
	case quarantined:
		if m.rules.raises && !s.raised {
			return // which the days in quarantine are for
		}
		if len(MayPurge(q, strconv.Itoa(int(s.id)))) == 0 {
			change("decides to purge the base", func(to *state, c *controller) { *c = controller{act: 2, id: to.id} })
		}
	}
}

// novaSteps are Nova's cleaner: a node that is down is forgotten when its lease runs out, and a file that
// no node counts grows old.
func (m *model) novaSteps(s *state, give func(func() string, state)) {
	counted, busy := false, false
	for i := range s.nodes[:m.nodes] {
		n := &s.nodes[i]
		counted = counted || n.overlay && !n.expired
		busy = busy || n.launch != noLaunch // which takes minutes, not a day
		if !n.up && !n.expired {
			to := *s
			to.nodes[i].expired = true
			give(sayNode(i, "has been silent for a day, and its lease runs out"), to)
		}
	}
	if s.at != live || counted {
		return
	}
	if !s.aged {
		if busy {
			return
		}
		to := *s
		to.aged = true
		give(say("no node that counts has used the base for a day"), to)
		return
	}
	for i := range s.nodes[:m.nodes] {
		if s.nodes[i].up && s.nodes[i].launch == noLaunch {
			to := *s
			to.at = gone
			give(sayNode(i, "unlinks the base"), to)
		}
	}
}
