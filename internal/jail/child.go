// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package jail

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// The descriptors that a child is born with: lanes and feeds come after these.
const (
	fdLife = 3 + iota
	fdMemory
	fdFirst
)

// nobody is the user and group that a child of root becomes, as in all of Linux.
const nobody = 65534

// setting is what the parent tells the child at birth.
type setting struct {
	Disks       []diskSetting
	Lanes       int
	Feeds       int
	MemoryBytes int64
}

type diskSetting struct {
	Name         string
	Size, Sector int64
}

// IsChild reports whether this process was started by Start and has to call Serve at once.
func IsChild(argv []string) bool { return len(argv) > 0 && filepath.Base(argv[0]) == childName }

// Serve is what a child does until its parent is gone. It gives the exit status.
func Serve() int {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func serve() error {
	buf := make([]byte, maxMessage)
	m, err := receive(fdLife, buf)
	if err != nil {
		return err
	}
	var set setting
	if err := json.Unmarshal(m.b, &set); err != nil {
		return err
	}
	windows, err := unix.Mmap(fdMemory, 0, (set.Lanes+set.Feeds)*windowBytes,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if err := drop(set.MemoryBytes); err != nil {
		return err
	}
	s := newServer(set, windows)
	if err := send(fdLife, []byte("ready")); err != nil {
		return err
	}
	ended := make(chan error, set.Lanes)
	for i := range set.Lanes {
		go func() { ended <- s.lane(fdFirst+i, windows[i*windowBytes:][:windowBytes]) }()
	}
	go func() {
		// The parent says nothing more: its end is the end.
		_, err := receive(fdLife, make([]byte, 1))
		if err == nil {
			err = errMessage
		}
		ended <- err
	}()
	if err := <-ended; !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// limit is one of setrlimit(2).
type limit struct {
	what  int
	value uint64
}

// maxThreads keeps a child that was taken over from using up the numbers that a host has for threads,
// 32768 on many. All of its user count, where the kernel gave it no namespace of its own.
const maxThreads = 4096

// drop gives up what the child does not need, for ever.
func drop(memory int64) error {
	var threads unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &threads); err != nil {
		return fmt.Errorf("limit of threads: %w", err)
	}
	limits := []limit{
		{unix.RLIMIT_CORE, 0}, {unix.RLIMIT_FSIZE, 0}, {unix.RLIMIT_NOFILE, 64},
		{unix.RLIMIT_NPROC, min(threads.Max, maxThreads)},
	}
	if !raceDetector {
		// The runtime takes its heap from the kernel in arenas of 64 MiB; half of the limit is for that
		// and for its own tables.
		limits = append(limits, limit{unix.RLIMIT_DATA, uint64(2 * memory)})
	}
	debug.SetMemoryLimit(memory / 2)
	for _, l := range limits {
		if err := unix.Setrlimit(l.what, &unix.Rlimit{Cur: l.value, Max: l.value}); err != nil {
			return fmt.Errorf("limit %d: %w", l.what, err)
		}
	}
	if os.Geteuid() == 0 {
		if err := becomeNobody(); err != nil {
			return fmt.Errorf("become nobody: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	if err := dieWithParent(); err != nil {
		return err
	}
	// It is one thread that has it when the filter asks; seccomp's TSYNC gives it to all.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	return confine()
}

// becomeNobody gives up root's identity; in a user namespace that has only root, its capabilities.
func becomeNobody() error {
	// Those of the syscall package act on all threads.
	err := syscall.Setresgid(nobody, nobody, nobody)
	if errors.Is(err, syscall.EINVAL) {
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)),
			uintptr(unsafe.Pointer(&none[0])), 0)
		if errno != 0 {
			return fmt.Errorf("%w, and %w", err, errno)
		}
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(syscall.Setgroups(nil), syscall.Setresuid(nobody, nobody, nobody))
}

// dieWithParent has the kernel end the child with its parent, even if who took it over does not
// look at its sockets. Another user than before has to say so again.
func dieWithParent() error {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG,
		uintptr(unix.SIGKILL), 0)
	if errors.Is(errno, unix.ENOTSUP) { // built with cgo, as for the race detector
		return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	}
	if errno != 0 {
		return fmt.Errorf("die with the parent: %w", errno)
	}
	return nil
}

// feeder has the parent read the disks.
type feeder struct {
	free chan *feed
}

// feed is a socket and the memory in which the parent puts what it read.
type feed struct {
	fd     int
	window []byte
	buf    []byte
}

// remote is a disk that the parent reads. It is io.ReaderAt.
type remote struct {
	*feeder
	disk int
	size int64
}

func (r *remote) ReadAt(p []byte, off int64) (int, error) {
	f := <-r.free
	defer func() { r.free <- f }()
	done := 0
	for done < len(p) {
		want := min(len(p)-done, windowBytes)
		n, err := f.read(r.disk, off+int64(done), want)
		done += copy(p[done:], f.window[:n])
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// read asks for bytes.
func (f *feed) read(disk int, off int64, want int) (int, error) {
	q := message{b: f.buf[:0]}
	q.putInt(int64(disk))
	q.putInt(off)
	q.putInt(int64(want))
	if err := send(f.fd, q.b); err != nil {
		return 0, err
	}
	a, err := receive(f.fd, f.buf[:cap(f.buf)])
	if err != nil {
		return 0, err
	}
	n := a.int()
	err = a.error()
	if a.bad || n < 0 || n > int64(want) || err == nil && n < int64(want) {
		return 0, errMessage
	}
	return int(n), err
}

// disks gives what the child reads.
func (s *setting) disks(windows []byte) []volume.Disk {
	fs := &feeder{free: make(chan *feed, s.Feeds)}
	for i := range s.Feeds {
		n := s.Lanes + i
		fs.free <- &feed{fd: fdFirst + n, window: windows[n*windowBytes:][:windowBytes],
			buf: make([]byte, 8<<10)}
	}
	var all []volume.Disk
	for i, d := range s.Disks {
		all = append(all, volume.Disk{Name: d.Name, Size: d.Size, Sector: d.Sector,
			Data: &remote{feeder: fs, disk: i, size: d.Size}})
	}
	return all
}
