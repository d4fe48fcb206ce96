// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

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

// TestHoldLeft: what an act left that was cut off before its receipt was there goes when receipts are settled; one that may
// have begun just now, goes on, or has a receipt that cannot be read keeps it.
func TestHoldLeft(t *testing.T) {
	w := newWorld(t, "a")
	o := w.receipts()
	if _, err := Protect(t.Context(), w.census("a"), ProtectOptions{NoRecord: true}, o); err != nil {
		t.Fatal(err)
	}
	all, err := o.Receipts.BaseReceipts(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("receipts = %+v, %v, want one", all, err)
	}
	dir := o.Receipts.BasesDir()
	leave := func(digit, suffix string, age time.Duration) string {
		path, at := filepath.Join(dir, strings.Repeat(digit, 32)+suffix), time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	held, err := o.Receipts.HoldBase(strings.Repeat("1", 32))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	const old = 2 * time.Hour
	at := time.Now().Add(-old)
	goesOn := filepath.Join(dir, strings.Repeat("1", 32)+".act")
	ended := filepath.Join(dir, all[0].ID+".act")
	if err := errors.Join(os.Chtimes(goesOn, at, at), os.WriteFile(ended, nil, 0o600), os.Chtimes(ended, at, at)); err != nil {
		t.Fatal(err)
	}
	leave("2", ".act", old)
	want := []string{goesOn, leave("3", ".act", time.Minute), leave("4", ".act", old), leave("4", ".json", old),
		filepath.Join(dir, all[0].ID+".json")}
	if _, _, err := Settle(t.Context(), o); !errors.Is(err, vault.ErrDamaged) {
		t.Errorf("Settle = %v, want that a receipt is damaged alone", err)
	}
	left, err := filepath.Glob(dir + "/*")
	slices.Sort(want)
	if slices.Sort(left); err != nil || !slices.Equal(left, want) {
		t.Errorf("%q is left among the receipts, %v, want %q", left, err, want)
	}
}
