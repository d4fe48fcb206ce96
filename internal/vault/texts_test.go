// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/lab/cut"
	"github.com/shisa-vm/shisa/internal/plan"
)

func sampleText(t testing.TB) *TextReceipt {
	t.Helper()
	old := []byte("a = \xff1\n") // what was there need not be UTF-8
	was := plan.StateOf(old, "0600")
	p := &plan.Texts{Schema: plan.TextsSchema, ID: "00112233445566778899aabbccddeeff", Why: "x",
		Created: time.Unix(1, 0), Files: []plan.Text{
			{Path: "/etc/a", Before: &was, Mode: "0600", Content: "a = 2\n"},
			{Path: "/etc/b", Mode: "0644", Content: "b\n"},
		}}
	if err := p.Seal(); err != nil {
		t.Fatal(err)
	}
	return &TextReceipt{Schema: TextReceiptSchema, ID: p.ID, State: Applying, Created: time.Unix(2, 0).UTC(), Plan: p,
		Before: []TextBefore{{Path: "/etc/a", Content: old}, {Path: "/etc/b", Absent: true, Content: plan.Bytes{}}}}
}

func textVault(t testing.TB) (*cut.Disk, *Vault) {
	t.Helper()
	d := cut.New(t.Context())
	v, err := New(Options{Disk: d, StateDir: "/state"})
	if err != nil {
		t.Fatal(err)
	}
	return d, v
}

func TestTextReceipt(t *testing.T) {
	d, v := textVault(t)
	if all, err := v.TextReceipts(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("TextReceipts of nothing = %v, %v", all, err)
	}
	want := sampleText(t)
	if err := v.PutText(want); err != nil {
		t.Fatal(err)
	}
	got, err := v.TextReceipt(want.ID)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("TextReceipt (-want +got):\n%s", d)
	}
	if all, err := v.TextReceipts(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("TextReceipts = %v, %v", all, err)
	}
	path := v.TextReceiptPath(want.ID)
	raw, _ := d.Get(path)
	for _, c := range []struct {
		name, old, new string
		want           error
	}{
		{"newer", "text-receipt/1", "text-receipt/2", ErrNewer},
		{"another schema", "shisa.text-receipt/1", "shisa.receipt/1", ErrDamaged},
		{"another state", `"applying"`, `"prepared"`, ErrDamaged},
		{"another file", `"content": "hex:61203d20ff310a"`, `"content": "hex:00"`, ErrDamaged},
		{"another path", `"path": "/etc/b",`, `"path": "/etc/c",`, ErrDamaged},
		{"edited plan", `"why": "x"`, `"why": "y"`, ErrDamaged},
		{"not absent", `"absent": true`, `"absent": false`, ErrDamaged},
		{"cut", `"before"`, `"bef`, ErrDamaged},
		{"unknown field", `"failure"`, `"x": 1, "failure"`, ErrDamaged},
	} {
		bad := bytes.Replace(raw, []byte(c.old), []byte(c.new), 1)
		if bytes.Equal(bad, raw) {
			t.Fatalf("%s: nothing was replaced in %s", c.name, raw)
		}
		d.Put(path, bad)
		if _, err := v.TextReceipt(want.ID); !errors.Is(err, c.want) {
			t.Errorf("%s: TextReceipt = %v, want %v", c.name, err, c.want)
		}
		if all, err := v.TextReceipts(t.Context()); !errors.Is(err, c.want) || len(all) != 0 {
			t.Errorf("%s: TextReceipts = %v, %v, want %v", c.name, all, err, c.want)
		}
	}
	for _, id := range []string{"x", "ffffffffffffffffffffffffffffffff"} {
		if _, err := v.TextReceipt(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("TextReceipt(%s) = %v, want %v", id, err, ErrNotFound)
		}
	}
	want.State = "done"
	if err := v.PutText(want); !errors.Is(err, ErrReceipt) {
		t.Errorf("PutText of what cannot be read again = %v, want %v", err, ErrReceipt)
	}
}

func TestLockTexts(t *testing.T) {
	_, v := textVault(t)
	for range 2 {
		l, err := v.LockTexts()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.LockTexts(); !errors.Is(err, diskio.ErrInUse) {
			t.Errorf("LockTexts twice = %v, want %v", err, diskio.ErrInUse)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func FuzzTextReceipt(f *testing.F) {
	raw, err := json.Marshal(sampleText(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"schema":"shisa.text-receipt/1","plan":{"files":[]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decodeTextReceipt(raw)
		if err == nil && (r.Plan == nil || len(r.Before) != len(r.Plan.Files)) {
			t.Errorf("decodeTextReceipt gave %+v", r)
		}
	})
}
