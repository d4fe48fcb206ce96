// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const uuid = "0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3e"

func policy(t testing.TB) string {
	p := NewPolicy(uuid, time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC))
	text, err := p.Text()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestParsePolicy(t *testing.T) {
	good := policy(t)
	p, err := ParsePolicy([]byte(good))
	if err != nil || p.AllowPurge || time.Duration(p.MinQuarantine) != 14*24*time.Hour {
		t.Fatalf("ParsePolicy = %+v, %v, want one that allows nothing", p, err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", `"min_age"`, `"min_agee"`, `pool.json:6: is no document of a pool: the key "min_agee" is not known`},
		{"missing value", `"allow_purge": false,`, ``, `"allow_purge" is missing`},
		{"wrong type", `"allow_purge": false`, `"allow_purge": "no"`, `pool.json:5:`},
		{"no span", `"336h0m0s"`, `"two weeks"`, `invalid duration`},
		{"negative span", `"336h0m0s"`, `"-1h"`, `is negative`},
		{"later schema", `shisa.pool/1`, `shisa.pool/2`, `its schema is`},
		{"no uuid", uuid, "X", `its uuid is`},
		{"fraction", `0.1`, `7`, `max_fraction is 7`},
		{"too little grace", `"15m0s"`, `"1s"`, `launch_grace is 1s`},
		{"a time after 9999 by UTC", `2026-03-01T04:00:00Z`, `9999-12-31T23:59:59-01:00`, `pool.json:4: is no document of a pool: the time`},
		{"a time before 0 by UTC", `2026-03-01T04:00:00Z`, `0000-01-01T00:00:00+01:00`, `in the year -1 by UTC`},
		{"cut", "}\n", "", `pool.json:`},
		{"more behind it", "}\n", "}{}", `after top-level value`},
	} {
		text := strings.Replace(good, c.old, c.new, 1)
		if text == good {
			t.Fatalf("%s: %q is not there", c.name, c.old)
		}
		if _, err := ParsePolicy([]byte(text)); !errors.Is(err, ErrPool) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: ParsePolicy = %v, want %v with %q", c.name, err, ErrPool, c.want)
		}
	}
}

func TestShieldName(t *testing.T) {
	inode, name, ok := ParseShieldName(ShieldName(4711, "a.b c"))
	if inode != 4711 || name != "a.b c" || !ok {
		t.Errorf("ParseShieldName = %d, %q, %v", inode, name, ok)
	}
	for _, bad := range []string{"", "1", "1.", ".a", "x.a", "01.a", "-1.a", "99999999999999999999.a"} {
		if _, _, ok := ParseShieldName(bad); ok {
			t.Errorf("ParseShieldName(%q) is good", bad)
		}
	}
}

func FuzzPool(f *testing.F) {
	f.Add([]byte(policy(f)))
	e := Entry{Time: time.Unix(1, 0), Node: "n", Act: "shield", Name: "a", Inode: 7}
	line, _, err := e.Line("")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	o := Object{Schema: ObjectSchema, SizeBytes: 1, SHA256: strings.Repeat("0", 64), Chunks: []string{strings.Repeat("0", 64)}}
	text, err := o.Text()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		if p, err := ParsePolicy(text); err == nil {
			again, err := p.Text()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ParsePolicy(again); err != nil {
				t.Errorf("ParsePolicy of what it wrote: %v", err)
			}
		}
		if o, err := ParseObject("x", text); err == nil && len(o.Chunks) > len(text) {
			t.Errorf("%d digests in %d bytes", len(o.Chunks), len(text))
		}
		all, _, _ := ReadAudit(bytes.NewReader(text))
		prev := ""
		for _, e := range all {
			line, sum, err := e.Line(prev)
			if err != nil || !bytes.Contains(line, []byte(sum)) || e.Prev != prev {
				t.Errorf("an entry that is in the chain does not make its line: %q, %v", line, err)
			}
			prev = e.Sum
		}
	})
}

// TestAuditOfOddTexts: whatever a file is called and however long a reason is, the chain holds.
func TestAuditOfOddTexts(t *testing.T) {
	var all []byte
	prev := ""
	for i, text := range []string{"b\xff3", "\xc3", "a\nb", "\u2028<&>", strings.Repeat("\x01", 1<<20), strings.Repeat("\xff", 1<<20), "plain"} {
		e := Entry{Time: time.Unix(int64(i), 0), Node: text, Act: "shield", Name: text, Path: text, Why: text}
		line, sum, err := e.Line(prev)
		if err != nil {
			t.Fatal(err)
		}
		all, prev = append(all, line...), sum
	}
	got, cut, err := ReadAudit(bytes.NewReader(all))
	if err != nil || cut || len(got) != 7 {
		t.Errorf("ReadAudit = %d entries, cut %v, %v", len(got), cut, err)
	}
}
