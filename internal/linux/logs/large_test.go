// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/logs"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// weighed is a tree that weighs the memory in use while its logs are read.
type weighed struct {
	tree.Tree
	most uint64
}

func (w *weighed) Open(ctx context.Context, name string) (tree.File, error) {
	f, err := w.Tree.Open(ctx, name)
	return &weighedFile{File: f, w: w}, err
}

type weighedFile struct {
	tree.File
	w    *weighed
	next int64
}

func (f *weighedFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.next {
		f.next = off + 1<<20
		f.w.most = max(f.w.most, inUse())
	}
	return f.File.ReadAt(p, off)
}

func inUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// readWeighed reads the logs of a directory within so many MiB of memory.
func readWeighed(t *testing.T, root string, now time.Time, mebibytes uint64) *logs.Log {
	t.Helper()
	dir, err := tree.OpenDirectory(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	w := &weighed{Tree: dir}
	before := inUse()
	l, err := logs.Read(t.Context(), w, logs.Options{Now: now, Host: "h"})
	if err != nil {
		t.Fatal(err)
	}
	after := inUse()
	if most := max(w.most, after) - before; most > mebibytes<<20 {
		t.Errorf("%d KiB of memory in use, want at most %d MiB", most>>10, mebibytes)
	}
	return l
}

// TestLargeLogs reads logs with very many messages of known forms: memory is bounded, and no boot and
// no event is lost to what there is much of.
func TestLargeLogs(t *testing.T) {
	const many = 30_000
	long := strings.Repeat("x", 8000)
	rare := func(i int) string { return fmt.Sprintf("EXT4-fs (sdz%d): Remounting filesystem read-only", i) }
	tests := []struct {
		name string
		line func(i int) string
		gap  bool
		// mebibytes is how much memory it may take, whatever its size.
		mebibytes uint64
	}{
		{"units", func(i int) string {
			return fmt.Sprintf("systemd[1]: Started session-%d.scope - Session %d of User root.", i, i)
		}, false, 4},
		{"one message", func(i int) string {
			return fmt.Sprintf("kernel: [%d.000000] EXT4-fs error (device sda1): f:1: comm x: y", i)
		}, false, 10},
		{"one inode after the other", func(i int) string {
			return fmt.Sprintf("kernel: [%d.000000] EXT4-fs error (device sda1): f:1: inode #%d: comm x: y", i, i)
		}, true, 16},
		{"sectors", func(i int) string {
			return fmt.Sprintf("kernel: [%d.000000] blk_update_request: I/O error, dev sda, sector %d op 0x0:(READ) flags 0x0 "+
				"phys_seg 1 prio class 0", i, i)
		}, false, 14},
		{"long lines", func(i int) string {
			return fmt.Sprintf("kernel: [%d.000000] Kernel panic - not syncing: %d %s", i, i, long)
		}, true, 22},
		{"panics", func(i int) string { return fmt.Sprintf("kernel: [%d.000000] Kernel panic - not syncing: %d", i, i) }, true, 14},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			at, lines := utc(2026, 11, 1, 0, 0), many
			if len(tt.line(0)) > 1000 {
				lines = many / 5
			}
			var b bytes.Buffer
			for i := range lines {
				at = at.Add(10 * time.Second)
				fmt.Fprintf(&b, "%s h %s\n", at.Format(time.Stamp), tt.line(i))
				if i%(lines/4) == lines/8 {
					fmt.Fprintf(&b, "%s h kernel: [    0.000000] Linux version 6.1.0 (x) y\n", at.Format(time.Stamp))
					fmt.Fprintf(&b, "%s h kernel: [    9.000000] %s\n", at.Format(time.Stamp), rare(i))
				}
			}
			root := t.TempDir()
			for _, name := range []string{"var/log/kern.log", "var/log/syslog"} {
				p := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				if err := os.Chtimes(p, at, at); err != nil {
					t.Fatal(err)
				}
			}
			b = bytes.Buffer{}
			l := readWeighed(t, root, at, tt.mebibytes)
			if len(l.Boots) != 4 {
				t.Errorf("%d boots, want 4", len(l.Boots))
			}
			found := 0
			for i := range l.Messages {
				if l.Messages[i].Form.Name == "ext4.ro" {
					found++
				}
			}
			if found < 4 {
				t.Errorf("%d of 4 file systems are read-only", found)
			}
			if (len(l.Gaps) > 0) != tt.gap {
				t.Errorf("gaps: %v, want some: %v", l.Gaps, tt.gap)
			}
		})
	}
}
