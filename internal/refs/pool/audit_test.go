// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestAuditName: whatever a node is called, its audit has a name of its own, in its directory, that has room for an id, and is
// none that is being written.
func TestAuditName(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	of := map[string]string{}
	for _, node := range []string{"n1", "n1.example.org", "N1", "", ".", "..", "...", ".hidden", "%2E", "%2Ehidden", "a/b", "a%2Fb", "a%252Fb", "/",
		"../../pool.json", "a b", "a\x00b", "a\nb", "a\x1b[2Jb", "a\xff", "a\xfe", "\u00e9", "e\u0301", "a.jsonl", "a", "a.gone", "~", "%-",
		strings.Repeat("x", 214), strings.Repeat("x", 215), strings.Repeat("x", 255), strings.Repeat("x", 254) + "y", strings.Repeat("\u00e9", 100),
		strings.Repeat("/", 255), strings.Repeat("\x01", 255)} {
		name := AuditName(node)
		if was, twice := of[name]; twice {
			t.Errorf("%q and %q have the audit %q", was, node, name)
		}
		of[name] = node
		for _, n := range []string{name, DamagedName(name, id), AuditAside(name, id)} {
			if filepath.Base(n) != n || len(n) > 255 || strings.HasPrefix(n, ".") || strings.ContainsFunc(n, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q has the audit %q", node, n)
			}
		}
		if !IsDamagedOf(DamagedName(name, id), name) || IsDamaged(name) {
			t.Errorf("%q is not told from %q", DamagedName(name, id), name)
		}
		if IsNode(node) && name != strings.TrimSuffix(NodeFile(node), ".json")+".jsonl" {
			t.Errorf("%q has the audit %q, and the documents %q", node, name, NodeFile(node))
		}
		if IsNode(node) && len(strings.TrimSuffix(NodeFile(node), ".json")+"."+id+".gone.json") > 255 {
			t.Errorf("documents of %q cannot be put aside", node)
		}
	}
	if other := DamagedName(AuditName("n1.example.org"), id); IsDamagedOf(other, AuditName("n1")) {
		t.Errorf("%q is taken for one of n1", other)
	}
	for node, want := range map[string]string{"n1": "n1.jsonl", "a/b": "", "": "", "..": "...jsonl", "a b": "a b.jsonl"} {
		if got := RawAuditName(node); got != want {
			t.Errorf("RawAuditName(%q) = %q, want %q", node, got, want)
		}
	}
}
