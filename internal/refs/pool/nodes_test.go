// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	boot = "11112222-3333-4444-5555-666677778888"
)

// report is one as a node writes it.
func report(node string, seq uint64) *Report {
	return &Report{Schema: ReportSchema, Pool: uuid, Node: node, Machine: strings.Repeat("a", 64), BootID: boot, Seq: seq,
		Time: time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC), Observed: []string{id}, DrainedSeconds: 900,
		Draining: []Draining{{[]string{id}, boot, 77}}, Complete: true, Gaps: []string{}, Files: 2, Images: 2, Overlays: 1,
		Storages: []BaseStorage{{OfRoot, "/p", "0x0000ef53", "0011223344556677", "", 1}},
		Uses:     []Use{{Name: "a", Inode: 7, How: "header", Holder: "/p/i/disk", Depth: 1}}}
}

func member(node string) *Member {
	return &Member{Schema: MemberSchema, Node: node, Joined: time.Unix(1e9, 0).UTC(), By: "agent"}
}

func gone(t *testing.T, node string, last *Report) *Retired {
	t.Helper()
	r := &Retired{Schema: RetiredSchema, Node: node, Reason: "sold", By: "me", Time: time.Unix(1e9, 0).UTC(), Pins: []string{}}
	if last != nil {
		text(t, last)
		r.Report = last.SHA256
	}
	return r
}

func TestParseReport(t *testing.T) {
	good := text(t, report("n1", 3))
	r, err := ParseReport("x", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	want := report("n1", 3)
	want.SHA256 = r.SHA256
	if diff := cmp.Diff(*want, r); diff != "" {
		t.Error(diff)
	}
	if !r.Needs("a", 0) || !r.Needs("other", 7) || r.Needs("b", 8) || r.Needs("b", 0) {
		t.Errorf("Needs does not go by the name and the inode")
	}
	// seal is for what has its digest and is wrong all the same.
	seal := func(change func(*Report)) string {
		r := report("n1", 3)
		change(r)
		return text(t, r)
	}
	for _, c := range []struct{ name, text, want string }{
		{"changed", strings.Replace(good, `"inode": 7`, `"inode": 8`, 1), "does not have its digest"},
		{"unknown key inside", strings.Replace(good, `"depth"`, `"deepth"`, 1), `x:45: is no document of a pool: the key "deepth" is not known`},
		{"missing inside", strings.Replace(good, `"how": "header",`, ``, 1), `"how" is missing`},
		{"twice", strings.Replace(good, `"inode": 7,`, `"inode": 7, "inode": 7,`, 1), `the key "inode" is there twice`},
		{"other case", strings.Replace(good, `"inode"`, `"INODE"`, 1), `the key "INODE" is not known`},
		{"null", strings.Replace(good, `"seq": 3`, `"seq": null`, 1), `null is no value here`},
		{"no list", strings.Replace(good, `"gaps": []`, `"gaps": null`, 1), `null is no value here`},
		{"an object for a word", strings.Replace(good, `"name": "a"`, `"name": {}`, 1), `want string`},
		{"cut", good[:len(good)/2], "unexpected end"},
		{"later schema", seal(func(r *Report) { r.Schema = "shisa.base-report/2" }), "its schema is"},
		{"a file system of what", seal(func(r *Report) { r.Storages[0].What = "disk" }), `it tells of a file system as "disk"`},
		{"less than no overlays", seal(func(r *Report) { r.Storages[0].Overlays = -1 }), `with -1 overlays`},
		{"no pool", seal(func(r *Report) { r.Pool = "" }), "its pool is"},
		{"no node", seal(func(r *Report) { r.Node = "" }), "its node is"},
		{"no boot", seal(func(r *Report) { r.BootID = "x" }), "its boot_id is"},
		{"no number", seal(func(r *Report) { r.Seq = 0 }), "its seq is 0"},
		{"a number without a next one", seal(func(r *Report) { r.Seq = 1<<64 - 1 }), "its seq is 18446744073709551615"},
		{"longer than any span", seal(func(r *Report) { r.LaunchGraceSeconds = 1e10 }), "its launch_grace_seconds is 10000000000"},
		{"complete with gaps", seal(func(r *Report) { r.Gaps = []string{"x"} }), "complete is true with 1 gaps"},
		{"incomplete without", seal(func(r *Report) { r.Complete = false }), "complete is false with 0 gaps"},
		{"no id", seal(func(r *Report) { r.Observed = []string{"../x"} }), `the id "../x"`},
		{"no id to wait for", seal(func(r *Report) { r.Draining[0].Observed[0] = "X" }), `the id "X"`},
		{"waits before the start", seal(func(r *Report) { r.Draining[0].UpSeconds = -1 }), "waits since second -1"},
		{"use of another directory", seal(func(r *Report) { r.Uses[0].Name = "../a" }), `a use of "../a"`},
	} {
		if c.text == good {
			t.Fatalf("%s: nothing was changed", c.name)
		}
		if _, err := ParseReport("x", []byte(c.text)); !errors.Is(err, ErrPool) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: ParseReport = %v, want %v with %q", c.name, err, ErrPool, c.want)
		}
	}
}

func TestNodeFile(t *testing.T) {
	seen := map[string]string{}
	for _, node := range []string{"a", "A", "a.b", ".a", "%2Ea", "a/b", "a%2Fb", "..", "a b", "ä", "a@duplicate"} {
		file := NodeFile(node)
		if old, twice := seen[file]; twice {
			t.Errorf("NodeFile(%q) = NodeFile(%q) = %q", node, old, file)
		}
		seen[file] = node
		if !IsNode(node) || strings.HasPrefix(file, ".") || strings.Contains(file, "/") {
			t.Errorf("NodeFile(%q) = %q", node, file)
		}
	}
	for _, bad := range []string{"", "a\nb", "a." + strings.Repeat("0", 32) + ".gone", "a\xff", strings.Repeat("a", 300), strings.Repeat("/", 100)} {
		if IsNode(bad) {
			t.Errorf("IsNode(%q) is true", bad)
		}
	}
}

// lay makes a pool of documents.
func lay(t *testing.T, docs map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range docs {
		path := filepath.Join(dir, Dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestGone: a document that was put aside is told by its id, and not by a name that a node, or anything else, may have.
func TestGone(t *testing.T) {
	id := strings.Repeat("0", 32)
	dir := lay(t, map[string]string{
		File:                             policy(t),
		"members/x.gone.json":            text(t, member("x.gone")),
		"nodes/x.gone.json":              text(t, report("x.gone", 4)),
		"members/a." + id + ".gone.json": text(t, member("a")),
		"pins/" + id + ".gone.json":      "",
		"pins/old.gone.json":             "",
		"objects/.x.new":                 "a part",
		"objects/7.json.old":             "",
	})
	s, err := Read(t.Context(), dir, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.Nodes(); len(n) != 1 || n[0].Name != "x.gone" || n[0].Member == nil || n[0].Report == nil {
		t.Errorf("nodes are %+v, want x.gone with its report", n)
	}
	if len(s.Unread) != 2 {
		t.Errorf("Unread = %v, want what is no pin and what is no record", s.Unread)
	}
}

func TestReadNodes(t *testing.T) {
	dir := lay(t, map[string]string{
		File:                  policy(t),
		"members/a.json":      text(t, member("a")),
		"members/silent.json": text(t, member("silent")),
		"nodes/a.json":        text(t, report("a", 4)),
		"nodes/only.json":     text(t, report("only", 1)),
		"nodes/.x.new":        "a part",
		"nodes/back.json":     text(t, report("back", 9)),
		"nodes/away.json":     text(t, report("away", 2)),
		"retired/back.json":   text(t, gone(t, "back", report("back", 8))),
		"retired/away.json":   text(t, gone(t, "away", report("away", 2))),
		"retired/mute.json":   text(t, gone(t, "mute", nil)),
	})
	s, err := Read(t.Context(), dir, time.Minute)
	if err != nil || len(s.Unread) > 0 {
		t.Fatal(err, s.Unread)
	}
	var got []string
	for _, n := range s.Nodes() {
		word := n.Name
		if n.Report == nil {
			word += " silent"
		}
		if n.Away() {
			word += " away"
		}
		got = append(got, word)
	}
	if want := []string{"a", "away away", "back", "mute silent away", "only", "silent silent"}; !slices.Equal(got, want) {
		t.Errorf("Nodes = %q, want %q", got, want)
	}
}

// Whatever is not as it should be may be what says that a base is needed.
func TestReadNodesUnread(t *testing.T) {
	other := report("a", 4)
	other.Pool = strings.Replace(uuid, "0f", "1f", 1)
	for _, c := range []struct {
		name, file, text, want string
	}{
		{"a report about another pool", "nodes/a.json", text(t, other), "it is about pool 1f"},
		{"a report under another name", "nodes/b.json", text(t, report("a", 4)), `it is of node "a"`},
		{"half a report", "nodes/a.json", `{"schema": "shisa.base-report/1"`, "unexpected end"},
		{"an empty report", "nodes/a.json", "", "unexpected end"},
		{"a member under another name", "members/b.json", text(t, member("a")), `it is of node "a"`},
		{"a retired one without reason", "retired/a.json", strings.Replace(text(t, gone(t, "a", nil)), "sold", " ", 1), "no reason"},
		{"what is no document", "members/README", "hello", "invalid character"},
	} {
		s, err := Read(t.Context(), lay(t, map[string]string{File: policy(t), c.file: c.text}), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Unread) != 1 || !strings.Contains(s.Unread[0].Error(), c.want) {
			t.Errorf("%s: Unread = %v, want %q", c.name, s.Unread, c.want)
		}
		if n := s.Nodes(); len(n) > 0 {
			t.Errorf("%s: it was taken for node %v", c.name, n)
		}
	}
}

func FuzzReport(f *testing.F) {
	f.Add([]byte(text(f, report("n", 1))))
	f.Add([]byte(text(f, member("n"))))
	f.Add([]byte(text(f, &Retired{Schema: RetiredSchema, Node: "n", Reason: "r"})))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := ParseReport("x", b); err == nil {
			if again, err := ParseReport("x", []byte(text(t, &r))); err != nil || !cmp.Equal(r, again) {
				t.Errorf("a report does not read as it was written: %v", err)
			}
		}
		if m, err := ParseMember("x", b); err == nil && !IsNode(m.Node) {
			t.Errorf("member %q", m.Node)
		}
		if r, err := ParseRetired("x", b); err == nil && !IsNode(r.Node) {
			t.Errorf("retired %q", r.Node)
		}
	})
}

// TestAway: a node that was retired is away as long as its last report is the one of then. One that is lost may have
// been a later one.
func TestAway(t *testing.T) {
	gone := &Retired{Node: "n", Report: "d"}
	for name, c := range map[string]struct {
		n    Node
		want bool
	}{
		"not retired":               {Node{Report: &Report{SHA256: "d"}}, false},
		"its last report":           {Node{Retired: gone, Report: &Report{SHA256: "d"}}, true},
		"it spoke since":            {Node{Retired: gone, Report: &Report{SHA256: "e"}}, false},
		"its report is lost":        {Node{Retired: gone}, false},
		"it never spoke":            {Node{Retired: &Retired{}}, true},
		"it spoke the first time":   {Node{Retired: &Retired{}, Report: &Report{SHA256: "e"}}, false},
		"retired without being one": {Node{Retired: &Retired{}, Member: &Member{}}, true},
	} {
		if got := c.n.Away(); got != c.want {
			t.Errorf("%s: Away = %v, want %v", name, got, c.want)
		}
	}
}
