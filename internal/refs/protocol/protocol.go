// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package protocol decides whether a base image that nobody is known to need may be set aside, and
// whether one that was set aside may be removed for good.
//
// The nodes that share a directory of images have nothing but that directory to speak through. Each
// says again and again what it uses. A base goes through
//
//	live -> quarantined under an id -> claimed -> gone
//	  ^-----------------'---------------'
//
// and comes back from everywhere but the last. The id is fresh for each quarantine. A node's report
// names the ids that it saw in quarantine, and a base is removed only if the latest report of every
// member names its id, is complete, and names no use of it. What makes that safe is the order in which
// a node works:
//
//  1. it lists what is in quarantine: those are the ids that it will have seen
//  2. it looks the directory up anew, so that no entry of its cache is older than that
//  3. it waits until every launch that may have looked a name up before has written its overlay
//  4. it looks for uses
//  5. it reports
//
// So no use can come to be behind the back of a report: a launch before 2 is seen by 4, and one after
// it does not find the base. The tests try every order in which nodes, controllers, people and power
// cuts can follow one another, with these rules and with each of them left out.
package protocol

import (
	"fmt"
	"slices"
)

// Member is a node that has used the pool. It is one for ever: a node that says nothing may still come
// back with all of its machines.
type Member struct {
	Node string
	// Retired: a person said that it will not come back. What it used was turned into pins.
	Retired bool
}

// Report is what a node said last.
type Report struct {
	Node string
	// Observed are the ids in quarantine that the node saw before it looked the directory up anew, and waited for its
	// launches for as long as they may take, as far as is known by now.
	Observed []string
	// Complete: everything was read that could hold a use.
	Complete bool
	// Uses tells whether it names a use of the base.
	Uses bool
}

// Question is all that a decision about one base rests on.
type Question struct {
	Members []Member
	// Reports are the latest of each node, also of nodes that are no members.
	Reports []Report
	// Strangers are nodes that were seen in the pool and are no members.
	Strangers []string
	// Pinned: somebody wants it kept.
	Pinned bool
}

// Reason is why a base may not be set aside or removed.
type Reason string

// The reasons.
const (
	// NoReport: a member has never said anything.
	NoReport Reason = "no_report"
	// Incomplete: a member could not read everything.
	Incomplete Reason = "incomplete"
	// Used: somebody needs it.
	Used Reason = "used"
	// NotSeen: a member has not reported since it could see the base in quarantine.
	NotSeen Reason = "not_seen"
	// Pinned: somebody wants it kept.
	Pinned Reason = "pinned"
	// Stranger: a node that is no member uses the pool.
	Stranger Reason = "stranger"
	// Nobody: there are no members, so nobody could say that it is needed.
	Nobody Reason = "nobody"
)

// Blocker is one reason, with the node that it is about, "" if it is about none.
type Blocker struct {
	Reason Reason
	Node   string
}

func (b Blocker) String() string {
	if b.Node == "" {
		return string(b.Reason)
	}
	return fmt.Sprintf("%s: %s", b.Reason, b.Node)
}

// MayQuarantine gives all that speaks against setting a base aside; nothing does if it is empty.
func MayQuarantine(q *Question) []Blocker { return q.blockers("") }

// MayPurge gives all that speaks against removing a base for good that lies in quarantine under an id.
func MayPurge(q *Question, id string) []Blocker {
	if id == "" {
		return []Blocker{{Reason: NotSeen}}
	}
	return q.blockers(id)
}

// blockers goes through everybody who might need the base. With an id, each must have seen that one.
func (q *Question) blockers(id string) (all []Blocker) {
	if q.Pinned {
		all = append(all, Blocker{Reason: Pinned})
	}
	if len(q.Members) == 0 {
		all = append(all, Blocker{Reason: Nobody})
	}
	for _, s := range q.Strangers {
		all = append(all, Blocker{Reason: Stranger, Node: s})
	}
	reported := map[string]bool{}
	for _, r := range q.Reports {
		retired := slices.Contains(q.Members, Member{Node: r.Node, Retired: true})
		reported[r.Node] = true
		switch {
		case r.Uses:
			// Also of one that is retired or no member: a use is a use.
			all = append(all, Blocker{Used, r.Node})
		case retired:
		case !r.Complete:
			all = append(all, Blocker{Incomplete, r.Node})
		case id != "" && !slices.Contains(r.Observed, id):
			all = append(all, Blocker{NotSeen, r.Node})
		}
	}
	for _, m := range q.Members {
		if !m.Retired && !reported[m.Node] {
			all = append(all, Blocker{NoReport, m.Node})
		}
	}
	return all
}
