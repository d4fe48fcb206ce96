// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

const id = "0123456789abcdef0123456789abcdef"

func pin() Pin {
	return Pin{Schema: PinSchema, ID: id, Name: "a", Inode: 7, Reason: "golden", By: "root", Node: "n1",
		Time: time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC), Uses: []Use{}}
}

func intent() Intent {
	return Intent{Schema: IntentSchema, ID: id, Act: ActQuarantine, Name: "a", Inode: 7, SizeBytes: 9, From: "a",
		To: "q/" + HeldName(id, "a"), Node: "n1", Time: time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC)}
}

// text is a document as it is written.
func text(t testing.TB, doc interface{ Text() ([]byte, error) }) string {
	t.Helper()
	b, err := doc.Text()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestDocumentsOfActs: pins and intents are read to the letter.
func TestDocumentsOfActs(t *testing.T) {
	p, i := pin(), intent()
	parse := map[string]func([]byte) error{
		text(t, &p): func(b []byte) error { _, err := ParsePin("p", b); return err },
		text(t, &i): func(b []byte) error { _, err := ParseIntent("i", b); return err },
	}
	for good, fn := range parse {
		if err := fn([]byte(good)); err != nil {
			t.Errorf("%s\n%v", good, err)
		}
		for _, c := range [][2]string{
			{"/1", "/2"}, {id, "X"}, {`"name": "a"`, `"name": "../a"`}, {`"name": "a"`, `"name": ""`},
			{`"inode": 7`, `"inode": "7"`}, {`"node": "n1",`, ``}, {`"node"`, `"nodes"`}, {"}\n", ""}, {`2026-03`, `soon`},
		} {
			bad := strings.Replace(good, c[0], c[1], 1)
			if err := fn([]byte(bad)); bad == good || !errors.Is(err, ErrPool) {
				t.Errorf("%q for %q = %v, want %v", c[1], c[0], err, ErrPool)
			}
		}
	}
	for old, bad := range map[string]string{`"golden"`: `" "`, `"uses": []`: `"uses": null`} {
		if _, err := ParsePin("p", []byte(strings.Replace(text(t, &p), old, bad, 1))); !errors.Is(err, ErrPool) {
			t.Errorf("ParsePin with %s = %v, want %v", bad, err, ErrPool)
		}
	}
	for old, bad := range map[string]string{`"inode": 7`: `"inode": 0`, `"act": "quarantine"`: `"act": "format"`} {
		if _, err := ParseIntent("i", []byte(strings.Replace(text(t, &i), old, bad, 1))); !errors.Is(err, ErrPool) {
			t.Errorf("ParseIntent with %s = %v, want %v", bad, err, ErrPool)
		}
	}
}

func TestPinHolds(t *testing.T) {
	now := time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC)
	later := now.Add(time.Hour)
	p := pin()
	ended := pin()
	ended.Until = &now
	until := pin()
	until.Until = &later
	byName := pin()
	byName.Inode = 0
	for _, c := range []struct {
		what  string
		p     Pin
		name  string
		inode uint64
		want  bool
	}{
		{"the file", p, "a", 7, true}, {"another file of the name", p, "a", 8, true}, {"the file under another name", p, "b", 7, true},
		{"another", p, "b", 8, false}, {"no inode is none", byName, "b", 0, false}, {"its time is over", ended, "a", 7, false},
		{"its time is not over", until, "a", 7, true},
	} {
		if got := c.p.Holds(c.name, c.inode, now); got != c.want {
			t.Errorf("%s: Holds = %v, want %v", c.what, got, c.want)
		}
	}
}

func TestHeldName(t *testing.T) {
	if gotID, name, ok := ParseHeldName(HeldName(id, "a.b c")); gotID != id || name != "a.b c" || !ok {
		t.Errorf("ParseHeldName = %q, %q, %v", gotID, name, ok)
	}
	for _, bad := range []string{"", id, id + ".", "." + id, "x." + id, strings.ToUpper(id) + ".a", id[1:] + ".a", id + "..", id + "..."} {
		if _, _, ok := ParseHeldName(bad); ok {
			t.Errorf("ParseHeldName(%q) is good", bad)
		}
	}
}

// TestReadOfActs: what was set aside, pinned and begun is read; whatever else lies there is told.
func TestReadOfActs(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := Path(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	p, i := pin(), intent()
	q := write("q/"+HeldName(id, "a"), "base")
	write("purge/"+HeldName(id, "b"), "other")
	write("pins/"+PinName(id), text(t, &p))
	write("pins/"+PinGoneName(id), "whatever")
	write("pins/.x.new", "half")
	write("journal/"+IntentName(id, ActQuarantine), text(t, &i))
	s, err := Read(t.Context(), dir, time.Minute)
	if err != nil || len(s.Unread) > 0 || len(s.Pins) != 1 || len(s.Held) != 2 || len(s.Intents) != 1 {
		t.Fatalf("Read = %+v, %v", s, err)
	}
	e, err := diskio.LookEntry(q)
	if err != nil {
		t.Fatal(err)
	}
	want := Held{ID: id, Name: "a", Path: q, File: e.ID, SizeBytes: 4, AllocatedBytes: e.AllocatedBytes, Modified: e.ModTime,
		Since: e.ChangeTime, Links: 1}
	if s.Held[0] != want || !s.Held[1].Claimed {
		t.Errorf("Held = %+v, want %+v and one that was claimed", s.Held, want)
	}
	other := strings.Repeat("f", 32)
	write("q/stray", "")
	write("q/dir/x", "")
	write("pins/"+PinName(other), text(t, &p)) // another's document
	write("pins/README", "")
	write("journal/"+IntentName(id, ActPurge), text(t, &i))
	if err := os.Symlink("a", Path(dir, "purge/"+HeldName(other, "l"))); err != nil {
		t.Fatal(err)
	}
	s, err = Read(t.Context(), dir, time.Minute)
	if err != nil || len(s.Unread) != 6 || len(s.Pins) != 1 || len(s.Held) != 2 || len(s.Intents) != 1 {
		t.Errorf("Read = %+v, %v, want six that were not read", s, err)
	}
}
