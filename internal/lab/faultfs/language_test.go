// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"errors"
	"strings"
	"testing"
)

func TestLanguage(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"write eio", "write eio"},
		{"  write   eio after=3 ", "write eio after=3"},
		{"write eio range=0x1000+64k", "write eio range=0x1000+65536"},
		{"read eio range=4k+1,1M+", "read eio range=0x1000+1,0x100000+"},
		{"write enospc after=16M new", "write enospc new after=16777216B"},
		{"write enospc after=512B times=0x10", "write enospc after=512B times=16"},
		{"any delay=200ms", "any delay=200ms"},
		{"fsync hang times=1", "fsync hang times=1"},
		{"write lose", "write lose"},
		{"read flip range=0+4k", "read flip range=0x0+4096"},
		{"look estale", "look estale"},
		{"discard enodev", "discard enodev"},
		{"read edquot after=1", "read edquot after=1"},
		{"read etimedout", "read etimedout"},
	} {
		r, err := parse(c.text)
		if err != nil || r.String() != c.want {
			t.Errorf("parse(%q) = %v, %v, want %q", c.text, r, err, c.want)
		}
	}
}

func TestNoLanguage(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "are needed",
		"write":                                "are needed",
		"scribble eio":                         `"scribble"`,
		"write eperm":                          `"eperm"`,
		"write eio=3":                          `"eio=3"`,
		"write delay":                          `"delay"`,
		"write delay=0s":                       "between",
		"write delay=2h":                       "between",
		"write delay=fast":                     `"fast"`,
		"read lose":                            "written",
		"write flip":                           "read",
		"read eio new":                         "space",
		"write eio new=1":                      "no such",
		"write eio never":                      "no such",
		"write eio after":                      "no such",
		"write eio after=":                     "no number",
		"write eio after=-1":                   "no number",
		"write eio after=+1":                   "no number",
		"write eio after=1.5M":                 "no number",
		"write eio after=1m":                   "no number",
		"write eio after=0xk":                  "no number",
		"write eio after=M":                    "no number",
		"write eio after=9999999T":             "too large",
		"write eio times=0":                    "none at all",
		"write eio times=1 times=1":            "twice",
		"write eio range=":                     "OFF+LEN",
		"write eio range=4096":                 "OFF+LEN",
		"write eio range=0+0":                  "length",
		"write eio range=0+-1":                 "no number",
		"write eio range=0x7fffffffffffffff+1": "counted",
		"fsync eio range=0+1":                  "no place",
		"look hang range=0+1":                  "no place",
		"fsync eio after=1k":                   "no length",
		"write eio range=" + strings.Repeat("0+1,", maxRanges) + "0+1": "ranges",
		strings.Repeat("x", maxRuleBytes+1):                            "longer",
	} {
		r, err := parse(text)
		if !errors.Is(err, ErrLanguage) || !strings.Contains(err.Error(), want) {
			t.Errorf("parse(%.60q) = %v, %v, want ErrLanguage with %q", text, r, err, want)
		}
	}
}

func TestAbout(t *testing.T) {
	for _, c := range []struct {
		text   string
		op     Op
		off, n int64
		want   bool
	}{
		{"write eio", Write, 0, 1, true},
		{"write eio", Read, 0, 1, false},
		{"any eio", Fsync, 0, 0, true},
		{"any eio", Look, 0, 0, false},
		{"look eio", Look, 0, 0, true},
		{"read eio range=4k+4k", Read, 0, 4096, false},
		{"read eio range=4k+4k", Read, 0, 4097, true},
		{"read eio range=4k+4k", Read, 8191, 1, true},
		{"read eio range=4k+4k", Read, 8192, 1, false},
		{"read eio range=4k+4k,1M+", Read, 5 << 20, 1, true},
		{"any eio range=4k+4k", Fsync, 0, 0, false},
	} {
		r, err := parse(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.about(c.op, c.off, c.n); got != c.want {
			t.Errorf("(%s).about(%s, %d, %d) = %t, want %t", c.text, c.op, c.off, c.n, got, c.want)
		}
	}
}

// FuzzLanguage holds that what was parsed is said in a form that is parsed to the same.
func FuzzLanguage(f *testing.F) {
	for _, text := range []string{"write eio after=3", "read delay=1ms range=0x10+4k,1M+ times=2",
		"write enospc new after=3B", "look hang", "fsync eio=", "read flip range=+"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parse(text)
		if err != nil {
			if !errors.Is(err, ErrLanguage) {
				t.Errorf("parse(%q) = %v, want ErrLanguage", text, err)
			}
			return
		}
		again, err := parse(r.String())
		if err != nil || again.String() != r.String() {
			t.Errorf("parse(%q) = %q, and of that %v, %v", text, r, again, err)
		}
	})
}
