// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package nova

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestParseHosts: what Nova wrote is read, and of what is torn all that stands before the tear.
func TestParseHosts(t *testing.T) {
	long := strings.Repeat("n", maxName+1)
	for _, c := range []struct{ name, text, want, why string }{
		{"as Nova writes it", `{"nodeB": 1700000000.25, "nodeA": 1700000100.5}`, "nodeA nodeB", ""},
		{"nobody", `{}`, "", ""},
		{"a name of a domain", `{"node-1.example.org": 1.0}`, "node-1.example.org", ""},
		{"a slash", `{"../../etc/passwd": 1}`, "../../etc/passwd", ""},
		{"empty", ``, "", "it is cut off"},
		{"only begun", `{`, "", "it is cut off"},
		{"torn in a name", `{"nodeA": 1.5, "nod`, "nodeA", "it is cut off"},
		{"torn before a time", `{"nodeA": 1.5, "nodeB":`, "nodeA", "it is cut off"},
		{"torn behind a time", `{"nodeA": 1.5, "nodeB": 2.5`, "nodeA nodeB", "it is cut off"},
		{"zeros behind a crash", "{\"nodeA\": 1.5, \x00\x00\x00", "nodeA", "invalid character"},
		{"only zeros", "\x00\x00\x00\x00", "", "invalid character"},
		{"two documents", `{"nodeA": 1.5}{"nodeB": 1.5}`, "nodeA", "more stands behind its end"},
		{"overwritten by a shorter one", `{"nodeA": 1.5}, "nodeB": 1.5}`, "nodeA", "more stands behind its end"},
		{"a list", `["nodeA"]`, "", "does not begin with {"},
		{"twice the same", `{"nodeA": 1.5, "nodeA": 2.5}`, "nodeA", "twice"},
		{"a time in words", `{"nodeA": "now"}`, "", `the time of "nodeA" is now`},
		{"no time", `{"nodeA": null}`, "", `the time of "nodeA" is <nil>`},
		{"a time within", `{"nodeA": {"nodeB": 1}}`, "", `the time of "nodeA" is {`},
		{"before time", `{"nodeA": -1}`, "", "is -1"},
		{"after time", `{"nodeA": 1e300}`, "", "is 1e+300"},
		{"no number", `{"nodeA": NaN}`, "", "invalid character"},
		{"no name", `{"": 1}`, "", "a host has no name"},
		{"a name too long", `{"` + long + `": 1}`, "", "more than 255 characters"},
		{"a line in a name", `{"a\nb": 1}`, "", `"a\nb" is no name`},
		{"not UTF-8", "{\"node\xff\": 1}", "", "not UTF-8"},
		{"torn in a letter", "{\"nodeA\": 1.5, \"n\xc3", "nodeA", "not UTF-8"},
		{"too large", `{"nodeA": 1` + strings.Repeat(" ", MaxHostsBytes), "", "it has 4194315 bytes"},
	} {
		hosts, err := ParseHosts([]byte(c.text))
		var names []string
		for _, h := range hosts {
			names = append(names, h.Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%s: ParseHosts = %q, want %q", c.name, got, c.want)
		}
		if (err != nil) != (c.why != "") || err != nil && (!errors.Is(err, ErrHosts) || !strings.Contains(err.Error(), c.why)) {
			t.Errorf("%s: ParseHosts: %v, want %q", c.name, err, c.why)
		}
	}
	hosts, err := ParseHosts([]byte(`{"nodeA": 1700000000.25}`))
	want := []ComputeNode{{Name: "nodeA", Heard: time.Unix(1700000000, 250e6).UTC()}}
	if d := cmp.Diff(want, hosts); d != "" || err != nil {
		t.Errorf("ParseHosts (-want +got): %v\n%s", err, d)
	}
}

// TestParseHostsMany: a list with more hosts than are kept is not taken for whole.
func TestParseHostsMany(t *testing.T) {
	var b strings.Builder
	for i := range maxHosts + 1 {
		fmt.Fprintf(&b, `%c"n%d":1`, "{,"[min(i, 1)], i)
	}
	b.WriteByte('}')
	hosts, err := ParseHosts([]byte(b.String()))
	if len(hosts) != maxHosts || !errors.Is(err, ErrHosts) {
		t.Errorf("ParseHosts = %d hosts, %v, want %d and ErrHosts", len(hosts), err, maxHosts)
	}
}

// FuzzHosts: no text makes the list anything but one of names in their order, and a text that is cut off
// anywhere never tells of a host that the whole one does not.
func FuzzHosts(f *testing.F) {
	for _, s := range []string{`{}`, `{"nodeA": 1700000000.25, "nodeB": 1.5}`, `{"a": 1, "a": 2}`, `{"a`, `[`, `{"a": 1e999}`, ``,
		`{"a/b": 0, "": 1}`} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, text []byte, cut int) {
		text = bytes.TrimSpace(text)
		hosts, err := ParseHosts(text)
		ok := slices.IsSortedFunc(hosts, func(a, b ComputeNode) int { return strings.Compare(a.Name, b.Name) })
		for _, h := range hosts {
			if !ok || checkName(h.Name) != nil || h.Heard.Year() < 1970 || h.Heard.Year() > 9999 {
				t.Errorf("ParseHosts(%q) = %v", text, hosts)
			}
		}
		if err != nil || len(text) == 0 {
			return
		}
		some, err := ParseHosts(text[:(cut%len(text)+len(text))%len(text)])
		if err == nil {
			t.Errorf("ParseHosts(%q) cut at %d is whole", text, cut)
		}
		for _, h := range some {
			if !slices.ContainsFunc(hosts, func(w ComputeNode) bool { return w.Name == h.Name }) {
				t.Errorf("ParseHosts(%q) cut at %d tells of %q", text, cut, h.Name)
			}
		}
	})
}
