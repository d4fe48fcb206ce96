// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// emulator is a program that is run in place of QEMU.
func emulator(t *testing.T, script string) Machine {
	t.Helper()
	testenv.Need(t, "sh")
	path := filepath.Join(t.TempDir(), "emulator")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	return Machine{Program: path}
}

// TestReport holds what is made of what a guest says, and of what it does not.
func TestReport(t *testing.T) {
	const booted, good = `{"booted":{"kernel":"6.1","took":5}}`, `{"result":{"name":"a","ok":true}}`
	for _, c := range []struct{ name, lines, fails string }{
		{"all", booted + "\n" + good + "\r\n\n" + `{"ended":true}`, ""},
		{"ends early", booted + "\n" + good, "before it was done"},
		{"nothing", "", "before it was done"},
		{"gives up", `{"failed":"load a.ko"}`, "load a.ko"},
		{"rubbish", "Kernel panic", "Kernel panic"},
		{"goes on", booted + "\n" + `{"ended":true}` + "\n" + good, "after its end"},
		{"too long", strings.Repeat("x", maxLine+2), "too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines := filepath.Join(t.TempDir(), "lines")
			if err := os.WriteFile(lines, []byte(c.lines), 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := emulator(t, "echo console >&3; cat "+lines).boot(t.Context(), "kernel", "files")
			if c.fails == "" {
				if err != nil || r.Booted.Kernel != "6.1" || len(r.Results) != 1 || string(r.Console) != "console\n" {
					t.Errorf("%+v, %v", r, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("the error is %v, want one with %q", err, c.fails)
			}
		})
	}
}

// TestComplete holds that a check of which nothing was said is not taken for one that passed.
func TestComplete(t *testing.T) {
	r := Report{Results: []Result{{Name: "a", OK: true}}}
	if err := r.complete([]Check{{Name: "a"}}); err != nil {
		t.Error(err)
	}
	if err := r.complete([]Check{{Name: "a"}, {Name: "b"}}); err == nil {
		t.Error("nothing was said of b: no error")
	}
}

// TestKilled holds that a guest that does not end goes when its time is over, with all its processes.
func TestKilled(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	m := emulator(t, "sleep 1000 & echo $! $$ >"+pids+".new && mv "+pids+".new "+pids+"; wait")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
			if _, err := os.Stat(pids); err == nil {
				cancel()
			}
		}
	}()
	if _, err := m.boot(ctx, "kernel", "files"); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v, want %v", err, context.Canceled)
	}
	text, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(p)
		if err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(5 * time.Minute); unix.Kill(pid, 0) == nil; time.Sleep(time.Millisecond) {
			if state, _ := os.ReadFile("/proc/" + p + "/stat"); strings.Contains(string(state), ") Z ") {
				break // nobody has buried it yet
			}
			if time.Now().After(end) {
				t.Fatalf("process %s is still there", p)
			}
		}
	}
}

// TestLimit holds that a guest that goes on for ever is asked where it is when it has used up its time, and that what
// it says is there; one whose time is not over is left alone, however long it takes.
func TestLimit(t *testing.T) {
	m := emulator(t, `(read x <&4; echo "it hears $x" >&3; kill -9 $$) & while :; do :; done`)
	m.Limit = 50 * time.Millisecond
	r, err := m.boot(t.Context(), "kernel", "files")
	if !errors.Is(err, ErrLimit) || string(r.Console) != "it hears nmi\n" {
		t.Errorf("the error is %v and the console %q, want %v and what it says", err, r.Console, ErrLimit)
	}
	m = emulator(t, `sleep 2; echo '{"ended":true}'`)
	m.Limit = time.Second
	if _, err := m.boot(t.Context(), "kernel", "files"); err != nil {
		t.Error(err)
	}
}

// TestClock holds which guests have a clock of their own, and watch themselves by it.
func TestClock(t *testing.T) {
	for _, c := range []struct {
		machine Machine
		own     bool
	}{{Machine{}, true}, {Machine{CPUs: 1}, true}, {Machine{CPUs: 2}, false}, {Machine{HostClock: true}, false}} {
		all := strings.Join(c.machine.arguments("kernel", "files"), " ")
		if own := strings.Contains(all, "-icount "); own != c.own || strings.Contains(all, " softlockup_panic=1") != c.own ||
			strings.Contains(all, " nosoftlockup") == c.own {
			t.Errorf("%+v: %s", c.machine, all)
		}
	}
}

func TestNoEmulator(t *testing.T) {
	_, err := Machine{Program: "/no/such/emulator"}.boot(t.Context(), "kernel", "files")
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("the error is %v, want %v", err, ErrUnavailable)
	}
}

func TestTail(t *testing.T) {
	tail := Tail{Max: 3}
	for _, s := range []string{"a", "bc", "defghij", "", "k"} {
		tail.Write([]byte(s))
	}
	if got := string(tail.Bytes()); got != "ijk" {
		t.Errorf("the last bytes are %q, want ijk", got)
	}
}
