// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/vault"
)

// putting does something as soon as a receipt has its name, or fails to give it that.
type putting struct {
	diskio.Disk
	put  func()
	fail error
}

func (p *putting) Rename(from, to string) error {
	if p.fail != nil {
		return p.fail
	}
	err := p.Disk.Rename(from, to)
	p.put()
	return err
}

// TestHeldBeforePut: a program that looks for acts that were cut off, in the moment in which the receipt of one is there first,
// finds it under way.
func TestHeldBeforePut(t *testing.T) {
	w := newWorld(t, "a")
	other := w.receipts()
	disk := &putting{Disk: diskio.Host()}
	looked := 0
	disk.put = func() {
		looked++
		if ended, half, err := Settle(t.Context(), other); err != nil || len(ended)+len(half) > 0 {
			t.Errorf("look %d: Settle = %+v, %+v, %v, want that the act is under way", looked, ended, half, err)
		}
	}
	o := w.options()
	var err error
	if o.Receipts, err = vault.New(vault.Options{StateDir: w.dir + ".state", Disk: disk}); err != nil {
		t.Fatal(err)
	}
	d, err := Protect(t.Context(), w.census("a"), ProtectOptions{NoRecord: true}, o)
	if err != nil || d.Receipt == "" || looked < 2 {
		t.Errorf("Protect = %+v, %v, with %d looks", d, err, looked)
	}
	// Where it cannot be put nothing is done, and nothing is held.
	w.write("b", "b")
	disk.fail = syscall.EIO
	if _, err := Protect(t.Context(), w.census("a", "b"), ProtectOptions{NoRecord: true}, o); !errors.Is(err, syscall.EIO) {
		t.Errorf("Protect without a receipt = %v, want %v", err, syscall.EIO)
	}
	if len(w.state().ShieldsOf("b")) > 0 {
		t.Error("b has a shield, and no receipt says so")
	}
	left, err := filepath.Glob(other.Receipts.BasesDir() + "/*")
	if err != nil || len(left) != 1 {
		t.Errorf("%q is left among the receipts, %v; want that of the first act alone", left, err)
	}
}
