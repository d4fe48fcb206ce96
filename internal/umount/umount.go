// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package umount unmounts what somebody keeps looking into: it tries again for a bounded time, tells
// who was in the way each time, can stop a unit meanwhile, and tells when the file system and its device
// are really free, which is later than umount(2) says.
package umount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
)

// How long is waited between tries: whoever looks for some microseconds is past after the first ones,
// and who holds for milliseconds is met between two looks. Against a program that holds for 60 % of
// the time 200 of 200 succeeded, half of them in 0.6 ms, the slowest in 33 ms.
var pauses = []struct {
	tries int
	pause time.Duration
}{{5, 200 * time.Microsecond}, {15, time.Millisecond}, {80, 5 * time.Millisecond}}

// lastPause is what comes after all of pauses.
const lastPause = 20 * time.Millisecond

// callTimeout is how long one call is waited for: where a server is dead it may not come back.
const callTimeout = 5 * time.Second

// Errors of Unmount, for errors.Is; fs.ErrPermission is another one.
var (
	// ErrNotMounted: nothing is mounted there.
	ErrNotMounted = errors.New("is not a mount point")
	// ErrRefused: it would do harm, and the text says which.
	ErrRefused = errors.New("refused")
)

// State is how it ended.
type State string

// The states.
const (
	// Done: it is unmounted; with DeviceFree also its device is free.
	Done State = "unmounted"
	// Held: it is mounted as before, for somebody holds it.
	Held State = "held"
	// Pinned: it is unmounted, and the file system lives on somewhere.
	Pinned State = "unmounted_device_busy"
	// Detached: it was taken out of the tree, and lives until the last one lets go of it.
	Detached State = "detached"
	// Unknown: whether its device is free cannot be told.
	Unknown State = "unmounted_device_unknown"
)

// Options steer Unmount. The zero value tries once.
type Options struct {
	// Wait is how long it is tried.
	Wait time.Duration
	// Freeze is a unit of systemd that is stopped from running while it is tried, "" for none.
	Freeze string
	// DeviceFree: success is only when the file system is gone and its device can be used.
	DeviceFree bool
	// Lazy detaches the mount at once. It is refused while somebody may write, unless AcceptLazy
	// says that this is wanted for this path.
	Lazy, AcceptLazy bool
}

// Result says what was done.
type Result struct {
	Status []int  `json:"status"`
	State  State  `json:"state"`
	Path   string `json:"path"`
	Source string `json:"source"`
	Type   string `json:"fstype"`
	// Tries is how many calls of umount(2) were made, Took how long it all took.
	Tries  int   `json:"tries"`
	TookNS int64 `json:"took_ns"`
	// Failed are the tries that failed for somebody was in the way, as far as they were watched;
	// FailedCut counts those left out.
	Failed    []Try `json:"failed"`
	FailedCut int   `json:"failed_cut"`
	// Watched says by which means they were watched, "" for none; NotWatched why not.
	Watched    string `json:"watched"`
	NotWatched string `json:"not_watched"`
	// Report is who holds it, looked for where somebody stayed; nil where nobody did.
	Report *holders.Report `json:"report"`
	// Frozen is the unit that was stopped meanwhile, Thawed that it runs again.
	Frozen string `json:"frozen"`
	Thawed bool   `json:"thawed"`
	// Undo is the command that brings the mount back, "" where there is none.
	Undo  string   `json:"undo"`
	Notes []string `json:"notes"`
}

// Try is one failed try with those who held the mount.
type Try struct {
	At      time.Time        `json:"at"`
	Holders []holders.Holder `json:"holders"`
}

// Watcher tells afterwards who held a mount when an umount failed. Tell is called once, after the
// last try.
type Watcher interface {
	// Engine is what it is called; Tell gives the failures since it began, and what it lost.
	Engine() string
	Tell(ctx context.Context) (failed []Try, lost int64)
	Close() error
}

// World is what Unmount works on.
type World struct {
	Host *linux.Host
	// Watch begins to watch a mount, nil for never.
	Watch func(ctx context.Context, m linux.Mount) (Watcher, error)
	// Scan looks who holds the mount at path.
	Scan func(ctx context.Context, path string) (*holders.Report, error)
	// ScanSystem looks who keeps the file system of a mount that is gone, nil where that is not possible.
	ScanSystem func(ctx context.Context, m linux.Mount) (*holders.Report, error)
	// Kernel gives the kernel's own lists, or says why they cannot be read; nil for never.
	Kernel func() (Kernel, error)
	// Guard starts a process that thaws a cgroup when this one ends in any way.
	Guard func(dir string) (Guard, error)
}

// maxFailed bounds the failed tries that are kept.
const maxFailed = 64

// Unmount unmounts what is mounted at path. A mount that is held is no error: the state says it.
func Unmount(ctx context.Context, w World, path string, o Options) (*Result, error) {
	m, err := mounted(ctx, w.Host, path)
	if err != nil {
		return nil, err
	}
	if m.Point == "/" {
		// umount(2) of a process's own root does not unmount it: it makes the file system read-only and
		// succeeds (do_umount_root, fs/namespace.c); detached, the root is gone from under everybody.
		return nil, finding.WithHint(fmt.Errorf("unmount %s: %w: it is the root of this process, "+
			"and the kernel would make it read-only instead", m.Point, ErrRefused),
			"shisa holders / tells who uses it")
	}
	u := &unmount{World: w, o: o, mount: m}
	u.r = Result{Path: m.Point, Source: m.Source, Type: m.Type, Failed: []Try{}, Notes: []string{},
		Undo: undo(m)}
	if o.Lazy {
		return u.lazy(ctx)
	}
	return u.run(ctx)
}

type unmount struct {
	World
	o               Options
	mount           linux.Mount
	begun, deadline time.Time
	freezer         *freezer
	system          system
	r               Result
}

func (u *unmount) run(ctx context.Context) (*Result, error) {
	if u.o.Freeze != "" {
		f, err := newFreezer(ctx, u.World, u.o.Freeze, u.mount)
		if err != nil {
			return nil, err
		}
		u.freezer, u.r.Frozen = f, f.name
	}
	u.know(ctx)
	// Who is in the way is only seen by those who watched before the umount.
	watcher := u.watch(ctx)
	u.begin()
	err := u.tries(ctx)
	if u.freezer != nil {
		thawErr := u.freezer.close()
		u.r.Thawed = thawErr == nil
		err = errors.Join(err, thawErr)
	}
	if watcher != nil {
		u.tell(ctx, watcher)
	}
	if err != nil {
		return nil, err
	}
	if u.r.State == Done && u.o.DeviceFree {
		if err := u.device(ctx); err != nil {
			return nil, err
		}
	}
	return u.done(), nil
}

// begin sets the clocks.
func (u *unmount) begin() { u.begun, u.deadline = time.Now(), time.Now().Add(u.o.Wait) }

// watch begins to watch, if that is possible.
func (u *unmount) watch(ctx context.Context) Watcher {
	if u.Watch == nil {
		return nil
	}
	watcher, err := u.Watch(ctx, u.mount)
	if err != nil {
		u.r.NotWatched = err.Error()
		return nil
	}
	u.r.Watched = watcher.Engine()
	return watcher
}

// tell takes what the watcher saw.
func (u *unmount) tell(ctx context.Context, w Watcher) {
	failed, lost := w.Tell(ctx)
	if cut := len(failed) - maxFailed; cut > 0 {
		failed, u.r.FailedCut = failed[:maxFailed], cut
	}
	u.r.Failed = append(u.r.Failed, failed...)
	if lost > 0 {
		u.r.Notes = append(u.r.Notes, fmt.Sprintf("%d records of the watch were lost", lost))
	}
	if err := w.Close(); err != nil {
		u.r.Notes = append(u.r.Notes, "end the watch: "+err.Error())
	}
}

// tries calls umount(2) until it succeeds, or time is over. An error is none of EBUSY.
func (u *unmount) tries(ctx context.Context) error {
	for {
		if u.freezer != nil {
			if err := u.freezer.freeze(ctx); err != nil {
				return err
			}
		}
		u.r.Tries++
		err := u.call(ctx, unix.UMOUNT_NOFOLLOW)
		if u.freezer != nil {
			// Who was frozen while it holds the mount keeps it: it must run to let go.
			if err := u.freezer.thaw(); err != nil {
				return err
			}
		}
		switch {
		case err == nil:
			u.r.State = Done
			return nil
		case !errors.Is(err, unix.EBUSY):
			return u.failed(ctx, err)
		}
		pause, left := pauseAfter(u.r.Tries), time.Until(u.deadline)
		// Who wants it tried again has that, also where the first call took all the time.
		if left <= 0 && (u.r.Tries > 1 || u.o.Wait <= 0) {
			u.r.State = Held
			return u.scan(ctx)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(pause, max(left, pauses[0].pause))):
		}
	}
}

// call is one umount(2) that is not waited for without end.
func (u *unmount) call(ctx context.Context, flags int) error {
	_, err := diskio.Within(ctx, callTimeout, func() (struct{}, error) {
		return struct{}{}, unix.Unmount(u.mount.Point, flags)
	}, nil)
	return err
}

// failed is the error of a try that no other try can mend.
func (u *unmount) failed(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return finding.WithHint(fmt.Errorf("unmount %s: %w", u.mount.Point, fs.ErrPermission),
			"run it as root: umount(2) needs CAP_SYS_ADMIN in the namespace of the mount")
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		// Somebody was faster, or it is a mount that this namespace may not take away.
		if _, gone := mounted(ctx, u.Host, u.mount.Point); errors.Is(gone, ErrNotMounted) {
			u.r.State = Done
			u.r.Notes = append(u.r.Notes, "somebody else unmounted it meanwhile")
			return nil
		}
		return finding.WithHint(fmt.Errorf("unmount %s: %w", u.mount.Point, err),
			"a mount that came with the mount namespace cannot be unmounted in it alone")
	}
	return fmt.Errorf("unmount %s: %w", u.mount.Point, err)
}

// scan looks who stays. What cannot be looked at is in the report, and fails nothing.
func (u *unmount) scan(ctx context.Context) error {
	if u.Scan == nil {
		return nil
	}
	report, err := u.Scan(ctx, u.mount.Point)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		u.r.Notes = append(u.r.Notes, "look who holds it: "+err.Error())
	}
	u.r.Report = report
	return nil
}

// done closes the books: the statuses by the state.
func (u *unmount) done() *Result {
	u.r.TookNS = time.Since(u.begun).Nanoseconds()
	var status []int
	switch u.r.State {
	case Held, Pinned:
		if u.r.Report != nil {
			status = slices.Clone(u.r.Report.Status)
		}
		// Whoever was in the way is named, by the look or by the watch; else it cannot be told.
		if named(u.r.Report) || len(u.r.Failed) > 0 {
			status = append(status, finding.StatusFound)
		} else {
			status = append(status, finding.StatusCannotTell)
		}
	case Unknown:
		status = append(status, finding.StatusCannotTell)
	}
	u.r.Status = finding.OrderStatus(status...)
	return &u.r
}

// named tells whether a report has anybody.
func named(r *holders.Report) bool { return r != nil && len(r.Holders) > 0 }

// pauseAfter is the pause after so many tries.
func pauseAfter(tries int) time.Duration {
	for _, p := range pauses {
		if tries -= p.tries; tries <= 0 {
			return p.pause
		}
	}
	return lastPause
}
