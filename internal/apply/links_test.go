// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/cut"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/vault"
)

// Names of linkWorld: what a unit and its mask are, before and after.
const (
	asidePath = "/etc/units/a.service.aside" // none, then a file
	maskPath  = "/etc/units/a.service"       // a file, then a link
	otherPath = "/etc/units/b.service"       // a link, then another
	freshPath = "/etc/more/c.service"        // none, then a link, in a directory that is made
	wantsPath = "/etc/units/x.wants/a"       // a link, then none
)

func linkPaths() []string { return []string{asidePath, maskPath, otherPath, freshPath, wantsPath} }

// linkSides are the names before and after: "" is none, "-> x" a link.
func linkSides() (before, after map[string]string) {
	return map[string]string{maskPath: "unit\n", otherPath: "-> /opt/b.service", wantsPath: "-> ../a.service"},
		map[string]string{asidePath: "unit\n", maskPath: "-> /dev/null", otherPath: "-> /dev/null",
			freshPath: "-> /dev/null"}
}

// linkWorld is a disk with names, and the plan of a change of them.
func linkWorld(t testing.TB) (*cut.Disk, *plan.Texts) {
	t.Helper()
	d := cut.New(t.Context())
	before, after := linkSides()
	p := &plan.Texts{Tool: "test", Why: "mask a unit"}
	for _, path := range linkPaths() {
		if to, link := strings.CutPrefix(before[path], "-> "); link {
			d.PutLink(path, to)
		} else if before[path] != "" {
			d.Put(path, []byte(before[path]))
		}
		f := plan.Text{Path: path, Mode: "0644", Content: after[path]}
		if to, link := strings.CutPrefix(after[path], "-> "); link {
			f.Link, f.Mode, f.Content = true, plan.LinkMode, to
		} else if after[path] == "" {
			f.Gone, f.Mode = true, ""
		}
		p.Files = append(p.Files, f)
	}
	if err := DraftTexts(t.Context(), p, options(d)); err != nil {
		t.Fatal(err)
	}
	return d, p
}

// linkSide tells which side each name is on, as textSide does.
func linkSide(d *cut.Disk) string {
	before, after := linkSides()
	side := ""
	for _, path := range linkPaths() {
		got, there := d.Get(path)
		is := string(got)
		if n, err := d.LookAt(path); there && err == nil && n.Mode&fs.ModeSymlink != 0 {
			is = "-> " + is
		}
		switch is {
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

// linksRecovered recovers all that is known, and holds that the names are on one side.
func linksRecovered(t testing.TB, d *cut.Disk, forward bool, what string) {
	t.Helper()
	fault(t, d, "")
	o := options(d)
	o.Forward = forward
	if out, err := Recover(t.Context(), "", o); err != nil {
		t.Errorf("%s: Recover = %+v, %v", what, out, err)
	}
	if side := linkSide(d); side != "bbbbb" && side != "aaaaa" {
		t.Errorf("%s: the names are on the sides %s", what, side)
	}
	for _, path := range d.Paths() {
		if strings.HasSuffix(path, ".shisa-new") || strings.HasSuffix(path, ".json.new") {
			t.Errorf("%s: %s is left", what, path)
		}
	}
}

func TestLinks(t *testing.T) {
	d, p := linkWorld(t)
	r, err := ApplyTexts(t.Context(), p, options(d))
	if err != nil || r.State != vault.Committed || linkSide(d) != "aaaaa" {
		t.Fatalf("ApplyTexts = %+v, %v; the names are on the sides %s", r, err, linkSide(d))
	}
	u, err := UndoTexts(t.Context(), p.ID, options(d))
	if err != nil || u.State != vault.Undone || linkSide(d) != "bbbbb" {
		t.Fatalf("UndoTexts = %+v, %v; the names are on the sides %s", u, err, linkSide(d))
	}
}

// TestLinksCrash cuts the power after every operation of a change and of its undo.
func TestLinksCrash(t *testing.T) {
	base, p := linkWorld(t)
	applied := clone(t, base)
	if _, err := ApplyTexts(t.Context(), p, options(applied)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		from *cut.Disk
		fn   func(d *cut.Disk) error
	}{
		{"apply", base, func(d *cut.Disk) error {
			_, err := ApplyTexts(t.Context(), p, options(d))
			return err
		}},
		{"undo", applied, func(d *cut.Disk) error {
			_, err := UndoTexts(t.Context(), p.ID, options(d))
			return err
		}},
	} {
		states := 0
		for k := 0; ; k++ {
			d := clone(t, c.from)
			fault(t, d, "crash after op "+strconv.Itoa(k))
			err := c.fn(d)
			if err == nil {
				if states < 30 || k < 15 {
					t.Errorf("%s: %d states after %d operations", c.name, states, k)
				}
				break
			}
			few(d, k, testenv.Rounds(12, 100, 1000), func(s *cut.Disk) {
				states++
				what := fmt.Sprintf("%s cut after %d, state %d", c.name, k, states)
				if side := linkSide(s); strings.Contains(side, "?") {
					t.Errorf("%s: the names are on the sides %s", what, side)
				}
				linksRecovered(t, clone(t, s), false, what)
				linksRecovered(t, s, true, what+", forward")
			})
		}
	}
}

// Every operation fails: the names are as before, or a recovery settles them.
func TestLinksFailures(t *testing.T) {
	d, p := linkWorld(t)
	n := opsOf(t, d, func() {
		if _, err := ApplyTexts(t.Context(), p, options(d)); err != nil {
			t.Fatal(err)
		}
	})
	for _, form := range []string{"EIO on op %d", "fsync error %d"} {
		for k := 1; k <= n; k++ {
			what := fmt.Sprintf(form, k)
			d, p := linkWorld(t)
			fault(t, d, what)
			_, err := ApplyTexts(t.Context(), p, options(d))
			if err != nil && !errors.Is(err, ErrInterrupted) && linkSide(d) != "bbbbb" {
				t.Errorf("%s: ApplyTexts = %v, and the names are %s", what, err, linkSide(d))
			}
			linksRecovered(t, d, false, what)
		}
	}
}

// What became something else since stays, and so does a link that the plan does not speak of.
func TestLinksRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(d *cut.Disk)
	}{
		{"a file became a link", func(d *cut.Disk) { d.PutLink(maskPath, "unit\n") }},
		{"a link became a file", func(d *cut.Disk) { d.Put(otherPath, []byte("/opt/b.service")) }},
		{"a link leads elsewhere", func(d *cut.Disk) { d.PutLink(wantsPath, "../b.service") }},
		{"a link is there", func(d *cut.Disk) { d.PutLink(freshPath, "/dev/null") }},
		{"a link where a file is to be", func(d *cut.Disk) { d.PutLink(asidePath, "/dev/null") }},
	} {
		d, p := linkWorld(t)
		c.edit(d)
		was := d.Paths()
		if _, err := ApplyTexts(t.Context(), p, options(d)); !errors.Is(err, ErrChanged) && !errors.Is(err, ErrUnfit) {
			t.Errorf("%s: ApplyTexts = %v, want it refused", c.name, err)
		}
		now := slices.DeleteFunc(d.Paths(), func(p string) bool { return strings.HasPrefix(p, stateDir) })
		if !slices.Equal(now, was) {
			t.Errorf("%s: before there were %q, now %q", c.name, was, now)
		}
	}
	d, p := linkWorld(t)
	if _, err := ApplyTexts(t.Context(), p, options(d)); err != nil {
		t.Fatal(err)
	}
	d.PutLink(wantsPath, "../a.service") // somebody enabled it again
	if _, err := UndoTexts(t.Context(), p.ID, options(d)); !errors.Is(err, ErrChanged) {
		t.Errorf("UndoTexts = %v, want %v", err, ErrChanged)
	}
}

// TestLinksOnHost makes them on a file system.
func TestLinksOnHost(t *testing.T) {
	dir := t.TempDir()
	name := func(s string) string { return filepath.Join(dir, s) }
	for _, err := range []error{os.WriteFile(name("a"), []byte("unit\n"), 0o640), os.Symlink("/opt/b", name("b")),
		os.Symlink("dangling", name("c"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	o := Options{StateDir: t.TempDir()}
	p := &plan.Texts{Tool: "test", Why: "x", Files: []plan.Text{
		{Path: name("a"), Link: true, Mode: plan.LinkMode, Content: "/dev/null"},
		{Path: name("b"), Link: true, Mode: plan.LinkMode, Content: "/dev/null"},
		{Path: name("c"), Gone: true},
		{Path: name("d"), Link: true, Mode: plan.LinkMode, Content: "../x"},
	}}
	if err := DraftTexts(t.Context(), p, o); err != nil {
		t.Fatal(err)
	}
	if b := p.Files[1].Before; b == nil || *b != plan.LinkState("/opt/b") || p.Files[0].Before.Link {
		t.Errorf("the plan is of %+v", p.Files)
	}
	if _, err := ApplyTexts(t.Context(), p, o); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"a": "/dev/null", "b": "/dev/null", "d": "../x"} {
		if to, err := os.Readlink(name(path)); err != nil || to != want {
			t.Errorf("%s leads to %q, %v, want %q", path, to, err, want)
		}
	}
	if _, err := os.Lstat(name("c")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("c is still there: %v", err)
	}
	if _, err := UndoTexts(t.Context(), p.ID, o); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(name("a")); err != nil || string(raw) != "unit\n" {
		t.Errorf("a holds %q, %v", raw, err)
	}
	if st, err := os.Lstat(name("a")); err != nil || st.Mode() != 0o640 {
		t.Errorf("a is %v, %v", st, err)
	}
	for path, want := range map[string]string{"b": "/opt/b", "c": "dangling"} {
		if to, err := os.Readlink(name(path)); err != nil || to != want {
			t.Errorf("%s leads to %q, %v, want %q", path, to, err, want)
		}
	}
	if _, err := os.Lstat(name("d")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("d is still there: %v", err)
	}
}
