// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package judge decides for every base of a pool whether it has to stay, may be set aside, may be removed for good,
// or should be brought back at once. It puts together what this host saw, what every node said, what people want
// and what was so when it was decided last; the rules for the nodes are those of refs/protocol. It reads nothing and
// changes nothing: who acts by a decision decides again at the act.
package judge

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/refs/protocol"
)

// judging is a decision under way.
type judging struct {
	c    *refs.Census
	s    *pool.State
	o    Options
	p    *Plan
	live map[string]bool
	// nodes are the members.
	nodes []pool.Node
	// mine are the notes of this host.
	mine pool.Notes
}

// Judge decides. The notes are what is to be kept for the next decision; they are nil where there is no pool.
func Judge(c *refs.Census, s *pool.State, o Options) (*Plan, *pool.Notes) {
	j := &judging{c: c, s: s, o: o, nodes: s.Nodes(), live: map[string]bool{}, p: &Plan{Schema: Schema, Bases: c.Bases,
		Node: o.Node, Made: second(o.Now), All: []Decided{}, Blockers: []Blocker{}, Nodes: []Said{}, Next: []string{}}}
	if s.Policy != nil {
		j.p.Pool = s.Policy.UUID
	}
	for _, n := range s.Notes {
		if n.Node == o.Node {
			j.mine = n
		}
	}
	for i := range c.All {
		j.live[c.All[i].Name] = j.live[c.All[i].Name] || c.All[i].State == refs.Live
	}
	for i := range j.nodes {
		j.p.Nodes = append(j.p.Nodes, said(&j.nodes[i]))
	}
	j.all()
	j.breakers()
	notes := j.notes()
	for i := range c.All {
		j.p.All = append(j.p.All, j.base(&c.All[i]))
	}
	j.tooMany()
	j.evidence()
	j.p.status()
	j.p.next(s.NoPolicy)
	return j.p, notes
}

// second is a time as documents have it.
func second(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

func said(n *pool.Node) Said {
	a := Said{Node: n.Name, Retired: n.Away()}
	if n.Report != nil {
		a.Seq, a.Time, a.Complete, a.SHA256 = n.Report.Seq, second(n.Report.Time), n.Report.Complete, n.Report.SHA256
	}
	return a
}

// block notes what speaks against everything.
func (j *judging) block(rule Rule, node, path, why string, args ...any) {
	j.p.Blockers = append(j.p.Blockers, Blocker{rule, node, pool.Valid(path), pool.Valid(fmt.Sprintf(why, args...))})
}

// all notes what speaks against any change, whatever base it is.
func (j *judging) all() {
	switch {
	case j.s.NoPolicy != nil: // it is told below
	case j.s.Policy == nil:
		j.block(NoPool, "", pool.Path(j.c.Bases, pool.File), "there is no pool: nothing was begun here, or it is not mounted")
	case j.c.Pool != j.s.Policy.UUID:
		j.block(NoPool, "", pool.Path(j.c.Bases, pool.File), "it became another pool in the meantime, %q", j.c.Pool)
	}
	if j.c.Indexed {
		j.block(Indexed, "", "", "headers were remembered from an earlier scan: only one that reads all of them permits a change")
	}
	for _, g := range j.c.Gaps {
		j.block(Unreadable, "", g.Object, "%s: %s", g.What, g.Reason)
	}
	seen := func(err error) bool {
		return slices.ContainsFunc(j.c.Gaps, func(g finding.Blind) bool { return g.Reason == err.Error() })
	}
	for _, err := range j.s.Unread {
		if !seen(err) {
			j.block(Unreadable, "", pool.Path(j.c.Bases), "%v", err)
		}
	}
	for _, err := range j.o.Unknown {
		if slices.ContainsFunc(j.c.Gaps, func(g finding.Blind) bool { return g.Object+": "+g.Reason == err.Error() }) {
			continue // it was told
		}
		j.block(Unreadable, "", "", "who uses the pool: %v", err)
	}
	switch apart := j.o.Now.Sub(j.o.Local).Abs(); {
	case j.s.Policy == nil: // then there is nothing that its clock could be asked by
	case j.o.Now.IsZero():
		j.block(NoClock, "", "", "the clock of the file server was not asked")
	case apart > clocksApart:
		j.block(ClockOff, "", "", "the clock of the file server and that of this host are %v apart: one of them is wrong",
			apart.Round(time.Minute))
	}
	for i := range j.s.Intents {
		if a := &j.s.Intents[i]; !j.o.Acting {
			j.block(Unfinished, a.Node, "", "%s of %s (%s) is under way, or came to no end", a.Act, a.Name, a.ID)
		}
	}
}

// base decides about one base.
func (j *judging) base(b *refs.Base) Decided {
	a := Decided{Name: pool.Valid(b.Name), ID: b.ID, Path: pool.Valid(b.Path), State: b.State, Inode: b.File.Ino, SizeBytes: b.SizeBytes,
		AllocatedBytes: b.AllocatedBytes, Verdict: Keep, Uses: references(b.Uses), Blockers: []Blocker{},
		changed: b.Changed, modified: b.Modified, links: b.Links, shield: b.Shield}
	if !b.Since.IsZero() {
		a.Since = second(b.Since)
	}
	may := MayQuarantine
	switch {
	case b.State == refs.Missing:
		if b.Held != "" || b.Shield != "" {
			a.Verdict = RestoreNow
		}
		return a
	case b.ID != "":
		may = MayPurge
		j.held(&a)
		if len(a.Uses) > 0 || j.said(&a) {
			a.Verdict = RestoreNow
			return a
		}
	default:
		j.candidate(&a)
	}
	j.names(&a, b)
	if len(j.o.Only) > 0 && !slices.Contains(j.o.Only, a.Name) && !slices.Contains(j.o.Only, a.ID) {
		a.block(NotChosen, "", "", "others were asked for")
	}
	if len(a.Blockers)+len(j.p.Blockers) == 0 {
		a.Verdict = may
	}
	return a
}

// references are uses as documents have them.
func references(uses []refs.Reference) []refs.Reference {
	all := make([]refs.Reference, len(uses))
	for i, u := range uses {
		if !u.Since.IsZero() {
			u.Since = second(u.Since)
		}
		if !u.Said.IsZero() {
			u.Said = second(u.Said)
		}
		u.Holder, u.Machine, u.As = pool.Valid(u.Holder), pool.Valid(u.Machine), pool.Valid(u.As)
		all[i] = u
	}
	return all
}

func (b *Decided) block(rule Rule, node, path, why string, args ...any) {
	b.Blockers = append(b.Blockers, Blocker{rule, node, pool.Valid(path), pool.Valid(fmt.Sprintf(why, args...))})
}

// names looks at what a base is called.
func (j *judging) names(b *Decided, as *refs.Base) {
	if !pool.IsName(as.Name) || !utf8.ValidString(as.Name) || !utf8.ValidString(as.Path) {
		b.block(NoName, "", "", "its name cannot be told in a document")
	}
	shields := uint64(0)
	for _, h := range j.s.Shields {
		if h.ID.Ino == b.Inode {
			shields++
		}
	}
	known := shields + 1
	if b.State == refs.ByShield {
		known = shields // it has no other
	}
	if b.links > known {
		b.block(Linked, "", b.Path, "it has %d names, of which %s known: an image may rest on it by another", b.links,
			finding.Count(int64(known), "is", "are"))
	}
}

// candidate is for a base that was not set aside.
func (j *judging) candidate(b *Decided) {
	j.members(b, "")
	if b.shield == "" {
		b.block(NoShield, "", b.Path, "it has no second name")
	}
	j.age(b)
	c := j.noted(b)
	switch {
	case len(b.Uses) > 0:
		return
	case c == nil:
		b.block(NewCandidate, "", "", "no use of it was found for the first time: every node has to speak once more")
		return
	}
	for i := range j.nodes {
		n := &j.nodes[i]
		if n.Report != nil && !n.Away() && n.Report.Seq <= c.Seq(n.Name) {
			b.block(NotSince, n.Name, "", "it has not spoken since no use was found first, on %s", c.Since.UTC().Format(dateTime))
		}
	}
}

const dateTime = "2006-01-02 15:04 UTC"

// noted is what was noted of a base when no use of it was found first.
func (j *judging) noted(b *Decided) *pool.Candidate {
	for i := range j.mine.Candidates {
		if c := &j.mine.Candidates[i]; c.Name == b.Name && c.Inode == b.Inode && c.SizeBytes == b.SizeBytes {
			return c
		}
	}
	return nil
}

// age holds a base against the least age, by the clock of the file server. The time of its content tells when a
// cleaner or a launch touched it, and can be set to anything; that of its names cannot be set.
func (j *judging) age(b *Decided) {
	if j.s.Policy == nil || j.o.Now.IsZero() {
		return // that speaks against everything
	}
	least := time.Duration(j.s.Policy.MinAge)
	for what, at := range map[string]time.Time{"content was": b.modified, "names or times were": b.changed} {
		switch age := j.o.Now.Sub(at); {
		case age < -time.Minute:
			b.block(TimeAhead, "", b.Path, "its %s changed on %s, which is yet to come", what, at.UTC().Format(dateTime))
		case age < least:
			b.block(TooYoung, "", b.Path, "its %s changed on %s, and it is to be %v old at least", what, at.UTC().Format(dateTime), least)
		}
	}
	slices.SortFunc(b.Blockers, func(a, b Blocker) int {
		return cmp.Or(strings.Compare(string(a.Rule), string(b.Rule)), strings.Compare(a.Node, b.Node), strings.Compare(a.Why, b.Why))
	})
}

// members asks everybody who might need a base.
func (j *judging) members(b *Decided, id string) {
	q := protocol.Question{Strangers: j.strangers()}
	for i := range j.nodes {
		n := &j.nodes[i]
		q.Members = append(q.Members, protocol.Member{Node: n.Name, Retired: n.Away()})
		if n.Report != nil && !n.Away() {
			q.Reports = append(q.Reports, protocol.Report{Node: n.Name, Observed: j.s.Seen(n.Report), Complete: n.Report.Complete,
				Uses: j.needs(n.Report, b)})
		}
	}
	for i := range j.s.Pins {
		q.Pinned = q.Pinned || j.s.Pins[i].Holds(b.Name, b.Inode, j.o.Now)
	}
	blockers := protocol.MayQuarantine(&q)
	if id != "" {
		blockers = protocol.MayPurge(&q, id)
	}
	for _, k := range blockers {
		b.block(Rule(k.Reason), k.Node, "", "%s", j.words(k, id))
	}
	if n := len(b.Uses); n > 0 && !j.said(b) {
		b.block(Used, "", "", "it is needed by %s%s", b.Uses[0].Holder, more(n-1))
	}
}

func more(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" and %d more", n)
}

// needs tells whether a report names a use of a base. What has no name among the bases is not meant by one that another
// file has by now.
func (j *judging) needs(r *pool.Report, b *Decided) bool {
	return slices.ContainsFunc(r.Uses, func(u pool.Use) bool {
		if (b.ID != "" || b.State == refs.ByShield) && j.live[b.Name] {
			return u.Inode == b.Inode
		}
		return u.Of(b.Name, b.Inode)
	})
}

// strangers are nodes that use the pool and are no members.
func (j *judging) strangers() (all []string) {
	member := func(node string) bool {
		return slices.ContainsFunc(j.nodes, func(n pool.Node) bool { return n.Name == node })
	}
	if len(j.nodes) > 0 && !member(j.o.Node) {
		all = append(all, j.o.Node)
	}
	for _, k := range j.o.Known {
		if !member(k.Node) && !slices.Contains(all, k.Node) {
			all = append(all, k.Node)
		}
	}
	return all
}

// words says what speaks against it. id is that of the quarantine, "" for none.
func (j *judging) words(k protocol.Blocker, id string) string {
	switch k.Reason {
	case protocol.NoReport:
		return "it has never said what it needs"
	case protocol.Incomplete:
		return "it could not read all that it needs when it spoke last" + j.when(k.Node)
	case protocol.Used:
		return "it needs the base, as it said last" + j.when(k.Node)
	case protocol.NotSeen:
		return "it has not looked for uses since it could see the base in quarantine" + j.short(k.Node, id) + j.when(k.Node)
	case protocol.Pinned:
		return "it is pinned"
	case protocol.Stranger:
		from := "this host"
		for _, s := range j.o.Known {
			if s.Node == k.Node {
				from = s.From
			}
		}
		return "it uses the pool and is no member: " + from
	case protocol.Nobody:
		if j.s.NoPolicy != nil {
			return "which nodes use the pool could not be read"
		}
		return "the pool has no members, so that nobody could say that the base is needed"
	}
	return string(k.Reason)
}

// short tells of a node that did see it, and waited for its launches by a shorter launch_grace.
func (j *judging) short(node, id string) string {
	n := j.node(node)
	if n == nil || n.Report == nil || j.s.Policy == nil || !slices.Contains(n.Report.Observed, id) {
		return ""
	}
	return fmt.Sprintf(" for as long as launch_grace is by now, %v: it waited for %v", time.Duration(j.s.Policy.LaunchGrace),
		time.Duration(n.Report.LaunchGraceSeconds)*time.Second)
}

func (j *judging) when(node string) string {
	for i := range j.nodes {
		if n := &j.nodes[i]; n.Name == node && n.Report != nil {
			return ", on " + n.Report.Time.UTC().Format(dateTime)
		}
	}
	return ""
}

// evidence gives each decision the digest of what it rests on.
func (j *judging) evidence() {
	for i := range j.p.All {
		b := &j.p.All[i]
		b.EvidenceDigest = digest(struct {
			Pool, Name, ID string
			Inode          uint64
			Size           int64
			State          refs.State
			Uses           []refs.Reference
			Own, All       []Blocker
			Nodes          []Said
			Looked         refs.Looked
		}{j.p.Pool, b.Name, b.ID, b.Inode, b.SizeBytes, b.State, b.Uses, b.Blockers, j.p.Blockers, j.p.Nodes, j.c.Looked})
	}
}

// digest is that of a value that JSON can carry.
func digest(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("judge: %T has no digest: %v", v, err)) // nothing in it can fail
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
