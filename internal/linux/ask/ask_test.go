// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ask

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if IsChild(os.Args) {
		os.Exit(Serve())
	}
	testenv.Main(m)
}

// mounted mounts a file system on a new directory, and gives the question for it.
func mounted(t *testing.T, kind, data string) Question {
	t.Helper()
	testenv.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("shisa-test", dir, kind, 0, data); err != nil {
		testenv.Lacks(t, kind+": "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return question(t, dir)
}

func question(t *testing.T, dir string) Question {
	t.Helper()
	all, err := linux.Open("").Mounts(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(m linux.Mount) bool { return m.Point == dir })
	if i < 0 {
		t.Fatalf("nothing is mounted on %s", dir)
	}
	return Question{ID: all[i].ID, Point: dir}
}

// stuck mounts a file system that takes what it is asked, and does not answer before answer is called:
// who asked cannot be ended until then.
func stuck(t *testing.T) (q Question, answer func()) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		testenv.Lacks(t, "/dev/fuse: "+err.Error())
	}
	stop, served := make(chan struct{}), make(chan struct{})
	answer = sync.OnceFunc(func() {
		close(stop)
		<-served
		unix.Close(fd) // who waits gets an error
	})
	t.Cleanup(answer)
	go func() {
		defer close(served)
		serve(fd, stop)
	}()
	q = mounted(t, "fuse.stuck", fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
	q.Slow = true
	return q, answer
}

// serve says hello to the kernel, and takes the rest (include/uapi/linux/fuse.h: struct fuse_in_header,
// fuse_out_header, fuse_init_out).
func serve(fd int, stop <-chan struct{}) {
	const opInit = 26
	in := make([]byte, 256<<10)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, err := unix.Read(fd, in)
		if err != nil || n < 40 {
			time.Sleep(time.Millisecond)
			continue
		}
		if binary.NativeEndian.Uint32(in[4:]) != opInit {
			continue
		}
		out := make([]byte, 16+64)
		binary.NativeEndian.PutUint32(out, uint32(len(out)))
		copy(out[8:16], in[8:16])
		binary.NativeEndian.PutUint32(out[16:], 7)
		binary.NativeEndian.PutUint32(out[20:], 31)
		binary.NativeEndian.PutUint32(out[16+20:], 4096) // max_write
		if _, err := unix.Write(fd, out); err != nil {
			panic(err)
		}
	}
}

// gone waits until the children that were left behind are no more.
func gone(t *testing.T, a *Asker) {
	t.Helper()
	for until := time.Now().Add(5 * time.Minute); ; time.Sleep(time.Millisecond) {
		a.reap()
		if len(a.left) == 0 {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("processes %v do not end", a.left)
		}
	}
}

var eager = Options{Patience: 200 * time.Millisecond, Total: time.Hour}

// TestOneOfMany: one that hangs among fifty is the only one of which nothing is known, and it is asked
// once.
func TestOneOfMany(t *testing.T) {
	hung, answer := stuck(t)
	var all []Question
	for range 49 {
		all = append(all, mounted(t, "tmpfs", "size=64k"))
	}
	all = slices.Insert(all, 20, hung)
	a := &Asker{}
	for i, r := range a.Ask(t.Context(), all, eager) {
		switch {
		case r.Answer == nil:
			t.Errorf("mount %d was not asked: %s", i, r.Why)
		case r.Answer.Hung != (i == 20):
			t.Errorf("mount %d: hung = %v", i, r.Answer.Hung)
		case i != 20 && (r.Answer.Errno != 0 || r.Answer.StatfsErrno != 0 || r.Answer.Blocks*r.Answer.BlockSize != 64<<10):
			t.Errorf("mount %d: %+v", i, r.Answer)
		}
	}
	if len(a.left) != 1 {
		t.Fatalf("%d processes were left behind, want 1", len(a.left))
	}
	// Another run, which knows nothing of this one.
	b := &Asker{}
	r := b.Ask(t.Context(), all[19:22], eager)
	if r[1].Answer != nil || !strings.Contains(r[1].Why, fmt.Sprint(a.left[0])) {
		t.Errorf("asked again: %+v", r[1])
	}
	if r[0].Answer == nil || r[2].Answer == nil || len(b.left) != 0 {
		t.Errorf("the others: %+v, %+v; left %v", r[0], r[2], b.left)
	}
	answer()
	gone(t, a)
}

// TestSameServer: of mounts that hang together one is asked.
func TestSameServer(t *testing.T) {
	one, answer := stuck(t)
	two, answerTwo := stuck(t)
	one.With, two.With = "server a", "server a"
	one.Slow, two.Slow = false, false // one child for both
	a := &Asker{}
	r := a.Ask(t.Context(), []Question{one, two}, eager)
	if r[0].Answer == nil || !r[0].Answer.Hung || r[1].Answer != nil || !strings.Contains(r[1].Why, "server a") {
		t.Errorf("%+v, %+v", r[0], r[1])
	}
	answer()
	answerTwo()
	gone(t, a)
}

func TestNoTimeLeft(t *testing.T) {
	one, answer := stuck(t)
	one.Slow = false
	a := &Asker{}
	r := a.Ask(t.Context(), []Question{one, mounted(t, "tmpfs", "")},
		Options{Patience: 50 * time.Millisecond, Total: time.Millisecond})
	if r[1].Answer != nil || r[1].Why == "" {
		t.Errorf("after the end: %+v", r[1])
	}
	answer()
	gone(t, a)
}

// TestHoldsNothing: a mount can be unmounted while the child that asked it is there.
func TestHoldsNothing(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	c, err := start()
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := unix.Mount("shisa-test", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		q := question(t, dir)
		q.Write = true
		a, why := c.ask(t.Context(), &q, time.Minute)
		if why != "" || a.Errno != 0 || a.WriteErrno != 0 {
			t.Errorf("asked: %+v, %s", a, why)
		}
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatalf("umount of what was asked: %v", err)
		}
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", c.p.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, dir) {
			t.Errorf("it has %s open", to)
		}
	}
	if to, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", c.p.Pid)); err != nil || to != "/" {
		t.Errorf("it works in %s, %v", to, err)
	}
	if pid := c.end(); pid != 0 {
		t.Errorf("process %d does not end", pid)
	}
}

// TestParentGone: a child that hangs does not outlive its parent as one that could be ended.
func TestParentGone(t *testing.T) {
	q, answer := stuck(t)
	c, err := start()
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := c.ask(t.Context(), &q, 100*time.Millisecond); a == nil || !a.Hung {
		t.Fatalf("it does not hang: %+v", a)
	}
	c.to.Close() // as the kernel does at the end of the parent
	// It ends all threads but the one that cannot be ended.
	for until := time.Now().Add(5 * time.Minute); ; time.Sleep(time.Millisecond) {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", c.p.Pid))
		if err == nil && len(tasks) <= 1 {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("%d threads are left, %v", len(tasks), err)
		}
	}
	answer()
	if pid := c.wait(5 * time.Minute); pid != 0 {
		t.Errorf("process %d does not end", pid)
	}
}

// TestNoTurn: a child that has no turn for longer than a mount is waited for is not taken for one that
// hangs, by who started it or by others, at whatever it is: its mount answers.
func TestNoTurn(t *testing.T) {
	q := mounted(t, "tmpfs", "size=64k")
	c, err := start()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.p.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	type result struct {
		a   *Answer
		why string
	}
	done := make(chan result, 1)
	go func() {
		a, why := c.ask(t.Context(), &q, time.Millisecond)
		done <- result{a, why}
	}()
	select {
	case r := <-done:
		t.Errorf("it is told before the child had a turn: %+v, %s", r.a, r.why)
		done <- r
	case <-time.After(200 * time.Millisecond): // of no matter: with less it is only seen less often
	}
	if err := c.p.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r.a == nil || r.a.Hung {
		t.Errorf("asked: %+v, %s", r.a, r.why)
	}
	if pid := c.end(); pid != 0 {
		t.Errorf("process %d does not end", pid)
	}
}

// TestAnswers: what is wrong with a mount is told as the error of the call.
func TestAnswers(t *testing.T) {
	plain := mounted(t, "tmpfs", "size=1m,nr_inodes=10")
	ro := mounted(t, "tmpfs", "")
	if err := unix.Mount("", ro.Point, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	hidden := question(t, plain.Point)
	hidden.ID += 100000
	dead, answer := stuck(t)
	answer()
	all := []Question{plain, ro, hidden, dead, {ID: 1, Point: plain.Point + "/none"}}
	for i := range all {
		all[i].Write = true
	}
	a := &Asker{}
	got := a.Ask(t.Context(), all, Options{Total: time.Hour})
	for i, want := range []Answer{
		{BlockSize: 4096, Blocks: 256, Free: 256, Avail: 256, Inodes: 10, InodesFree: 9},
		{ReadOnly: true, WriteErrno: int(unix.EROFS)},
		{Other: true, StatfsErrno: -1, WriteErrno: -1},
		{Errno: int(unix.ENOTCONN), StatfsErrno: int(unix.ENOTCONN), WriteErrno: -1},
		{Errno: int(unix.ENOENT), StatfsErrno: int(unix.ENOENT), WriteErrno: -1},
	} {
		a := got[i].Answer
		if a == nil {
			t.Errorf("mount %d: %s", i, got[i].Why)
			continue
		}
		a.Waited = 0
		if i > 0 {
			a.BlockSize, a.Blocks, a.Free, a.Avail, a.Inodes, a.InodesFree = 0, 0, 0, 0, 0, 0
		}
		if *a != want {
			t.Errorf("mount %d: %+v, want %+v", i, *a, want)
		}
	}
}

// TestOtherNamespace asks a mount that this process does not see.
func TestOtherNamespace(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "unshare")
	dir := t.TempDir()
	c := exec.Command("unshare", "--mount", "sh", "-c",
		"mount -t tmpfs -o size=128k x "+dir+" && echo ready && read x")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = c.Wait() // read ends with an error at the end of its input
	}()
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	table, err := linux.Open("").Mounts(t.Context(), c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(table, func(m linux.Mount) bool { return m.Point == dir })
	a := &Asker{}
	r := a.Ask(t.Context(), []Question{{ID: table[i].ID, Point: dir, PID: c.Process.Pid, Write: true}}, Options{Total: time.Hour})
	if x := r[0].Answer; x == nil || x.Errno != 0 || x.Blocks*x.BlockSize != 128<<10 || x.WriteErrno != 0 {
		t.Errorf("%+v", r[0])
	}
}

func TestEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := &Asker{}
	if r := a.Ask(ctx, []Question{{ID: 1, Point: "/"}}, Options{}); r[0].Answer != nil || r[0].Why == "" {
		t.Errorf("%+v", r[0])
	}
}
