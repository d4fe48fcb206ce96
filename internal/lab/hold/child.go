// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// childName is what a child is called in argv[0].
const childName = "shisa-hold"

// IsChild reports whether this process was started by Make and has to call Serve at once.
func IsChild(argv []string) bool {
	return len(argv) == 3 && filepath.Base(argv[0]) == childName
}

// child is a process that holds, seen from inside.
type child struct {
	Place
	hold Hold
	undo []func() error
	// order does what the parent says with one byte, nil where it has nothing to say.
	order func(b byte) report
	// leave ends the process' first thread once it is closed.
	leave chan struct{}
}

// Serve makes the holder that this process was started for, and ends the process when its parent
// wants it or is gone. It does not return.
func Serve() {
	runtime.LockOSThread() // the first thread: one kind ends it
	c := &child{hold: Hold{PID: os.Getpid(), FD: -1}, leave: make(chan struct{})}
	go func() { os.Exit(c.serve(os.Args[1], os.Args[2])) }()
	<-c.leave
	// exit(2) ends this thread alone. The runtime takes it for one that is long in a system call.
	for {
		unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
	}
}

// serve gives the exit status of the child.
func (c *child) serve(kind, place string) int {
	err := json.Unmarshal([]byte(place), &c.Place)
	kinds := slices.Concat(Kinds(), Passing(), turning())
	i := slices.IndexFunc(kinds, func(k Kind) bool { return k.Name == kind })
	switch {
	case err != nil:
	case i < 0:
		err = fmt.Errorf("no kind of holder is called %q", kind)
	default:
		err = kinds[i].make(c)
	}
	r := reportOf(c.hold, err)
	if sayErr := json.NewEncoder(os.Stdout).Encode(r); sayErr != nil {
		err = sayErr
	}
	if err == nil {
		err = c.obey()
	} else if r.Error != "" {
		err = nil // the parent knows
	}
	slices.Reverse(c.undo)
	for _, undo := range c.undo {
		err = errors.Join(err, undo())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func reportOf(h Hold, err error) report {
	r := report{Hold: h}
	if err != nil {
		r.Error, r.Unavailable = err.Error(), lacking(err)
	}
	return r
}

// obey does what the parent says, until the parent's end of the standard input is closed.
func (c *child) obey() error {
	if c.order == nil {
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	for {
		var b [1]byte
		if _, err := io.ReadFull(os.Stdin, b[:]); err != nil {
			if err == io.EOF {
				err = nil
			}
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(c.order(b[0])); err != nil {
			return err
		}
	}
}

// lacking tells whether err says that the kernel or the user's rights are short of something.
func lacking(err error) bool {
	return slices.ContainsFunc([]error{ErrUnavailable, unix.ENOSYS, unix.EPERM, unix.EACCES,
		unix.EOPNOTSUPP, unix.ENODEV}, func(e error) bool { return errors.Is(err, e) })
}

// later has fn undone at the end.
func (c *child) later(fn func() error) { c.undo = append(c.undo, fn) }

// file makes a file with some content on the mount, and gives its path.
func (c *child) file(name string) (string, error) {
	path := c.Mount + "/" + name
	return path, os.WriteFile(path, make([]byte, 64<<10), 0o755)
}

// open opens a new file on the mount; the descriptor is nobody's but the caller's.
func (c *child) open(name string, flags int) (int, error) {
	path, err := c.file(name)
	if err != nil {
		return -1, err
	}
	c.hold.Path = path
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	return fd, nil
}

// fifo makes a named pipe on the mount.
func (c *child) fifo() (string, error) {
	c.hold.Path = c.Mount + "/fifo"
	return c.hold.Path, unix.Mkfifo(c.hold.Path, 0o600)
}

// dir makes a directory on the mount, or aside.
func dir(parent, name string) (string, error) {
	path := parent + "/" + name
	return path, os.MkdirAll(path, 0o755)
}

// onThread runs fn on a thread that stays until the process ends, and gives the thread's number.
func onThread(fn func() error) (int, error) {
	type end struct {
		tid int
		err error
	}
	done := make(chan end)
	go func() {
		runtime.LockOSThread()
		done <- end{unix.Gettid(), fn()}
		select {}
	}()
	e := <-done
	return e.tid, e.err
}

// onLostThread runs fn on a thread that ends with it, and waits until that thread is gone.
func onLostThread(fn func() error) error {
	done := make(chan error)
	var tid int
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		tid = unix.Gettid()
		done <- fn()
	}()
	err := <-done
	return errors.Join(err, until(func() (bool, error) {
		_, err := os.Stat("/proc/self/task/" + strconv.Itoa(tid))
		return errors.Is(err, os.ErrNotExist), nil
	}))
}

// stuck starts fn, which is to wait in a system call for ever, on a thread of its own, and waits
// until it does: nr is the call's number.
func stuck(nr int, fn func() error) (int, error) {
	tid, failed := make(chan int), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		failed <- fn()
	}()
	n := <-tid
	return n, until(func() (bool, error) {
		select {
		case err := <-failed:
			return false, errors.Join(errors.New("the system call came back"), err)
		default:
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", n))
		return strings.HasPrefix(string(text), strconv.Itoa(nr)+" "), err
	})
}

// until waits for something to become so.
func until(so func() (bool, error)) error {
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		ok, err := so()
		if ok || err != nil {
			return err
		}
		if time.Now().After(end) {
			return errors.New("waited in vain")
		}
	}
}

// namespace is the inode of the mount namespace of the calling thread.
func namespace() (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat("/proc/thread-self/ns/mnt", &st)
	return st.Ino, err
}

// copyFile copies a file to a new one.
func copyFile(from, to string, mode os.FileMode) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
