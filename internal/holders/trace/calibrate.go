// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux/apart"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

// What an engine is tried with, each on a mount of its own.
const (
	seesUmount = "umount" // one that fails
	seesStat   = "stat"
	seesOpen   = "open"
	seesChdir  = "chdir"
	seesMmap   = "mmap" // of a file that is closed then
)

// all is what there is to see; needed is what an engine must see to be of use.
func all() []string    { return []string{seesUmount, seesStat, seesOpen, seesChdir, seesMmap} }
func needed() []string { return []string{seesUmount, seesStat, seesOpen, seesChdir} }

const (
	// tryWait is how long the events of a trial are waited for, tryRest how long what was missed by the
	// event of the last thing that is done.
	tryWait, tryRest = 2 * time.Second, 50 * time.Millisecond
	// tryMost is how long that may take on a machine that is so busy that nobody has a turn to take them.
	tryMost = time.Minute
	// tryCalls is how many calls the cost of watching is measured with: the fastest counts.
	tryCalls = 64
	// copied are the bytes that are read for that, and below noSlower is what a busy machine may do.
	copied, noSlower = 4096, 2
)

// EngineState says whether an engine works here.
type EngineState struct {
	Name   string `json:"name"`
	Usable bool   `json:"usable"`
	// Reason says why it is not.
	Reason string `json:"reason"`
	// Coverage is what it saw on a mount that was made for the trial, Missing what it did not.
	Coverage []string `json:"coverage"`
	Missing  []string `json:"missing"`
	// ObserverNS is how much longer stat of a mount takes for being watched, in ns.
	ObserverNS int64 `json:"observer_ns"`
	// ReadPercent is what a read out of memory takes meanwhile, whatever is read, of what it takes
	// otherwise; 0 where that was not measured.
	ReadPercent int64 `json:"read_percent"`
}

// Slows gives by what factor all programs copy memory slower while the engine is at work, 1 where that
// hardly shows. A processor that watches data copies without its fast path.
func (s EngineState) Slows() float64 {
	if s.ReadPercent < noSlower*100 {
		return 1
	}
	return float64(s.ReadPercent) / 100
}

// Names are the engines in the order in which they are tried: the first two see every mount of the
// host and who held it, the third suspects. The last sees who held up to four mounts, and makes all
// programs copy memory many times slower meanwhile: nobody wants that for days who did not ask for it.
func Names() []string {
	return []string{probe.Fentry, probe.Kprobe, probe.Syscall, probe.Watch}
}

// Exact are the engines in the order for a moment, in which it does not matter what they cost: those that
// see who held a mount go first.
func Exact() []string {
	return []string{probe.Fentry, probe.Kprobe, probe.Watch, probe.Syscall}
}

// Engines tries all engines.
func Engines(ctx context.Context) ([]EngineState, error) {
	var out []EngineState
	for _, name := range Names() {
		out = append(out, Try(ctx, name))
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Try loads an engine, and holds it against a mount that nobody else sees: what is done there has to
// be told of.
func Try(ctx context.Context, name string) EngineState {
	s := EngineState{Name: name, Coverage: []string{}, Missing: all()}
	if !slices.Contains(Names(), name) {
		s.Reason = fmt.Sprintf("%q is no engine", name)
		return s
	}
	var err error
	onThread(func() { err = s.try(ctx) })
	if err != nil {
		s.Reason = err.Error()
		return s
	}
	for _, what := range needed() {
		if !slices.Contains(s.Coverage, what) {
			s.Reason = "in a trial it did not see: " + strings.Join(s.Missing, ", ")
			return s
		}
	}
	s.Usable = true
	return s
}

// onThread runs fn on a thread that ends with it. It is not the first thread of the process, whose
// mounts are those of the process in /proc.
func onThread(fn func()) {
	done := make(chan struct{})
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			go run() // it cannot get this thread, which is held until fn is done
			<-done
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: the runtime ends the thread with the goroutine.
		defer close(done)
		fn()
	}
	go run()
	<-done
}

// try runs on a thread of its own.
func (s *EngineState) try(ctx context.Context) (err error) {
	dir, err := scratch(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave(dir)) }()
	target, err := targetOf(dir)
	if err != nil {
		return err
	}
	before, err := costsOf(dir)
	if err != nil {
		return errors.Join(err, target.File.Close())
	}
	e, err := probe.Open(s.Name, []probe.Target{target}, 0)
	err = errors.Join(err, target.File.Close())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	after, err := costsOf(dir)
	if err != nil {
		return err
	}
	s.ObserverNS, s.ReadPercent = max(after.stat-before.stat, 0), max(after.read*100/before.read, 1)
	if err := e.TellAll(true); err != nil {
		return err
	}
	return s.see(ctx, e, target)
}

// see does everything once, and collects what is told of it.
func (s *EngineState) see(ctx context.Context, e *probe.Engine, on probe.Target) error {
	seen := make(chan string, 1024)
	ended := make(chan error, 1)
	tid := unix.Gettid()
	go func() {
		for {
			ev, err := e.Read()
			if err != nil {
				ended <- err
				return
			}
			if ev.TID != tid {
				continue
			}
			for _, what := range shows(ev, on) {
				select {
				case seen <- what:
				default: // more than enough
				}
			}
		}
	}()
	err := exercise(on.Path)
	begun, over := time.Now(), false
	timer := time.NewTimer(tryWait)
	defer timer.Stop()
	for err == nil && len(s.Missing) > 0 {
		select {
		case what := <-seen:
			if i := slices.Index(s.Missing, what); i >= 0 {
				s.Missing = slices.Delete(s.Missing, i, i+1)
				s.Coverage = append(s.Coverage, what)
			}
			if what == seesChdir { // what one thread does is told in its order
				timer.Reset(tryRest)
			}
			over = false
			continue
		case err = <-ended:
			return err
		case <-ctx.Done():
			err = ctx.Err()
		case <-timer.C:
			// Who takes the events may have had no turn: nothing is left to take, and was not before either.
			left := e.Pending() > 0 || len(seen) > 0
			if (left || !over) && time.Since(begun) < tryMost {
				over = !left
				timer.Reset(tryRest)
				continue
			}
		}
		break
	}
	slices.SortFunc(s.Coverage, func(a, b string) int { return slices.Index(all(), a) - slices.Index(all(), b) })
	e.Close() // ends the reading; once more is no harm
	<-ended
	return err
}

// shows says what an event proves.
func shows(e probe.Event, on probe.Target) []string {
	if e.Kind == probe.Umount {
		if e.Got.Text == on.Path && (e.MountID == on.ID || e.MountID == 0) {
			return []string{seesUmount}
		}
		return nil
	}
	if e.Dev != on.Dev {
		return nil
	}
	var out []string
	for _, c := range []probe.Call{e.Got, e.Let} {
		switch name := probe.CallName(c.Nr); {
		case strings.Contains(name, "stat"):
			out = append(out, seesStat)
		case name == "close":
			out = append(out, seesOpen)
		case name == "chdir" && e.Kind == probe.Hold && !e.SameCall, name == "chdir" && e.Released:
			out = append(out, seesChdir)
		case name == "munmap":
			out = append(out, seesMmap)
		}
	}
	return out
}

// exercise does once what holds a mount.
func exercise(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	fd, err := unix.Open(dir+"/file", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != unix.EBUSY {
		return errors.Join(fmt.Errorf("unmount a scratch mount with an open file: %v, and not %w", err, unix.EBUSY),
			unix.Close(fd))
	}
	if err := unix.Ftruncate(fd, int64(os.Getpagesize())); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	if fd, err = unix.Open(dir+"/file", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	m, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	// The thread has a working directory of its own.
	return errors.Join(unix.Munmap(m), unix.Chdir(dir), unix.Chdir("/"))
}

// scratch gives this thread a mount namespace of its own with an empty tmpfs, and says where that is.
// Of what others have mounted it keeps nothing; what is mounted here nobody else sees.
func scratch(ctx context.Context) (string, error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return "", fmt.Errorf("make a directory of its own for a trial: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return "", err
	}
	if _, err := apart.Mounts(ctx); err != nil {
		return "", fmt.Errorf("make a mount namespace for a trial: %w", err)
	}
	var err error
	for _, dir := range []string{"/mnt", "/tmp", "/run", "/dev"} {
		if err = unix.Mount("shisa", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=64k"); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("mount a tmpfs for a trial: %w", err)
}

// leave takes the scratch mount away. The namespace goes with its thread.
func leave(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the tmpfs of a trial: %w", err)
	}
	return nil
}

func targetOf(dir string) (probe.Target, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st); err != nil {
		return probe.Target{}, fmt.Errorf("look at the mount of a trial: %w", err)
	}
	f, err := pathOnly(dir)
	return probe.Target{ID: int(st.Mnt_id), Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Path: dir, File: f}, err
}

// costs are what calls take at least, in ns.
type costs struct{ stat, read int64 }

func costsOf(dir string) (c costs, err error) {
	path, buf := dir+"/copied", make([]byte, copied)
	if err := os.WriteFile(path, buf, 0o600); err != nil {
		return c, err
	}
	f, err := os.Open(path)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	if c.stat, err = fastest(func() error {
		var st unix.Stat_t
		return unix.Stat(dir, &st)
	}); err != nil {
		return c, err
	}
	c.read, err = fastest(func() error {
		_, err := f.ReadAt(buf, 0)
		return err
	})
	return c, err
}

func fastest(call func() error) (int64, error) {
	best := int64(math.MaxInt64)
	for range tryCalls {
		from := time.Now()
		if err := call(); err != nil {
			return 0, err
		}
		best = min(best, time.Since(from).Nanoseconds())
	}
	return max(best, 1), nil
}
