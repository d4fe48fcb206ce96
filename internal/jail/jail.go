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
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
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
	// patience is how long a child may compute without reading. Nothing that a reader does between
	// two reads of the disk takes a second. It is counted in looks, and not with a clock, which goes
	// on while this program is stopped or the machine sleeps. That others get their answers
	// meanwhile does not count: see budget for one that reads and never answers.
	patience = time.Minute
	// look is how often who waits for an answer looks up, at the context and at patience.
	look = 200 * time.Millisecond
	// grace is how long Close waits for reads of the disk that are under way.
	grace = 2 * time.Second
	// maxLayout bounds what a child may tell at once about the disks or a view, as JSON.
	maxLayout = 16 << 20
	// maxObjects bounds the objects in that; volume.Find and files.View list some thousands.
	maxObjects = 1 << 17
	// maxItems bounds a list, as of all inodes: a child that was taken over could go on for ever.
	maxItems = files.MaxNames
	// maxHits bounds the parts of volumes in one range of a disk: those of a striped volume.
	maxHits = 1 << 20
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
	most    int64 // items in one list: maxItems
	budget  *budget

	volumes atomic.Int64 // how many the layout has
	reading atomic.Int64 // reads of the disks that are under way
	moved   atomic.Int64 // how many reads of the disks ended

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
		most: maxItems, budget: newBudget(disks), done: make(chan struct{}), freed: make(chan struct{})}
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
			for _, f := range ours { // of a child that was never there
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
		if err := waits(sock, look); err != nil {
			return err
		}
		j.free <- &lane{sock: sock, window: j.windows[i*windowBytes:][:windowBytes],
			buf: make([]byte, maxMessage)}
	}
	if err := waits(j.life, patience); err != nil {
		return err
	}
	j.feeds.Add(len(feedSocks)) // before anybody waits for them
	if err := j.launch(theirs, ours); err != nil {
		return err
	}
	ours = nil // they are given back with the child
	for i, sock := range feedSocks {
		window := j.windows[(lanes+i)*windowBytes:][:windowBytes]
		go func() { defer j.feeds.Done(); j.feed(sock, window) }()
	}
	if err := cmp.Or(j.greet(), ctx.Err()); err != nil {
		return errors.Join(err, j.Close())
	}
	return nil
}

// waits bounds how long a receive on a socket takes, and a send: a child that was taken over may
// answer and never read.
func waits(sock *os.File, receive time.Duration) error {
	for what, d := range map[int]time.Duration{unix.SO_RCVTIMEO: receive, unix.SO_SNDTIMEO: patience} {
		tv := unix.NsecToTimeval(int64(d))
		if err := unix.SetsockoptTimeval(int(sock.Fd()), unix.SOL_SOCKET, what, &tv); err != nil {
			return err
		}
	}
	return nil
}

// launch starts the child, and has it waited for.
func (j *Jail) launch(inherit, ours []*os.File) error {
	started := make(chan error)
	go func() {
		// The kernel ends the child with the thread that started it, so that thread has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := j.spawn(inherit)
		started <- err
		if err == nil {
			j.wait(ours)
		}
	}()
	return <-started
}

// memory makes the memory that both share.
func (j *Jail) memory() (*os.File, error) {
	fd, err := unix.MemfdCreate(childName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), childName)
	size := (lanes + feeds) * windowBytes
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// Who shortens memory that another has mapped ends that one with SIGBUS.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS,
		unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
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
	keepDescriptors()
	// None for mounts: it would keep what others unmount meanwhile busy, and nothing is opened by name.
	flags := uintptr(unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	attempt := func(attr *syscall.SysProcAttr) error {
		j.cmd = &exec.Cmd{Path: "/proc/self/exe", Args: []string{childName}, Env: []string{},
			Dir: "/", Stderr: j.words, ExtraFiles: inherit, SysProcAttr: attr}
		return j.cmd.Start()
	}
	attr := &syscall.SysProcAttr{Cloneflags: flags, Setpgid: true, Pdeathsig: syscall.SIGKILL}
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
	return attempt(&syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL})
}

// keepDescriptors keeps what this program was started with (a lock that a script holds, a pipe of
// another program) from the child. What this program opens itself is closed there anyway.
func keepDescriptors() {
	const first = 3
	if unix.CloseRange(first, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	var most unix.Rlimit // Linux before 5.11
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &most) != nil {
		most.Cur = 1024
	}
	for fd := first; fd < int(min(most.Cur, 1<<16)); fd++ {
		unix.CloseOnExec(fd)
	}
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

// gone gives the reason why the child is gone, after it was seen that it is, or has to be.
func (j *Jail) gone(err error) error {
	if !errors.Is(err, io.EOF) {
		j.end(&CrashError{How: "it was ended: " + err.Error()})
	}
	select {
	case <-j.done:
	case <-time.After(grace):
		j.end(&CrashError{How: "it was ended since it closed its socket"})
		<-j.done
	}
	return j.ended
}

// Crash tells how the child ended, nil if it is there or was ended for no fault of its own.
func (j *Jail) Crash() *CrashError {
	select {
	case <-j.done:
	default:
		return nil
	}
	crash := new(CrashError)
	if !errors.As(j.ended, &crash) {
		return nil
	}
	return crash
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
			j.end(&CrashError{How: "it was ended: " + err.Error()})
			return
		}
		disk, off, want := m.int(), m.int(), m.int()
		if m.bad || disk < 0 || disk >= int64(len(j.disks)) || off < 0 || want < 0 || want > windowBytes {
			j.end(&CrashError{How: "it was ended: " + errMessage.Error()})
			return
		}
		if err := j.budget.read(want); err != nil {
			j.end(&CrashError{How: "it was ended: " + err.Error()})
			return
		}
		j.reading.Add(1)
		n, err := readDisk(&j.disks[disk], window[:want], off)
		j.reading.Add(-1)
		j.moved.Add(1)
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

// readDisk reads a disk up to its end; where that is, the child may not know.
func readDisk(d *volume.Disk, p []byte, off int64) (int, error) {
	if left := max(d.Size-off, 0); int64(len(p)) > left {
		if left == 0 {
			return 0, io.EOF
		}
		n, err := d.Data.ReadAt(p[:left], off)
		if int64(n) == left {
			err = io.EOF
		}
		return n, err
	}
	return d.Data.ReadAt(p, off)
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
	j.budget.begin(l, q)
	defer j.budget.done(l)
	if err := send(int(l.sock.Fd()), q.b); err != nil {
		return j.gone(err)
	}
	moved, quiet := j.moved.Load(), time.Duration(0)
	for {
		a, err := receive(int(l.sock.Fd()), l.buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			if ctx.Err() != nil {
				// What it is at cannot be taken back, and its answer would be taken for the next one's.
				j.end(ctx.Err())
				return ctx.Err()
			}
			quiet += look
			if now := j.moved.Load(); now != moved || j.reading.Load() > 0 {
				moved, quiet = now, 0
			}
			if quiet > patience {
				j.end(&CrashError{How: fmt.Sprintf("it was ended since it computed for %v", patience)})
			}
		case err != nil:
			return j.gone(err)
		default:
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
	left := j.most
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
		mark, items := page.int(), 0
		for ; mark == markItem; mark = page.int() {
			err := item(&page)
			if page.bad {
				break // what item was given is nothing that the child said
			}
			if err != nil {
				return errors.Join(err, j.forget(ctx, id))
			}
			items++
		}
		left -= int64(items)
		switch {
		case page.bad, left < 0, id != 0 && (mark != markMore || items == 0), id == 0 && mark != markEnd:
			return j.gone(errMessage) // pages of nothing would go on for ever
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
	// Each object takes more memory than its text.
	if bytes.Count(all, []byte("{")) > maxObjects || json.Unmarshal(all, v) != nil {
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
	if !sane(l, len(j.disks)) {
		return nil, j.gone(errMessage)
	}
	l.Disks = j.disks
	j.volumes.Store(int64(len(l.Volumes)))
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
			m.bad = true
			return nil
		}
		switch {
		case h.Volume < 0 || int64(h.Volume) >= j.volumes.Load() || !inside(h.Offset, h.Length) ||
			!inside(h.At, h.Length):
			m.bad = true
			return nil
		case len(hits) == maxHits:
			return fmt.Errorf("more than %d pieces of volumes are in one range: ask for less", maxHits)
		}
		hits = append(hits, h)
		return nil
	})
	return hits, err
}

// maxPieces bounds the pieces of a volume. One in stripes has many.
const maxPieces = 1 << 18

// Pieces tells where a volume of Layout lies, in order, as [volume.Volume.Pieces] of all of it.
func (j *Jail) Pieces(ctx context.Context, volumeNo int) ([]volume.Piece, error) {
	q := &message{}
	q.putInt(opPieces)
	q.putInt(int64(volumeNo))
	var all []volume.Piece
	err := j.list(ctx, q, func(m *message) error {
		var p volume.Piece
		if err := json.Unmarshal([]byte(m.string()), &p); err != nil {
			m.bad = true
			return nil
		}
		switch {
		case !inside(p.Offset, p.Length) || p.Length == 0 || p.Copy < 0 || p.Disk < -1 || p.Disk >= len(j.disks) ||
			p.Disk >= 0 && !inside(p.At, p.Length):
			m.bad = true
			return nil
		case len(all) == maxPieces:
			return fmt.Errorf("the volume lies in more than %d pieces", maxPieces)
		}
		all = append(all, p)
		return nil
	})
	return all, err
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
