// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/ask"
)

// Probed is /shisa/probes.json: what mounts answered.
type Probed struct {
	Mounts []ProbedMount `json:"mounts"`
	// Stalled are the devices that do not answer.
	Stalled []ProbedDevice `json:"stalled"`
}

// ProbedMount is the answer of a mount, or why there is none.
type ProbedMount struct {
	ID        int     `json:"id"`
	Namespace uint64  `json:"namespace"`
	Point     string  `json:"point"`
	Answer    *Answer `json:"answer"`
	Why       string  `json:"why"`
	// Stalled: it was not asked, since requests of others wait there for so long that it is known not
	// to answer.
	Stalled bool `json:"stalled"`
}

const (
	// sameSystem is why a mount is not asked whose file system is asked at another one.
	sameSystem = "its file system is asked at another mount"
	covered    = "another mount covers it"
	belowAuto  = "it lies below an automount point, and asking it might mount something"
	// statsPause is between two looks at what NFS mounts wait for.
	statsPause = 500 * time.Millisecond
)

// mounts judges mounts by the kernel's tables, and asks one of each file system.
func (p *prober) mounts(ctx context.Context) {
	g := &gatherer{t: p.t, byDev: map[systemKey]int{}, e: &Evidence{}}
	spaces, _, err := g.spaces(ctx)
	if err != nil {
		return // Gather meets the same and tells it
	}
	pids := map[uint64]int{}
	for _, s := range spaces {
		text, err := p.t.Read(ctx, "/proc/"+s.pid+"/mountinfo", maxTableBytes)
		if err != nil {
			continue // as above
		}
		g.table(s, "", text)
		pids[s.id] = whole(s.pid)
	}
	g.nfs(ctx, spaces)
	own := p.namespace(ctx)
	pids[own] = 0 // seen without the help of others
	stalled := make(chan map[uint64]ProbedDevice, 1)
	go func() { stalled <- p.stalledDevices(ctx) }()
	stuck := p.stuck(ctx, g, spaces)
	j := newJudge(g.e.Mounts, stuck)
	var out Probed
	var questions []ask.Question
	var at []int // in out.Mounts
	for i := range g.e.Mounts {
		m := &g.e.Mounts[i]
		if m.FS < 0 {
			continue
		}
		why := j.not(m)
		out.Mounts = append(out.Mounts, ProbedMount{ID: m.ID, Namespace: m.Namespace, Point: m.Point, Why: why,
			Stalled: stuck[stuckKey(m)] != ""})
		if why == "" {
			questions = append(questions, p.question(m, pids[m.Namespace]))
			at = append(at, len(out.Mounts)-1)
		}
	}
	for i, r := range p.o.Asker.Ask(ctx, questions, p.o.Patience) {
		m := &out.Mounts[at[i]]
		m.Answer, m.Why = r.Answer, r.Why
		if m.Answer != nil && m.Answer.Other {
			m.Answer, m.Why = nil, covered
		}
		p.avoid(&questions[i], m)
	}
	devices := <-stalled
	p.avoidStalled(g.e.Mounts, devices, own)
	for _, dev := range slices.Sorted(maps.Keys(devices)) {
		out.Stalled = append(out.Stalled, devices[dev])
	}
	p.put("probes.json", out)
}

// namespace is that of this process, 0 if it is not known.
func (p *prober) namespace(ctx context.Context) uint64 {
	link, err := p.t.Link(ctx, "/proc/self/ns/mnt")
	id, ok := numbered(link, "mnt")
	if err != nil || !ok {
		return 0
	}
	return id
}

// avoid tells the tree that nothing below a mount of this namespace is to be touched.
func (p *prober) avoid(q *ask.Question, m *ProbedMount) {
	t, can := p.t.(interface{ Avoid(dir, reason string) })
	if can && q.PID == 0 && m.Point != "/" && (m.Answer == nil || m.Answer.Hung) {
		t.Avoid(m.Point, cmp.Or(m.Why, m.Point+" did not answer when it was asked"))
	}
}

func (p *prober) question(m *Mount, pid int) ask.Question {
	q := ask.Question{ID: m.ID, Point: m.Point, PID: pid, Slow: linux.MayHang(m.Type) != ""}
	if m.NFS != nil {
		q.With = "the server " + m.NFS.Server
	}
	// What is only read says so without being asked.
	q.Write = p.o.Write && hasOption(m.Options, "rw") && hasOption(m.Super, "rw")
	return q
}

func hasOption(list, option string) bool { return slices.Contains(strings.Split(list, ","), option) }

// judge tells which mounts are asked.
type judge struct {
	triggers map[uint64][]string // the automount points of each namespace
	covered  map[coverKey]bool
	stuck    map[string]string // stuckKey -> why its server is taken for hung
	asked    map[systemKey]bool
}

// coverKey is a mount, by its namespace and number, and a directory of it that another one lies on.
type coverKey struct {
	space uint64
	id    int
	point string
}

func newJudge(all []Mount, stuck map[string]string) *judge {
	j := &judge{triggers: map[uint64][]string{}, covered: map[coverKey]bool{}, stuck: stuck,
		asked: map[systemKey]bool{}}
	for i := range all {
		m := &all[i]
		if m.Type == "autofs" {
			j.triggers[m.Namespace] = append(j.triggers[m.Namespace], m.Point)
		}
		j.covered[coverKey{m.Namespace, m.Parent, m.Point}] = true
	}
	return j
}

// not says why a mount is not asked, "" if it is.
func (j *judge) not(m *Mount) string {
	if slices.ContainsFunc(j.triggers[m.Namespace], func(t string) bool { return below(m.Point, t) }) {
		return belowAuto
	}
	if j.covered[coverKey{m.Namespace, m.ID, m.Point}] && m.ID != m.Parent {
		return covered
	}
	if why := j.stuck[stuckKey(m)]; why != "" {
		return why
	}
	key := systemKey{m.Dev, m.Type}
	if j.asked[key] {
		return sameSystem
	}
	j.asked[key] = true
	return ""
}

func stuckKey(m *Mount) string { return strconv.FormatUint(m.Namespace, 10) + " " + m.Point }

// stuck gives the NFS mounts that are known not to answer: requests waited for a major timeout before,
// some are under way, and none was answered between two looks. One more that waits would tell no more.
func (p *prober) stuck(ctx context.Context, g *gatherer, spaces []space) map[string]string {
	found := map[string]string{}
	waits := func(m *Mount) bool { return m.NFS != nil && m.NFS.Waiting > 0 && m.NFS.Timeouts > 0 }
	if !slices.ContainsFunc(g.e.Mounts, func(m Mount) bool { return waits(&m) }) {
		return found
	}
	before := map[string]NFS{}
	for i := range g.e.Mounts {
		if m := &g.e.Mounts[i]; waits(m) {
			before[stuckKey(m)] = *m.NFS
		}
	}
	select {
	case <-ctx.Done():
	case <-time.After(statsPause):
	}
	g.nfs(ctx, spaces)
	for i := range g.e.Mounts {
		m := &g.e.Mounts[i]
		if b, was := before[stuckKey(m)]; was && waits(m) && m.NFS.received == b.received {
			found[stuckKey(m)] = fmt.Sprintf("it was not asked: %d requests wait for %s already, after %d major "+
				"timeouts, and none was answered meanwhile", m.NFS.Waiting, m.NFS.Server, m.NFS.Timeouts)
		}
	}
	return found
}
