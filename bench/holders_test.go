// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// judged is what the table says of one result.
func judged(r result) (status int, text string) {
	t := &table{}
	t.add("x", r)
	var out bytes.Buffer
	t.print(&out)
	return t.status(), out.String()
}

func TestKindsFound(t *testing.T) {
	row := func(fuser, shisa string) []string {
		return []string{"a-kind", "EBUSY", "busy", fuser, hold.Missed, shisa}
	}
	for _, c := range []struct {
		name, said string
		change     func(*kindsFound)
		status     int
	}{
		{"right", hold.Named, func(*kindsFound) {}, 0},
		{"unexplained, as is known", hold.Unexplained, func(f *kindsFound) { f.Unknown = 1 }, 0},
		{"unexplained", hold.Unexplained, func(*kindsFound) {}, 3},
		{"missed", hold.Missed + ": is said to be free", func(*kindsFound) {}, 3},
		{"wrong", hold.Wrong + ": is blamed on another", func(*kindsFound) {}, 3},
		{"no such holder", hold.Named, func(f *kindsFound) { f.Untrue = []string{"a-kind, OK"} }, 3},
		{"not made", hold.Named, func(f *kindsFound) { f.Unmade = []string{"b-kind: cannot"} }, 0},
	} {
		f := kindsFound{Harmful: 2, Rows: [][]string{row(hold.Named, hold.Named), row(hold.Missed, c.said)}}
		c.change(&f)
		status, text := judged(f.result())
		if status != c.status {
			t.Errorf("%s: status %d, want %d:\n%s", c.name, status, c.status, text)
		}
		want := append([]string{"of 2 fuser misses 1, lsof 2", "| shisa holders", c.said}, f.Unmade...)
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: %q is not in\n%s", c.name, w, text)
			}
		}
	}
}

func TestHoldersFound(t *testing.T) {
	good := crowdFound{Processes: 2000, Scans: 50, Slowest: 900 * time.Millisecond}
	slow, hung, wrong := good, good, good
	slow.Slowest, hung.Hung, wrong.Wrong = 2*time.Second, 1, []string{"scan 3"}
	kept := lastingFound{Wait: time.Second, Took: 2 * time.Second}
	late, untrue := kept, kept
	late.Took, untrue.Wrong = time.Minute, []string{"it is unmounted"}
	for _, c := range []struct {
		name   string
		res    result
		status int
	}{
		{"scans", good.result(), 0},
		{"a slow scan", slow.result(), 3},
		{"a scan that hung", hung.result(), 3},
		{"a wrong scan", wrong.result(), 3},
		{"unmounted", passingFound{Rounds: 50, Ours: 50, Theirs: 20}.result(), 0},
		{"not unmounted", passingFound{Rounds: 50, Ours: 49}.result(), 3},
		{"held", kept.result(), 0},
		{"held, late", late.result(), 3},
		{"held, and gone", untrue.result(), 3},
	} {
		if status, text := judged(c.res); status != c.status {
			t.Errorf("%s: status %d, want %d:\n%s", c.name, status, c.status, text)
		}
	}
}

func TestNames(t *testing.T) {
	var text holdersText
	if (*holdersText)(nil).names(7) || text.names(7) {
		t.Error("an empty answer names somebody")
	}
	text.Holders = make([]holderText, 1)
	text.Holders[0].Process.PID, text.Holders[0].Blocks = 7, "superblock"
	if text.names(7) {
		t.Error("who keeps no umount from succeeding is said to")
	}
	text.Holders[0].Blocks = "umount"
	if !text.names(7) || text.names(8) {
		t.Error("names(7), names(8) = false, true, want the other way")
	}
}

// TestHang holds that a file system whose server is stopped is one that hangs, and goes.
func TestHang(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	a := apart{log: t.Output()}
	s, err := a.hang(t.Context(), dir)
	if err != nil {
		testenv.Lacks(t, err.Error())
	}
	defer func() {
		s.end()
		if err := gone(dir); err != nil {
			t.Error(err)
		}
	}()
	c, err := inTime(t.Context(), 300*time.Millisecond, []string{"stat", "-f", dir})
	if err == nil {
		t.Errorf("stat -f of a mount that hangs = exit status %d, want none", c.exit)
	}
}

// TestProcesses holds that all of them are there, and go.
func TestProcesses(t *testing.T) {
	end, err := processes(20)
	if err := end(); err != nil {
		t.Error(err)
	}
	if err != nil {
		t.Error(err)
	}
}

// TestAnswered holds that a program that comes first is one alone, and what is told of one.
func TestAnswered(t *testing.T) {
	for name, start := range map[string]func(*exec.Cmd) error{"usual": (*exec.Cmd).Start, "first": startFirst} {
		argv := []string{"sh", "-c", "cut -d ' ' -f 41 /proc/self/stat; exit 3"}
		c, out, err := answered(t.Context(), start, argv...)
		if errors.Is(err, syscall.EPERM) {
			testenv.Lacks(t, err.Error())
		}
		want := map[string]string{"usual": "0\n", "first": "2\n"}[name] // the policy, see sched(7)
		if err != nil || c.exit != 3 || string(out) != want {
			t.Errorf("answered(%s) = %d, %q, %v, want 3, %q", name, c.exit, out, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := answered(ctx, (*exec.Cmd).Start, "true"); !errors.Is(err, context.Canceled) {
		t.Errorf("answered after the end of its context = %v", err)
	}
}
