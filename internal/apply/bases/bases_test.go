// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// world is a directory of bases.
type world struct {
	t   *testing.T
	dir string
}

// newWorld makes bases, each of which holds its name.
func newWorld(t *testing.T, names ...string) *world {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t, filepath.Join(dir, "_base")}
	if err := os.Mkdir(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		w.write(n, n)
	}
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// write makes a base that was not changed for two days.
func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	old := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(w.path(name), old, old); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) remove(name string) {
	w.t.Helper()
	if err := os.Remove(w.path(name)); err != nil {
		w.t.Fatal(err)
	}
}

// census says that some bases are needed, and that everything was seen.
func (w *world) census(needed ...string) *refs.Census {
	w.t.Helper()
	c := &refs.Census{Bases: w.dir}
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		st, err := diskio.Look(w.path(e.Name()))
		if err != nil {
			w.t.Fatal(err)
		}
		b := refs.Base{Name: e.Name(), Path: w.path(e.Name()), State: refs.Live, File: st.ID, SizeBytes: st.SizeBytes}
		if slices.Contains(needed, e.Name()) {
			b.Uses = []refs.Reference{{How: refs.Header, Holder: "/a/disk", Depth: 1}}
		}
		c.All = append(c.All, b)
	}
	return c
}

func (w *world) options() Options { return Options{Bases: w.dir, Node: "n1", Timeout: time.Minute} }

func (w *world) protect(p ProtectOptions, needed ...string) *pool.Done {
	w.t.Helper()
	d, err := Protect(w.t.Context(), w.census(needed...), p, w.options())
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func (w *world) state() *pool.State {
	w.t.Helper()
	s, err := pool.Read(w.t.Context(), w.dir, time.Minute)
	if err != nil || len(s.Unread) > 0 {
		w.t.Fatalf("Read = %v, unread %v", err, s.Unread)
	}
	return s
}

// old tells whether a base looks old enough to be removed.
func (w *world) old(name string) bool {
	w.t.Helper()
	st, err := os.Stat(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return time.Since(st.ModTime()) > 24*time.Hour
}

func TestProtect(t *testing.T) {
	w := newWorld(t, "a", "b")
	d := w.protect(ProtectOptions{}, "a")
	want := &pool.Done{Bases: w.dir, Pool: d.Pool, Shielded: []string{"a", "b"}, Touched: []string{"a"},
		Recorded: []string{"a", "b"}, Restored: []string{}, Unshielded: []string{}, Quarantined: []string{}, Purged: []string{},
		Pinned: []string{}, Unpinned: []string{}, Recovered: []string{},
		Forgotten: []string{}, Stays: []pool.Left{}, Unseen: []pool.Left{}, Left: []pool.Left{}}
	if diff := cmp.Diff(want, d); diff != "" || !pool.IsUUID(d.Pool) {
		t.Errorf("Protect of pool %q (-want +got):\n%s", d.Pool, diff)
	}
	if w.old("a") || !w.old("b") {
		t.Error("the base that is needed is old, or the other is not")
	}
	s := w.state()
	for _, n := range []string{"a", "b"} {
		h := s.ShieldsOf(n)
		if len(h) != 1 || h[0].Links != 2 {
			t.Fatalf("shields of %s = %+v, want one with two names", n, h)
		}
		sum := sha256.Sum256([]byte(n))
		if o := s.Objects[h[0].ID.Ino]; o.SHA256 != hex.EncodeToString(sum[:]) || !slices.Equal(o.Chunks, []string{o.SHA256}) {
			t.Errorf("record of %s = %+v", n, o)
		}
	}
	var acts []string
	for _, e := range s.Audits {
		acts = append(acts, e.Act+" "+e.Name)
	}
	if want := []string{"shield a", "shield b", "record a", "record b"}; !slices.Equal(acts, want) {
		t.Errorf("audit = %q, want %q", acts, want)
	}
	// Once more there is nothing to do.
	if d := w.protect(ProtectOptions{}, "a"); len(d.Shielded)+len(d.Touched)+len(d.Recorded)+len(d.Left) > 0 {
		t.Errorf("Protect once more = %+v, want nothing", d)
	}
}

// TestProtectRemovedOpen: of a base that a client of NFS removed while it is open there, the record alone tells which it was.
func TestProtectRemovedOpen(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.protect(ProtectOptions{})
	for from, to := range map[string]string{"a": ".nfs0000000000a1b2c300000001", "b": "c"} {
		w.remove(".shisa/shields/" + filepath.Base(w.state().ShieldsOf(from)[0].Path))
		if err := os.Rename(w.path(from), w.path(to)); err != nil {
			t.Fatal(err)
		}
	}
	if d := w.protect(ProtectOptions{}); !slices.Equal(d.Recorded, []string{"c"}) {
		t.Errorf("recorded %q, want c", d.Recorded)
	}
	names := map[string]bool{}
	for _, o := range w.state().Objects {
		names[o.Name] = true
	}
	if diff := cmp.Diff(map[string]bool{"a": true, "c": true}, names); diff != "" {
		t.Errorf("recorded names (-want +got):\n%s", diff)
	}
}

// TestKeepAlive: what Nova resized is removed after an hour, and so all are touched sooner.
func TestKeepAlive(t *testing.T) {
	w := newWorld(t, "a")
	w.protect(ProtectOptions{NoRecord: true}, "a")
	hour := time.Now().Add(-time.Hour)
	if err := os.Chtimes(w.path("a"), hour, hour); err != nil {
		t.Fatal(err)
	}
	if d := w.protect(ProtectOptions{NoRecord: true}, "a"); len(d.Touched) > 0 {
		t.Errorf("touched %q after an hour, want none", d.Touched)
	}
	w.write(strings.Repeat("0", 40)+"_10", "")
	if d := w.protect(ProtectOptions{NoRecord: true}, "a"); !slices.Equal(d.Touched, []string{"a"}) {
		t.Errorf("touched %q beside a resized one, want a", d.Touched)
	}
	future := time.Now().Add(25 * time.Hour)
	if err := os.Chtimes(w.path("a"), future, future); err != nil {
		t.Fatal(err)
	}
	if d := w.protect(ProtectOptions{NoRecord: true}, "a"); !slices.Equal(d.Touched, []string{"a"}) {
		t.Errorf("touched %q with a time ahead, want a", d.Touched)
	}
	// What was not seen may need any.
	w.write("z", "z")
	c := w.census()
	c.Gaps = append(c.Gaps, finding.Blind{Object: "x"})
	d, err := Protect(t.Context(), c, ProtectOptions{NoRecord: true}, w.options())
	if err != nil || !slices.Contains(d.Touched, "z") {
		t.Errorf("touched %q, %v where not everything was seen, want z too", d.Touched, err)
	}
}

func TestRestore(t *testing.T) {
	w := newWorld(t, "a")
	w.protect(ProtectOptions{}, "a")
	id := w.state().Shields[0].ID
	w.remove("a")
	if got := w.state().Alone(); len(got) != 1 || got[0].Name != "a" {
		t.Errorf("Alone = %+v, want the shield of a", got)
	}
	old := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(w.state().Shields[0].Path, old, old); err != nil {
		t.Fatal(err)
	}
	// Nova may pass at any moment: what has its name again is not old for one.
	var names []string
	o := w.options()
	o.Links = seenLinks{diskio.HostLinks(), func(path string) {
		names = append(names, filepath.Base(path))
		if path == w.path("a") && w.old("a") {
			t.Error("the base has its name, and is old")
		}
	}}
	d, err := Restore(t.Context(), "a", RestoreOptions{}, o)
	if want := []string{pool.Clock, pool.ShieldName(id.Ino, "a"), "a"}; !slices.Equal(names, want) {
		t.Errorf("changed were %q, want %q", names, want)
	}
	if err != nil || !slices.Equal(d.Restored, []string{"a"}) {
		t.Fatalf("Restore = %+v, %v", d, err)
	}
	if st, err := diskio.Look(w.path("a")); err != nil || st.ID != id {
		t.Errorf("what is there is %v, %v, want the very file", st.ID, err)
	}
	// Else the next pass of Nova would remove it again.
	if w.old("a") {
		t.Error("the base is old")
	}
	// Another file under the name is left alone, and the old one comes back under another.
	w.remove("a")
	w.write("a", "another")
	if _, err := Restore(t.Context(), "a", RestoreOptions{}, w.options()); !errors.Is(err, ErrThere) {
		t.Errorf("Restore over another file = %v, want %v", err, ErrThere)
	}
	if _, err := Restore(t.Context(), "a", RestoreOptions{As: "a.back"}, w.options()); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(w.path("a.back")); err != nil || string(text) != "a" {
		t.Errorf("a.back holds %q, %v", text, err)
	}
	if _, err := Restore(t.Context(), "nothing", RestoreOptions{}, w.options()); !errors.Is(err, ErrNoShield) {
		t.Errorf("Restore of what has no shield = %v, want %v", err, ErrNoShield)
	}
	for _, bad := range []string{"", "..", "../a", "a/b"} {
		if _, err := Restore(t.Context(), bad, RestoreOptions{}, w.options()); err == nil {
			t.Errorf("Restore(%q) gives no error", bad)
		}
	}
}

// TestRestoreSeveral: several names are one act, and what cannot be had of them is left.
func TestRestoreSeveral(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.protect(ProtectOptions{}, "a")
	w.remove("a")
	w.remove("b")
	o := w.receipts()
	d, err := RestoreAll(t.Context(), []string{"a", "nothing", "b"}, RestoreOptions{}, o)
	if err != nil || !slices.Equal(d.Restored, []string{"a", "b"}) || len(d.Left) != 1 || d.Left[0].Name != "nothing" {
		t.Fatalf("RestoreAll = %+v, %v, want a and b restored", d, err)
	}
	if all, err := o.Receipts.BaseReceipts(t.Context()); err != nil || len(all) != 1 || all[0].ID != d.Receipt || len(all[0].Steps) != 4 {
		t.Errorf("the receipts are %+v, %v, want one of four steps", all, err)
	}
	if w.text("a") != "a" || w.text("b") != "b" || w.old("a") || w.old("b") {
		t.Error("what is there is not what was removed, or old")
	}
}

// TestRestoreKept: whatever only its shield keeps has its name again, but for what nobody can choose between and what
// another file has the name of.
func TestRestoreKept(t *testing.T) {
	w := newWorld(t, "a", "b", "c", "d", "e", "f")
	w.protect(ProtectOptions{}, "a")
	for _, n := range []string{"a", "b", "c", "d", "f"} {
		w.remove(n)
	}
	w.write("c", "another")
	w.write("d", "another")
	w.write("f", "f")
	w.protect(ProtectOptions{}, "a")
	w.remove("d")
	w.remove("f")
	d, err := RestoreKept(t.Context(), "room is wanted", w.options())
	// The shields are in the order of their inodes, which are any.
	slices.Sort(d.Restored)
	slices.SortFunc(d.Left, func(a, b pool.Left) int { return strings.Compare(a.Name, b.Name) })
	if err != nil || !slices.Equal(d.Restored, []string{"a", "b", "f"}) || len(d.Left) != 4 {
		t.Fatalf("RestoreKept = %+v, %v, want a, b and an f restored, c, twice d and the other f left", d, err)
	}
	for i, want := range []struct{ name, why string }{{"c", ErrThere.Error()}, {"d", ErrSeveral.Error()}, {"d", ErrSeveral.Error()},
		{"f", ErrThere.Error()}} {
		if l := d.Left[i]; l.Name != want.name || !strings.Contains(l.Why, want.why) || !strings.Contains(l.Why, "--inode ") {
			t.Errorf("left is %+v, want %s: %s", l, want.name, want.why)
		}
	}
	if w.text("a") != "a" || w.text("c") != "another" || w.text("f") != "f" || w.old("a") {
		t.Error("what is there is not what should be")
	}
	if e := w.state().Audits; e[len(e)-1].Why != "room is wanted" {
		t.Errorf("the audit ends with %+v", e[len(e)-1])
	}
	if d, err = RestoreKept(t.Context(), "", w.options()); err != nil || len(d.Restored) > 0 {
		t.Errorf("RestoreKept once more = %+v, %v", d, err)
	}
}

// TestProtectBringsBack: a timer that protects gives a base that is needed its name back, and no other.
func TestProtectBringsBack(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.protect(ProtectOptions{}, "a")
	c := w.census()
	for i := range c.All {
		b := &c.All[i]
		id := b.File.Ino
		w.remove(b.Name)
		b.State, b.File, b.Shield = refs.Missing, diskio.ID{}, pool.Path(w.dir, pool.Shields, pool.ShieldName(id, b.Name))
		old := time.Now().Add(-48 * time.Hour)
		if err := os.Chtimes(b.Shield, old, old); err != nil {
			t.Fatal(err)
		}
		b.Uses = []refs.Reference{{How: refs.Header, Holder: "/a/disk", Depth: 1}}
	}
	c.All = slices.DeleteFunc(c.All, func(b refs.Base) bool { return b.Name == "b" }) // nobody needs it
	w.write("c", "another that came meanwhile")
	d, err := Protect(t.Context(), c, ProtectOptions{}, w.options())
	if err != nil || !slices.Equal(d.Restored, []string{"a"}) || !slices.Equal(d.Touched, []string{"a"}) || len(d.Left) > 0 {
		t.Errorf("Protect = %+v, %v, want a restored", d, err)
	}
	if text, err := os.ReadFile(w.path("a")); err != nil || string(text) != "a" || w.old("a") {
		t.Errorf("a holds %q, %v, old: %v", text, err, w.old("a"))
	}
	if _, err := os.Lstat(w.path("b")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("b, which nobody needs: %v", err)
	}
	audits := w.state().Audits
	if e := audits[len(audits)-1]; e.Act != "restore" || e.Name != "a" || e.Why != "it was missing, and /a/disk needs it" {
		t.Errorf("the audit ends with %+v", e)
	}
}

// TestSeveralShields: a base that was made anew under its old name has two, and the one that has no other name is
// meant.
func TestSeveralShields(t *testing.T) {
	w := newWorld(t, "a")
	w.protect(ProtectOptions{}, "a")
	w.remove("a")
	w.write("a", "second")
	w.protect(ProtectOptions{}, "a")
	w.remove("a")
	if _, err := Restore(t.Context(), "a", RestoreOptions{}, w.options()); !errors.Is(err, ErrSeveral) {
		t.Fatalf("Restore = %v, want %v", err, ErrSeveral)
	}
	for _, h := range w.state().ShieldsOf("a") {
		if h.SizeBytes != int64(len("second")) {
			continue
		}
		if _, err := Restore(t.Context(), "a", RestoreOptions{Inode: h.ID.Ino}, w.options()); err != nil {
			t.Error(err)
		}
	}
	if text, err := os.ReadFile(w.path("a")); err != nil || string(text) != "second" {
		t.Errorf("a holds %q, %v, want the second", text, err)
	}
}

func TestUnprotect(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.protect(ProtectOptions{}, "a")
	w.remove("b")
	w.remove("c")
	w.write("c", "another")
	d, err := Unprotect(t.Context(), UnprotectOptions{}, w.options())
	if err != nil {
		t.Fatal(err)
	}
	// What only a shield holds stays, also under a name that another file has by now.
	want := []pool.Left{{Name: "b", Why: ErrLast.Error()}, {Name: "c", Why: ErrLast.Error()}}
	if !slices.Equal(d.Unshielded, []string{"a"}) || !slices.Equal(d.Left, want) {
		t.Errorf("Unprotect = %+v", d)
	}
	if got := w.state().Alone(); len(got) != 2 {
		t.Errorf("shields that are last names = %+v, want b and c", got)
	}
}

// links fails or does more at one of its calls.
type links struct {
	diskio.Links
	unlinked func(name string)
	linkErr  error
}

func (l links) Unlink(id diskio.ID, name string) error {
	if l.unlinked != nil {
		l.unlinked(name)
	}
	return l.Links.Unlink(id, name)
}

func (l links) Link(id diskio.ID, from, to string) error {
	if l.linkErr != nil {
		return l.linkErr
	}
	return l.Links.Link(id, from, to)
}

// TestRemovedWhileUnshielded: somebody removes the base between the look and the act, and its content is there
// all the same.
func TestRemovedWhileUnshielded(t *testing.T) {
	w := newWorld(t, "a")
	w.protect(ProtectOptions{}, "a")
	o := w.options()
	o.Links = links{Links: diskio.HostLinks(), unlinked: func(string) { w.remove("a") }}
	d, err := Unprotect(t.Context(), UnprotectOptions{}, o)
	if err != nil || len(d.Unshielded) > 0 || len(d.Left) != 1 {
		t.Fatalf("Unprotect = %+v, %v, want that it was left", d, err)
	}
	if _, err := Restore(t.Context(), "a", RestoreOptions{}, w.options()); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(w.path("a")); err != nil || string(text) != "a" {
		t.Errorf("a holds %q, %v", text, err)
	}
}

// TestOneFails: what cannot be done for one base is told, and the others are done.
func TestOneFails(t *testing.T) {
	w := newWorld(t, "a", "b")
	o := w.options()
	o.Links = links{Links: diskio.HostLinks(), linkErr: errors.New("no room for names")}
	d, err := Protect(t.Context(), w.census("a", "b"), ProtectOptions{}, o)
	if err != nil || len(d.Left) != 2 || len(d.Recorded) != 2 || len(d.Touched) != 2 {
		t.Errorf("Protect = %+v, %v", d, err)
	}
}

// TestStopAtEveryStep ends protecting before each of its changes: no base is lost, and once more does the rest.
func TestStopAtEveryStep(t *testing.T) {
	steps := 0
	for at := 0; ; at++ {
		w := newWorld(t, "a", "b")
		o := w.options()
		n := 0
		o.Step = func(string) error {
			if n++; n > at {
				return ErrStopped
			}
			return nil
		}
		_, err := Protect(t.Context(), w.census("a"), ProtectOptions{}, o)
		if err == nil {
			steps = at
			break
		}
		if !errors.Is(err, ErrStopped) {
			t.Fatalf("stopped at %d: %v", at, err)
		}
		w.protect(ProtectOptions{}, "a")
		if s := w.state(); len(s.Shields) != 2 || len(s.Objects) != 2 || w.old("a") {
			t.Errorf("stopped at %d and done again: %d shields, %d records, old %v", at, len(s.Shields), len(s.Objects), w.old("a"))
		}
		for _, name := range []string{"a", "b"} {
			if text, err := os.ReadFile(w.path(name)); err != nil || string(text) != name {
				t.Errorf("stopped at %d: %s holds %q, %v", at, name, text, err)
			}
		}
	}
	if steps != 9 {
		t.Errorf("protecting two bases has %d steps, want 9", steps)
	}
}

// TestForeignPool: a pool whose policy cannot be read is not written to as if it had none.
func TestForeignPool(t *testing.T) {
	w := newWorld(t, "a")
	w.protect(ProtectOptions{}, "a")
	file := pool.Path(w.dir, pool.File)
	for _, text := range []string{"", "{}", `{"schema":"shisa.pool/1","allow_purge":true}`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Protect(t.Context(), w.census("a"), ProtectOptions{}, w.options()); err == nil {
			t.Errorf("Protect with %q gives no error", text)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != text {
			t.Errorf("%s holds %q, %v, want %q", file, got, err, text)
		}
	}
}

// TestAudit: a line that was changed, taken out or put in is found.
func TestAudit(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.protect(ProtectOptions{NoRecord: true})
	file := pool.Path(w.dir, pool.Audit, "n1.jsonl")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(string(whole), "\n"), "\n")
	lines[2] += "\n"
	for name, text := range map[string]string{
		"changed":   strings.Replace(string(whole), `"name":"b"`, `"name":"x"`, 1),
		"taken out": lines[0] + lines[2],
		"swapped":   lines[1] + lines[0] + lines[2],
		"put in":    lines[0] + lines[0] + lines[1] + lines[2],
	} {
		all, _, err := pool.ReadAudit(strings.NewReader(text))
		if !errors.Is(err, pool.ErrChain) || len(all) > 1 {
			t.Errorf("%s: ReadAudit = %d entries, %v, want %v", name, len(all), err, pool.ErrChain)
		}
	}
	all, cut, err := pool.ReadAudit(strings.NewReader(string(whole) + `{"time`))
	if err != nil || !cut || len(all) != 3 {
		t.Errorf("cut: ReadAudit = %d entries, %v, %v", len(all), cut, err)
	}
}

// TestAuditCut: after a power cut in the middle of a line the audit goes on, and nothing of it is lost.
func TestAuditCut(t *testing.T) {
	w := newWorld(t, "a")
	w.protect(ProtectOptions{NoRecord: true})
	f, err := diskio.Append(pool.Path(w.dir, pool.Audit, "n1.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"time":"2026`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	w.write("b", "b")
	w.protect(ProtectOptions{NoRecord: true})
	var acts []string
	for _, e := range w.state().Audits {
		acts = append(acts, e.Act+" "+e.Name)
	}
	if want := []string{"shield a", "shield b"}; !slices.Equal(acts, want) {
		t.Errorf("audit = %q, want %q", acts, want)
	}
}

// seenLinks tells of each name that was made, or whose file was touched.
type seenLinks struct {
	diskio.Links
	tell func(path string)
}

func (l seenLinks) Link(id diskio.ID, from, to string) error {
	err := l.Links.Link(id, from, to)
	l.tell(to)
	return err
}

func (l seenLinks) Touch(id diskio.ID, name string, t time.Time) error {
	err := l.Links.Touch(id, name, t)
	l.tell(name)
	return err
}
