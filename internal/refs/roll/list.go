// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package roll

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// Standing is how a node stands to a pool.
type Standing string

// The standings.
const (
	// Heard: it said what it needs within the last hour.
	Heard Standing = "heard"
	// Silent: it said so, and nothing since for more than an hour. What it said counts for ever.
	Silent Standing = "silent"
	// Never: it is a member and has never said anything.
	Never Standing = "never"
	// Away: a person said that it does not come back.
	Away Standing = "retired"
	// Stranger: somebody else than the pool says that it uses it, and it is no member.
	Stranger Standing = "stranger"
)

// silentAfter is after how long a node that says nothing is called silent.
const silentAfter = time.Hour

// Peer is a node that uses a pool.
type Peer struct {
	Node     string   `json:"node"`
	Standing Standing `json:"standing"`
	// From says who tells of it, "" for the pool itself.
	From string `json:"from"`
	// Joined is when it became a member, zero if it is known by its report alone, By and Reason are who said so.
	Joined time.Time `json:"joined,omitempty"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	// Reported is when it said last what it needs, by the clock of the file server, Seq the number of that report;
	// zero and 0 if it never did.
	Reported time.Time `json:"reported,omitempty"`
	Seq      uint64    `json:"seq"`
	// Complete: everything was read there that may need a base; Gaps are what was not.
	Complete bool     `json:"complete"`
	Gaps     []string `json:"gaps"`
	// Uses is how many uses of bases it named. Only are the bases that no other node named.
	Uses int64    `json:"uses"`
	Only []string `json:"only"`
	// Seen is how many bases in quarantine it saw and looked for uses of since, of Held.
	Seen int64 `json:"seen"`
	Held int64 `json:"held"`
	// Retired says who said that it does not come back, and when; nil if nobody did. One that said something after
	// that is back.
	Retired *Retirement `json:"retired"`
}

// Retirement is what a person said of a node.
type Retirement struct {
	Time   time.Time `json:"time"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	// Pins is how many pins stand for what it used.
	Pins int64 `json:"pins"`
}

// List is the nodes of a pool (schema shisa.base-nodes/1).
type List struct {
	Bases string `json:"bases"`
	Pool  string `json:"pool"`
	// All are the nodes, strangers last, each in the order of their names.
	All []Peer `json:"all"`
	// Unread is what could not be read: it may be what a node said.
	Unread []string `json:"unread"`
	// Receipt is the ID of the receipt where one of them joined or was retired just now, "" for none; Undo the command
	// line that takes that back.
	Receipt string `json:"receipt"`
	Undo    string `json:"undo"`
	Status  []int  `json:"status"`
}

// Of lists the nodes of a pool. now is the time of this host, which counts where the file server told none.
func Of(s *pool.State, known []judge.Known, unknown []error, now time.Time) *List {
	l := &List{Bases: s.Bases, All: []Peer{}, Unread: []string{}}
	if s.Policy != nil {
		l.Pool = s.Policy.UUID
	}
	if latest := s.Latest(); !latest.IsZero() {
		now = latest
	}
	needs := map[string]map[string]bool{} // the nodes that named each base
	nodes := s.Nodes()
	for i := range nodes {
		if n := &nodes[i]; n.Report != nil {
			for _, u := range n.Report.Uses {
				if needs[u.Name] == nil {
					needs[u.Name] = map[string]bool{}
				}
				needs[u.Name][n.Name] = true
			}
		}
	}
	from := map[string]string{}
	for _, k := range known {
		from[k.Node] = k.From
	}
	for i := range nodes {
		one := standing(&nodes[i], s, now)
		one.From = from[one.Node]
		delete(from, one.Node)
		for _, base := range slices.Sorted(maps.Keys(needs)) {
			if by := needs[base]; len(by) == 1 && by[one.Node] {
				one.Only = append(one.Only, base)
			}
		}
		l.All = append(l.All, one)
	}
	for _, name := range slices.Sorted(maps.Keys(from)) {
		l.All = append(l.All, Peer{Node: name, Standing: Stranger, From: from[name], Gaps: []string{}, Only: []string{}})
	}
	for _, err := range slices.Concat(s.Unread, unknown) {
		l.Unread = append(l.Unread, err.Error())
	}
	var status []int
	if len(l.Unread) > 0 {
		status = append(status, finding.StatusCannotTell)
	}
	l.Status = finding.OrderStatus(status...)
	return l
}

func standing(n *pool.Node, s *pool.State, now time.Time) Peer {
	one := Peer{Node: n.Name, Standing: Never, Gaps: []string{}, Only: []string{}, Held: int64(len(s.Held))}
	if m := n.Member; m != nil {
		one.Joined, one.By, one.Reason = m.Joined, m.By, m.Reason
	}
	if r := n.Report; r != nil {
		one.Reported, one.Seq, one.Complete, one.Gaps = r.Time, r.Seq, r.Complete, r.Gaps
		one.Standing = Heard
		// One from the future says nothing about when that was.
		if ago := now.Sub(r.Time); ago > silentAfter || ago < -silentAfter {
			one.Standing = Silent
		}
		for _, u := range r.Uses {
			one.Uses += 1 + u.More
		}
		seen := s.Seen(r)
		for i := range s.Held {
			if slices.Contains(seen, s.Held[i].ID) {
				one.Seen++
			}
		}
	}
	if g := n.Retired; g != nil {
		one.Retired = &Retirement{g.Time, g.By, g.Reason, int64(len(g.Pins))}
	}
	if n.Away() {
		one.Standing = Away
	}
	return one
}

// Standings counts the nodes of each standing.
func (l *List) Standings() map[Standing]int64 {
	count := map[Standing]int64{}
	for i := range l.All {
		count[l.All[i].Standing]++
	}
	return count
}

// Names gives the nodes that others than the pool tell of.
func Names(known []judge.Known) []string {
	names := make([]string, len(known))
	for i, k := range known {
		names[i] = k.Node
	}
	return slices.Compact(slices.SortedFunc(slices.Values(names), cmp.Compare))
}
