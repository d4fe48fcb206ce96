// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"
	"unsafe"
)

const (
	crowdScans     = 50
	crowdProcesses = 2000
	// crowdPatience ends a scan that hangs.
	crowdPatience = 30 * time.Second
	// theirPatience is how long others are waited for.
	theirPatience = 5 * time.Second
)

// crowdFound is what the scans of a host with many processes and a mount that hangs took.
type crowdFound struct {
	Processes, Scans, Hung int
	// Slowest and Middle are of wall time, CPU and MostCPU are the median of user and system time and
	// the most.
	Slowest, Middle, CPU, MostCPU time.Duration
	// Wrong are answers that do not name who holds the mount.
	Wrong []string
	// Theirs is what fuser and lsof said.
	Theirs string
}

func crowdRow(ctx context.Context, b *bench, dir string) result {
	var f crowdFound
	if err := b.apart(ctx, dir, "crowd", &f); err != nil {
		return result{missing: err.Error()}
	}
	return f.result()
}

func (f crowdFound) result() result {
	slowest := goal{what: "slowest", must: 1, lower: true, unit: " s"}
	res := result{theirsText: f.Theirs,
		text: fmt.Sprintf("%d scans, %d processes: %s / %s, most %s / %s", f.Scans, f.Processes,
			seconds(f.CPU), seconds(f.Middle), seconds(f.MostCPU), seconds(f.Slowest)),
		goals: []outcome{
			{goal: count("hung", 0), got: float64(f.Hung)},
			{goal: count("wrong answers", 0), got: float64(len(f.Wrong))},
			{goal: slowest, got: f.Slowest.Seconds()}}}
	return res
}

// crowd scans a host with many processes and a mount that does not answer, and with a process that
// waits for it, again and again; every other scan is about another mount. A scan comes before what
// else the machine does.
func (a *apart) crowd(ctx context.Context) (f crowdFound, err error) {
	f.Scans, f.Processes = crowdScans, crowdProcesses
	if a.Quick {
		f.Scans, f.Processes = f.Scans/8, f.Processes/16
	}
	end, err := processes(f.Processes)
	defer func() { err = errors.Join(err, end()) }()
	if err != nil {
		return f, err
	}
	hung, err := a.directory()
	if err != nil {
		return f, err
	}
	server, err := a.hang(ctx, hung)
	if err != nil {
		return f, err
	}
	defer func() {
		server.end()
		err = errors.Join(err, gone(hung))
	}()
	other, err := a.directory()
	if err == nil {
		err = tmpfs(other)
	}
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, gone(other)) }()
	on := map[string]*exec.Cmd{}
	for _, at := range []string{hung, other} {
		h, err := keeping(at)
		if err != nil {
			return f, err
		}
		defer ended(h)
		on[at] = h
	}
	waits := exec.Command("stat", hung+"/file")
	if err := waits.Start(); err != nil {
		return f, err
	}
	defer ended(waits)
	if err := a.scans(ctx, &f, []string{hung, other}, on); err != nil {
		return f, err
	}
	f.Theirs, err = theirAnswers(ctx, hung)
	return f, err
}

// scans asks about the mounts in turn.
func (a *apart) scans(ctx context.Context, f *crowdFound, mounts []string, on map[string]*exec.Cmd,
) error {
	var costs []cost
	for i := range f.Scans {
		at := mounts[i%len(mounts)]
		c, text, err := a.scan(ctx, at)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, context.DeadlineExceeded) {
			f.Hung++
			continue
		}
		if err != nil {
			return err
		}
		costs = append(costs, c)
		f.Slowest, f.MostCPU = max(f.Slowest, c.wall), max(f.MostCPU, c.cpu)
		if pid := on[at].Process.Pid; c.exit != 3 || !text.names(pid) {
			f.Wrong = append(f.Wrong, fmt.Sprintf("scan %d of %s: exit status %d, want 3 and process %d",
				i, at, c.exit, pid))
			fmt.Fprintln(a.log, "     ", f.Wrong[len(f.Wrong)-1])
		}
	}
	if len(costs) > 0 {
		m := median(costs)
		f.CPU, f.Middle = m.cpu, m.wall
	}
	return nil
}

// holdersText is what the bench reads of shisa holders --json.
type holdersText struct {
	Holders []holderText `json:"holders"`
}

type holderText struct {
	Process struct {
		PID int `json:"pid"`
	} `json:"process"`
	Blocks string `json:"blocks"`
}

// names tells whether a process is said to keep the mount from being unmounted.
func (t *holdersText) names(pid int) bool {
	if t == nil {
		return false
	}
	for _, h := range t.Holders {
		if h.Process.PID == pid && h.Blocks == "umount" {
			return true
		}
	}
	return false
}

// scan runs shisa holders once. One that does not end in time is context.DeadlineExceeded.
func (a *apart) scan(ctx context.Context, at string) (c cost, t holdersText, err error) {
	ctx, cancel := context.WithTimeout(ctx, crowdPatience)
	defer cancel()
	c, out, err := answered(ctx, startFirst, a.Shisa, "holders", "--json", at)
	if err == nil {
		err = json.Unmarshal(out, &t)
	}
	return c, t, err
}

// answered runs a program that prints an answer, whatever its exit status. start is what starts it.
func answered(ctx context.Context, start func(*exec.Cmd) error, argv ...string) (c cost, out []byte,
	err error,
) {
	var text bytes.Buffer
	var errs tail
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &text, &errs
	begun := time.Now()
	if err = start(cmd); err != nil {
		return c, nil, err
	}
	err = cmd.Wait()
	c.wall = time.Since(begun)
	if ctx.Err() != nil {
		return c, nil, ctx.Err()
	}
	st := cmd.ProcessState
	if err != nil && !errors.As(err, new(*exec.ExitError)) || !st.Exited() {
		return c, nil, fmt.Errorf("run %v: %w: %s", argv, err, errs.b.Bytes())
	}
	c.cpu, c.exit = st.UserTime()+st.SystemTime(), st.ExitCode()
	return c, text.Bytes(), nil
}

// startFirst starts a program that comes before all others on the machine: its wall time is then that
// of what it does, and not that of what else is going on.
func startFirst(cmd *exec.Cmd) error {
	runtime.LockOSThread() // a program inherits it from the thread that starts it
	defer runtime.UnlockOSThread()
	const usual, realTime = 0, 2 // SCHED_OTHER, SCHED_RR
	if err := schedule(realTime, 1); err != nil {
		return err
	}
	return errors.Join(cmd.Start(), schedule(usual, 0))
}

// schedule sets policy and priority of this thread.
func schedule(policy uintptr, priority int32) error {
	_, _, errno := syscall.Syscall(syscall.SYS_SCHED_SETSCHEDULER, 0, policy,
		uintptr(unsafe.Pointer(&priority)))
	if errno != 0 {
		return fmt.Errorf("set the priority of a program: %w", errno)
	}
	return nil
}

// theirAnswers asks fuser and lsof about a mount that hangs.
func theirAnswers(ctx context.Context, at string) (string, error) {
	text := ""
	for _, argv := range [][]string{{"fuser", "-m", at}, {"lsof", "-w", "-t", "+f", "--", at}} {
		if text != "" {
			text += ", "
		}
		c, err := inTime(ctx, theirPatience, argv)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			text += fmt.Sprintf("%s hung for %s", argv[0], theirPatience)
		case err != nil:
			return text, err
		default:
			text += fmt.Sprintf("%s ended with %d in %s", argv[0], c.exit, seconds(c.wall))
		}
	}
	return text, nil
}

// inTime runs a program that may hang, with the processes that it starts.
func inTime(ctx context.Context, patience time.Duration, argv []string) (c cost, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	start := time.Now()
	err = cmd.Run()
	c.wall = time.Since(start)
	if ctx.Err() != nil {
		return c, ctx.Err()
	}
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		return c, err
	}
	c.exit = cmd.ProcessState.ExitCode()
	return c, nil
}

// processes starts many that do nothing, and gives what ends them. They end as well when this
// process does: then nobody can write to their standard input any more.
func processes(n int) (end func() error, err error) {
	in, out, err := os.Pipe()
	if err != nil {
		return func() error { return nil }, err
	}
	var all []*exec.Cmd
	end = func() error {
		err := errors.Join(in.Close(), out.Close())
		for _, c := range all {
			err = errors.Join(err, c.Wait())
		}
		return err
	}
	for range n {
		c := exec.Command("cat")
		c.Stdin = in
		if err := c.Start(); err != nil {
			return end, err
		}
		all = append(all, c)
	}
	return end, nil
}

// keeping starts a process that has a descriptor that only stands for a directory, which needs no
// answer of its file system.
func keeping(dir string) (*exec.Cmd, error) {
	const path = 0x200000 // O_PATH
	fd, err := syscall.Open(dir, path|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), dir)
	c := exec.Command("sleep", "1000000")
	c.ExtraFiles = []*os.File{f}
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c, errors.Join(c.Start(), f.Close())
}

// ended ends a process that this one started, and waits for it.
func ended(c *exec.Cmd) {
	c.Process.Kill() // it may have ended
	c.Wait()
}

// hungCommand has the bench serve a file system by FUSE that answers the first request alone.
const hungCommand = "serve-hung"

// hungServer is that process.
type hungServer struct{ cmd *exec.Cmd }

// hang mounts a file system whose server is stopped.
func (a *apart) hang(ctx context.Context, at string) (s *hungServer, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s = &hungServer{exec.CommandContext(ctx, self, hungCommand, at)}
	s.cmd.Stderr = a.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(said, make([]byte, len(hungReady))); err != nil {
		s.end()
		return nil, fmt.Errorf("serve a file system by FUSE: %w", err)
	}
	var st syscall.WaitStatus
	err = s.cmd.Process.Signal(syscall.SIGSTOP)
	if err == nil {
		_, err = syscall.Wait4(s.cmd.Process.Pid, &st, syscall.WUNTRACED, nil)
	}
	if err == nil && !st.Stopped() {
		err = errors.New("the server of a file system does not stop")
	}
	if err != nil {
		s.end()
		return nil, errors.Join(err, gone(at))
	}
	return s, nil
}

// end ends the server: all that waits for it gets an error.
func (s *hungServer) end() { ended(s.cmd) }

const hungReady = "ready\n"

// serveHung is the server. linux/fuse.h of Linux 6.1: a request is struct fuse_in_header with the
// number of the request at byte 8, its answer struct fuse_out_header (length, error, number) and for
// FUSE_INIT struct fuse_init_out with the version of the protocol.
func serveHung(at string, out, log io.Writer) int {
	err := func() error {
		fd, err := syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/fuse: %w", err)
		}
		options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)
		if err := syscall.Mount("shisa-bench", at, "fuse", 0, options); err != nil {
			return fmt.Errorf("mount by FUSE on %s: %w", at, err)
		}
		request := make([]byte, 1<<17)
		n, err := syscall.Read(fd, request)
		if err != nil || n < 40 {
			return fmt.Errorf("read the first request of %s: %d bytes: %w", at, n, err)
		}
		answer := slices.Concat(
			binary.NativeEndian.AppendUint32(nil, 16+64), make([]byte, 4), request[8:16],
			binary.NativeEndian.AppendUint32(nil, 7), binary.NativeEndian.AppendUint32(nil, 31),
			make([]byte, 56))
		if _, err := syscall.Write(fd, answer); err != nil {
			return fmt.Errorf("answer the first request of %s: %w", at, err)
		}
		_, err = io.WriteString(out, hungReady)
		return err
	}()
	if err != nil {
		fmt.Fprintln(log, err)
		return 1
	}
	time.Sleep(24 * time.Hour) // it is stopped here, and killed
	return 0
}
