// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package jail reads what guests wrote in a child process that can do nothing else.
//
// The partition tables and file systems of a guest come from a stranger. The child that parses them
// is this program once more, as another user and without privileges: it has no file open but its
// sockets, a filter of system calls lets it open none and call nobody, its memory is bounded, and
// what takes too long is ended. It sees the disk through the parent, which reads the bytes that the
// child asks for, and only from the disks that it was started for:
//
//	parent                                         child (nobody, seccomp, limits)
//	  Jail.Layout, FS ──── calls, on lanes ────────> internal/guest/volume, ext4, xfs
//	  disks           <─── reads, on feeds ────────    io.ReaderAt
//	                  ──── bytes, in shared memory ─>
//
// If the child dies, all calls end with a *[CrashError]: that is a finding about the disk, and
// nothing of this program is hurt.
package jail

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// childName is argv[0] of a child.
const childName = "shisa-jail"

// The sizes of a jail.
const (
	lanes = 4 // calls at one time
	feeds = 4 // reads at one time
	// MemoryBytes bounds what a child may use.
	MemoryBytes = 512 << 20
	// patience is how long a child may compute without reading or answering. Nothing that a reader
	// does between two reads of the disk takes a second.
	patience = time.Minute
	// grace is how long Close waits for reads of the disk that are under way.
	grace = 2 * time.Second
	// maxLayout bounds what a child may tell at once about the disks or a view, as JSON.
	maxLayout = 16 << 20
	// maxWords bounds what is kept of its last words.
	maxWords = 8 << 10
)

// ErrClosed: the jail was closed.
var ErrClosed = errors.New("the reader of the guest's disk was ended")

// CrashError says that the child ended by itself, or was ended since it took too long.
type CrashError struct {
	How   string // as "signal: killed" or "exit status 2"
	Words string // what it said last, cut
}

func (e *CrashError) Error() string {
	first, _, _ := strings.Cut(e.Words, "\n")
	if first == "" {
		return "the reader of the guest's disk crashed: " + e.How
	}
	return fmt.Sprintf("the reader of the guest's disk crashed: %s: %q", e.How, first)
}

// Jail is a child with the disks of one guest. It may be used by several goroutines at once.
type Jail struct {
	disks   []volume.Disk
	cmd     *exec.Cmd
	life    *os.File
	free    chan *lane
	windows []byte
	words   *words

	reading atomic.Int64 // reads of the disks that are under way
	moved   atomic.Int64 // when something last happened, in nanoseconds since 1970

	mu    sync.Mutex
	cause error         // why the child was ended, nil if it ended by itself
	done  chan struct{} // closed when the child has ended
	ended error         // valid then
	freed chan struct{} // closed when nothing of it is left
	feeds sync.WaitGroup
}

// lane is a socket for calls, and memory in which the child puts what it was asked to read.
type lane struct {
	sock   *os.File
	window []byte
	buf    []byte
}

// Start starts a child for disks, which stay the caller's. The program has to begin with
//
//	if jail.IsChild(os.Args) { os.Exit(jail.Serve()) }
//
// It is an error if the child cannot be confined.
func Start(ctx context.Context, disks []volume.Disk) (*Jail, error) {
	j := &Jail{disks: disks, free: make(chan *lane, lanes), words: new(words),
		done: make(chan struct{}), freed: make(chan struct{})}
	if err := j.start(ctx); err != nil {
		return nil, fmt.Errorf("start the reader of the guest's disk: %w", err)
	}
	return j, nil
}

func (j *Jail) start(ctx context.Context) (err error) {
	var theirs, ours []*os.File
	defer func() {
		for _, f := range theirs {
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			for _, f := range ours {
				err = errors.Join(err, f.Close())
			}
		}
	}()
	pair := func() (*os.File, error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		ours = append(ours, os.NewFile(uintptr(fds[0]), "jail"))
		theirs = append(theirs, os.NewFile(uintptr(fds[1]), "jail"))
		return ours[len(ours)-1], nil
	}
	if j.life, err = pair(); err != nil {
		return err
	}
	memory, err := j.memory()
	if err != nil {
		return err
	}
	theirs = append(theirs, memory)
	var feedSocks []*os.File
	for i := range lanes + feeds {
		sock, err := pair()
		if err != nil {
			return err
		}
		if i >= lanes {
			feedSocks = append(feedSocks, sock)
			continue
		}
		// Who waits for an answer looks up from time to time, at the context and the clock.
		tv := unix.NsecToTimeval(int64(200 * time.Millisecond))
		if err := unix.SetsockoptTimeval(int(sock.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return err
		}
		j.free <- &lane{sock: sock, window: j.windows[i*windowBytes:][:windowBytes],
			buf: make([]byte, maxMessage)}
	}
	if err := j.spawn(theirs); err != nil {
		return err
	}
	j.moved.Store(time.Now().UnixNano())
	for i, sock := range feedSocks {
		window := j.windows[(lanes+i)*windowBytes:][:windowBytes]
		j.feeds.Go(func() { j.feed(sock, window) })
	}
	go j.wait(ours)
	if err := j.greet(); err != nil {
		return errors.Join(err, j.Close())
	}
	return ctx.Err()
}

// memory makes the memory that both share.
func (j *Jail) memory() (*os.File, error) {
	fd, err := unix.MemfdCreate(childName, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), childName)
	size := (lanes + feeds) * windowBytes
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	j.windows, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// spawn starts the child, in namespaces of its own where the kernel lets us.
func (j *Jail) spawn(inherit []*os.File) error {
	flags := uintptr(unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNS)
	attempt := func(attr *syscall.SysProcAttr) error {
		j.cmd = &exec.Cmd{Path: "/proc/self/exe", Args: []string{childName}, Env: []string{},
			Dir: "/", Stderr: j.words, ExtraFiles: inherit, SysProcAttr: attr}
		return j.cmd.Start()
	}
	attr := &syscall.SysProcAttr{Cloneflags: flags, Setpgid: true}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: nobody, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: nobody, HostID: os.Getgid(), Size: 1}}
	}
	if err := attempt(attr); err == nil {
		return nil
	}
	// Containers and hardened kernels allow no namespaces. The filter of system calls, which the
	// child does not run without, leaves nothing for them to hide.
	return attempt(&syscall.SysProcAttr{Setpgid: true})
}

// greet tells the child what it is for, and waits until it is confined.
func (j *Jail) greet() error {
	set := setting{Lanes: lanes, Feeds: feeds, MemoryBytes: MemoryBytes}
	for _, d := range j.disks {
		set.Disks = append(set.Disks, diskSetting{Name: d.Name, Size: d.Size, Sector: d.Sector})
	}
	b, err := json.Marshal(set)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return fmt.Errorf("%d disks are too many", len(j.disks))
	}
	if err := send(int(j.life.Fd()), b); err != nil {
		return j.gone(err)
	}
	if _, err := receive(int(j.life.Fd()), make([]byte, 64)); err != nil {
		return j.gone(err)
	}
	return nil
}

// wait waits for the end of the child, and cleans up.
func (j *Jail) wait(ours []*os.File) {
	err := j.cmd.Wait()
	for _, f := range ours {
		// A thread that reads from it is woken.
		_ = unix.Shutdown(int(f.Fd()), unix.SHUT_RDWR)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.cause != nil:
		j.ended = j.cause
	case err != nil:
		j.ended = &CrashError{How: err.Error(), Words: j.words.String()}
	default:
		j.ended = &CrashError{How: "it ended", Words: j.words.String()}
	}
	close(j.done)
	go j.release(ours)
}

// release gives back sockets and memory when no call and no read uses them any more.
func (j *Jail) release(ours []*os.File) {
	j.feeds.Wait()
	for range lanes {
		<-j.free
	}
	for _, f := range ours {
		_ = f.Close()
	}
	_ = unix.Munmap(j.windows)
	close(j.free)
	close(j.freed)
}

// end ends the child for a reason; the first one counts.
func (j *Jail) end(cause error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.cause == nil {
		j.cause = cause
	}
	_ = j.cmd.Process.Kill() // it may have ended already
}

// gone gives the reason why the child is gone, after it was seen that it is.
func (j *Jail) gone(err error) error {
	if !errors.Is(err, io.EOF) {
		j.end(err)
	}
	<-j.done
	return j.ended
}

// Close ends the child. Calls that are under way end with ErrClosed. A read of a disk that hangs is
// not waited for: what it needs is given back when it ends.
func (j *Jail) Close() error {
	j.end(ErrClosed)
	<-j.done
	select {
	case <-j.freed:
	case <-time.After(grace):
	}
	return nil
}

// feed reads the disks for the child until it is gone.
func (j *Jail) feed(sock *os.File, window []byte) {
	fd := int(sock.Fd())
	buf := make([]byte, 8<<10)
	for {
		m, err := receive(fd, buf)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			j.end(err)
			return
		}
		disk, off, want := m.int(), m.int(), m.int()
		if m.bad || disk < 0 || disk >= int64(len(j.disks)) || off < 0 || want < 0 || want > windowBytes {
			j.end(errMessage)
			return
		}
		j.reading.Add(1)
		n, err := j.disks[disk].Data.ReadAt(window[:want], off)
		j.reading.Add(-1)
		j.moved.Store(time.Now().UnixNano())
		a := message{b: buf[:0]}
		a.putInt(int64(n))
		if n == int(want) {
			err = nil
		}
		a.putError(err)
		if err := send(fd, a.b); err != nil {
			if !errors.Is(err, io.EOF) {
				j.end(err)
			}
			return
		}
	}
}

// call sends a call and gives the answer, which use reads before the lane is free for others.
func (j *Jail) call(ctx context.Context, q *message, use func(a *message, window []byte)) error {
	var l *lane
	select {
	case got, ok := <-j.free:
		if !ok {
			return j.ended
		}
		l = got
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { j.free <- l }()
	j.moved.Store(time.Now().UnixNano())
	if err := send(int(l.sock.Fd()), q.b); err != nil {
		return j.gone(err)
	}
	for {
		a, err := receive(int(l.sock.Fd()), l.buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			if ctx.Err() != nil {
				// What it is at cannot be taken back, and its answer would be taken for the next one's.
				j.end(ctx.Err())
				return ctx.Err()
			}
			if j.reading.Load() == 0 && time.Since(time.Unix(0, j.moved.Load())) > patience {
				j.end(&CrashError{How: fmt.Sprintf("it was ended since it computed for %v", patience)})
			}
		case err != nil:
			return j.gone(err)
		default:
			j.moved.Store(time.Now().UnixNano())
			use(a, l.window)
			if a.bad {
				return j.gone(errMessage)
			}
			return nil
		}
	}
}

// list makes a call whose answer is a list, and calls item for each of it.
func (j *Jail) list(ctx context.Context, q *message, item func(*message) error) error {
	for {
		var page message
		var id int64
		err := j.call(ctx, q, func(a *message, _ []byte) {
			id = a.int()
			page.b = append(page.b, a.b...)
		})
		if err != nil {
			return err
		}
		for mark := page.int(); mark == markItem; mark = page.int() {
			if err := item(&page); err != nil {
				return errors.Join(err, j.forget(ctx, id))
			}
			if page.bad {
				break
			}
		}
		switch {
		case page.bad:
			return j.gone(errMessage)
		case id == 0:
			err := page.error()
			if page.bad {
				return j.gone(errMessage)
			}
			return err
		}
		q = &message{}
		q.putInt(opNext)
		q.putInt(id)
	}
}

// forget ends a list before its end.
func (j *Jail) forget(ctx context.Context, id int64) error {
	if id == 0 || ctx.Err() != nil {
		return nil
	}
	q := &message{}
	q.putInt(opStop)
	q.putInt(id)
	return j.call(ctx, q, func(*message, []byte) {})
}

// value makes a call whose answer is JSON.
func (j *Jail) value(ctx context.Context, q *message, v any) error {
	var all []byte
	err := j.list(ctx, q, func(m *message) error {
		all = append(all, m.string()...)
		if len(all) > maxLayout {
			return j.gone(errMessage)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := json.Unmarshal(all, v); err != nil {
		return j.gone(errMessage)
	}
	return nil
}

// Layout tells what the disks are divided into. Its volumes cannot be read from here.
func (j *Jail) Layout(ctx context.Context) (*volume.Layout, error) {
	q := &message{}
	q.putInt(opLayout)
	l := new(volume.Layout)
	if err := j.value(ctx, q, l); err != nil {
		return nil, err
	}
	l.Disks = j.disks
	return l, nil
}

// Within tells which parts of volumes lie in length bytes of a disk at off, as [volume.Layout.Within].
func (j *Jail) Within(ctx context.Context, disk int, off, length int64) ([]volume.Hit, error) {
	q := &message{}
	q.putInt(opWithin)
	q.putInt(int64(disk))
	q.putInt(off)
	q.putInt(length)
	var hits []volume.Hit
	err := j.list(ctx, q, func(m *message) error {
		var h volume.Hit
		if err := json.Unmarshal([]byte(m.string()), &h); err != nil {
			return j.gone(errMessage)
		}
		hits = append(hits, h)
		return nil
	})
	return hits, err
}

// words keeps the first bytes that are written to it: what a panic says comes first.
type words struct {
	mu sync.Mutex
	b  []byte
}

func (t *words) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[:min(len(p), maxWords-len(t.b))]...)
	return len(p), nil
}

func (t *words) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}
