// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// TestNewAudit: audits that do not hold keep acts from their end until a person says so of each; then they stay beside the
// others, and the next lines tell which files they are.
func TestNewAudit(t *testing.T) {
	f := newStock(t, "a", "b", "c")
	files := f.files("a", "b")
	f.quarantine("a")
	f.damageAudit()
	other := pool.Path(f.dir, pool.Audit, "n2.jsonl")
	if err := os.WriteFile(other, []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), "a", RestoreOptions{}, f.options()); !errors.Is(err, ErrUnfinished) || !errors.Is(err, pool.ErrChain) {
		t.Fatalf("Restore = %v, want %v, since %v", err, ErrUnfinished, pool.ErrChain)
	}
	by := f.decision()
	d, err := Recover(t.Context(), by, f.options())
	if s, _ := pool.Read(t.Context(), f.dir, time.Minute); err != nil || len(d.Left) != 1 || len(s.Intents) != 1 {
		t.Errorf("Recover = %+v, %v, want one act that comes to no end", d, err)
	}
	// One whose audit holds, or that has none, is no way round.
	for _, node := range []string{"n3", "../audit/n1", "a/b"} {
		by.NewAudits = []string{node}
		if _, err := Recover(t.Context(), by, f.options()); err == nil {
			t.Errorf("an audit of %q is begun", node)
		}
	}
	was := map[string][]byte{}
	for _, node := range []string{"n1", "n2"} {
		text, err := os.ReadFile(pool.Path(f.dir, pool.Audit, node+".jsonl"))
		if err != nil {
			t.Fatal(err)
		}
		was[node] = text
	}
	by.NewAudits = []string{"n2", "n1"}
	for range 2 { // again it does nothing
		d, err := Recover(t.Context(), by, f.options())
		if err != nil || len(d.Left) > 0 {
			t.Fatalf("Recover = %+v, %v", d, err)
		}
	}
	for node, text := range was {
		all, err := filepath.Glob(pool.Path(f.dir, pool.Audit, node+".*.damaged"))
		if err != nil || len(all) != 1 {
			t.Fatalf("%s: %q, %v, want one file", node, all, err)
		}
		if now, err := os.ReadFile(all[0]); err != nil || string(now) != string(text) {
			t.Errorf("%s is not what it was: %v", all[0], err)
		}
		sum := sha256.Sum256(text)
		told := 0
		for _, e := range f.state().Audits {
			if e.Act == "new_audit" && strings.Contains(e.Why, filepath.Base(all[0])) && strings.Contains(e.Why, hex.EncodeToString(sum[:])) {
				told++
			}
		}
		if told != 1 {
			t.Errorf("%s is told %d times, with its digest, want once", all[0], told)
		}
	}
	f.settled(files, "new audits")
	f.reports()
	if p := f.plan("b"); len(p.Blockers) > 0 {
		t.Errorf("a plan is kept from %+v", p.Blockers)
	}
	// What they tell of a base is in its history, and so is what is wrong with them.
	if all, unread, err := pool.AuditOf(t.Context(), f.dir, "a", time.Minute); err != nil || len(all) == 0 || len(unread) != 2 {
		t.Errorf("AuditOf = %+v, %v, %v, want both told", all, unread, err)
	}
}

// TestHostileNode: whatever a host is called, what it does is noted in a file of its own among the audits, and what it noted
// under its raw name before is read on, and can be set aside where it does not hold.
func TestHostileNode(t *testing.T) {
	for _, node := range []string{"a b", "a/b", "../../n1", "..", ".n", "n\nx", "n\x1b[2J", "n\xff", strings.Repeat("n", 255), strings.Repeat("/", 255)} {
		w := newWorld(t, "a", "b")
		w.protect(ProtectOptions{NoRecord: true})
		raw := pool.RawAuditName(node)
		if len(raw) > 255 {
			raw = ""
		}
		if raw != "" {
			if err := os.Rename(w.path(".shisa/audit/n1.jsonl"), w.path(".shisa/audit/"+raw)); err != nil {
				t.Fatal(err)
			}
		}
		before := len(w.state().Audits)
		w.remove("a")
		o := w.options()
		o.Node = node
		if _, err := Restore(t.Context(), "a", RestoreOptions{}, o); err != nil {
			t.Errorf("%q: Restore: %v", node, err)
		}
		if all := w.state().Audits; before != 2 || len(all) != 3 || all[2].Act != "restore" {
			t.Errorf("%q: entries %+v, of which %d were there", node, all, before)
		}
		if _, err := os.Lstat(w.path(".shisa/audit/" + pool.AuditName(node))); err != nil {
			t.Errorf("%q: %v", node, err)
		}
		if raw == "" {
			continue
		}
		w.write(".shisa/audit/"+raw, "{}\n")
		d := &pool.Done{}
		if err := newKeeper(o).newAudit(t.Context(), node, d); err != nil || len(d.Recovered) != 1 {
			t.Errorf("%q: newAudit = %v, %q", node, err, d.Recovered)
		}
		if n := len(w.state().Audits); n != 2 { // what it did by its own name, and that of the other
			t.Errorf("%q: %d entries, want 2", node, n)
		}
	}
}
