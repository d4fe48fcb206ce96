// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLimit: a guest took more of the processor than it may (Machine.Limit). For errors.Is.
var ErrLimit = errors.New("it is not done, and took all of the processor's time that it may")

const (
	// lookEvery is how often the processor's time of a guest is looked at.
	lookEvery = 500 * time.Millisecond
	// lastWords is how much of the processor a guest may take to say where it is, and lastWordsWall how long that
	// may be on a machine that is busy.
	lastWords     = 10 * time.Second
	lastWordsWall = 3 * time.Minute
)

// monitor gives both ends of what QEMU's monitor listens to.
func monitor() (ours, its *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a monitor: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "monitor"), os.NewFile(uintptr(fds[1]), "monitor"), nil
}

// limit cancels when a process has used up what m may, until it is stopped.
func (m Machine) limit(pid int, cancel context.CancelCauseFunc) (stop func()) {
	most := m.Limit
	if most == 0 {
		most = defaultLimit
	}
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(lookEvery)
		defer t.Stop()
		for failed := 0; ; {
			select {
			case <-stopped:
				return
			case <-t.C:
			}
			used, err := processorOf(pid)
			switch {
			case err == nil && used > most:
				cancel(fmt.Errorf("%w (%v)", ErrLimit, most))
				return
			case err != nil && failed > 0: // the first time it may just have ended
				cancel(fmt.Errorf("read the processor's time that it took: %w", err))
				return
			case err != nil:
				failed++
			}
		}
	}()
	return func() { close(stopped); <-done }
}

// processorOf is the processor's time that a process has used. Its clock is that of clock_getcpuclockid(3):
// include/linux/posix-timers.h, make_process_cpuclock with CPUCLOCK_SCHED.
func processorOf(pid int) (time.Duration, error) {
	var used unix.Timespec
	err := unix.ClockGettime(int32(^pid<<3|2), &used)
	return time.Duration(used.Nano()), err
}

// end ends a guest when ctx is done. Where its time was over, its kernel says first where it is: it takes an
// NMI also where it hears nothing else, and ends with that.
func (m Machine) end(ctx context.Context, pid int, monitor *os.File) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, ErrLimit) || errors.Is(cause, context.DeadlineExceeded) {
		if _, err := monitor.WriteString("nmi\n"); err == nil && ended(pid) {
			return os.ErrProcessDone
		}
	}
	return unix.Kill(-pid, unix.SIGKILL)
}

// ended waits until a child that says where it is has ended, and leaves it to be waited for.
func ended(pid int) bool {
	before, err := processorOf(pid)
	for end := time.Now().Add(lastWordsWall); err == nil && time.Now().Before(end); time.Sleep(lookEvery / 10) {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil)
		if err == unix.ECHILD || err == nil && info.Signo != 0 {
			return true
		}
		if used, err := processorOf(pid); err != nil || used > before+lastWords {
			return false
		}
	}
	return false
}
