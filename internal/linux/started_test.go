// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestStarted(t *testing.T) {
	c := exec.Command("sleep", "1000")
	before := time.Now()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	after := time.Now()
	got, err := Open("").Started(c.Process.Pid)
	// The kernel rounds its own start to a second.
	if err != nil || got.Before(before.Add(-2*time.Second)) || got.After(after.Add(2*time.Second)) {
		t.Errorf("Started = %v, %v, want between %v and %v", got, err, before.UTC(), after.UTC())
	}
	if _, err := Open("").Started(1 << 30); err == nil {
		t.Error("Started of no process succeeds")
	}
	const rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 250 20\n"
	for _, tc := range []struct {
		name, stat, process string
		want                int64 // seconds, 0 for an error
	}{
		{"usual", "cpu 1 2\nbtime 1000\nctxt 5\n", "7 (x)" + rest, 1002},
		{"brackets in the name", "btime 1000\n", "7 (a) b 1 (c)" + rest, 1002},
		{"no start of the kernel", "cpu 1\n", "7 (x)" + rest, 0},
		{"start of the kernel that is no number", "btime x\n", "7 (x)" + rest, 0},
		{"cut off", "btime 1000\n", "7 (x) S 1 2", 0},
		{"no number", "btime 1000\n", "7 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 y\n", 0},
		{"too much", "btime 1000\n", "7 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 9223372036854775807\n", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range map[string]string{"proc/stat": tc.stat, "proc/7/stat": tc.process} {
				path := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := Open(root).Started(7)
			if (err != nil) != (tc.want == 0) || err == nil && got.Unix() != tc.want {
				t.Errorf("Started = %v, %v, want %d", got, err, tc.want)
			}
		})
	}
}
