// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
)

// killReaders kills the children of this process that read disks.
func killReaders(t *testing.T) {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, pid := range strings.Fields(string(text)) {
			line, err := os.ReadFile("/proc/" + pid + "/cmdline")
			n, number := strconv.Atoi(pid)
			if err == nil && number == nil && strings.HasPrefix(string(line), "shisa-jail") {
				killed++
				if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if killed != 1 {
		t.Fatalf("%d readers were killed, want 1", killed)
	}
}

// TestCrashIsFound goes on with a guest after its reader was killed.
func TestCrashIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := Open(t.Context(), Name{Disk: path}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if fs := g.Crash(); len(fs) != 0 {
		t.Errorf("%+v before anything happened", fs)
	}
	killReaders(t)
	_, err = g.Who(t.Context(), 0, []finding.Range{{Length: 512}})
	named := Crashed(path, err)
	if len(named) != 1 || named[0].Code != "GR01" || named[0].Object != path {
		t.Errorf("Who = %v: %+v", err, named)
	}
	if fs := g.Crash(); len(fs) != 1 || !strings.Contains(fs[0].Summary, "signal: killed") {
		t.Errorf("Crash = %+v", fs)
	}
	if fs := Crashed(path, os.ErrNotExist); len(fs) != 0 {
		t.Errorf("%+v for another error", fs)
	}
}
