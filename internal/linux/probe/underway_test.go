// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"encoding/binary"
	"maps"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// everything gives what this process has on the mount of a kind, also of what is under way.
func everything(t *testing.T, r *Refs, m Mount, k Kind) map[uint64]Reference {
	t.Helper()
	refs, err := r.Everything(t.Context(), m.Super)
	if err != nil {
		t.Fatal(err)
	}
	held := map[uint64]Reference{}
	for _, ref := range refs {
		if ref.Kind == k && ref.PID == os.Getpid() && ref.Mount == m.Addr {
			held[ref.Holder] = ref
		}
	}
	return held
}

// pipes opens a named pipe for reading, n times.
func pipes(t *testing.T, dir string, n int) (fds []int) {
	t.Helper()
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	for range n {
		fd, err := unix.Open(dir+"/fifo", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

// TestRequests: of requests that wait each is found, however many there are.
func TestRequests(t *testing.T) {
	r := openRefs(t)
	for _, c := range []struct {
		name string
		kind Kind
		wait func(t *testing.T, fds []int) (end func())
	}{{"aio", AIO, waitAIO}, {"io_uring", IOUring, waitRing}} {
		t.Run(c.name, func(t *testing.T) {
			dir := tmpfs(t)
			m := find(t, r, dir)
			fds := pipes(t, dir, 3*40) // more than any program takes in one run
			end := c.wait(t, fds)
			both := everything(t, r, m, c.kind)
			maps.Copy(both, everything(t, r, m, OpenFD)) // an open file is one reference, whoever has it
			if len(both) != len(fds) {
				t.Errorf("%d open files and requests for them, want %d", len(both), len(fds))
			}
			shut(t, fds)
			if got := everything(t, r, m, c.kind); len(got) != len(fds) {
				t.Errorf("%d requests, want %d", len(got), len(fds))
			} else {
				for _, ref := range got {
					if ref.Path != dir+"/fifo" || ref.Write || ref.Count != 1 {
						t.Errorf("a request %+v, want %s for reading", ref, dir)
					}
				}
			}
			m, err := r.Again(t.Context(), m)
			if err != nil || m.Count-m.Baseline != int64(len(fds)) {
				t.Errorf("the kernel counts %d over %d, %v, want %d", m.Count, m.Baseline, err, len(fds))
			}
			end()
			gone := func() bool { return len(everything(t, r, m, c.kind)) == 0 }
			for end := time.Now().Add(5 * time.Minute); !gone(); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("requests are told when there are none")
				}
			}
		})
	}
}

// waitAIO has io_submit(2) wait for each of the files.
func waitAIO(t *testing.T, fds []int) func() {
	const cmdPoll = 5 // IOCB_CMD_POLL
	var id uintptr
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(len(fds)), uintptr(unsafe.Pointer(&id)), 0); errno != 0 {
		t.Fatal(errno)
	}
	for _, fd := range fds {
		// struct iocb: the operation is at 16, the file at 20, what poll(2) waits for at 24.
		request := make([]byte, 64)
		binary.NativeEndian.PutUint16(request[16:], cmdPoll)
		binary.NativeEndian.PutUint32(request[20:], uint32(fd))
		binary.NativeEndian.PutUint64(request[24:], unix.POLLIN)
		list := [1]unsafe.Pointer{unsafe.Pointer(&request[0])}
		n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, id, 1, uintptr(unsafe.Pointer(&list)))
		if errno != 0 || n != 1 {
			t.Fatal(n, errno)
		}
	}
	return func() {
		if _, _, errno := unix.Syscall(unix.SYS_IO_DESTROY, id, 0, 0); errno != 0 {
			t.Error(errno)
		}
	}
}

// waitRing has an io_uring wait for each of the files. All requests have the same number, and so are on
// one list.
func waitRing(t *testing.T, fds []int) func() {
	const (
		entries         = 256
		offSQEs, opPoll = 0x10000000, 6
		sqTail, sqArray = 44, 64 // in struct io_uring_params
		entryBytes      = 64
	)
	params := make([]byte, 120)
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, entries, uintptr(unsafe.Pointer(&params[0])), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	at := func(offset int) int { return int(binary.NativeEndian.Uint32(params[offset:])) }
	queue, err := unix.Mmap(int(fd), 0, at(sqArray)+4*entries, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	all, err := unix.Mmap(int(fd), offSQEs, entries*entryBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range fds {
		e := all[i*entryBytes:]
		e[0] = opPoll
		binary.NativeEndian.PutUint32(e[4:], uint32(f))
		binary.NativeEndian.PutUint32(e[28:], unix.POLLIN)
		binary.NativeEndian.PutUint32(queue[at(sqArray)+4*i:], uint32(i))
	}
	binary.NativeEndian.PutUint32(queue[at(sqTail):], uint32(len(fds)))
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, fd, uintptr(len(fds)), 0, 0, 0, 0)
	if errno != 0 || int(n) != len(fds) {
		t.Fatal(n, errno)
	}
	return func() {
		for _, m := range [][]byte{queue, all} {
			if err := unix.Munmap(m); err != nil {
				t.Error(err)
			}
		}
		shut(t, []int{int(fd)})
	}
}

// TestPassedBy: whoever only waits for something else is not told, whatever calls before it left on its
// stack.
func TestPassedBy(t *testing.T) {
	r := openRefs(t)
	dir := tmpfs(t)
	m := find(t, r, dir)
	var elsewhere [2]int
	if err := unix.Pipe2(elsewhere[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	waits, done := make(chan int), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var st unix.Stat_t
		var fs unix.Statfs_t
		for range 200 {
			fd, err := unix.Open(dir+"/file", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
			if err == nil {
				_, _ = unix.Read(fd, make([]byte, 10))
				_, _ = unix.Stat(dir+"/file", &st), unix.Statfs(dir, &fs)
				err = unix.Close(fd)
			}
			if err != nil {
				t.Error(err)
			}
		}
		waits <- unix.Gettid()
		_, err := unix.Read(elsewhere[0], make([]byte, 1))
		done <- err
	}()
	tid := <-waits
	asleep(t, tid)
	for range 20 {
		for _, ref := range everything(t, r, m, Waits) {
			if ref.TID == tid {
				t.Errorf("%+v is told of one that waits elsewhere", ref)
			}
		}
	}
	shut(t, elsewhere[1:])
	if err := <-done; err != nil {
		t.Error(err)
	}
	shut(t, elsewhere[:1])
}

// asleep waits until a thread sleeps in read(2).
func asleep(t *testing.T, tid int) {
	t.Helper()
	name := "/proc/self/task/" + strconv.Itoa(tid) + "/syscall"
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > 2 && string(text[:2]) == strconv.Itoa(unix.SYS_READ)+" " {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s says %q", name, text)
		}
	}
}
