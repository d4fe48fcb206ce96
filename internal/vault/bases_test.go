// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sampleBase is a receipt whose names are no UTF-8.
func sampleBase() *BaseReceipt {
	at := time.Unix(3, 0).UTC()
	r := &BaseReceipt{Schema: BaseReceiptSchema, ID: "00112233445566778899aabbccddeeff", State: Applying, Act: "protect",
		Created: time.Unix(2, 0).UTC(), Pool: "u", Steps: []BaseStep{
			{What: BaseShield, Name: "a\xff<", Inode: 1 << 63}, {What: BaseTouch, Name: "b", Before: &at}}}
	r.SetDir("/pool/\xff_base")
	r.Steps[0].SetAt("/pool/\xff_base/.shisa/shields/1.a\xff<")
	r.Steps[1].SetAt("/pool/\xff_base/b")
	return r
}

func TestBaseReceipt(t *testing.T) {
	_, v := textVault(t)
	if all, err := v.BaseReceipts(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("BaseReceipts of nothing = %v, %v", all, err)
	}
	r := sampleBase()
	if err := v.PutBase(r); err != nil {
		t.Fatal(err)
	}
	got, err := v.BaseReceipt(r.ID)
	if diff := cmp.Diff(r, got); err != nil || diff != "" {
		t.Errorf("BaseReceipt = %v (-want +got):\n%s", err, diff)
	}
	if got.Dir() != "/pool/\xff_base" || got.Steps[0].At() != "/pool/\xff_base/.shisa/shields/1.a\xff<" {
		t.Errorf("paths = %q, %q", got.Dir(), got.Steps[0].At())
	}
	if err := v.DropBase(r.ID); err != nil {
		t.Error(err)
	}
	if _, err := v.BaseReceipt(r.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("BaseReceipt of what was dropped = %v, want %v", err, ErrNotFound)
	}
}

// TestBaseReceiptIsStrict: no receipt that is not what was written is taken for one.
func TestBaseReceiptIsStrict(t *testing.T) {
	sealed := func(change func(*BaseReceipt)) []byte {
		r := sampleBase()
		change(r)
		sum, err := r.digest()
		if err != nil {
			t.Fatal(err)
		}
		r.SHA256 = sum
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	clean := func(r *BaseReceipt) { r.Steps[0].Name = "a" }
	if _, err := decodeBaseReceipt(sealed(clean)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		raw  []byte
		want error
	}{
		"no JSON":     {[]byte("{"), ErrDamaged},
		"changed":     {[]byte(strings.Replace(string(sealed(clean)), "protect", "restore", 1)), ErrDamaged},
		"another key": {[]byte(strings.Replace(string(sealed(clean)), `"act"`, `"deed"`, 1)), ErrDamaged},
		"newer":       {sealed(func(r *BaseReceipt) { r.Schema = "shisa.base-receipt/2" }), ErrNewer},
		"other":       {sealed(func(r *BaseReceipt) { r.Schema = "shisa.receipt/1" }), ErrDamaged},
		"state":       {sealed(func(r *BaseReceipt) { clean(r); r.State = "begun" }), ErrDamaged},
		"step":        {sealed(func(r *BaseReceipt) { clean(r); r.Steps[0].What = "burn" }), ErrDamaged},
		"outside":     {sealed(func(r *BaseReceipt) { clean(r); r.Steps[1].SetAt("/etc/passwd") }), ErrDamaged},
		"upwards":     {sealed(func(r *BaseReceipt) { clean(r); r.Steps[1].SetAt(r.Dir() + "/../b") }), ErrDamaged},
		"relative":    {sealed(func(r *BaseReceipt) { clean(r); r.SetDir("pool") }), ErrDamaged},
		"long":        {make([]byte, maxBaseReceiptBytes+1), ErrDamaged},
	} {
		if _, err := decodeBaseReceipt(c.raw); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func FuzzBaseReceipt(f *testing.F) {
	r := sampleBase()
	r.Steps[0].Name = "a"
	sum, err := r.digest()
	if err != nil {
		f.Fatal(err)
	}
	r.SHA256 = sum
	raw, err := json.Marshal(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decodeBaseReceipt(raw)
		if err != nil {
			return
		}
		for i := range r.Steps {
			if !within(r.Dir(), r.Steps[i].At()) {
				t.Errorf("a step is about %q", r.Steps[i].At())
			}
		}
	})
}
