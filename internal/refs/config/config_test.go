// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

const good = `node: n-1
pools:
  - path: /var/lib/nova/instances/
    bases: _base
    uuid: 0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3e
    roots: [/srv/rescue]
    nova_export: [/var/lib/shisa/nova.jsonl]
    compute_nodes: /var/lib/nova/instances/compute_nodes
    members: [node1, node2]
    others: [backup]
    protect: true
    keepalive: 6h
    watch: true
    quarantine: true
    purge: true
    libvirt: [/var/lib/docker/volumes/libvirt/]
  - path: /srv/images
`

func TestParse(t *testing.T) {
	p, err := Parse("x", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	want := []Pool{{Path: "/var/lib/nova/instances", Bases: "_base", UUID: "0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3e",
		Roots: []string{"/srv/rescue"}, NovaExports: []string{"/var/lib/shisa/nova.jsonl"},
		ComputeNodes: "/var/lib/nova/instances/compute_nodes",
		Libvirt:      []string{"/var/lib/docker/volumes/libvirt"}, Members: []string{"node1", "node2"}, Others: []string{"backup"},
		Protect: true, KeepAlive: 6 * time.Hour, Watch: true, Quarantine: true, Purge: true, Line: 3},
		{Path: "/srv/images", Line: 17}} // nothing that deletes is on by itself
	if d := cmp.Diff(want, p.All); d != "" || p.Node != "n-1" {
		t.Errorf("Parse (-want +got):\n%s", d)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"empty", good, "", "x:1: is no configuration of pools: it is empty"},
		{"no map", good, "- a", "x:1: is no configuration of pools: want a map"},
		{"no list", good, "pools: 7", "x:1:"},
		{"no pools", good, "pools: []", "want a list of 1 to"},
		{"no node", "n-1", "", "x:1: is no configuration of pools: node has no value"},
		{"no value", good, "pools:", "x:1: is no configuration of pools: pools has no value"},
		{"unknown key", "purge:", "purgee:", `x:15: is no configuration of pools: the key "purgee" is not known`},
		{"unknown key at the top", "pools:", "pool:", `x:2: is no configuration of pools: the key "pool" is not known`},
		{"twice", "watch: true", "watch: true\n    watch: false", `x:14: is no configuration of pools: the key "watch" is on line 13 already`},
		{"missing value", "purge: true", "purge:", `x:15: is no configuration of pools: purge has no value`},
		{"tilde", "purge: true", "purge: ~", "purge has no value"},
		{"missing path", "path: /srv/images", "protect: true", "x:17: is no configuration of pools: path is missing"},
		{"yes", "purge: true", "purge: yes", `x:15: is no configuration of pools: want true or false, not "yes"`},
		{"relative", "/srv/rescue", "rescue", `"rescue" is no absolute path`},
		{"libvirt", "/var/lib/docker/volumes/libvirt/", "docker", `"docker" is no absolute path`},
		{"base in a directory", "bases: _base", "bases: a/b", `"a/b" is no name in a directory`},
		{"no duration", "6h", "6", `not "6"`},
		{"negative", "6h", "-6h", `not "-6h"`},
		{"watch alone", "protect: true", "protect: false", "x:13: is no configuration of pools: watch does nothing"},
		{"member and not", "[backup]", "[node1]", `"node1" is among members and among others`},
		{"list in a list", "[backup]", "[[backup]]", "want a text"},
		{"anchor", "[/srv/rescue]", "&a [/srv/rescue]\n    others: *a", "refers to another place"},
		{"same pool", "/srv/images", "/var/lib/nova/instances\n    bases: _base", "is on line 3 already"},
		{"two documents", "  - path: /srv/images\n", "---\npools: 7\n", "only one document"},
		{"tab", "    purge", "\tpurge", "x is no configuration of pools: yaml: line 14"},
	} {
		text := strings.Replace(good, c.old, c.new, 1)
		if text == good {
			t.Fatalf("%s: %q is not there", c.name, c.old)
		}
		if _, err := Parse("x", []byte(text)); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Parse = %v, want %v with %q", c.name, err, ErrConfig, c.want)
		}
	}
}

func TestRead(t *testing.T) {
	name := filepath.Join(t.TempDir(), "base.yaml")
	if _, err := Read(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read of a file that is not there = %v, want %v", err, fs.ErrNotExist)
	}
	if err := os.WriteFile(name, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := Read(t.Context(), name); err != nil || len(p.All) != 2 || p.Name != name {
		t.Errorf("Read = %+v, %v, want two pools", p, err)
	}
	if err := os.WriteFile(name, make([]byte, maxBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(t.Context(), name); !errors.Is(err, ErrConfig) {
		t.Errorf("Read of a large file = %v, want %v", err, ErrConfig)
	}
}

// TestExample: what is shipped as an example is read, also with what is commented out in it, and shows every key.
func TestExample(t *testing.T) {
	text, err := os.ReadFile("../../../contrib/base.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`(?m)^( *)# (\w+: \S.*)$`).ReplaceAll(text, []byte("$1$2"))
	for _, text := range [][]byte{text, all} {
		p, err := Parse("base.yaml", text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if len(p.All) != 1 || p.All[0].Purge || !p.All[0].Watch {
			t.Errorf("the example says %+v, want one pool in which nothing is removed", p.All)
		}
	}
	keys := (&Pool{}).keys(map[string]*yaml.Node{})
	if len(keys) < 10 {
		t.Fatalf("%d keys", len(keys))
	}
	for key := range keys {
		if !regexp.MustCompile(`(?m)^ *-? *` + key + `:`).Match(all) {
			t.Errorf("the example does not show %s", key)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("pools: [{path: /a, purge: true}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse("x", text)
		if err != nil {
			return
		}
		for _, pool := range p.All {
			if !filepath.IsAbs(pool.Path) || pool.Watch && !pool.Protect {
				t.Errorf("Parse = %+v", pool)
			}
		}
	})
}
