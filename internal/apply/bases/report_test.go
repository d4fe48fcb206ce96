// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/refs/protocol"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// grace is launch_grace of a new pool.
const grace = 15 * time.Minute

// farm is one directory of bases, and nodes that share nothing but that.
type farm struct {
	*world
	nodes map[string]*node
}

// node is one of them: the directory of its own disks, and its clock.
type node struct {
	f       *farm
	name    string
	dir     string
	machine string
	run     linux.Run
	// during, if set, is called when a pass begins to look for uses, and when it has.
	during func()
}

func newFarm(t *testing.T, bases []string, names ...string) *farm {
	f := &farm{newWorld(t, bases...), map[string]*node{}}
	f.protect(ProtectOptions{NoRecord: true})
	for _, n := range names {
		f.node(n)
	}
	return f
}

func (f *farm) node(name string) *node {
	n := &node{f: f, name: name, dir: f.t.TempDir(), machine: strings.Repeat(fmt.Sprintf("%x", len(f.nodes)), 64)}
	// A directory without any name looks like one whose storage is not mounted.
	if err := os.Mkdir(filepath.Join(n.dir, "lost+found"), 0o755); err != nil {
		f.t.Fatal(err)
	}
	n.boot()
	n.run.Awake = time.Hour
	f.nodes[name] = n
	return n
}

// boot starts the machine anew.
func (n *node) boot() {
	id, err := newUUID()
	if err != nil {
		n.f.t.Fatal(err)
	}
	n.run = linux.Run{BootID: id, Awake: time.Minute}
}

func (n *node) options() Options {
	return Options{Bases: n.f.dir, Node: n.name, Timeout: time.Minute}
}

// look takes the census that this node can: of the shared directory and of its own.
func (n *node) look(ctx context.Context) (*refs.Census, error) {
	if n.during != nil {
		n.during()
	}
	c, err := refs.Look(ctx, refs.Options{Pool: n.f.dir, Roots: []string{n.dir}, Timeout: time.Minute, Workers: 1})
	if err != nil {
		return nil, err
	}
	// Processes and configured machines are none of these nodes'.
	c.Gaps = slices.DeleteFunc(c.Gaps, func(g finding.Blind) bool { return g.Reason == "they were not asked for" })
	if n.during != nil {
		n.during()
	}
	return c, nil
}

func (n *node) try() (*pool.Report, error) {
	r, _, err := Pass(n.f.t.Context(), PassOptions{Machine: n.machine, Census: n.look, Run: n.runs}, n.options())
	return r, err
}

func (n *node) runs(context.Context) (linux.Run, error) { return n.run, nil }

func (n *node) pass() *pool.Report {
	n.f.t.Helper()
	r, err := n.try()
	if err != nil {
		n.f.t.Fatal(err)
	}
	return r
}

// overlay makes a disk of this node that rests on a base.
func (n *node) overlay(name, base string) {
	n.f.t.Helper()
	if err := writeOverlay(filepath.Join(n.dir, name), n.f.path(base)); err != nil {
		n.f.t.Fatal(err)
	}
}

// setAside puts a base into quarantine, as a controller does.
func (f *farm) setAside(base string) (id string) {
	f.t.Helper()
	id, err := plan.NewID()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.MkdirAll(pool.Path(f.dir, pool.Quarantine), 0o755); err != nil {
		f.t.Fatal(err)
	}
	e, err := diskio.LookEntry(f.path(base))
	if err == nil {
		err = diskio.HostLinks().Move(e.ID, f.path(base), pool.Path(f.dir, pool.Quarantine, pool.HeldName(id, base)))
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return id
}

// blockers are what speaks against removing a base for good.
func (f *farm) blockers(id, base string) (all []string) {
	f.t.Helper()
	s := f.state()
	q := protocol.Question{}
	inode := uint64(0)
	for _, h := range s.Held {
		if h.ID == id {
			inode = h.File.Ino
		}
	}
	for _, p := range s.Pins {
		q.Pinned = q.Pinned || p.Holds(base, inode, time.Now())
	}
	for _, n := range s.Nodes() {
		q.Members = append(q.Members, protocol.Member{Node: n.Name, Retired: n.Away()})
		if r := n.Report; r != nil {
			q.Reports = append(q.Reports, protocol.Report{Node: n.Name, Observed: s.Seen(r), Complete: r.Complete,
				Uses: r.Needs(base, inode) && !n.Away()})
		}
	}
	for _, b := range protocol.MayPurge(&q, id) {
		all = append(all, b.String())
	}
	return all
}

func (f *farm) wantBlockers(when, id, base string, want ...string) {
	f.t.Helper()
	if got := f.blockers(id, base); !slices.Equal(got, want) {
		f.t.Errorf("%s: %q speaks against removing %s, want %q", when, got, base, want)
	}
}

// TestFleet: nodes that share a directory of bases, and nothing else.
func TestFleet(t *testing.T) {
	f := newFarm(t, []string{"used", "free"}, "a", "b", "c")
	f.nodes["c"].overlay("disk", "used")
	for _, n := range []string{"a", "b", "c"} {
		if r := f.nodes[n].pass(); !r.Complete || r.Seq != 1 {
			t.Errorf("first report of %s = %+v", n, r)
		}
	}
	if got := len(f.state().Members); got != 3 {
		t.Fatalf("%d members, want 3", got)
	}
	free, used := f.setAside("free"), f.setAside("used")
	f.wantBlockers("at once", free, "free", "not_seen: a", "not_seen: b", "not_seen: c")
	f.wantBlockers("at once", used, "used", "not_seen: a", "not_seen: b", "used: c")
	for _, n := range f.nodes {
		n.pass()
	}
	f.wantBlockers("seen, not drained", free, "free", "not_seen: a", "not_seen: b", "not_seen: c")
	a, b, c := f.nodes["a"], f.nodes["b"], f.nodes["c"]
	for _, n := range []*node{a, b} { // c is down from now on
		n.run.Awake += grace + time.Second
		if r := n.pass(); len(r.Observed) != 2 || r.DrainedSeconds < int64(grace/time.Second) || len(r.Draining) > 0 {
			t.Errorf("report of %s after the grace = %+v", n.name, r)
		}
	}
	f.wantBlockers("c is down", free, "free", "not_seen: c")
	f.wantBlockers("c is down", used, "used", "used: c")
	// It comes back: what it listed before is drained, since no launch of before is left.
	c.boot()
	if r := c.pass(); len(r.Observed) != 2 || !r.Needs("used", 0) {
		t.Errorf("report after a start = %+v, want both seen", r)
	}
	f.wantBlockers("c is back", free, "free")
	f.wantBlockers("c is back", used, "used", "used: c")
	// An overlay of a launch that had begun before turns up.
	b.overlay("late", "free")
	b.pass()
	f.wantBlockers("a launch of b", free, "free", "used: b")
}

// TestLongerGrace: when launches may take longer than was thought, what was waited for by the shorter time does not
// count, and is waited for anew.
func TestLongerGrace(t *testing.T) {
	f := newFarm(t, []string{"x"}, "a", "b")
	a, b := f.nodes["a"], f.nodes["b"]
	id := f.setAside("x")
	for _, n := range []*node{a, b} {
		n.pass()
		n.run.Awake += grace
	}
	a.pass()
	f.wantBlockers("a waited for it", id, "x", "not_seen: b")
	f.policy(func(p *pool.Policy) { p.LaunchGrace = pool.Span(2 * grace) })
	f.wantBlockers("the grace is longer", id, "x", "not_seen: a", "not_seen: b")
	for _, n := range []*node{a, b} {
		n.run.Awake += grace
		n.pass()
	}
	// b had not said so yet, and has waited for as long since it saw it.
	f.wantBlockers("once the grace", id, "x", "not_seen: a")
	a.run.Awake += 2*grace - time.Second
	if r := a.pass(); len(r.Observed) > 0 || len(r.Draining) != 1 {
		t.Errorf("report before the longer grace was over = %+v, want it waited for", r)
	}
	a.run.Awake += time.Second
	if r := a.pass(); !slices.Equal(r.Observed, []string{id}) || r.LaunchGraceSeconds != int64(2*grace/time.Second) {
		t.Errorf("report after it = %+v, want that it was seen", r)
	}
	f.wantBlockers("twice the grace", id, "x")
	f.policy(func(p *pool.Policy) { p.LaunchGrace = pool.Span(grace) })
	f.wantBlockers("the grace is shorter again", id, "x")
}

// TestDrainedAnew: a time that does not fit, and a base that is there under its name again, are waited for anew.
func TestDrainedAnew(t *testing.T) {
	f := newFarm(t, []string{"x"}, "a")
	a := f.nodes["a"]
	id := f.setAside("x")
	a.pass()
	a.run.Awake -= 30 * time.Minute // no clock that only goes forward tells this
	a.pass()
	a.run.Awake += grace - time.Second
	if r := a.pass(); len(r.Observed) > 0 {
		t.Errorf("observed %q before the grace was over", r.Observed)
	}
	a.run.Awake += 2 * time.Second
	if r := a.pass(); !slices.Equal(r.Observed, []string{id}) {
		t.Errorf("observed %q, want %q", r.Observed, id)
	}
	// As in the midst of a quarantine: the file has its name as well.
	held := pool.Path(f.dir, pool.Quarantine, pool.HeldName(id, "x"))
	if err := os.Link(held, f.path("x")); err != nil {
		t.Fatal(err)
	}
	if r := a.pass(); len(r.Observed)+len(r.Draining) > 0 {
		t.Errorf("report of a base that has its name = %+v, want nothing seen", r)
	}
	f.remove("x")
	if r := a.pass(); len(r.Observed) > 0 || len(r.Draining) != 1 {
		t.Errorf("report of a base that had its name = %+v, want it waited for", r)
	}
}

// TestPassRefuses: a pass that cannot know where it is says nothing to anybody.
func TestPassRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(f *farm)
		want  error
	}{
		{"nothing mounted", func(f *farm) {
			if err := os.RemoveAll(f.dir); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(f.dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}, ErrNoPool},
		{"half a pool.json", func(f *farm) {
			if err := os.Truncate(pool.Path(f.dir, pool.File), 20); err != nil {
				t.Fatal(err)
			}
		}, pool.ErrPool},
	} {
		f := newFarm(t, []string{"x"}, "a")
		c.spoil(f)
		if _, err := f.nodes["a"].try(); !errors.Is(err, c.want) {
			t.Errorf("%s: Pass = %v, want %v", c.name, err, c.want)
		}
		if _, err := os.Stat(pool.Path(f.dir, pool.Nodes)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something was published: %v", c.name, err)
		}
	}
	f := newFarm(t, []string{"x"}, "a")
	_, _, err := Pass(t.Context(), PassOptions{Pool: "0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3e", Census: f.nodes["a"].look,
		Run: f.nodes["a"].runs}, f.nodes["a"].options())
	if !errors.Is(err, ErrOther) {
		t.Errorf("Pass in another pool = %v, want %v", err, ErrOther)
	}
	// The storage changes under the pass.
	a := f.nodes["a"]
	a.during = func() {
		p := pool.NewPolicy("0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3e", time.Now())
		text, err := p.Text()
		if err == nil {
			err = os.WriteFile(pool.Path(f.dir, pool.File), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.try(); !errors.Is(err, ErrOther) {
		t.Errorf("Pass in a pool that changes = %v, want %v", err, ErrOther)
	}
}

// TestDuplicate: two machines of one name would each take back what the other said.
func TestDuplicate(t *testing.T) {
	f := newFarm(t, []string{"x"}, "a", "b")
	a := f.nodes["a"]
	a.overlay("disk", "x")
	a.pass()
	second := *a
	second.machine = strings.Repeat("9", 64)
	if _, err := second.try(); !errors.Is(err, ErrDuplicate) {
		t.Errorf("Pass of another machine = %v, want %v", err, ErrDuplicate)
	}
	// A copy of the machine has its number too, and reports in turn.
	clone := *a
	clone.boot()
	clone.run.Up = time.Hour
	if _, err := clone.try(); !errors.Is(err, ErrDuplicate) {
		t.Errorf("Pass of a copy = %v, want %v", err, ErrDuplicate)
	}
	s := f.state()
	var names []string
	for _, n := range s.Nodes() {
		names = append(names, n.Name)
		if n.Name == "a" && (n.Report.Seq != 1 || !n.Report.Needs("x", 0)) {
			t.Errorf("report of a = %+v, want its own", n.Report)
		}
		if n.Name == "a@duplicate" && (n.Report.Complete || n.Report.Seq != 2) {
			t.Errorf("report of the second = %+v, want an incomplete one", n.Report)
		}
	}
	if want := []string{"a", "a@duplicate"}; !slices.Equal(names, want) {
		t.Errorf("nodes = %q, want %q", names, want)
	}
	f.wantBlockers("two of a name", "0123456789abcdef0123456789abcdef", "y", "not_seen: a", "incomplete: a@duplicate")
	// The first goes on, and starts anew.
	a.boot()
	a.pass()
}

// TestTwoAgents: what one agent saw before another of the same node looked takes nothing back of what that one said.
func TestTwoAgents(t *testing.T) {
	f := newFarm(t, []string{"x"}, "a")
	a := f.nodes["a"]
	a.pass()
	calls := 0
	a.during = func() {
		if calls++; calls == 2 { // the first has looked
			second := *a
			second.during = nil
			second.overlay(fmt.Sprint("disk", lastOf(f.state(), "a").Report.Seq), "x")
			second.pass()
		}
	}
	if _, err := a.try(); !errors.Is(err, ErrTwice) {
		t.Errorf("Pass while another agent reported = %v, want %v", err, ErrTwice)
	}
	if r := lastOf(f.state(), "a").Report; r.Seq != 2 || !r.Needs("x", 0) {
		t.Errorf("report = %+v, want that of the other", r)
	}

	// A person who asks for a pass does not end the agent, which looks once more.
	calls = 0
	o := AgentOptions{Once: true, Pass: PassOptions{Machine: a.machine, Census: a.look, Run: a.runs},
		Tell: func(pool.Happened) error { return nil }}
	if complete, err := Agent(t.Context(), o, a.options()); err != nil || !complete {
		t.Errorf("Agent while another one reported once = %v, %v", complete, err)
	}
	if r := lastOf(f.state(), "a").Report; r.Seq != 4 || !r.Needs("x", 0) {
		t.Errorf("report = %+v, want one more than the other's", r)
	}
	a.during = func() {
		second := *a
		second.during = nil
		second.pass()
	}
	if _, err := Agent(t.Context(), o, a.options()); !errors.Is(err, ErrTwice) {
		t.Errorf("Agent that another one overtakes again and again = %v, want %v", err, ErrTwice)
	}
}

// TestFirstOfTwoAgents: two agents begin on a node that is no member yet. Of two machines of one name the second is
// told.
func TestFirstOfTwoAgents(t *testing.T) {
	t.Parallel()
	for _, other := range []bool{false, true} {
		f := newFarm(t, []string{"x"}, "a")
		a := f.nodes["a"]
		before, calls := a.runs, 0
		second := *a
		if other {
			second.machine = strings.Repeat("f", len(a.machine))
		}
		o := AgentOptions{Once: true, Tell: func(pool.Happened) error { return nil },
			Pass: PassOptions{Machine: a.machine, Census: a.look, Run: func(ctx context.Context) (linux.Run, error) {
				if calls++; calls == 1 { // the first has read the pool
					second.pass()
				}
				return before(ctx)
			}}}
		complete, err := Agent(t.Context(), o, a.options())
		if other && !errors.Is(err, ErrDuplicate) || !other && (err != nil || !complete) {
			t.Errorf("Agent beside another one (of another machine: %v) = %v, %v", other, complete, err)
		}
	}
}

// TestClocksOfNodes: no clock of a node or of the file server decides anything, however wrong it is.
func TestClocksOfNodes(t *testing.T) {
	f := newFarm(t, []string{"x"}, "a", "b")
	id := f.setAside("x")
	for _, n := range f.nodes {
		n.pass()
	}
	f.ago("a", 30*365*24*time.Hour)
	f.ago("b", -30*365*24*time.Hour)
	f.wantBlockers("years apart", id, "x", "not_seen: a", "not_seen: b")
	for _, n := range f.nodes {
		n.run.Awake += grace + time.Second
		n.pass()
	}
	f.wantBlockers("drained", id, "x")
	// The file server's clock is put back by years: a machine that starts then is taken for a second one.
	a := f.nodes["a"]
	ahead := time.Now().Add(10 * 365 * 24 * time.Hour)
	if err := os.Chtimes(pool.Path(f.dir, pool.Nodes, pool.NodeFile("a")), ahead, ahead); err != nil {
		t.Fatal(err)
	}
	a.pass() // the same run goes on
	if err := os.Chtimes(pool.Path(f.dir, pool.Nodes, pool.NodeFile("a")), ahead, ahead); err != nil {
		t.Fatal(err)
	}
	a.boot()
	if _, err := a.try(); !errors.Is(err, ErrDuplicate) {
		t.Errorf("Pass after the clock was put back = %v, want %v", err, ErrDuplicate)
	}
	for _, name := range []string{"a", "a@duplicate"} {
		if _, _, err := Retire(t.Context(), name, me, RetireOptions{Alive: true, Partly: true}, f.nodes["b"].options()); err != nil {
			t.Fatal(err)
		}
	}
	a.pass()
	f.wantBlockers("a person saw to it", id, "x") // what it had waited for before holds
}

// launching is a launch of a node that looked its base up.
type launching struct {
	node  *node
	base  string
	inode uint64
	until time.Duration // by the node's clock, its overlay is written
}

// TestPassAnyOrder: whatever happens between the steps of passes, no base is given away that a machine needs, as
// long as launches take no longer than launch_grace. Where they do, this test finds out.
func TestPassAnyOrder(t *testing.T) {
	const slow = 8 * grace
	lost := 0
	for seed := range uint64(testenv.Rounds(6, 60, 400)) {
		if base := anyOrder(t, seed, grace); base != "" {
			t.Errorf("seed %d: %s may be removed, and is needed", seed, base)
		}
		if lost == 0 && anyOrder(t, seed, slow) != "" {
			lost++
			t.Logf("seed %d", seed)
		}
	}
	if lost == 0 {
		t.Error("launches that are too slow were never found out")
	}
}

// anyOrder plays one story, and gives the base that might be removed and is needed.
func anyOrder(t *testing.T, seed uint64, launch time.Duration) (wrong string) {
	f := newFarm(t, []string{"x", "y"}, "a", "b")
	for _, name := range []string{"a", "b"} {
		f.nodes[name].pass() // every node that launches is a member: of one that never spoke nothing is known
	}
	rnd := rand.New(rand.NewPCG(seed, 8))
	speed := grace / time.Duration(1+rnd.IntN(20))
	var open []launching
	held := map[string]string{} // ids, by base
	needed := map[uint64]bool{}
	write := func(l launching) {
		l.node.overlay(fmt.Sprint("disk", len(needed), rnd.Uint32()), l.base)
		needed[l.inode] = true
	}
	event := func() {
		n := f.nodes[[]string{"a", "b"}[rnd.IntN(2)]]
		base := []string{"x", "y"}[rnd.IntN(2)]
		e, err := diskio.LookEntry(f.path(base))
		there := err == nil
		switch rnd.IntN(20) {
		case 0, 1, 2:
			if there {
				held[base] = f.setAside(base)
			}
		case 3, 4, 5, 6:
			if there && len(open) < 3 {
				open = append(open, launching{n, base, e.Ino, n.run.Awake + time.Duration(rnd.Int64N(int64(launch)))})
			}
		case 7:
			if !there {
				from := pool.Path(f.dir, pool.Quarantine, pool.HeldName(held[base], base))
				if err := os.Rename(from, f.path(base)); err != nil {
					t.Fatal(err)
				}
			}
		case 8: // the power goes, and what was being launched with it
			open = slices.DeleteFunc(open, func(l launching) bool { return l.node == n })
			n.boot()
		default:
			n.run.Awake += time.Duration(rnd.Int64N(int64(speed)))
			for _, l := range open {
				if l.node == n && n.run.Awake >= l.until {
					write(l)
				}
			}
			open = slices.DeleteFunc(open, func(l launching) bool { return l.node == n && n.run.Awake >= l.until })
		}
		for base, id := range held {
			e, err := diskio.LookEntry(pool.Path(f.dir, pool.Quarantine, pool.HeldName(id, base)))
			if err != nil || len(f.blockers(id, base)) > 0 {
				continue
			}
			if needed[e.Ino] || slices.ContainsFunc(open, func(l launching) bool { return l.inode == e.Ino }) {
				wrong = base
			}
		}
	}
	for range 40 {
		n := f.nodes[[]string{"a", "b"}[rnd.IntN(2)]]
		n.during = event
		n.pass()
		n.during = nil
		event()
		if wrong != "" {
			return wrong
		}
	}
	return ""
}

// TestReportStorages: a report tells of the file systems of the bases, and of each directory that was looked through.
func TestReportStorages(t *testing.T) {
	f := newFarm(t, []string{"b"}, "a")
	n := f.nodes["a"]
	r := n.pass()
	got := []string{}
	for i := range r.Storages {
		s := &r.Storages[i]
		got = append(got, s.What+" "+s.Path)
		if s.Type == "" || s.FS() != r.Storages[0].FS() {
			t.Errorf("%s %s lies on %q, and the bases on %q", s.What, s.Path, s.FS(), r.Storages[0].FS())
		}
	}
	want := []string{"bases " + f.dir, "root " + filepath.Dir(f.dir), "root " + n.dir}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("it tells of %q, want %q", got, want)
	}
}

// TestReportSince: a report tells since when a node needs a base.
func TestReportSince(t *testing.T) {
	f := newFarm(t, []string{"b"}, "a")
	c := &refs.Census{Bases: f.dir, All: []refs.Base{{Name: "b", State: refs.Live, Uses: []refs.Reference{
		{How: refs.Open, Holder: "qemu", Since: time.Unix(1e9, 5)}, {How: refs.Loop, Holder: "/dev/loop0"}}}}}
	r := &pool.Report{}
	fill(r, c)
	if len(r.Uses) != 2 || !r.Uses[0].Since.Equal(time.Unix(1e9, 0)) || !r.Uses[1].Since.IsZero() {
		t.Errorf("uses = %+v, want one since %v and one since nobody knows when", r.Uses, time.Unix(1e9, 0).UTC())
	}
}

// TestReportWords: people are told of all uses, not of those alone that a report has room for.
func TestReportWords(t *testing.T) {
	r := &pool.Report{Seq: 3, Images: 30, Complete: true, Uses: []pool.Use{{Name: "a", More: 25}, {Name: "a"}, {Name: "b"}}}
	if got, want := reportWords(r), "report 3: 28 uses in 30 images; 0 in quarantine seen"; got != want {
		t.Errorf("reportWords = %q, want %q", got, want)
	}
	r = &pool.Report{Seq: 4, Images: 1, Uses: []pool.Use{{Name: "a"}}, Gaps: []string{"x"}}
	if got, want := reportWords(r), "report 4: 1 use in 1 image; 0 in quarantine seen; 1 place was not seen"; got != want {
		t.Errorf("reportWords of one of each = %q, want %q", got, want)
	}
}
