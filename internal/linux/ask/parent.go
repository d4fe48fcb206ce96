// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ask

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// birth is how long a child may take to be there on a machine that is very busy, death how long it
	// is waited for after it was told to end.
	birth, death = 20 * time.Second, 200 * time.Millisecond
	// starving is how long a child is waited for that does not wait for its mount, but for a processor.
	starving = time.Minute
	// settle is how long a child of another run is watched before it counts as one that hangs.
	settle = 300 * time.Millisecond
	// maxProcesses bounds the list of processes that are looked at for such children.
	maxProcesses = 1 << 20
)

// child is a process that asks.
type child struct {
	p       *os.Process
	to      *os.File
	from    *os.File
	answers *json.Decoder
}

// start starts a child: this program once more, in a session of its own, working in / and without any
// descriptor but its ends of two pipes.
func start() (*child, error) {
	in, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	from, out, err := os.Pipe()
	if err != nil {
		to.Close()
		return nil, err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err == nil {
		defer null.Close()
		c := &child{to: to, from: from, answers: json.NewDecoder(from)}
		c.p, err = os.StartProcess("/proc/self/exe", []string{childName}, &os.ProcAttr{Dir: "/", Env: []string{},
			Files: []*os.File{in, out, null}, Sys: &syscall.SysProcAttr{Setsid: true}})
		if err == nil {
			var hello Answer
			if err = errors.Join(from.SetReadDeadline(time.Now().Add(birth)), c.answers.Decode(&hello)); err == nil {
				return c, nil
			}
			c.kill()
			return nil, err
		}
	}
	to.Close()
	from.Close()
	return nil, err
}

// ask asks one mount. An answer with Hung, and one that is none, leave a child that is of no more use.
func (c *child) ask(ctx context.Context, q *Question, patience time.Duration) (*Answer, string) {
	begun := time.Now()
	if err := json.NewEncoder(c.to).Encode(q); err != nil {
		return nil, "the process that asks it ended: " + err.Error()
	}
	// What ends ctx ends the wait.
	stop := context.AfterFunc(ctx, func() { _ = c.from.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		if err := c.from.SetReadDeadline(time.Now().Add(patience)); err != nil || ctx.Err() != nil {
			return nil, fmt.Sprintf("it was not asked: %v", errors.Join(err, ctx.Err()))
		}
		var a Answer
		err := c.answers.Decode(&a)
		switch {
		case err == nil:
			a.Waited = time.Since(begun)
			return &a, ""
		case ctx.Err() != nil:
			return nil, "it was not asked to the end: " + ctx.Err().Error()
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return nil, "the process that asks it ended: " + err.Error()
		case c.hangs(q.ID):
			return &Answer{Errno: -1, StatfsErrno: -1, WriteErrno: -1, Hung: true, Waited: time.Since(begun)}, ""
		case time.Since(begun) > starving:
			return nil, fmt.Sprintf("this machine is so busy that the process that asks it had no turn within %v", starving)
		}
		// A decoder keeps the error of its reader.
		c.answers = json.NewDecoder(c.from)
	}
}

// hangs tells whether the child waits for a mount, as far as that can be seen.
func (c *child) hangs(mount int) bool {
	waits, err := waitsFor(c.p.Pid, mount)
	return waits || err != nil
}

// waitsFor tells whether a child waits in the kernel for a mount. One that just waits for a processor does
// not, nor one that was stopped; nor one whose first thread has not begun to ask, for it waits for another
// one of the child, or has asked: only while it asks it has the name of the mount.
func waitsFor(pid, mount int) (bool, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false, err
	}
	_, name, _ := strings.Cut(string(stat), "(")
	state, asks := strings.CutPrefix(name, namePrefix+strconv.Itoa(mount)+") ")
	return asks && strings.IndexAny(state, "RTt") != 0, nil
}

// end lets a child end that has nothing to do. It gives its number if it did not.
func (c *child) end() int {
	c.to.Close()
	return c.wait(birth)
}

// kill ends a child that hangs, as far as that can be done.
func (c *child) kill() int {
	c.to.Close()
	if err := c.p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return c.p.Pid
	}
	return c.wait(death)
}

// wait waits for the end of a child, but not for one that hangs.
func (c *child) wait(d time.Duration) int {
	c.from.Close()
	defer func() { _ = c.p.Release() }() // only our handle for it
	for until := time.Now().Add(d); !ended(c.p.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			return c.p.Pid
		}
	}
	return 0
}

// ended takes away a child that has ended, and tells whether it has.
func ended(pid int) bool {
	for {
		got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		if !errors.Is(err, unix.EINTR) {
			return got == pid || err != nil
		}
	}
}

func stillHangs(pid int) string {
	return fmt.Sprintf("it was asked before, and process %d still waits for the answer", pid)
}

// hanging gives the children that hang, of whichever run, by the numbers of their mounts. Those of a run
// that just goes on are not taken for such: they go on to another mount.
func (a *Asker) hanging(ctx context.Context) map[int]int {
	first := named()
	if len(first) == 0 {
		return nil
	}
	select {
	case <-ctx.Done():
	case <-time.After(settle):
	}
	hang := map[int]int{}
	for pid, mount := range named() {
		if waits, err := waitsFor(pid, mount); first[pid] == mount && waits && err == nil {
			hang[mount] = pid
		}
	}
	return hang
}

// named gives the processes that are called as children that ask, with the numbers of their mounts. Only
// our own user's count: anybody may take such a name.
func named() map[int]int {
	found := map[int]int{}
	proc, err := os.Open("/proc")
	if err != nil {
		return found // the mounts are asked, one more at each
	}
	defer proc.Close()
	names, err := proc.Readdirnames(maxProcesses)
	if err != nil {
		return found
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		comm, err := os.ReadFile("/proc/" + name + "/comm")
		if err != nil {
			continue
		}
		rest, is := strings.CutPrefix(strings.TrimSpace(string(comm)), namePrefix)
		mount, err := strconv.Atoi(rest)
		if is && err == nil && mine(pid) {
			found[pid] = mount
		}
	}
	return found
}

// mine tells whether a process is of our own user.
func mine(pid int) bool {
	var st unix.Stat_t
	err := unix.Stat("/proc/"+strconv.Itoa(pid), &st)
	return err == nil && slices.Contains([]int{os.Geteuid(), 0}, int(st.Uid))
}
