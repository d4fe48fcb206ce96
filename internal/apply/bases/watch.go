// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/notice"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// ErrGone: the directory of the bases itself is not there any more.
var ErrGone = errors.New("the directory of the bases is gone")

const (
	// passEvery is how often everything is looked at again: what other nodes remove is told by nobody.
	passEvery = 10 * time.Minute
	// passSoon is how long after something new another look follows, at the earliest.
	passSoon = 10 * time.Second
)

// Events are where a watch hears of names that are taken away.
type Events interface {
	Next(ctx context.Context) (notice.Event, error)
}

// WatchOptions say how bases are watched.
type WatchOptions struct {
	Protect ProtectOptions
	// Every is how often everything is looked at; 0 is ten minutes, or as often as the touches need it.
	Every time.Duration
	// Census looks at who needs what now.
	Census func(ctx context.Context) (*refs.Census, error)
	// Events tells of removals; nil has every look find them.
	Events Events
	// Tell is told of each thing that happens.
	Tell func(pool.Happened) error
}

// watcher is a watch under way.
type watcher struct {
	o    Options
	w    WatchOptions
	last *refs.Census
}

// Watch protects the bases of a pool until ctx ends: it looks at everything again and again, and gives a base that
// somebody needs its name back as soon as it is removed. It ends with the error of ctx, with ErrGone, and with
// those of Census, Events and Tell.
func Watch(ctx context.Context, w WatchOptions, o Options) error {
	o.within = "watch"
	o = newKeeper(o).Options
	a := &watcher{o: o, w: w}
	if err := a.pass(ctx); err != nil {
		return err
	}
	a.o.NewPool = false // it is known now
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	events := make(chan notice.Event)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := hear(ctx, w.Events, events); err != nil {
			cancel(err)
		}
	}()
	defer func() { <-done }()
	defer cancel(nil)
	// Events bring the next look nearer and never put it off, however many there are.
	due := time.Now().Add(a.every())
	timer := time.NewTimer(a.every())
	defer timer.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			err = a.pass(ctx)
			due = time.Now().Add(a.every())
			timer.Reset(a.every())
		case e := <-events:
			var soon bool
			if soon, err = a.event(ctx, &e); soon && time.Until(due) > passSoon {
				due = time.Now().Add(passSoon)
				timer.Reset(passSoon)
			}
		}
		if err != nil {
			return err
		}
	}
}

// hear hands events on until ctx ends.
func hear(ctx context.Context, from Events, to chan<- notice.Event) error {
	if from == nil {
		return nil
	}
	for {
		e, err := from.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case to <- e:
		case <-ctx.Done():
			return nil
		}
	}
}

// every is how long to wait for the next look: a third of what a base may go without a touch.
func (a *watcher) every() time.Duration {
	age := a.w.Protect.KeepAlive
	if age == 0 {
		age = KeepAlive
		if a.last != nil && anyResized(a.last) {
			age = KeepAliveResized
		}
	}
	return min(cmp.Or(a.w.Every, passEvery), max(age/3, time.Second))
}

// pass looks at everything, protects what is there, and brings back what is needed and missing.
func (a *watcher) pass(ctx context.Context) error {
	c, err := a.w.Census(ctx)
	if err != nil {
		return err
	}
	a.last = c
	for i := range c.All {
		b := &c.All[i]
		if b.State == refs.Missing && (b.Shield != "" || b.Held != "") {
			if err := a.back(ctx, b.Name, "it was missing, and "+needWord(c, b)); err != nil {
				return err
			}
		}
	}
	d, err := Protect(ctx, c, a.w.Protect, a.o)
	if err != nil {
		return err
	}
	return a.w.Tell(pool.Happened{Time: a.o.Now().UTC(), What: pool.Passed, Why: passWords(c, d)})
}

// passWords says what a look at everything did, and what it could do nothing about. What was missing and is kept here was
// told of by itself.
func passWords(c *refs.Census, d *pool.Done) string {
	text := fmt.Sprintf("%d shielded, %d touched, %d recorded, %d left", len(d.Shielded), len(d.Touched), len(d.Recorded), len(d.Left))
	gone := []string{}
	for i := range c.All {
		if b := &c.All[i]; b.State == refs.Missing && b.Shield == "" && b.Held == "" {
			gone = append(gone, b.Path)
		}
	}
	if n := len(gone); n > 0 {
		text += "; " + finding.Count(int64(n), "base is needed, missing and not kept here: ", "bases are needed, missing and not kept here: ") +
			gone[0]
		if n > 1 {
			text += ", and others"
		}
		text += " (shisa base missing tells the ways back)"
	}
	if !c.Complete() {
		text += "; " + notSeen(len(c.Gaps)) + ": " + c.Gaps[0].Object
		if len(c.Gaps) > 1 {
			text += ", and others"
		}
	}
	return text
}

func needWord(c *refs.Census, b *refs.Base) string {
	if len(b.Uses) > 0 {
		return b.Uses[0].Holder + " needs it"
	}
	return notSeen(len(c.Gaps)) + " that may need it"
}

// notSeen tells of gaps.
func notSeen(gaps int) string {
	return finding.Count(int64(gaps), "place was not seen", "places were not seen")
}

// event does what is to be done about one event. soon: another look is due.
func (a *watcher) event(ctx context.Context, e *notice.Event) (soon bool, err error) {
	switch {
	case e.Kind == notice.Gone:
		return false, ErrGone
	case e.Kind == notice.Lost:
		return true, a.w.Tell(pool.Happened{Time: e.Time, What: pool.Lost, Why: "more happened than the kernel could tell"})
	case strings.HasPrefix(e.Name, "."):
		return false, nil
	case e.Kind == notice.Appeared:
		return true, nil
	}
	_, err = diskio.LookEntry(filepath.Join(a.o.Bases, e.Name))
	if !errors.Is(err, fs.ErrNotExist) {
		return true, nil // there is one again
	}
	return true, a.removed(ctx, e)
}

// removed is for a base that was taken away just now.
func (a *watcher) removed(ctx context.Context, e *notice.Event) error {
	h := pool.Happened{Time: e.Time, What: pool.Removed, Name: e.Name, PID: e.PID, Command: e.Command, Unit: e.Unit}
	k := newKeeper(a.o)
	why := fmt.Sprintf("process %d", e.PID)
	if e.Command != "" {
		why += ": " + e.Command
	} else {
		why += ", which has ended"
	}
	if e.Unit != "" {
		why += " (" + e.Unit + ")"
	}
	path := filepath.Join(a.o.Bases, e.Name)
	// What is known says that it is needed: then nothing is waited for.
	b := a.lastOf(e.Name)
	if b != nil && needed(a.last, b) {
		err := errors.Join(a.back(ctx, e.Name, "removed by "+why+"; "+needWord(a.last, b)),
			k.note(ctx, "removed", e.Name, b.File.Ino, path, why))
		return errors.Join(err, a.w.Tell(h))
	}
	if err := errors.Join(k.note(ctx, "removed", e.Name, 0, path, why), a.w.Tell(h)); err != nil {
		return err
	}
	c, err := a.w.Census(ctx)
	if err != nil {
		return err
	}
	a.last = c
	for i := range c.All {
		if b := &c.All[i]; b.Name == e.Name && b.State == refs.Missing && c.Here(b) {
			return a.back(ctx, e.Name, "removed by "+why+"; "+needWord(c, b))
		}
	}
	if !c.Complete() {
		return a.back(ctx, e.Name, "removed by "+why+"; "+notSeen(len(c.Gaps))+" that may need it")
	}
	return a.w.Tell(pool.Happened{Time: a.o.Now().UTC(), What: pool.NotNeeded, Name: e.Name,
		Why: "nobody needs it; its shield keeps it"})
}

func (a *watcher) lastOf(name string) *refs.Base {
	for i := range a.last.All {
		if b := &a.last.All[i]; b.Name == name && b.State != refs.ByShield {
			return b
		}
	}
	return nil
}

// back gives a base its name back. That it cannot be had is told, and no reason to stop watching the others.
func (a *watcher) back(ctx context.Context, name, why string) error {
	h := pool.Happened{Time: a.o.Now().UTC(), What: pool.Restored, Name: name, Why: why}
	if d, err := Restore(ctx, name, RestoreOptions{Why: why}, a.o); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if h.Why = err.Error() + "; " + why; d == nil || !slices.Contains(d.Restored, name) { // else it is only not noted
			h.What = pool.NotRestored
		}
	}
	return a.w.Tell(h)
}
