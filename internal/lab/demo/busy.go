// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux/apart"
)

const (
	// looker looks at the directory that is its argument for as long as it is there, each time by one system
	// call, as agents do that look at every mount of a machine.
	looker = `while [ -d "$0" ]; do :; done`
	// sayWait is how long an answer about an umount that failed is waited for until the next is tried, endWait
	// how long the one who watches may take to end.
	sayWait, endWait = time.Second, 2 * time.Second
)

// ErrNobody: no umount failed of which somebody was named in time.
var ErrNobody = errors.New("nobody was named in time")

// Busy is a mount that one process looks at again and again, and of which umounts are tried until one fails.
type Busy struct {
	// Mount is the directory, in a mount namespace that nobody else has. It is there while Watch runs.
	Mount string
	// Tried is how many umounts were tried, Failed how many of them the kernel refused since it was busy.
	Tried, Failed int

	source string
}

// NewBusy makes the directories, in dir.
func NewBusy(dir string) (*Busy, error) {
	b := &Busy{Mount: filepath.Join(dir, "mnt"), source: filepath.Join(dir, "source")}
	return b, errors.Join(os.Mkdir(b.Mount, 0o755), os.Mkdir(b.source, 0o755))
}

// Watch mounts it, has it looked at, runs this program again with args to watch it, and unmounts and mounts it until
// enough says so of a line that the one who watches prints. It needs root. Whatever it starts and mounts ends
// with it, however it ends.
func (b *Busy) Watch(ctx context.Context, args []string, enough func(line []byte) bool) (err error) {
	onOwnThread(func() { err = b.watch(ctx, args, enough) })
	return err
}

// onOwnThread runs fn on a thread that ends with it, and is not the one that stands for the process.
func onOwnThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onOwnThread(fn) // while this thread is taken
			runtime.UnlockOSThread()
			return
		}
		fn() // and never unlocked
	}()
	<-done
}

func (b *Busy) watch(ctx context.Context, args []string, enough func([]byte) bool) (err error) {
	if _, err := apart.Mounts(ctx, b.Mount); err != nil {
		return err
	}
	if err := unix.Mount("shisa-demo", b.source, "tmpfs", 0, "size=64k"); err != nil {
		return fmt.Errorf("mount %s: %w", b.source, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(b.source, unix.MNT_DETACH)) }()
	if err := b.mount(); err != nil {
		return err
	}
	defer func() {
		// An umount that went well is the last one that was tried if all ended in the middle.
		if e := unix.Unmount(b.Mount, unix.MNT_DETACH); !errors.Is(e, unix.EINVAL) {
			err = errors.Join(err, e)
		}
	}()
	looks := exec.Command("/bin/sh", "-c", looker, b.Mount)
	looks.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := looks.Start(); err != nil {
		return err
	}
	defer func() {
		// It is killed, which is no failure of it.
		_ = looks.Process.Kill()
		_ = looks.Wait()
	}()
	w, err := startWatcher(ctx, args)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.end()) }()
	return b.umounts(ctx, w, enough)
}

func (b *Busy) mount() error {
	if err := unix.Mount(b.source, b.Mount, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", b.Mount, err)
	}
	return nil
}

// umounts tries umounts until enough was said of one that failed.
func (b *Busy) umounts(ctx context.Context, w *watcher, enough func([]byte) bool) error {
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w: %d umounts were tried, %d of them failed: %w", ErrNobody, b.Tried, b.Failed, err)
		}
		b.Tried++
		switch err := unix.Unmount(b.Mount, unix.UMOUNT_NOFOLLOW); {
		case err == nil:
			if err := b.mount(); err != nil {
				return err
			}
			continue
		case !errors.Is(err, unix.EBUSY):
			return fmt.Errorf("unmount %s: %w", b.Mount, err)
		}
		b.Failed++
		select {
		case line, more := <-w.lines:
			if !more {
				return w.gone()
			}
			if enough(line) {
				return nil
			}
		case <-time.After(sayWait):
		case <-ctx.Done():
		}
	}
}

// watcher is the program that watches.
type watcher struct {
	cmd   *exec.Cmd
	ready chan struct{}
	lines chan []byte // what it prints, closed at its end
	said  chan string // all that it says beside that, once it has ended
}

// startWatcher starts it, and waits until it watches.
func startWatcher(ctx context.Context, args []string) (*watcher, error) {
	w := &watcher{ready: make(chan struct{}), lines: make(chan []byte, 1), said: make(chan string, 1)}
	w.cmd = exec.CommandContext(ctx, "/proc/self/exe", args...)
	w.cmd.Args[0] = "shisa"
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	says, err := w.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	go w.hear(says)
	go w.read(out)
	select {
	case <-w.ready:
		return w, nil
	case said := <-w.said:
		w.said <- said
		if err := ctx.Err(); err != nil {
			return nil, errors.Join(fmt.Errorf("%w: %w", ErrNobody, err), w.end())
		}
		return nil, errors.Join(w.gone(), w.end())
	}
}

// hear waits for the line that says that it watches.
func (w *watcher) hear(r io.Reader) {
	var all strings.Builder
	ready := w.ready
	for s := bufio.NewScanner(r); s.Scan(); {
		if text := strings.TrimPrefix(s.Text(), "shisa: "); !strings.HasPrefix(text, "watching by ") {
			fmt.Fprintln(&all, text)
		} else if ready != nil {
			close(ready)
			ready = nil
		}
	}
	w.said <- all.String()
}

// read passes on what it prints. Nobody may want the rest.
func (w *watcher) read(r io.Reader) {
	defer close(w.lines)
	s := bufio.NewScanner(r)
	for s.Buffer(nil, 1<<20); s.Scan(); {
		select {
		case w.lines <- append([]byte(nil), s.Bytes()...):
		default:
		}
	}
}

// gone is why it does not watch.
func (w *watcher) gone() error {
	said := <-w.said
	w.said <- said
	if first, _, _ := strings.Cut(said, "\n"); first != "" {
		return errors.New(first)
	}
	return errors.New("who watched has ended")
}

// end ends it as a user does, by Ctrl-C, and kills it if that takes too long.
func (w *watcher) end() error {
	if err := w.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	late := time.AfterFunc(endWait, func() {
		// If it has ended meanwhile there is nothing to kill.
		_ = w.cmd.Process.Kill()
	})
	defer late.Stop()
	for range w.lines {
	}
	w.said <- <-w.said // both pipes are read to their ends
	err := w.cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil // what it found is its status
	}
	return err
}
