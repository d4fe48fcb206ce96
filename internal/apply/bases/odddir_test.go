// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// TestOddDirectory: where the pool's own directory is a symbolic link no pool is begun behind it: what the pool keeps may lie
// on storage that is not mounted.
func TestOddDirectory(t *testing.T) {
	w := newWorld(t, "a")
	c := w.census("a")
	behind := t.TempDir()
	if err := os.Symlink(behind, w.path(pool.Dir)); err != nil {
		t.Fatal(err)
	}
	if d, err := Protect(t.Context(), c, ProtectOptions{}, w.options()); !errors.Is(err, pool.ErrPool) {
		t.Errorf("Protect = %+v, %v, want %v", d, err, pool.ErrPool)
	}
	if names, err := os.ReadDir(behind); err != nil || len(names) > 0 {
		t.Errorf("behind the link there are %v, %v, want nothing", names, err)
	}
}

// TestNovaLock: Nova keeps its locks in the directory of instances, which need not be the one that the bases lie in.
func TestNovaLock(t *testing.T) {
	w := newWorld(t, "a")
	inst := t.TempDir()
	lock := filepath.Join(inst, "locks", "nova-a")
	if err := errors.Join(os.Mkdir(filepath.Dir(lock), 0o755), os.WriteFile(lock, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	k := newKeeper(w.options())
	k.instances = []string{inst, t.TempDir()}
	held, err := diskio.Host().OpenForRepair(lock)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.novaLock("a"); !errors.Is(err, diskio.ErrInUse) {
		t.Errorf("novaLock while Nova has it = %v, want %v", err, diskio.ErrInUse)
	}
	if err := held.Close(); err != nil {
		t.Error(err)
	}
	unlock, err := k.novaLock("a")
	if err != nil {
		t.Fatal(err)
	}
	if f, err := diskio.Host().OpenForRepair(lock); !errors.Is(err, diskio.ErrInUse) {
		t.Errorf("another program may lock it meanwhile: %v, %v", f, err)
	}
	unlock()
	if unlock, err = k.novaLock("a"); err != nil {
		t.Errorf("novaLock after that = %v", err)
	}
	unlock()
}
