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
