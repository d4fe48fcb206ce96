// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

const goodRules = `rules:
  - code: SITE1
    name: short-timeout
    severity: warning
    title: a disk has a timeout that is too short for our storage
    for: device
    match:
      - {fact: driver, op: equals, value: sd}
      - {fact: timeout_seconds, op: below, value: 180}
    text: "{name} gives up after {timeout_seconds} s"
    next: install the package site-udev
`

func TestUserRules(t *testing.T) {
	rules, err := ParseRules("site.yaml", []byte(goodRules), map[string]string{})
	if err != nil || len(rules) != 1 {
		t.Fatalf("ParseRules = %d rules, %v", len(rules), err)
	}
	slow, strange := disk("sdb", "running"), disk("sdc", "running")
	slow.Timeout, strange.Timeout = 200*time.Second, 0
	virtio := disk("vda", "")
	virtio.Driver = "virtio_blk"
	e := &evidence.Evidence{Devices: []evidence.Device{disk("sda", "running"), slow, strange, virtio}}
	ask(t, rules[0], e, says{"device:h:sda", Fail, "match", finding.Warning}, says{"device:h:sdb", Pass, "", ""},
		says{"device:h:sdc", Unknown, "", ""}, says{"device:h:vda", Pass, "", ""})
	if got := rules[0].judge(e)[0].Finding.Summary; got != "sda gives up after 30 s" {
		t.Errorf("the finding says %q", got)
	}
}

func TestConditions(t *testing.T) {
	for _, c := range []struct {
		op, value, of string
		want          bool
	}{
		{"equals", "a", "a", true}, {"equals", "a", "b", false},
		{"not_equals", "a", "b", true}, {"not_equals", "a", "a", false},
		{"contains", "noatime", "rw,noatime", true}, {"contains", "sync", "rw", false},
		{"matches", "VM*", "VMware", true}, {"matches", "VM*", "QEMU", false},
		{"in", "[a, b]", "b", true}, {"in", "[a, b]", "c", false},
		{"above", "10", "10.5", true}, {"above", "10", "10", false}, {"above", "10", "x", false},
		{"below", "10", "9", true}, {"below", "10", "11", false},
	} {
		text := strings.Replace(goodRules, "{fact: driver, op: equals, value: sd}",
			"{fact: driver, op: "+c.op+", value: "+c.value+"}", 1)
		rules, err := ParseRules("x", []byte(text), map[string]string{})
		if err != nil {
			t.Errorf("%s %s: %v", c.op, c.value, err)
			continue
		}
		d := disk("sda", "running")
		d.Driver = c.of
		got := rules[0].judge(&evidence.Evidence{Label: "h", Devices: []evidence.Device{d}})[0].Outcome == Fail
		if got != c.want {
			t.Errorf("%s %s of %s is %t, want %t", c.op, c.value, c.of, got, c.want)
		}
	}
}

// TestUserRulesRefused holds that whatever is wrong is refused with its line.
func TestUserRulesRefused(t *testing.T) {
	for _, c := range []struct {
		name, old, new, want string
	}{
		{"no YAML", "rules:", "rules: [", "line"},
		{"nothing", goodRules, "", "is empty"},
		{"another key at the top", "rules:", "rule:", "line 1"},
		{"another key", "title:", "titel:", "line 5"},
		{"another key of a condition", "fact: driver", "factum: driver", "line 8"},
		{"no code", "code: SITE1", "code: ''", "x:2: the code"},
		{"a code of ours", "code: SITE1", "code: BL01", "taken by a rule of shisa"},
		{"a severity", "severity: warning", "severity: high", "x:4: the severity"},
		{"no advice", "next: install the package site-udev", "next: ''", "x:11: title and next"},
		{"a kind", "for: device", "for: disk", `x:6: for: "disk", want one of host, mount`},
		{"a fact", "fact: driver", "fact: colour", `x:8: the fact "colour"`},
		{"an operator", "op: below", "op: less", `x:9: the operator "less"`},
		{"no number", "value: 180", "value: many", "x:9: below wants a number"},
		{"no list", "op: equals, value: sd", "op: in, value: sd", "x:8: in wants a list"},
		{"a pattern", "op: equals, value: sd", "op: matches, value: '['", "x:8: the pattern"},
		{"no conditions", goodRules[strings.Index(goodRules, "      - {fact"):strings.Index(goodRules, "    text")], "",
			"x:7: 0 conditions"},
		{"no kind at all", "    for: device\n", "", "x:2: for"},
		{"a value on a line of its own", "{fact: driver, op: equals, value: sd}", "{fact: driver,\n         op: in,\n         value: sd}",
			"x:10: in wants a list"},
	} {
		t.Run(c.name, func(t *testing.T) {
			known := map[string]string{"BL01": "a rule of shisa"}
			_, err := ParseRules("x", []byte(strings.Replace(goodRules, c.old, c.new, 1)), known)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("ParseRules = %v, want it to say %q", err, c.want)
			}
		})
	}
}

func TestReadRules(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadRules(dir); err == nil {
		t.Error("a directory without rules is no error")
	}
	for name, text := range map[string]string{"a.yaml": goodRules, "notes.txt": "no rules"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	rules, err := ReadRules(dir)
	if err != nil || len(rules) != 1 {
		t.Errorf("ReadRules = %d rules, %v, want one", len(rules), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b.yml"), []byte(goodRules), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRules(dir); err == nil || !strings.Contains(err.Error(), "a.yaml:2") {
		t.Errorf("ReadRules of one code twice = %v, want the place of the first", err)
	}
}

func FuzzRules(f *testing.F) {
	f.Add([]byte(goodRules))
	f.Add([]byte("rules: [{code: A1, match: [{fact: x}]}]"))
	f.Add([]byte("a: &a [*a, *a]\nrules: *a"))
	f.Fuzz(func(t *testing.T, text []byte) {
		rules, err := ParseRules("x", text, map[string]string{})
		if err != nil {
			return
		}
		for _, r := range rules {
			r.judge(&evidence.Evidence{Label: "h", Devices: []evidence.Device{disk("sda", "running")}})
		}
	})
}
