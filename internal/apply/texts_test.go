// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/lab/cut"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/vault"
)

// Files of textWorld: two that are there, one that is not.
const (
	confPath  = "/etc/agent.conf"
	dropPath  = "/etc/units/agent.service.d/shisa.conf"
	rulesPath = "/etc/rules"
)

// textSides are the files before and after the plan of textWorld; "" is none.
func textSides() (before, after map[string]string) {
	long := strings.Repeat("# a line\n", 60) // several sectors
	return map[string]string{confPath: "a = 1\n" + long, dropPath: "", rulesPath: "old\n"},
		map[string]string{confPath: long + "a = 2\n", dropPath: "[Service]\n", rulesPath: "new\n"}
}

// textWorld is a disk with files and the plan of a change of them.
func textWorld(t testing.TB) (*cut.Disk, *plan.Texts) {
	t.Helper()
	return textWorldUntil(t, t.Context())
}

// textWorldUntil is textWorld whose disk lets operations hang until ctx ends.
func textWorldUntil(t testing.TB, ctx context.Context) (*cut.Disk, *plan.Texts) {
	t.Helper()
	d := cut.New(ctx)
	before, after := textSides()
	p := &plan.Texts{Tool: "test", Why: "keep the agent away",
		Then: []plan.Told{{Command: "systemctl daemon-reload", Why: "read them"}}}
	for _, path := range []string{confPath, dropPath, rulesPath} {
		if before[path] != "" {
			d.Put(path, []byte(before[path]))
		}
		p.Files = append(p.Files, plan.Text{Path: path, Mode: "0644", Content: after[path]})
	}
	if err := DraftTexts(t.Context(), p, options(d)); err != nil {
		t.Fatal(err)
	}
	return d, p
}

// textSide tells which side each file is on: "b" before, "a" after, "?" neither.
func textSide(d *cut.Disk) string {
	before, after := textSides()
	side := ""
	for _, path := range []string{confPath, dropPath, rulesPath} {
		got, _ := d.Get(path)
		switch string(got) {
		case before[path]:
			side += "b"
		case after[path]:
			side += "a"
		default:
			side += "?"
		}
	}
	return side
}

// textsSettled holds that the files are on one of the sides, that nothing is beside them, and that
// another recovery does nothing.
func textsSettled(t testing.TB, d *cut.Disk, what string, want ...string) {
	t.Helper()
	if side := textSide(d); !slices.Contains(want, side) {
		t.Errorf("%s: the files are on the sides %s, want one of %v", what, side, want)
	}
	for _, path := range d.Paths() {
		if strings.HasSuffix(path, ".shisa-new") || strings.HasSuffix(path, ".json.new") {
			t.Errorf("%s: %s is left", what, path)
		}
	}
	fault(t, d, "")
	for _, target := range []string{"", confPath, filepath.Dir(dropPath)} {
		out, err := Recover(t.Context(), target, options(d))
		if target == filepath.Dir(dropPath) && len(out) == 0 {
			continue // the directory may not be there
		}
		did := slices.DeleteFunc(d.Ops(), func(op string) bool { return op == "syncdir "+stateDir+"/texts" })
		if err != nil || len(out) > 0 || len(did) > 0 {
			t.Errorf("%s: another Recover of %q = %+v, %v, and does %q", what, target, out, err, did)
		}
	}
}

// textsRecovered recovers all that is known.
func textsRecovered(t testing.TB, d *cut.Disk, forward bool, what string, want ...string) {
	t.Helper()
	fault(t, d, "")
	o := options(d)
	o.Forward = forward
	if out, err := Recover(t.Context(), "", o); err != nil {
		t.Errorf("%s: Recover = %+v, %v", what, out, err)
	}
	textsSettled(t, d, what, want...)
}

func TestTexts(t *testing.T) {
	d, p := textWorld(t)
	r, err := ApplyTexts(t.Context(), p, options(d))
	if err != nil || r.State != vault.Committed || r.Finished == nil {
		t.Fatalf("ApplyTexts = %+v, %v", r, err)
	}
	textsSettled(t, d, "applied", "aaa")
	if _, err := ApplyTexts(t.Context(), p, options(d)); !errors.Is(err, ErrUsed) {
		t.Errorf("ApplyTexts again = %v, want %v", err, ErrUsed)
	}
	u, err := UndoTexts(t.Context(), p.ID, options(d))
	if err != nil || u.State != vault.Undone || u.Undone == nil {
		t.Fatalf("UndoTexts = %+v, %v", u, err)
	}
	textsSettled(t, d, "undone", "bbb")
	if u, err := UndoTexts(t.Context(), p.ID, options(d)); err != nil || u.State != vault.Undone {
		t.Errorf("UndoTexts again = %+v, %v", u, err)
	}
	// What was taken away is in the receipt.
	_, after := textSides()
	v, err := vault.New(vault.Options{Disk: d, StateDir: stateDir})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := v.TextReceipt(p.ID); err != nil || r.Plan.Files[1].Content != after[dropPath] {
		t.Errorf("TextReceipt = %+v, %v, want the file that was removed", r, err)
	}
	if out, err := Recover(t.Context(), p.ID, options(d)); err != nil || len(out) != 1 || out[0].Did != DidNothing {
		t.Errorf("Recover(%s) = %+v, %v", p.ID, out, err)
	}
}

// The receipt is on the disk before the first file is touched, and every file before it gets its name.
func TestTextsOrder(t *testing.T) {
	d, p := textWorld(t)
	fault(t, d, "")
	if _, err := ApplyTexts(t.Context(), p, options(d)); err != nil {
		t.Fatal(err)
	}
	ops := d.Ops()
	at := func(from int, op string) int {
		for i := from; i < len(ops); i++ {
			if strings.HasPrefix(ops[i], op) {
				return i
			}
		}
		t.Fatalf("after operation %d there is none that begins %q in %q", from, op, ops)
		return 0
	}
	n := at(0, "syncdir "+stateDir+"/texts")
	if first := at(0, "create /etc"); first < n {
		t.Errorf("%q comes before the receipt is on the disk", ops[first])
	}
	for _, path := range []string{confPath, dropPath, rulesPath} {
		n = at(n, "rename "+filepath.Dir(path))
		n = at(n, "syncdir "+filepath.Dir(path))
	}
	renamed := at(0, "rename /etc")
	for i, op := range ops {
		if i > renamed && strings.HasPrefix(op, "create /etc") {
			t.Errorf("%q comes after a file got its name", op)
		}
	}
	at(n, "rename "+stateDir+"/texts")
}

// TestTextsCrash cuts the power after every operation, and recovers every state in which the disk may be.
func TestTextsCrash(t *testing.T) {
	states := 0
	for k := 0; ; k++ {
		d, p := textWorld(t)
		fault(t, d, "crash after op "+strconv.Itoa(k))
		_, err := ApplyTexts(t.Context(), p, options(d))
		if err == nil {
			if states < 150 || k < 20 {
				t.Errorf("%d states after %d operations", states, k)
			}
			break
		}
		if !errors.Is(err, cut.ErrCut) {
			t.Fatalf("ApplyTexts cut after %d = %v", k, err)
		}
		survivors(d, k, func(n int, s *cut.Disk) {
			states++
			what := fmt.Sprintf("cut after %d, state %d", k, n)
			if side := textSide(s); strings.Contains(side, "?") {
				t.Errorf("%s: the files are on the sides %s", what, side)
			}
			textsRecovered(t, clone(t, s), false, what, "bbb", "aaa")
			textsRecovered(t, s, true, what+", forward", "bbb", "aaa")
		})
	}
}

// TestTextsCrashInUndo does the same while a change is undone, and while it is recovered.
func TestTextsCrashInUndo(t *testing.T) {
	base, p := textWorld(t)
	if _, err := ApplyTexts(t.Context(), p, options(base)); err != nil {
		t.Fatal(err)
	}
	for k := 0; ; k++ {
		d := clone(t, base)
		fault(t, d, "crash after op "+strconv.Itoa(k))
		if _, err := UndoTexts(t.Context(), p.ID, options(d)); err == nil {
			if k < 10 {
				t.Errorf("UndoTexts had %d operations", k)
			}
			return
		}
		survivors(d, k, func(n int, s *cut.Disk) {
			textsRecovered(t, s, false, fmt.Sprintf("undo cut after %d, state %d", k, n), "bbb", "aaa")
		})
	}
}

func TestTextsCrashInRecovery(t *testing.T) {
	for _, forward := range []bool{false, true} {
		for first := 6; first < 22; first += 5 {
			d, p := textWorld(t)
			fault(t, d, "crash after op "+strconv.Itoa(first))
			if _, err := ApplyTexts(t.Context(), p, options(d)); !errors.Is(err, cut.ErrCut) {
				t.Fatalf("ApplyTexts cut after %d = %v", first, err)
			}
			few(d, first, 4, func(base *cut.Disk) {
				for k := 0; ; k++ {
					s := clone(t, base)
					fault(t, s, "crash after op "+strconv.Itoa(k))
					o := options(s)
					o.Forward = forward
					if _, err := Recover(t.Context(), "", o); err == nil {
						return
					}
					few(s, k, 6, func(s *cut.Disk) {
						textsRecovered(t, s, forward, fmt.Sprintf("cut after %d, recovery cut after %d", first, k),
							"bbb", "aaa")
					})
				}
			})
		}
	}
}

// Every operation fails in every way: the files are as before, or the error says that a recovery is
// needed, and that settles them.
func TestTextsFailures(t *testing.T) {
	d, p := textWorld(t)
	n := opsOf(t, d, func() {
		if _, err := ApplyTexts(t.Context(), p, options(d)); err != nil {
			t.Fatal(err)
		}
	})
	for _, form := range []string{"EIO on op %d", "ENOSPC on op %d", "EIO on write %d", "short write %d",
		"EIO after write %d", "fsync error %d"} {
		for k := 1; k <= n; k++ {
			what := fmt.Sprintf(form, k)
			d, p := textWorld(t)
			fault(t, d, what)
			_, err := ApplyTexts(t.Context(), p, options(d))
			if err != nil && !errors.Is(err, ErrInterrupted) && textSide(d) != "bbb" {
				t.Errorf("%s: ApplyTexts = %v, and the files are %s", what, err, textSide(d))
			}
			if err == nil && textSide(d) != "aaa" {
				t.Errorf("%s: ApplyTexts went through, and the files are %s", what, textSide(d))
			}
			few(d, k, 20, func(s *cut.Disk) { textsRecovered(t, s, false, what+", then cut", "bbb", "aaa") })
			textsRecovered(t, d, false, what, "bbb", "aaa")
			side := textSide(d)
			few(d, k, 20, func(s *cut.Disk) {
				textsRecovered(t, s, false, what+", recovered, then cut", side)
			})
		}
	}
}

func TestTextsFailuresInUndo(t *testing.T) {
	base, p := textWorld(t)
	if _, err := ApplyTexts(t.Context(), p, options(base)); err != nil {
		t.Fatal(err)
	}
	for _, form := range []string{"EIO on op %d", "short write %d", "fsync error %d"} {
		for k := 1; k <= 30; k++ {
			what := fmt.Sprintf(form, k)
			d := clone(t, base)
			fault(t, d, what)
			_, err := UndoTexts(t.Context(), p.ID, options(d))
			if err != nil && !errors.Is(err, ErrInterrupted) && textSide(d) != "aaa" {
				t.Errorf("%s: UndoTexts = %v, and the files are %s", what, err, textSide(d))
			}
			few(d, k, 20, func(s *cut.Disk) { textsRecovered(t, s, false, what, "bbb", "aaa") })
			textsRecovered(t, d, false, what, "bbb", "aaa")
		}
	}
}

// An operation that hangs is waited for until the user gives up.
func TestTextsHang(t *testing.T) {
	d, p := textWorld(t)
	n := opsOf(t, d, func() {
		if _, err := ApplyTexts(t.Context(), p, options(d)); err != nil {
			t.Fatal(err)
		}
	})
	for k := 1; k <= n; k++ {
		ctx, cancel := context.WithCancel(context.Background())
		storage, answer := context.WithCancel(context.Background())
		d, p := textWorldUntil(t, storage)
		fault(t, d, "hang at "+strconv.Itoa(k))
		o := options(d)
		o.Patience = time.Nanosecond
		go func() {
			for len(d.Ops()) < k {
				time.Sleep(50 * time.Microsecond)
			}
			cancel()
		}()
		what := "hang at " + strconv.Itoa(k)
		if _, err := ApplyTexts(ctx, p, o); err == nil {
			t.Errorf("%s: ApplyTexts went through", what)
		}
		few(d, k, 10, func(s *cut.Disk) { textsRecovered(t, s, false, what, "bbb", "aaa") })
		answer()
	}
}

func TestTextsRefused(t *testing.T) {
	before, _ := textSides()
	for _, c := range []struct {
		name string
		edit func(d *cut.Disk, p *plan.Texts)
		want error
	}{
		{"changed since", func(d *cut.Disk, _ *plan.Texts) { d.Put(rulesPath, []byte("mine\n")) }, ErrChanged},
		{"made since", func(d *cut.Disk, _ *plan.Texts) { d.Put(dropPath, []byte("mine\n")) }, ErrChanged},
		{"gone since", func(d *cut.Disk, _ *plan.Texts) { d.Move(confPath, "/elsewhere") }, ErrChanged},
		{"edited", func(_ *cut.Disk, p *plan.Texts) { p.Files[0].Content = "b = 1\n" }, plan.ErrEdited},
		{"of another user", func(d *cut.Disk, _ *plan.Texts) { d.SetOwner(confPath, 33) }, ErrUnfit},
		{"another change is under way", func(d *cut.Disk, _ *plan.Texts) {
			v, err := vault.New(vault.Options{Disk: d, StateDir: stateDir})
			if err == nil {
				_, err = v.LockTexts()
			}
			if err != nil {
				t.Fatal(err)
			}
		}, diskio.ErrInUse},
		{"no locks", func(d *cut.Disk, _ *plan.Texts) { d.SetNoLocks() }, diskio.ErrNoLocks},
	} {
		d, p := textWorld(t)
		c.edit(d, p)
		had := d.Paths()
		if _, err := ApplyTexts(t.Context(), p, options(d)); !errors.Is(err, c.want) {
			t.Errorf("%s: ApplyTexts = %v, want %v", c.name, err, c.want)
		}
		for _, path := range d.Paths() {
			if !slices.Contains(had, path) && !strings.HasPrefix(path, stateDir) {
				t.Errorf("%s: %s was made", c.name, path)
			}
		}
		if got, _ := d.Get(confPath); c.name != "gone since" && string(got) != before[confPath] {
			t.Errorf("%s: %s was changed", c.name, confPath)
		}
	}
	d, p := textWorld(t)
	for i := range p.Files {
		p.Files[i].Before = p.Files[i].After()
	}
	if err := p.Seal(); err != nil {
		t.Fatal(err)
	}
	if _, err := ApplyTexts(t.Context(), p, options(d)); !errors.Is(err, ErrEmpty) {
		t.Errorf("ApplyTexts of nothing = %v, want %v", err, ErrEmpty)
	}
}

// What was changed since is not lost by an undo, and a later plan is named.
func TestTextsUndoRefused(t *testing.T) {
	d, p := textWorld(t)
	if _, err := ApplyTexts(t.Context(), p, options(d)); err != nil {
		t.Fatal(err)
	}
	later := &plan.Texts{Tool: "test", Why: "more", Files: []plan.Text{{Path: rulesPath, Mode: "0644", Content: "newer\n"}}}
	o := options(d)
	o.Now = func() time.Time { return time.Unix(2000, 0) }
	if err := DraftTexts(t.Context(), later, o); err != nil {
		t.Fatal(err)
	}
	if _, err := ApplyTexts(t.Context(), later, o); err != nil {
		t.Fatal(err)
	}
	var by *LaterError
	if _, err := UndoTexts(t.Context(), p.ID, o); !errors.As(err, &by) || by.ID != later.ID {
		t.Errorf("UndoTexts of the first of two = %v, want a *LaterError of %s", err, later.ID)
	}
	if _, err := UndoTexts(t.Context(), later.ID, o); err != nil {
		t.Fatal(err)
	}
	d.Put(dropPath, []byte("edited by hand\n"))
	if _, err := UndoTexts(t.Context(), p.ID, o); !errors.Is(err, ErrChanged) {
		t.Errorf("UndoTexts of an edited file = %v, want %v", err, ErrChanged)
	}
	if side := textSide(d); side != "a?a" {
		t.Errorf("the files are %s, want nothing touched", side)
	}
}

// A file that somebody wrote to in the middle is left alone, until the user says so.
func TestTextsLeaveAsIs(t *testing.T) {
	d, p := textWorld(t)
	n := 0
	fault(t, d, "")
	if _, err := ApplyTexts(t.Context(), p, options(d)); err != nil {
		t.Fatal(err)
	}
	for i, op := range d.Ops() {
		if strings.HasPrefix(op, "rename /etc") {
			n = i + 1
			break
		}
	}
	d, p = textWorld(t)
	fault(t, d, fmt.Sprintf("crash after op %d", n))
	if _, err := ApplyTexts(t.Context(), p, options(d)); !errors.Is(err, cut.ErrCut) {
		t.Fatalf("ApplyTexts = %v", err)
	}
	for s := range d.Some(1, 1) {
		d = s
	}
	d.Put(rulesPath, []byte("mine\n"))
	for _, target := range []string{"", rulesPath, p.ID, "/etc"} {
		out, err := Recover(t.Context(), target, options(d))
		if !errors.Is(err, ErrChanged) || len(out) != 1 || out[0].Did != DidNotRecover || len(out[0].Texts) != 3 {
			t.Errorf("Recover(%q) = %+v, %v, want %v", target, out, err, ErrChanged)
		}
	}
	if _, err := UndoTexts(t.Context(), p.ID, options(d)); !errors.Is(err, ErrUnfinished) {
		t.Errorf("UndoTexts = %v, want %v", err, ErrUnfinished)
	}
	fresh := *p
	fresh.ID = strings.Repeat("ab", 16)
	if err := fresh.Seal(); err != nil {
		t.Fatal(err)
	}
	if _, err := ApplyTexts(t.Context(), &fresh, options(d)); !errors.Is(err, ErrUnfinished) {
		t.Errorf("ApplyTexts of another plan = %v, want %v", err, ErrUnfinished)
	}
	o := options(d)
	o.LeaveAsIs = func(path string) bool { return path == rulesPath }
	out, err := Recover(t.Context(), "", o)
	if err != nil || len(out) != 1 || out[0].Did != DidSetAside {
		t.Errorf("Recover = %+v, %v, want it set aside", out, err)
	}
	if got, _ := d.Get(rulesPath); string(got) != "mine\n" {
		t.Errorf("%s holds %q", rulesPath, got)
	}
	for _, path := range d.Paths() {
		if strings.HasSuffix(path, ".shisa-new") {
			t.Errorf("%s is left", path)
		}
	}
	if _, err := UndoTexts(t.Context(), p.ID, options(d)); !errors.Is(err, ErrNothing) {
		t.Errorf("UndoTexts = %v, want %v", err, ErrNothing)
	}
}

// A recovery that is refused has touched nothing, whichever file is the one that was written to.
func TestTextsRecoveryLooksFirst(t *testing.T) {
	d, p := textWorld(t)
	fault(t, d, "")
	if _, err := ApplyTexts(t.Context(), p, options(d)); err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(d.Ops(), func(op string) bool { return strings.HasPrefix(op, "rename "+filepath.Dir(dropPath)) })
	d, p = textWorld(t)
	fault(t, d, fmt.Sprintf("crash after op %d", at+2)) // its directory is synced
	if _, err := ApplyTexts(t.Context(), p, options(d)); !errors.Is(err, cut.ErrCut) {
		t.Fatalf("ApplyTexts = %v", err)
	}
	d = clone(t, d)
	d.Put(confPath, []byte("mine\n"))
	if _, err := Recover(t.Context(), "", options(d)); !errors.Is(err, ErrChanged) {
		t.Errorf("Recover = %v, want %v", err, ErrChanged)
	}
	if side := textSide(d); side != "?ab" {
		t.Errorf("the files are %s, want ?ab: nothing touched", side)
	}
}

// On a real file system: modes, directories, links.
func TestTextsOnHost(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	dir, state := t.TempDir(), t.TempDir()
	o := Options{StateDir: state}
	etc := filepath.Join(dir, "etc")
	link := filepath.Join(dir, "link")
	conf := filepath.Join(etc, "a.conf")
	for _, err := range []error{os.Mkdir(etc, 0o755), os.WriteFile(conf, []byte("old\n"), 0o600),
		os.Symlink(etc, link), os.Symlink("nowhere", filepath.Join(etc, "dangling")),
		os.WriteFile(filepath.Join(etc, "two"), nil, 0o600),
		os.Link(filepath.Join(etc, "two"), filepath.Join(etc, "names"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"dangling", "dangling/x", "names", "."} {
		p := &plan.Texts{Tool: "test", Why: "x", Files: []plan.Text{{Path: filepath.Join(etc, name), Mode: "0644"}}}
		if err := DraftTexts(t.Context(), p, o); err == nil {
			t.Errorf("DraftTexts of %s went through", name)
		}
	}
	p := &plan.Texts{Tool: "test", Why: "x", Files: []plan.Text{
		{Path: filepath.Join(link, "a.conf"), Mode: "0600", Content: "new\n"},
		{Path: filepath.Join(link, "unit.d/deep/b.conf"), Mode: "0644", Content: "made\n"},
	}}
	if err := DraftTexts(t.Context(), p, o); err != nil {
		t.Fatal(err)
	}
	made := filepath.Join(etc, "unit.d/deep/b.conf")
	if p.Files[0].Path != conf || p.Files[1].Path != made || p.Files[0].Before.Mode != "0600" {
		t.Errorf("the plan is of %+v", p.Files)
	}
	if _, err := ApplyTexts(t.Context(), p, o); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{conf: 0o600, made: 0o644, filepath.Dir(made): os.ModeDir | 0o755} {
		if st, err := os.Lstat(path); err != nil || st.Mode() != mode {
			t.Errorf("%s has the mode %v, %v, want %v", path, st.Mode(), err, mode)
		}
	}
	// Neither a mode nor a directory that became another one goes unnoticed.
	if err := os.Chmod(made, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := UndoTexts(t.Context(), p.ID, o); !errors.Is(err, ErrChanged) {
		t.Errorf("UndoTexts with another mode = %v, want %v", err, ErrChanged)
	}
	if err := os.Chmod(made, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Rename(etc, etc+"2"), os.Symlink(etc+"2", etc)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := UndoTexts(t.Context(), p.ID, o); !errors.Is(err, ErrChanged) {
		t.Errorf("UndoTexts with a directory that is a link = %v, want %v", err, ErrChanged)
	}
	for _, err := range []error{os.Remove(etc), os.Rename(etc+"2", etc)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := UndoTexts(t.Context(), p.ID, o); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(conf); err != nil || string(got) != "old\n" {
		t.Errorf("%s holds %q, %v", conf, got, err)
	}
	if _, err := os.Lstat(made); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is there: %v", made, err)
	}
}

// noNames is a disk on which names below /etc cannot be had on the disk.
type noNames struct{ *cut.Disk }

func (d noNames) SyncDir(path string) error {
	if strings.HasPrefix(path, "/etc") {
		return fmt.Errorf("%w: %s", diskio.ErrNoSync, path)
	}
	return d.Disk.SyncDir(path)
}

// Where nobody could tell after a power cut what is there, nothing is begun.
func TestTextsWithoutSync(t *testing.T) {
	d, p := textWorld(t)
	o := options(d)
	o.Disk = noNames{d}
	if _, err := ApplyTexts(t.Context(), p, o); !errors.Is(err, diskio.ErrNoSync) || errors.Is(err, ErrInterrupted) {
		t.Errorf("ApplyTexts = %v, want %v before anything is touched", err, diskio.ErrNoSync)
	}
	textsSettled(t, d, "without sync", "bbb")
	if _, ok := d.Get(stateDir + "/texts/" + p.ID + ".json"); ok {
		t.Error("there is a receipt of what was not begun")
	}
}
