// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package fleet puts together what nodes say of their base images that share no directory: which node needs which
// base, who has one that another misses, and what speaks against removing one. The rules are those of
// refs/protocol, for each pool with the nodes that use it. It reads documents and opens nothing.
package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/refs/protocol"
)

// Describe gives what a node says to the fleet: its report, the census that it rests on, and what its pool keeps.
func Describe(r *pool.Report, c *refs.Census, s *pool.State) *pool.Inventory {
	i := &pool.Inventory{Schema: pool.InventorySchema, Report: pool.NodeReport(*r), Bases: pool.Valid(c.Bases), All: []pool.Stock{}, Nodes: []string{},
		Away: []string{}, Pinned: []string{}}
	for _, n := range s.Nodes() {
		if n.Away() {
			i.Away = append(i.Away, n.Name)
		} else {
			i.Nodes = append(i.Nodes, n.Name)
		}
	}
	for _, p := range s.Pins {
		if p.Until == nil || r.Time.Before(*p.Until) {
			i.Pinned = append(i.Pinned, p.Name)
		}
	}
	slices.Sort(i.Pinned)
	i.Pinned = slices.Compact(i.Pinned)
	for k := range c.All {
		b := &c.All[k]
		if !pool.IsName(b.Name) || !utf8.ValidString(b.Name) {
			continue // if it is needed, the report has a gap
		}
		kept := pool.Stock{Name: b.Name, ID: b.ID, State: string(b.State), Path: pool.Valid(b.Path), Inode: b.File.Ino, SizeBytes: b.SizeBytes,
			Format: b.Format, Shield: pool.Valid(b.Shield)}
		if b.State != refs.Missing || c.Here(b) {
			kept.SHA256 = digestOf(b, s)
		}
		i.All = append(i.All, kept)
	}
	return i
}

// digestOf is what was recorded of the content of a base, "" for nothing. Of one that is missing all files that had its name
// have to agree: nobody knows which of them is meant.
func digestOf(b *refs.Base, s *pool.State) (sum string) {
	for _, o := range s.Objects {
		switch {
		case b.State != refs.Missing:
			if o.Inode == b.File.Ino && o.SizeBytes == b.SizeBytes {
				return o.SHA256
			}
		case o.Name == b.Name && sum != "" && sum != o.SHA256:
			return ""
		case o.Name == b.Name:
			sum = o.SHA256
		}
	}
	return sum
}

// Reporter is a node that said something.
type Reporter struct {
	Node string `json:"node"`
	// Pool is the UUID of its pool, Bases the directory.
	Pool  string `json:"pool"`
	Bases string `json:"bases"`
	// File is the document, Seq and Time are those of its report.
	File     string    `json:"file"`
	Seq      uint64    `json:"seq"`
	Time     time.Time `json:"time"`
	Complete bool      `json:"complete"`
	Gaps     []string  `json:"gaps"`
}

// Copy is a base on one node.
type Copy struct {
	Node string `json:"node"`
	Pool string `json:"pool"`
	ID   string `json:"id"`
	// State is as in a census, Path where it is on the node.
	State     string `json:"state"`
	Path      string `json:"path"`
	SizeBytes int64  `json:"size_bytes"`
	SHA256    string `json:"sha256"`
	// Blockers say what speaks against removing it for good, or setting it aside if it was not yet.
	Blockers []string `json:"blockers"`
}

// Need is a use of a base by a node.
type Need struct {
	Node string `json:"node"`
	pool.BaseUse
}

// Supply is where a base can be had that a node misses.
type Supply struct {
	// For is the node that misses it, From the one that has it, under Path.
	For  string `json:"for"`
	From string `json:"from"`
	Path string `json:"path"`
	// Exact: it has the SHA-256 that was recorded on the node which misses it. Otherwise it has the name alone, and
	// has to be proved.
	Exact  bool   `json:"exact"`
	SHA256 string `json:"sha256"`
}

// Named is all that goes by one name.
type Named struct {
	Name   string   `json:"name"`
	Copies []Copy   `json:"copies"`
	Needs  []Need   `json:"needs"`
	Ways   []Supply `json:"ways"`
}

// Report is what a fleet says (schema shisa.base-fleet/1).
type Report struct {
	Verdict finding.Verdict `json:"verdict"`
	Status  []int           `json:"status"`
	Nodes   []Reporter      `json:"nodes"`
	// All are the bases, in the order of their names.
	All []Named `json:"all"`
	// Gaps say what is not known: whoever has not said what it needs may need any base.
	Gaps []string `json:"gaps"`
}

// Said is what one document of a node says.
type Said struct {
	File string
	pool.Inventory
}

// merging is a report under way.
type merging struct {
	r   *Report
	all []Said
	// by are the reports of each pool, against is what speaks against every change in it beside the rules of refs/protocol.
	by      map[string][]*Said
	against map[string][]string
	at      map[string]int // the place of each name in r.All
}

// Merge puts the documents of nodes together. Of one node and pool the newest counts. Where that cannot be told all count,
// and it is a gap.
func Merge(all []Said) *Report {
	m := &merging{r: &Report{Nodes: []Reporter{}, All: []Named{}, Gaps: []string{}}, all: newest(all), by: map[string][]*Said{},
		against: map[string][]string{}, at: map[string]int{}}
	for i := range m.all {
		s := &m.all[i]
		m.by[s.Report.Pool] = append(m.by[s.Report.Pool], s)
	}
	m.nodes()
	for i := range m.all {
		m.take(&m.all[i])
	}
	slices.SortFunc(m.r.All, func(a, b Named) int { return cmp.Compare(a.Name, b.Name) })
	missing := false
	for i := range m.r.All {
		b := &m.r.All[i]
		m.ways(b)
		missing = missing || slices.ContainsFunc(b.Copies, func(c Copy) bool { return c.State == string(refs.Missing) })
	}
	m.r.Verdict = finding.Clean
	var status []int
	if len(m.r.Gaps) > 0 {
		m.r.Verdict, status = finding.CannotTell, append(status, finding.StatusCannotTell)
	}
	if missing {
		m.r.Verdict, status = finding.Found, append(status, finding.StatusFound)
	}
	m.r.Status = finding.OrderStatus(status...)
	return m.r
}

// newest leaves of each node the newest document about each pool, in the order of the nodes, and those of which it cannot
// be told whether they are older.
func newest(all []Said) []Said {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b Said) int {
		return cmp.Or(cmp.Compare(a.Report.Node, b.Report.Node), cmp.Compare(a.Report.Pool, b.Report.Pool),
			cmp.Compare(a.Report.Machine, b.Report.Machine), cmp.Compare(b.Report.Seq, a.Report.Seq),
			cmp.Compare(a.Report.SHA256, b.Report.SHA256))
	})
	var left []Said
	for _, s := range all {
		if n := len(left) - 1; n < 0 || !follows(&left[n], &s) {
			left = append(left, s)
		}
	}
	return left
}

// of tells whether two documents are of one node and pool.
func of(a, b *Said) bool { return a.Report.Node == b.Report.Node && a.Report.Pool == b.Report.Pool }

// follows tells whether a document took the place of an older one of the same node and pool. One of another machine did not,
// and neither did one of which the number and the time do not agree: what the pool keeps was put back in between.
func follows(a, b *Said) bool {
	one, other := &a.Report, &b.Report
	return of(a, b) && one.Machine == other.Machine &&
		(one.Seq > other.Seq && !one.Time.Before(other.Time) || one.Seq == other.Seq && one.SHA256 == other.SHA256)
}

func (m *merging) nodes() {
	machines := map[string]*Said{}
	for i := range m.all[:max(0, len(m.all)-1)] {
		a, b := &m.all[i], &m.all[i+1]
		switch r := &a.Report; {
		case !of(a, b):
		case r.Machine != b.Report.Machine:
			m.against[r.Pool] = append(m.against[r.Pool], "two_machines: "+r.Node)
		default:
			m.gap("which report of %s is newer cannot be told: %s is number %d of %s, and %s number %d of %s", r.Node,
				a.File, r.Seq, r.Time.Format(time.RFC3339), b.File, b.Report.Seq, b.Report.Time.Format(time.RFC3339))
			m.against[r.Pool] = append(m.against[r.Pool], "went_back: "+r.Node)
		}
	}
	for i := range m.all {
		s := &m.all[i]
		r := &s.Report
		m.r.Nodes = append(m.r.Nodes, Reporter{Node: r.Node, Pool: r.Pool, Bases: s.Bases, File: s.File, Seq: r.Seq, Time: r.Time,
			Complete: r.Complete, Gaps: r.Gaps})
		if !r.Complete {
			m.gap("%s could not read all that may need a base: %s", r.Node, r.Gaps[0])
		}
		for _, n := range s.Nodes {
			if !slices.ContainsFunc(m.by[r.Pool], func(o *Said) bool { return o.Report.Node == n }) {
				m.gap("%s uses the pool %s of %s as well, and no document of it was given", n, r.Pool, r.Node)
			}
		}
		if old := machines[r.Node]; old != nil && old.Report.Machine != r.Machine {
			m.gap("two machines call themselves %s: %s and %s", r.Node, old.File, s.File)
		}
		machines[r.Node] = s
	}
	if len(m.all) == 0 {
		m.gap("no node said anything")
	}
}

func (m *merging) gap(format string, args ...any) {
	if g := fmt.Sprintf(format, args...); !slices.Contains(m.r.Gaps, g) {
		m.r.Gaps = append(m.r.Gaps, g)
	}
}

// base gives what goes by a name.
func (m *merging) base(name string) *Named {
	i, ok := m.at[name]
	if !ok {
		i = len(m.r.All)
		m.at[name] = i
		m.r.All = append(m.r.All, Named{Name: name, Copies: []Copy{}, Needs: []Need{}, Ways: []Supply{}})
	}
	return &m.r.All[i]
}

func (m *merging) take(s *Said) {
	for i := range s.All {
		k := &s.All[i]
		b := m.base(k.Name)
		b.Copies = append(b.Copies, Copy{Node: s.Report.Node, Pool: s.Report.Pool, ID: k.ID, State: k.State, Path: k.Path,
			SizeBytes: k.SizeBytes, SHA256: k.SHA256, Blockers: m.blockers(s.Report.Pool, k)})
	}
	for _, u := range s.Report.Uses {
		b := m.base(u.Name)
		b.Needs = append(b.Needs, Need{s.Report.Node, u})
	}
}

// blockers are what the rules have against the next step with a base of a pool.
func (m *merging) blockers(uuid string, k *pool.Stock) []string {
	q := protocol.Question{}
	grace := int64(0) // by which a node waits for launches: who waited by less than another knows of does not count
	for _, s := range m.by[uuid] {
		grace = max(grace, s.Report.LaunchGraceSeconds)
	}
	for _, s := range m.by[uuid] {
		for _, n := range s.Nodes {
			if !slices.ContainsFunc(q.Members, func(o protocol.Member) bool { return o.Node == n }) {
				q.Members = append(q.Members, protocol.Member{Node: n})
			}
		}
		q.Reports = append(q.Reports, protocol.Report{Node: s.Report.Node, Complete: s.Report.Complete,
			Observed: s.Said().Seen(time.Duration(grace) * time.Second), Uses: s.Said().Needs(k.Name, k.Inode)})
		q.Pinned = q.Pinned || slices.Contains(s.Pinned, k.Name)
	}
	found := protocol.MayQuarantine(&q)
	if k.ID != "" {
		found = protocol.MayPurge(&q, k.ID)
	}
	all := slices.Concat([]string{}, m.against[uuid])
	for _, b := range found {
		if w := b.String(); !slices.Contains(all, w) {
			all = append(all, w)
		}
	}
	return all
}

// ways tells where a base can be had for the nodes that miss it: by its digest under any name, or by its name.
func (m *merging) ways(b *Named) {
	for _, c := range b.Copies {
		if c.State != string(refs.Missing) {
			continue
		}
		for i := range m.all {
			s := &m.all[i]
			for j := range s.All {
				k := &s.All[j]
				exact := c.SHA256 != "" && k.SHA256 == c.SHA256
				refuted := c.SHA256 != "" && k.SHA256 != "" && !exact
				if k.State == string(refs.Missing) || !exact && (k.Name != b.Name || refuted) {
					continue
				}
				b.Ways = append(b.Ways, Supply{For: c.Node, From: s.Report.Node, Path: k.Path, Exact: exact, SHA256: k.SHA256})
			}
		}
	}
	slices.SortStableFunc(b.Ways, func(x, y Supply) int {
		return cmp.Or(cmp.Compare(x.For, y.For), boolOrder(x.Exact, y.Exact))
	})
}

// boolOrder has what is true come first.
func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
