// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

const (
	// margin is how much longer than settle a failure is waited with: events are on their way.
	margin = 100 * time.Millisecond
	// tick is how often failures are looked at that are ready.
	tick = 50 * time.Millisecond
	// followTicks is how many of these pass between looks for what is mounted again.
	followTicks = 20
	// tellWait is how long Tell waits for those who are just letting go.
	tellWait = 20 * time.Millisecond
)

// pending is a failed umount for which it is still waited who lets go.
type pending struct {
	u      probe.Event
	mount  Mount
	unsure bool // nothing says yet that it failed since the mount was busy
	due    int64
	// table is this process's table of mounts at that time.
	table  []linux.Mount
	notes  []string
	moment *moment
}

// loop takes events and gives failures until it is closed or all mounts are gone.
func (t *Trace) loop(ctx context.Context) {
	defer close(t.done)
	defer close(t.out)
	timer := time.NewTicker(tick)
	defer timer.Stop()
	events, ticks := t.events, 0
	for {
		var out chan Failure
		var next Failure
		if len(t.ready) > 0 {
			out, next = t.out, t.ready[0]
		} else if events == nil && len(t.pending) == 0 {
			return
		}
		select {
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			t.take(ctx, e)
		case out <- next:
			t.ready = t.ready[1:]
		case <-timer.C:
			if t.o.Stacks != nil {
				t.o.Stacks.Tick()
			}
			t.settle(false)
			if ticks++; ticks%followTicks == 0 && t.places.away() {
				// What cannot be followed now may be there in a second.
				_ = t.follow(ctx, false) // Unwatched tells it
			}
		case answer := <-t.look:
			answer <- t.follow(ctx, true)
		case answer := <-t.tell:
			if t.o.Stacks != nil {
				t.o.Stacks.Tick() // what was lost since the last one counts
			}
			t.settle(true)
			answer <- t.ready
			t.ready = nil
		case <-ctx.Done():
			return
		}
	}
}

// take notes one event.
func (t *Trace) take(ctx context.Context, e probe.Event) {
	t.heard = max(t.heard, e.TS)
	if e.Kind != probe.Umount {
		if t.o.Stacks != nil && len(e.Stack) > 0 {
			t.o.Stacks.Note(e.PID, e.Start)
		}
		if len(t.recent) == maxRecent {
			t.recent = t.recent[1:]
			t.cut.Add(1)
		}
		t.recent = append(t.recent, e)
		if old := len(t.recent) - maxStacks; old >= 0 {
			t.recent[old].Regs, t.recent[old].Stack = nil, nil
		}
		return
	}
	m, dev, known := t.mountOf(ctx, e)
	target := slices.ContainsFunc(t.places.now, func(o place) bool {
		return o.Point == m.Path && m.Namespace == t.own
	})
	if ended(e) {
		if known && target {
			t.places.ended(m.ID, e.TS)
		}
		return
	}
	failed := t.failed(e)
	if e.RetRead && !failed {
		return
	}
	if len(t.o.Mounts) > 0 && known && !target {
		return
	}
	if len(t.pending) == maxPending {
		t.cut.Add(1)
		return
	}
	p := &pending{u: e, mount: m, due: e.TS + settle + int64(margin)}
	if !known {
		p.notes = append(p.notes, fmt.Sprintf("which mount %q names is not known: who is named had to do with "+
			"a mount that is watched", e.Got.Text))
	} else if e.Dev == 0 {
		p.u.Dev, p.u.MountID = dev, m.ID
	}
	if !e.CountRead {
		// Without the table all calls on the device count.
		p.table, _ = t.o.Host.Mounts(ctx, 0)
	}
	if !failed {
		// Who let go on another processor may not be told of yet.
		p.unsure = true
		t.pending = append(t.pending, p)
		return
	}
	p.moment = t.moments.begin(t.failure(p, nil))
	t.pending = append(t.pending, p)
}

// ended tells whether a umount took the mount away.
func ended(e probe.Event) bool {
	if e.RetRead {
		return e.Ret == 0
	}
	return !e.Attached
}

// failed tells whether a umount failed since the mount was busy. Where the engine does not see what
// was returned, the counter says it, or somebody who was seen to hold.
func (t *Trace) failed(e probe.Event) bool {
	if e.RetRead {
		return unix.Errno(-e.Ret) == unix.EBUSY
	}
	if e.Count > whileUnmounting || e.Before > whileUnmounting || e.Children {
		return true
	}
	return slices.ContainsFunc(t.recent, func(h probe.Event) bool {
		may, _ := met(e, h)
		return may
	})
}

// mountOf tells which mount a umount was about, and on which device it is.
func (t *Trace) mountOf(ctx context.Context, e probe.Event) (m Mount, dev uint64, known bool) {
	named := e.Got.Text
	if !path.IsAbs(named) {
		named = path.Join(e.Where, named)
	}
	find := func(table []linux.Mount) (int, bool) {
		at := -1
		for i, o := range table {
			if e.MountID != 0 && o.ID == e.MountID || e.MountID == 0 && o.Point == path.Clean(named) {
				at = i // of two at one place the later one covers the other
			}
		}
		return at, at >= 0
	}
	var table []linux.Mount
	if len(t.o.Mounts) > 0 && e.Namespace == t.own {
		table = t.places.at(e.TS)
	}
	at, found := find(table)
	if !found {
		pid := e.PID
		if e.Namespace == t.own {
			pid = 0
		}
		// The caller may be gone; then its mounts are not known.
		table, _ = t.o.Host.Mounts(ctx, pid)
		at, found = find(table)
	}
	if found {
		o := table[at]
		return Mount{ID: o.ID, UniqueID: e.UniqueID, Path: o.Point, Source: o.Source, Type: o.Type,
			Device: device(o.Dev), Namespace: cmp.Or(e.MountNamespace, e.Namespace)}, o.Dev, true
	}
	m = Mount{ID: e.MountID, UniqueID: e.UniqueID, Path: cmp.Or(e.Where, named), Namespace: e.MountNamespace}
	if e.Dev != 0 {
		m.Device = device(e.Dev)
	}
	return m, e.Dev, e.MountID != 0
}

func device(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// settle makes failures of the umounts that were waited with for long enough, or of all.
func (t *Trace) settle(all bool) {
	now, err := monotonic()
	if err != nil {
		return // it cannot fail twice: newClock has read it
	}
	if t.engine.Pending() > 0 || len(t.events) > 0 {
		now = min(now, t.heard) // those who let go are told of, but not read yet
	}
	for len(t.pending) > 0 && (all || t.pending[0].due <= now) {
		p := t.pending[0]
		t.pending = t.pending[1:]
		if p.unsure && !t.failed(p.u) {
			continue // it was refused for another reason
		}
		if len(t.ready) == maxPending {
			t.ready = t.ready[1:]
			t.cut.Add(1)
		}
		t.ready = append(t.ready, t.failure(p, t.recent))
	}
	old := now - 2*settle - 2*int64(margin)
	t.recent = slices.DeleteFunc(t.recent, func(e probe.Event) bool { return e.TS < old })
}

// failure puts together what is known of a failed umount.
func (t *Trace) failure(p *pending, events []probe.Event) Failure {
	u := p.u
	f := Failure{At: t.clock.at(u.TS), Mount: p.mount, References: -1, Expected: whileUnmounting,
		Umount: Umount{Process: process(u), Path: u.Got.Text, Flags: umountFlags(u.Got.Args[1]),
			Errno: "EBUSY", ErrnoRead: u.RetRead, CheckNS: u.TS - u.Since, UserStack: []holders.Frame{}},
		Holders: []holders.Holder{}, Engine: t.state.Name, Coverage: t.state.Coverage, Missing: t.state.Missing,
		ObserverNS: t.state.ObserverNS, Notes: slices.Clone(p.notes)}
	if f.Notes == nil {
		f.Notes = []string{}
	}
	var here []probe.Event
	for _, e := range events {
		if !t.elsewhere(p, e) {
			here = append(here, e)
		}
	}
	blamed := attribute(u, here)
	f.Verdict = verdict(u, len(blamed), u.RetRead)
	f.Holders = t.people(u, p.mount, blamed)
	for _, h := range f.Holders {
		f.Explained += h.References
	}
	if t.o.Stacks != nil && len(u.Stack) > 0 {
		if frames := t.o.Stacks.User(u.PID, u.Start, u.Regs, u.Stack); frames != nil {
			f.Umount.UserStack = frames
		}
	}
	t.addScan(&f, p)
	if u.CountRead {
		f.References = max(u.Count, u.Before)
		f.Unexplained = max(f.References-f.Expected-f.Explained, 0)
	} else if len(f.Holders) == 0 {
		f.Notes = append(f.Notes, "this engine does not see the kernel's counter: how many hold it is not known")
	}
	if u.Children && u.Attached {
		f.Notes = append(f.Notes, "there are mounts on it")
	}
	var err error
	if f.Lost, err = t.Lost(); err != nil || f.Lost.Drops > 0 || f.Lost.Tables > 0 {
		f.Notes = append(f.Notes, "not everything could be told of: somebody may be missing")
	}
	if f.Lost.Programs > 0 {
		f.Notes = append(f.Notes, "not all that programs have mapped could be told of: the stack of one that is "+
			"gone may have no names")
	}
	return f
}

// elsewhere tells of a call on the same file system whose path leads over another mount of it, as far
// as its text says.
func (t *Trace) elsewhere(p *pending, e probe.Event) bool {
	if e.Kind != probe.Suspect || p.mount.ID == 0 || e.Namespace != t.own {
		return false
	}
	if e.MountID != 0 {
		return e.MountID != p.mount.ID
	}
	if !path.IsAbs(e.Got.Text) {
		return false
	}
	at := mountAt(p.table, e.Got.Text)
	// Its number may be another by now: it was unmounted and mounted again since.
	return at.ID != 0 && at.Dev == e.Dev && at.Point != p.mount.Path
}

// mountAt gives the mount that a path is on by its text, none with number 0.
func mountAt(table []linux.Mount, name string) linux.Mount {
	var at linux.Mount
	for _, m := range table {
		if below(name, m.Point) && len(m.Point) >= len(at.Point) {
			at = m
		}
	}
	return at
}

// below tells whether a path is a directory or leads into it.
func below(name, dir string) bool {
	name = path.Clean(name)
	return name == dir || dir == "/" || strings.HasPrefix(name, dir+"/")
}

// addScan adds those who hold the mount for good, as they were found at the moment of the failure.
func (t *Trace) addScan(f *Failure, p *pending) {
	if p.moment == nil {
		return
	}
	r, note := p.moment.result()
	if note != "" {
		f.Notes = append(f.Notes, note)
	}
	if r == nil {
		return
	}
	f.Scanned = true
	for _, h := range r.Holders {
		if h.Blocks != holders.BlocksUmount || slices.ContainsFunc(f.Holders, func(o holders.Holder) bool {
			return o.Process.PID == h.Process.PID && o.Kind == h.Kind
		}) {
			continue
		}
		f.Holders = append(f.Holders, h)
		f.Explained += h.References
	}
	slices.SortStableFunc(f.Holders, func(a, b holders.Holder) int {
		return certaintyOrder(a.Certainty) - certaintyOrder(b.Certainty)
	})
	if len(f.Holders) > 0 && f.Verdict == holders.Unknown {
		f.Verdict = r.Verdict
	}
}

// umountFlags names the flags of umount2(2).
func umountFlags(flags uint64) []string {
	out := []string{}
	for _, x := range []struct {
		bit  uint64
		name string
	}{{unix.MNT_FORCE, "MNT_FORCE"}, {unix.MNT_DETACH, "MNT_DETACH"}, {unix.MNT_EXPIRE, "MNT_EXPIRE"},
		{unix.UMOUNT_NOFOLLOW, "UMOUNT_NOFOLLOW"}} {
		if flags&x.bit != 0 {
			out = append(out, x.name)
		}
	}
	return out
}
