// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

//go:build !race

package shisa_test

import (
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// What the program may cost.
const (
	maxStart = 20 * time.Millisecond // CPU of a command that does nothing
	// maxCheckMemory is what a check of 1 TiB takes beyond what the program takes to start, which is
	// its own code mostly and grows with it.
	maxCheckMemory = 5 << 20
	// maxMemory is what it takes in all: a fifth of what qemu-img check does.
	maxMemory = 8 << 20
	gnuTime   = "/usr/bin/time" // not the shell's
)

// TestFootprint measures the program as it is built for users; the race detector would change its
// size and its speed.
func TestFootprint(t *testing.T) {
	dir := testenv.DiskDir(t)
	program := filepath.Join(dir, "shisa")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./cmd/shisa")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}

	t.Run("static", func(t *testing.T) {
		f, err := elf.Open(program)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
			t.Errorf("the program needs %q, %v, want nothing", libs, err)
		}
	})
	t.Run("first", func(t *testing.T) {
		// What comes before package code is mapped in pieces of 64 KiB.
		c := exec.Command(program, "version")
		c.Env = append(os.Environ(), "GODEBUG=inittrace=1")
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		before, _, found := strings.Cut(string(out), "init "+module+"/internal/linux/code ")
		if !found || strings.Contains(before, "\ninit os ") {
			t.Errorf("package code is initialised too late:\n%s", out)
		}
	})
	t.Run("start", func(t *testing.T) {
		best := time.Hour // of several, as another process may have been in the way
		for range 5 {
			cpu, _ := measure(t, 0, program, "version")
			best = min(best, cpu)
		}
		if best > maxStart {
			t.Errorf("shisa version = %v of CPU, want %v at most", best, maxStart)
		}
		t.Logf("shisa version: %v of CPU", best)
	})
	t.Run("1 TiB", func(t *testing.T) {
		image := filepath.Join(dir, "big.qcow2")
		if err := lab.Write(image, lab.Spec{VirtualBytes: 1 << 40}); err != nil {
			t.Fatal(err)
		}
		diskio.RequireUnchanged(t, image)
		_, start := measure(t, 0, program, "version")
		cpu, memory := measure(t, 0, program, "check", image)
		if memory-start > maxCheckMemory {
			t.Errorf("shisa check of 1 TiB = %d KiB of memory beyond the %d of its start, want %d at most",
				(memory-start)>>10, start>>10, maxCheckMemory>>10)
		}
		if memory > maxMemory {
			t.Errorf("shisa check of 1 TiB = %d KiB of memory, want %d at most", memory>>10, maxMemory>>10)
		}
		t.Logf("shisa check of 1 TiB: %v of CPU, %d KiB of memory, %d of them to start", cpu, memory>>10, start>>10)
	})
}

// measure runs a program that must end with status and gives its CPU time and its peak memory in
// bytes.
//
// GNU time stands in between: a process that a large one starts inherits the peak of that one's
// memory, and this test is larger than what it measures.
func measure(t *testing.T, status int, args ...string) (cpu time.Duration, memory int64) {
	t.Helper()
	testenv.Need(t, gnuTime)
	report := filepath.Join(t.TempDir(), "time")
	c := exec.Command(gnuTime, append([]string{"-q", "-f", "%M", "-o", report}, args...)...)
	out, err := c.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := c.ProcessState.ExitCode(); got != status {
		t.Fatalf("%q = %d, want %d\n%s", args, got, status, out)
	}
	kib, err := strconv.ParseInt(strings.TrimSpace(read(t, report)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return c.ProcessState.UserTime() + c.ProcessState.SystemTime(), kib << 10
}
