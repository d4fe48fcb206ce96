// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

const bootID = "11111111-7c55-4c7e-9b0a-3f6c8f1c2d3e"

// stock is a pool that two nodes share, with images on top of its bases. What is seen of it is really read.
type stock struct {
	*world
	nodes []string
}

// newStock makes a pool in which everything may happen at once: no age is too young. Nobody needs a base yet.
func newStock(t *testing.T, bases ...string) *stock {
	f := &stock{newWorld(t, bases...), []string{"n1", "n2"}}
	f.image("keeps", bases[0]+"-not") // so that there are overlays at all
	f.protect(ProtectOptions{NoRecord: true})
	f.policy(func(p *pool.Policy) {
		p.MinAge, p.MinQuarantine, p.MaxFraction, p.AllowPurge = 0, 0, 1, true
	})
	for _, n := range f.nodes {
		f.document(pool.Members, n, &pool.Member{Schema: pool.MemberSchema, Node: n, By: "agent"})
	}
	f.reports()
	f.plan() // notes the candidates
	f.reports()
	return f
}

// policy changes pool.json.
func (f *world) policy(change func(*pool.Policy)) {
	f.t.Helper()
	p := *f.state().Policy
	change(&p)
	text, err := p.Text()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(pool.Path(f.dir, pool.File), text, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// document writes a document of a node, as the node itself does.
func (f *stock) document(dir, node string, d interface{ Text() ([]byte, error) }) {
	f.t.Helper()
	text, err := d.Text()
	if err != nil {
		f.t.Fatal(err)
	}
	path := pool.Path(f.dir, dir, pool.NodeFile(node))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	tmp := filepath.Join(filepath.Dir(path), "."+node+".new")
	if err := errors.Join(os.WriteFile(tmp, text, 0o600), os.Rename(tmp, path)); err != nil {
		f.t.Fatal(err)
	}
}

// image makes an image on top of a base: the header of a qcow2 (qcow2.txt of QEMU), and nothing else.
func (f *stock) image(name, base string) {
	f.t.Helper()
	if err := writeOverlay(filepath.Join(filepath.Dir(f.dir), name), filepath.Join(f.dir, base)); err != nil {
		f.t.Fatal(err)
	}
}

func writeOverlay(path, backing string) error {
	b := make([]byte, 4<<16)
	copy(b, "QFI\xfb")
	be := binary.BigEndian
	be.PutUint32(b[4:], 2)
	be.PutUint64(b[8:], 1024)
	be.PutUint32(b[16:], uint32(len(backing)))
	be.PutUint32(b[20:], 16)
	be.PutUint64(b[24:], 1<<16)
	be.PutUint32(b[36:], 1)
	be.PutUint64(b[40:], 3<<16)
	be.PutUint64(b[48:], 1<<16)
	be.PutUint32(b[56:], 1)
	copy(b[1024:], backing)
	return os.WriteFile(path, b, 0o644)
}

// look takes the census. What processes have open is not asked: that is a gap, which is left out.
func (f *stock) look(ctx context.Context) (*refs.Census, error) {
	c, err := refs.Look(ctx, refs.Options{Pool: filepath.Dir(f.dir), Timeout: time.Minute, Workers: 2})
	if err != nil {
		return nil, err
	}
	c.Gaps = slices.DeleteFunc(c.Gaps, func(b finding.Blind) bool { return b.Reason == "they were not asked for" })
	return c, nil
}

// report has a node make a pass and say what it saw.
func (f *stock) report(node string) {
	f.t.Helper()
	s, err := pool.Read(f.t.Context(), f.dir, time.Minute)
	if err != nil {
		f.t.Fatal(err)
	}
	r := &pool.Report{Schema: pool.ReportSchema, Pool: s.Policy.UUID, Node: node, BootID: bootID, Seq: 1, Time: time.Now().UTC(),
		LaunchGraceSeconds: pool.SecondsOf(time.Duration(s.Policy.LaunchGrace)), Observed: []string{}, Draining: []pool.Draining{}, Gaps: []string{}, Uses: []pool.Use{}, Storages: []pool.BaseStorage{}}
	for i := range s.Reports {
		if s.Reports[i].Node == node {
			r.Seq = s.Reports[i].Seq + 1
		}
	}
	for _, h := range s.Held {
		r.Observed = append(r.Observed, h.ID)
	}
	c, err := f.look(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	for i := range c.All {
		for _, u := range c.All[i].Uses {
			if u.How == refs.Header {
				r.Uses = append(r.Uses, pool.Use{Name: c.All[i].Name, Inode: c.All[i].File.Ino, How: string(u.How), Holder: u.Holder})
			}
		}
	}
	for _, g := range c.Gaps {
		r.Gaps = append(r.Gaps, g.Object+": "+g.Reason)
	}
	r.Complete, r.Overlays = len(r.Gaps) == 0, c.Looked.Overlays
	f.document(pool.Nodes, node, r)
}

func (f *stock) reports() {
	for _, n := range f.nodes {
		f.report(n)
	}
}

func (f *stock) decision() Decision { return Decision{Census: f.look} }

// plan makes a plan, as it is read from a file.
func (f *stock) plan(only ...string) *judge.Plan {
	f.t.Helper()
	p, err := Plan(f.t.Context(), only, f.decision(), f.options())
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

// quarantine sets bases aside, and gives the ids.
func (f *stock) quarantine(only ...string) []string {
	f.t.Helper()
	p := f.plan(only...)
	d, err := Quarantine(f.t.Context(), p, f.decision(), f.options())
	if err != nil || len(d.Quarantined) != len(only) || len(d.Left) > 0 {
		f.t.Fatalf("Quarantine of %q = %+v, %v by %+v, %+v", only, d, err, p.Blockers, p.All)
	}
	var ids []string
	for _, q := range d.Quarantined {
		id, _, _ := pool.ParseHeldName(q)
		ids = append(ids, id)
	}
	return ids
}

// purge removes what a plan says that may be, with the approval of a person.
func (f *stock) purge(o Options) (*pool.Done, error) {
	f.t.Helper()
	p := f.plan()
	return Purge(f.t.Context(), p, PurgeOptions{Approve: p.SHA256, Allowed: true, By: "root"}, f.decision(), o)
}

// problems tells what must never be: a base that an image rests on and that has no name under which it comes back, a
// file with two names that are no shields, and an audit whose chain does not hold. ended: all acts came to their end.
func (f *stock) problems(files map[string]uint64, ended bool) (all []string) {
	f.t.Helper()
	s, err := pool.Read(f.t.Context(), f.dir, time.Minute)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, err := range s.Unread {
		all = append(all, err.Error())
	}
	c, err := f.look(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	names := map[uint64][]string{}
	for _, b := range c.All {
		if b.File.Ino != 0 {
			names[b.File.Ino] = append(names[b.File.Ino], b.Path)
		}
	}
	reach := map[uint64]bool{}
	for ino := range names {
		reach[ino] = true
	}
	for _, h := range s.Shields {
		reach[h.ID.Ino] = true
	}
	for _, b := range c.All {
		if b.State == refs.Missing && !strings.HasSuffix(b.Name, "-not") {
			if ino, known := files[b.Name]; known && !reach[ino] {
				all = append(all, fmt.Sprintf("LOST: %s is needed by %s and its file is nowhere", b.Name, b.Uses[0].Holder))
			}
		}
	}
	for ino, n := range names {
		if ended && len(n) > 1 {
			all = append(all, fmt.Sprintf("inode %d has the names %q", ino, n))
		}
	}
	if ended && len(s.Intents) > 0 {
		all = append(all, fmt.Sprintf("acts without an end: %+v", s.Intents))
	}
	return all
}

// files are the inodes of bases by their names.
func (f *stock) files(names ...string) map[string]uint64 {
	f.t.Helper()
	all := map[string]uint64{}
	for _, n := range names {
		e, err := diskio.LookEntry(f.path(n))
		if err != nil {
			f.t.Fatal(err)
		}
		all[n] = e.Ino
	}
	return all
}

// acts are the lines of the audit, without those of what made the pool.
func (f *stock) acts() (all []string) {
	for _, e := range f.state().Audits {
		if e.Act != "shield" {
			all = append(all, e.Act+" "+e.Name)
		}
	}
	return all
}

// TestQuarantine: a base that nobody needs is set aside and comes back, and one that somebody needs stays.
func TestQuarantine(t *testing.T) {
	f := newStock(t, "alone", "used")
	f.image("disk", "used")
	files := f.files("alone", "used")
	id := f.quarantine("alone")[0]
	if _, err := os.Lstat(f.path("alone")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its name is there: %v", err)
	}
	h := f.state().Held
	if len(h) != 1 || h[0].ID != id || h[0].File.Ino != files["alone"] || h[0].Links != 2 {
		t.Errorf("Held = %+v, want the very file with its shield", h)
	}
	if got := f.problems(files, true); got != nil {
		t.Error(got)
	}
	// By its id, and then by its name; each time it looks as if it was changed now.
	for _, name := range []string{id, "alone"} {
		d, err := Restore(t.Context(), name, RestoreOptions{}, f.options())
		if err != nil || !slices.Equal(d.Restored, []string{"alone"}) || f.old("alone") || f.files("alone")["alone"] != files["alone"] {
			t.Fatalf("Restore(%s) = %+v, %v", name, d, err)
		}
		if name == id {
			f.quarantine("alone")
		}
	}
	if got, want := strings.Join(f.acts(), ", "), "quarantine alone, restore alone, quarantine alone, restore alone"; got != want {
		t.Errorf("audit: %s, want %s", got, want)
	}
	if got := f.problems(files, true); got != nil {
		t.Error(got)
	}
}

// TestRestoreHeld: nothing is written over, and what is in quarantine never gets a second name from its shield.
func TestRestoreHeld(t *testing.T) {
	f := newStock(t, "a", "b")
	files := f.files("a")
	f.quarantine("a")
	f.write("a", "made anew")
	if _, err := Restore(t.Context(), "a", RestoreOptions{}, f.options()); !errors.Is(err, ErrThere) {
		t.Errorf("Restore over another file = %v, want %v", err, ErrThere)
	}
	if len(f.state().Intents) > 0 {
		t.Error("an intent is left")
	}
	if _, err := Restore(t.Context(), "a", RestoreOptions{As: "a.old"}, f.options()); err != nil || f.files("a.old")["a.old"] != files["a"] {
		t.Errorf("Restore under another name = %v", err)
	}
	if got := f.problems(files, true); got != nil {
		t.Error(got)
	}
	f.reports()
	f.plan()
	f.reports()
	f.quarantine("a.old")
	f.remove("a")
	f.protect(ProtectOptions{NoRecord: true})
	// The shield of the file is called a, and it lies in quarantine as a.old.
	if _, err := Restore(t.Context(), "a", RestoreOptions{Inode: files["a"]}, f.options()); err != nil || f.files("a")["a"] != files["a"] {
		t.Errorf("Restore by the name of the shield = %v", err)
	}
	if got := f.problems(files, true); got != nil {
		t.Error(got)
	}
}

// TestProtectBringsHeldBack: what is needed and lies in quarantine is back with the next pass that protects.
func TestProtectBringsHeldBack(t *testing.T) {
	f := newStock(t, "a", "b")
	files := f.files("a", "b")
	f.quarantine("a", "b")
	f.image("new", "a")
	c, err := f.look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d, err := Protect(t.Context(), c, ProtectOptions{NoRecord: true}, f.options())
	if err != nil || !slices.Equal(d.Restored, []string{"a"}) || len(d.Left) > 0 || f.files("a")["a"] != files["a"] {
		t.Errorf("Protect = %+v, %v, want that a is back", d, err)
	}
	if h := f.state().Held; len(h) != 1 || h[0].Name != "b" {
		t.Errorf("Held = %+v, want b alone", h)
	}
	if got := f.problems(files, true); got != nil {
		t.Error(got)
	}
}

// TestMadeAnew: a base was set aside, made anew, used, and removed by somebody else. Which of the two files is meant nobody
// knows, unless they hold the same: neither comes back by itself, and neither is unneeded.
func TestMadeAnew(t *testing.T) {
	f := newStock(t, "a", "b")
	first := f.files("a")["a"]
	f.quarantine("a")
	f.write("a", "made anew")
	second := f.files("a")["a"]
	f.image("new", "a")
	protect := func() *pool.Done {
		t.Helper()
		c, err := f.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		d, err := Protect(t.Context(), c, ProtectOptions{}, f.options())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	protect()
	f.remove("a")
	if d := protect(); len(d.Restored) > 0 || len(d.Left) != 1 || !strings.Contains(d.Left[0].Why, ErrSeveral.Error()) {
		t.Errorf("Protect = %+v, want that a is left", d)
	}
	if d, err := Recover(t.Context(), f.decision(), f.options()); err != nil || len(d.Restored) > 0 || len(d.Left) != 1 {
		t.Errorf("Recover = %+v, %v, want that a is left", d, err)
	}
	if d, err := RestoreKept(t.Context(), "", f.options()); err != nil || len(d.Restored) > 0 || len(d.Left) != 1 {
		t.Errorf("RestoreKept = %+v, %v, want that a is left", d, err)
	}
	if _, err := Restore(t.Context(), "a", RestoreOptions{}, f.options()); !errors.Is(err, ErrSeveral) {
		t.Errorf("Restore = %v, want %v", err, ErrSeveral)
	}
	for _, b := range f.plan().All {
		if (b.Name == "a" || b.Inode == first || b.Inode == second) && b.Verdict != judge.RestoreNow {
			t.Errorf("%s, inode %d, %s: %s, want %s", b.Name, b.Inode, b.State, b.Verdict, judge.RestoreNow)
		}
	}
	if _, err := Restore(t.Context(), "a", RestoreOptions{Inode: second}, f.options()); err != nil || f.files("a")["a"] != second {
		t.Fatalf("Restore by the inode = %v", err)
	}
	f.remove("a")
	// The records say what the first held as well: it is the same.
	text, err := os.ReadFile(pool.Path(f.dir, pool.Objects, pool.ObjectName(second)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pool.Path(f.dir, pool.Quarantine, f.state().Held[0].ID+".a"), []byte("made anew"), 0o644); err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), strconv.FormatUint(second, 10), strconv.FormatUint(first, 10), 1))
	if err := os.WriteFile(pool.Path(f.dir, pool.Objects, pool.ObjectName(first)), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if d := protect(); !slices.Equal(d.Restored, []string{"a"}) {
		t.Errorf("Protect of what is the same = %+v, want a restored", d)
	}
}

// TestRefused: everything is looked at again at the act.
func TestRefused(t *testing.T) {
	later := func(d time.Duration) func(*stock, *Options) {
		return func(f *stock, o *Options) {
			at := time.Now().Add(d)
			o.Links = skewed{diskio.HostLinks(), at}
		}
	}
	for _, c := range []struct {
		name   string
		change func(f *stock, o *Options)
		err    error
		left   string
	}{
		{"an image came to rest on it", func(f *stock, _ *Options) { f.image("new", "a") }, nil, "needed by"},
		{"a node says so", func(f *stock, _ *Options) { f.image("new", "a"); f.report("n2"); f.mustRemove("new") }, nil, "n2: it needs the base, as it said last"},
		{"a node joined", func(f *stock, _ *Options) {
			f.document(pool.Members, "n3", &pool.Member{Schema: pool.MemberSchema, Node: "n3"})
		}, nil, "n3: it has never said"},
		{"it was touched", func(f *stock, _ *Options) {
			f.policy(func(p *pool.Policy) { p.MinAge = pool.Span(time.Hour) })
		}, nil, "names or times were changed"},
		{"a new file under the old name", func(f *stock, _ *Options) {
			f.mustRemove("_base/a")
			f.write("a", "a new one")
		}, nil, "not the file any more"},
		{"it was pinned", func(f *stock, _ *Options) { f.pin("a") }, nil, "it is pinned"},
		{"an image cannot be read", func(f *stock, _ *Options) {
			if err := os.WriteFile(filepath.Join(filepath.Dir(f.dir), "odd"), []byte("QFI\xfb\x00\x00\x00\x03 broken"), 0o644); err != nil {
				f.t.Fatal(err)
			}
		}, nil, "odd"},
		{"a member was forgotten", func(f *stock, _ *Options) {
			f.mustRemove("_base/.shisa/members/n2.json")
			f.mustRemove("_base/.shisa/nodes/n2.json")
		}, nil, "is not any more"},
		{"an audit was changed", func(f *stock, _ *Options) {
			if err := os.WriteFile(pool.Path(f.dir, pool.Audit, "n9.jsonl"), []byte("{}\n"), 0o600); err != nil {
				f.t.Fatal(err)
			}
		}, nil, "the audit was changed"},
		{"an hour went by", later(61 * time.Minute), judge.ErrTooOld, ""},
		{"the file server's clock is years ahead", later(5 * 365 * 24 * time.Hour), judge.ErrTooOld, ""},
		{"the file server's clock is years behind", later(-5 * 365 * 24 * time.Hour), judge.ErrTooOld, ""},
		{"an empty directory where the pool should be mounted", func(f *stock, _ *Options) {
			if err := os.Rename(f.dir, f.dir+".unmounted"); err != nil {
				f.t.Fatal(err)
			}
			if err := os.Mkdir(f.dir, 0o755); err != nil {
				f.t.Fatal(err)
			}
		}, judge.ErrOther, ""},
		{"a pool.json of another pool", func(f *stock, _ *Options) {
			f.policy(func(p *pool.Policy) { p.UUID = bootID })
		}, judge.ErrOther, ""},
		{"another program is at work", func(f *stock, _ *Options) {
			k := newKeeper(f.options())
			lock, err := k.control()
			if err != nil {
				f.t.Fatal(err)
			}
			f.t.Cleanup(func() { _ = lock.Close() })
		}, ErrBusy, ""},
		{"an act came to no end", func(f *stock, _ *Options) {
			k := newKeeper(f.options())
			if err := errors.Join(k.Disk.MakeDir(k.path(pool.Journal), 0o755), k.intend(f.t.Context(), &pool.Intent{
				Act: pool.ActQuarantine, ID: strings.Repeat("a", 32), Name: "b", Inode: 1, From: "b"})); err != nil {
				f.t.Fatal(err)
			}
		}, ErrUnfinished, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newStock(t, "a", "b")
			p := f.plan("a")
			o := f.options()
			c.change(f, &o)
			d, err := Quarantine(t.Context(), p, f.decision(), o)
			if c.err != nil {
				if !errors.Is(err, c.err) {
					t.Errorf("Quarantine = %+v, %v, want %v", d, err, c.err)
				}
				return
			}
			if err != nil || len(d.Quarantined) > 0 || len(d.Left) != 1 || !strings.Contains(d.Left[0].Why, c.left) {
				t.Errorf("Quarantine = %+v, %v, want it left: %s", d, err, c.left)
			}
		})
	}
}

// skewed touches the clock of the pool with another time.
type skewed struct {
	diskio.Links
	at time.Time
}

func (s skewed) Touch(id diskio.ID, name string, t time.Time) error {
	if filepath.Base(name) == pool.Clock {
		t = s.at
	}
	return s.Links.Touch(id, name, t)
}

func (f *stock) mustRemove(name string) {
	f.t.Helper()
	if err := os.Remove(filepath.Join(filepath.Dir(f.dir), name)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *stock) pin(name string) string {
	f.t.Helper()
	d, err := Pin(f.t.Context(), name, PinOptions{Reason: "golden", By: "root"}, f.options())
	if err != nil || len(d.Pinned) != 1 {
		f.t.Fatalf("Pin(%s) = %+v, %v", name, d, err)
	}
	return d.Pinned[0]
}

// TestPin: what is pinned stays, is brought back, and may go when the pin was taken back.
func TestPin(t *testing.T) {
	f := newStock(t, "a", "b")
	id := f.pin("a")
	if b := f.plan().With(judge.MayQuarantine); len(b) != 1 || b[0].Name != "b" {
		t.Errorf("may be set aside: %+v, want b alone", b)
	}
	if _, err := Unpin(t.Context(), "nothing", "x", f.options()); !errors.Is(err, ErrNoPin) {
		t.Errorf("Unpin of nothing = %v, want %v", err, ErrNoPin)
	}
	d, err := Unpin(t.Context(), "a", "not golden", f.options())
	if err != nil || !slices.Equal(d.Unpinned, []string{id}) || len(f.state().Pins) > 0 {
		t.Errorf("Unpin = %+v, %v", d, err)
	}
	f.plan()
	f.reports()
	f.quarantine("a")
	f.pin("a") // by the name that it had
	if b := f.plan().With(judge.RestoreNow); len(b) != 1 || b[0].Name != "a" {
		t.Errorf("to be brought back: %+v, want a", b)
	}
	if _, err := Pin(t.Context(), "nothing", PinOptions{Reason: "x"}, f.options()); !errors.Is(err, ErrNoBase) {
		t.Errorf("Pin of nothing = %v, want %v", err, ErrNoBase)
	}
	// What stands for a node that was retired goes by its id alone.
	p := f.state().Pins[0]
	p.ID, p.Name, p.Uses = strings.Repeat("e", 32), "b", []pool.Use{{Name: "b", How: "open", Holder: "qemu"}}
	if err := newKeeper(f.options()).pin(t.Context(), &p, &pool.Done{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpin(t.Context(), "b", "x", f.options()); !errors.Is(err, ErrNodePin) {
		t.Errorf("Unpin of a node's pin by name = %v, want %v", err, ErrNodePin)
	}
	if _, err := Unpin(t.Context(), p.ID, "x", f.options()); err != nil {
		t.Error(err)
	}
}
