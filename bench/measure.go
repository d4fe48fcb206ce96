// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// cost is what one run of a program took.
type cost struct {
	cpu, wall time.Duration // cpu is user and system time
	memory    int64         // highest resident memory in bytes
	exit      int
}

// tail keeps the end of what a program says on stderr, for the message when it fails.
type tail struct{ b bytes.Buffer }

const tailBytes = 2000

func (t *tail) Write(p []byte) (int, error) {
	t.b.Write(p)
	if over := t.b.Len() - tailBytes; over > 0 {
		t.b.Next(over)
	}
	return len(p), nil
}

// time runs a program for its processor and wall time. An exit status that is not 0 is no error.
func timeRun(ctx context.Context, argv []string) (cost, string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var errs tail
	cmd.Stderr = &errs
	start := time.Now()
	err := cmd.Run()
	wall := time.Since(start)
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		return cost{}, "", fmt.Errorf("run %s: %w", strings.Join(argv, " "), err)
	}
	if ctx.Err() != nil {
		return cost{}, "", ctx.Err()
	}
	st := cmd.ProcessState
	if !st.Exited() {
		return cost{}, "", fmt.Errorf("run %s: %v", strings.Join(argv, " "), st)
	}
	return cost{cpu: st.UserTime() + st.SystemTime(), wall: wall, exit: st.ExitCode()},
		strings.TrimSpace(errs.b.String()), nil
}

// peakMemory runs a program once more and gives its highest resident memory. The number in its
// resource usage will not do: a child begins in the memory of its parent, and that would count.
// The program is stopped on its way out instead, where the kernel still knows its own peak.
func peakMemory(ctx context.Context, argv []string) (int64, error) {
	runtime.LockOSThread() // the thread that starts a traced process is its tracer
	defer runtime.UnlockOSThread()
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return 0, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	p, err := os.StartProcess(path, argv, &os.ProcAttr{
		Files: []*os.File{null, null, null}, Sys: &syscall.SysProcAttr{Ptrace: true}})
	if err != nil {
		return 0, fmt.Errorf("trace %s: %w", argv[0], err)
	}
	defer p.Release()
	stop := context.AfterFunc(ctx, func() { p.Kill() })
	defer stop()
	peak, err := traceToExit(p.Pid)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	return peak, err
}

const (
	traceExitKill  = 1 << 20 // PTRACE_O_EXITKILL, which package syscall does not name
	traceEventExit = 6       // PTRACE_EVENT_EXIT
)

func traceToExit(pid int) (peak int64, err error) {
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil {
		return 0, err
	}
	if err := syscall.PtraceSetOptions(pid, syscall.PTRACE_O_TRACEEXIT|traceExitKill); err != nil {
		syscall.Kill(pid, syscall.SIGKILL)
		syscall.Wait4(pid, &ws, 0, nil)
		return 0, fmt.Errorf("trace: %w", err)
	}
	signal := 0
	for {
		if err := syscall.PtraceCont(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return 0, fmt.Errorf("trace: %w", err)
		}
		for {
			_, err := syscall.Wait4(pid, &ws, 0, nil)
			if err == nil {
				break
			}
			if !errors.Is(err, syscall.EINTR) {
				return 0, fmt.Errorf("trace: %w", err)
			}
		}
		signal = 0
		switch {
		case ws.Exited() || ws.Signaled():
			if peak == 0 {
				return 0, errors.New("trace: the program was gone before its memory could be read")
			}
			return peak, nil
		case ws.Stopped() && ws.TrapCause() == traceEventExit:
			if peak, err = highWater(pid); err != nil {
				return 0, err
			}
		case ws.Stopped():
			signal = int(ws.StopSignal())
		}
	}
}

// highWater reads VmHWM of a process.
func highWater(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kib int64
			if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
				return 0, fmt.Errorf("peak memory %q: %w", strings.TrimSpace(rest), err)
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("no VmHWM in /proc/PID/status")
}

// median of the costs, each number by itself.
func median(cs []cost) cost {
	m := cs[0]
	m.cpu = middle(cs, func(c cost) time.Duration { return c.cpu })
	m.wall = middle(cs, func(c cost) time.Duration { return c.wall })
	return m
}

func middle(cs []cost, of func(cost) time.Duration) time.Duration {
	v := make([]time.Duration, len(cs))
	for i, c := range cs {
		v[i] = of(c)
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// dropCache takes a file out of the page cache.
func dropCache(f *os.File) error {
	const dontNeed = 4 // POSIX_FADV_DONTNEED
	if _, _, e := syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, dontNeed, 0, 0); e != 0 {
		return fmt.Errorf("drop %s from the page cache: %w", f.Name(), e)
	}
	return nil
}
