// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package demo

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestNothingIsWrittenOver holds that no world is made where files are already.
func TestNothingIsWrittenOver(t *testing.T) {
	dir := t.TempDir()
	if _, err := Server(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Server(t.Context(), dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Server a second time = %v, want %v", err, fs.ErrExist)
	}
	if _, err := NewPool(filepath.Join(dir, "pool")); err != nil {
		t.Fatal(err)
	}
	if _, err := NewPool(filepath.Join(dir, "pool")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("NewPool a second time = %v, want %v", err, fs.ErrExist)
	}
	for name, make := range map[string]func(string, time.Time) error{"loop": Loop, "stall": Stall} {
		at := filepath.Join(dir, name)
		if err := make(at, time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := make(at, time.Now()); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s a second time = %v, want %v", name, err, fs.ErrExist)
		}
	}
}

// TestClean holds that the base is gone after it, and nothing else.
func TestClean(t *testing.T) {
	p, err := NewPool(filepath.Join(t.TempDir(), "pool"))
	if err != nil {
		t.Fatal(err)
	}
	if st, err := p.File(); err != nil || st.Size() != 1<<20 {
		t.Errorf("File = %v, %v, want 1 MiB", st, err)
	}
	if err := p.Clean(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.File(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("File after Clean = %v, want %v", err, fs.ErrNotExist)
	}
	if disks, err := filepath.Glob(filepath.Join(p.Dir, "*", "disk")); err != nil || len(disks) != 2 {
		t.Errorf("disks = %q, %v, want two", disks, err)
	}
}

// TestBusy holds that umounts fail while somebody looks, what is passed on of who watches, and that in the end nothing
// is mounted, nothing runs, and the directories can be removed.
func TestBusy(t *testing.T) {
	testenv.NeedRoot(t)
	before := mounts(t)
	for _, c := range []struct{ how, want string }{
		{"names", ""},
		{"refuses", "no engine works here"},
		{"leaves", "who watched has ended"},
		{"silent", context.DeadlineExceeded.Error()},
	} {
		t.Run(c.how, func(t *testing.T) {
			dir := t.TempDir()
			b, err := NewBusy(dir)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			if c.how == "silent" {
				ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond)
			}
			defer cancel()
			heard := ""
			err = b.Watch(ctx, []string{c.how}, func(line []byte) bool {
				heard = string(line)
				return true
			})
			if c.want == "" && (err != nil || heard != "somebody" || b.Failed == 0 || b.Tried < b.Failed) {
				t.Errorf("Watch = %v, heard %q, %d of %d umounts failed", err, heard, b.Failed, b.Tried)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("Watch = %v, want %q", err, c.want)
			}
			if after := mounts(t); after != before {
				t.Errorf("mounted afterwards:\n%s\nbefore:\n%s", after, before)
			}
			for _, name := range []string{b.Mount, b.source} {
				if err := os.Remove(name); err != nil {
					t.Error(err)
				}
			}
			if pids := looking(t, b.Mount); len(pids) > 0 {
				t.Errorf("processes %q still look at %s", pids, b.Mount)
			}
		})
	}
}

// mounts are what this process sees mounted below where tests make their files.
func mounts(t *testing.T) string {
	t.Helper()
	all, err := linux.Open("").Mounts(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, m := range all {
		if m.Source == "shisa-demo" {
			b.WriteString(m.Point + "\n")
		}
	}
	return b.String()
}

// looking are the processes that have dir as an argument.
func looking(t *testing.T, dir string) (pids []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		// One that has ended meanwhile does not look.
		if text, err := os.ReadFile(name); err == nil && strings.Contains(string(text), dir) {
			pids = append(pids, name)
		}
	}
	return pids
}
