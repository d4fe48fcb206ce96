// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// soon is what is certain to come in time on any machine.
const soon = 5 * time.Minute

// ringOf gives both ends of what stands for the kernel's messages: a pipe that keeps records apart.
func ringOf(t *testing.T) (Ring, *os.File) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_DIRECT|unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	ring, kernel := os.NewFile(uintptr(p[0]), "ring"), os.NewFile(uintptr(p[1]), "kernel")
	t.Cleanup(func() { ring.Close(); kernel.Close() })
	return ring, kernel
}

const aborted = "3,%d,%d,-;EXT4-fs (sdb1): Remounting filesystem read-only\n SUBSYSTEM=block\n DEVICE=b8:17\n"

// report is what an examination of a machine says.
func report(findings ...doctor.Finding) *seen {
	return &seen{report: &doctor.Report{Status: []int{0}, Machines: []doctor.Patient{{Label: "h"}}, Findings: findings},
		e: &evidence.Evidence{Label: "h"}, logs: &evidence.Said{}, begun: time.Now()}
}

var readOnly = doctor.Finding{ID: "1", Code: "FS01", Severity: finding.Danger, Summary: "it is read-only",
	Object: doctor.Object{Kind: doctor.FileSystem, On: "h", Name: "sdb1"}}

// running is a watch that runs.
type running struct {
	*watcher
	events chan Event
	// looks has what each examination was given of logs; answers what it gives.
	looks   chan *evidence.Said
	answers chan *seen
	ended   chan error
	cancel  context.CancelFunc
}

func start(t *testing.T, o Options) *running {
	t.Helper()
	r := &running{events: make(chan Event, 1000), looks: make(chan *evidence.Said), answers: make(chan *seen),
		ended: make(chan error, 1)}
	o.Every, o.Label = time.Hour, "h"
	o.Tell = func(e Event) error { r.events <- e; return nil }
	r.watcher = newWatcher(o)
	r.apart, r.together, r.repeat = 0, 0, 0
	r.look = func(ctx context.Context, said *evidence.Said, _ []evidence.MemoryPoint) *seen {
		select {
		case r.looks <- said:
			return <-r.answers
		case <-ctx.Done():
			return &seen{err: ctx.Err()}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() { r.ended <- r.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := get(t, r.ended); err != nil {
			t.Error(err)
		}
	})
	return r
}

func get[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(soon):
		t.Fatal("nothing comes")
	}
	panic("not reached")
}

// answer has the next examination say something, and gives what it was given.
func (r *running) answer(t *testing.T, s *seen) *evidence.Said {
	t.Helper()
	said := get(t, r.looks)
	r.answers <- s
	return said
}

// TestMessage: a message of the kernel is told at once, and the machine is examined although that was not
// due for an hour; the examination is given the message.
func TestMessage(t *testing.T) {
	ring, kernel := ringOf(t)
	r := start(t, Options{Ring: ring})
	if said := r.answer(t, report()); said != nil {
		t.Errorf("the first examination does not read logs: %+v", said)
	}
	if _, err := fmt.Fprintf(kernel, aborted, 7, 1000); err != nil {
		t.Fatal(err)
	}
	e := get(t, r.events)
	if e.Kind != Message || e.Form == "" || e.Machine != "h" || e.Object != "sdb1" || e.Severity.Rank() > finding.Warning.Rank() ||
		!slices.Contains(e.Fields, EventField{"device", "sdb1"}) {
		t.Errorf("told %+v", e)
	}
	said := r.answer(t, report(readOnly))
	if said == nil || len(said.Log.Events) != 1 || said.Log.Events[0].Form != e.Form {
		t.Errorf("the examination was given %+v, want the message", said)
	}
	if f := get(t, r.events); f.Kind != Found || f.Code != "FS01" || f.Finding != "1" || f.Object != "filesystem:h:sdb1" {
		t.Errorf("told %+v, want what was found", f)
	}
	// What is no message, and one of no known form, are not told.
	for _, text := range []string{"nothing", "6,8,1001,-;usb 1-1: new device", "6,9"} {
		if _, err := kernel.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fmt.Fprintf(kernel, aborted, 10, 1002); err != nil {
		t.Fatal(err)
	}
	if e := get(t, r.events); e.Kind != Message || e.Form == "" {
		t.Errorf("told %+v, want the message behind others", e)
	}
	r.answer(t, report())
	if e := get(t, r.events); e.Kind != Over || e.Finding != "1" || e.Severity != finding.Note {
		t.Errorf("told %+v, want that it is over", e)
	}
	if s := r.now(); s.Messages != 2 || s.Lost != 0 || !s.Following || s.Examinations < 2 {
		t.Errorf("status %+v", s)
	}
}

// TestAlike: of many messages of one form some are told, and how many more there were.
func TestAlike(t *testing.T) {
	ring, kernel := ringOf(t)
	r := start(t, Options{Ring: ring})
	first := report()
	get(t, r.looks) // it does not end before all was heard
	for i := range maxAlike + 5 {
		if _, err := fmt.Fprintf(kernel, aborted, i, i); err != nil {
			t.Fatal(err)
		}
	}
	for range maxAlike {
		get(t, r.events)
	}
	for until := time.Now().Add(soon); r.now().Messages < maxAlike+5 && time.Now().Before(until); {
		time.Sleep(time.Millisecond)
	}
	r.answers <- first
	if e := get(t, r.events); e.Kind != Message || e.Count != 5 || e.Text != "" {
		t.Errorf("told %+v, want five more", e)
	}
	if said := r.answer(t, report()); said == nil || len(said.Log.Events) != 1 || said.Log.Events[0].Count != maxAlike+5 {
		t.Errorf("remembered %+v, want one message with its count", said)
	}
	// The next ones are told again.
	if _, err := fmt.Fprintf(kernel, aborted, 100, 100); err != nil {
		t.Fatal(err)
	}
	if e := get(t, r.events); e.Kind != Message || e.Count != 1 || e.Text == "" {
		t.Errorf("told %+v, want a message", e)
	}
}

// TestNews: a device that complains again and again is looked at once for it, another one at once.
func TestNews(t *testing.T) {
	w := newWatcher(Options{})
	said := func(form, device string) bool {
		return w.news(&evidence.Event{Form: form, Fields: map[string]string{"device": device, "sector": "1"}})
	}
	got := []bool{said("a", "sda"), said("a", "sda"), said("a", "sdb"), said("b", "sda"), said("a", "sda")}
	if want := []bool{true, false, true, true, false}; !slices.Equal(got, want) {
		t.Errorf("news: %v, want %v", got, want)
	}
	for i := range 2 * maxAbout {
		said("c", fmt.Sprint(i))
	}
	if len(w.about) > maxAbout {
		t.Errorf("%d things are remembered", len(w.about))
	}
	for key := range w.about {
		w.about[key] = time.Now().Add(-repeat)
	}
	if !said("c", fmt.Sprint(2*maxAbout-1)) {
		t.Error("it is never looked at again")
	}
}

// torn is a ring that was overwritten between records.
type torn struct {
	steps []any
	ended chan struct{}
}

func (r *torn) Close() error {
	select {
	case <-r.ended:
	default:
		close(r.ended)
	}
	return nil
}

func (r *torn) Read(p []byte) (int, error) {
	if len(r.steps) == 0 {
		<-r.ended
		return 0, os.ErrClosed
	}
	step := r.steps[0]
	r.steps = r.steps[1:]
	if err, is := step.(error); is {
		return 0, &os.PathError{Op: "read", Path: "ring", Err: err}
	}
	return copy(p, step.(string)), nil
}

// TestLost: messages that were overwritten are counted and told, logs are read for what they said.
func TestLost(t *testing.T) {
	first := report()
	r := start(t, Options{Ring: &torn{ended: make(chan struct{}), steps: []any{unix.EPIPE, "6,4,1,-;x", unix.EINTR, "6,5,1,-;x",
		unix.EPIPE, unix.EPIPE, "6,105,1,-;x", unix.EIO}}})
	var told []string
	for range 3 {
		e := get(t, r.events)
		told = append(told, fmt.Sprint(e.Kind, " ", e.Count))
	}
	if want := []string{"lost 1", "lost 99", "cannot_tell 1"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	r.answer(t, first)
	if said := r.answer(t, report()); said != nil {
		t.Errorf("the examination after a loss does not read logs: %+v", said)
	}
	if s := r.now(); s.Lost != 100 || s.Following {
		t.Errorf("status %+v, want 100 lost, and that nothing is followed", s)
	}
}

// TestFailed: that nothing can be examined is told once, and that it can again; what was found stays.
func TestFailed(t *testing.T) {
	ring, kernel := ringOf(t)
	r := start(t, Options{Ring: ring, NoRing: errors.New("not allowed")})
	again := func(s *seen) {
		if _, err := fmt.Fprintf(kernel, aborted, 1, 1); err != nil {
			t.Fatal(err)
		}
		if e := get(t, r.events); e.Kind != Message {
			t.Errorf("told %+v, want the message", e)
		}
		r.answer(t, s)
	}
	r.answer(t, report(readOnly))
	get(t, r.events) // what was found
	again(&seen{err: errors.New("no table")})
	if e := get(t, r.events); e.Kind != CannotTell || !strings.Contains(e.Summary, "no table") {
		t.Errorf("told %+v", e)
	}
	if s := r.now(); s.Failed != "no table" || s.Report == nil {
		t.Errorf("status %+v", s)
	}
	again(&seen{err: errors.New("no table")})
	again(report(readOnly))
	if e := get(t, r.events); e.Kind != Over || !strings.Contains(e.Summary, "no table") {
		t.Errorf("told %+v, want that it can be examined again and nothing else", e)
	}
}

// TestNoRing: without the right to read the kernel's messages the rest goes on, and it is told.
func TestNoRing(t *testing.T) {
	r := start(t, Options{NoRing: errors.New("not allowed")})
	r.answer(t, report(readOnly))
	var kinds []Kind
	for range 2 {
		kinds = append(kinds, get(t, r.events).Kind)
	}
	if !slices.Equal(kinds, []Kind{Found, CannotTell}) || r.now().Following {
		t.Errorf("told %v", kinds)
	}
}

// TestSeries: points of memory are kept; that they cannot be is told once, and nothing ends.
func TestSeries(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state", "memory.jsonl")
	series, err := evidence.RecallSeries(filepath.Dir(file))
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC)
	spaces, err := evidence.RecallSpaces(filepath.Dir(file), at)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Dir(file), nil, 0o600); err != nil { // in the way of the directory
		t.Fatal(err)
	}
	ring, kernel := ringOf(t)
	r := start(t, Options{Ring: ring, Series: series, Spaces: spaces})
	for i, want := range [][]Kind{{CannotTell}, {Message}, {Message, Memory}, {Message, CannotTell}} {
		var told []Kind
		if i > 0 {
			if _, err := fmt.Fprintf(kernel, aborted, i, i); err != nil {
				t.Fatal(err)
			}
		}
		if i > 0 {
			told = append(told, get(t, r.events).Kind)
		}
		get(t, r.looks) // the one before was taken
		switch i {
		case 2:
			if err := os.Remove(filepath.Dir(file)); err != nil {
				t.Fatal(err)
			}
		case 3:
			if err := errors.Join(os.Rename(file, file+".kept"), os.Mkdir(file, 0o700)); err != nil {
				t.Fatal(err)
			}
		}
		s := report()
		s.e.Now = at.Add(time.Duration(i) * evidence.KeepEvery)
		s.e.FSs = []evidence.FS{{Type: "ext4", Device: "sda1", Mounts: []int{0}}}
		s.e.Mounts = []evidence.Mount{{Probe: &evidence.Answer{BlockSize: 4096, Blocks: 100, Avail: 50}}}
		s.e.Memory.Series = []evidence.MemoryPoint{{Time: at.Add(time.Duration(i) * evidence.KeepEvery), Available: 5, SUnreclaim: 6}}
		r.answers <- s
		for len(told) < len(want) {
			told = append(told, get(t, r.events).Kind)
		}
		if !slices.Equal(told, want) {
			t.Errorf("look %d: told %v, want %v", i, told, want)
		}
	}
	text, err := os.ReadFile(file + ".kept")
	if err != nil || strings.Count(string(text), "\n") != 1 {
		t.Errorf("kept %q, %v", text, err)
	}
	text, err = os.ReadFile(filepath.Join(filepath.Dir(file), "space-2026-03.jsonl"))
	if err != nil || strings.Count(string(text), "\n") != 2 || !strings.Contains(string(text), `"free":204800`) {
		t.Errorf("kept of the room %q, %v", text, err)
	}
}

// TestTellFails: who does not take events ends the watch.
func TestTellFails(t *testing.T) {
	gone := errors.New("gone")
	w := newWatcher(Options{Every: time.Hour, NoRing: gone, Tell: func(Event) error { return gone }})
	w.look = func(context.Context, *evidence.Said, []evidence.MemoryPoint) *seen { return report(readOnly) }
	if err := w.run(t.Context()); !errors.Is(err, gone) {
		t.Errorf("run = %v, want the error of who is told", err)
	}
}

// TestFault: a file system that really gives up is told while it happens, by the kernel's own message.
func TestFault(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4")
	ring, err := tree.FollowRing()
	if err != nil {
		testenv.Lacks(t, err.Error())
	}
	events := make(chan Event, 10_000)
	first := make(chan struct{}, 100)
	w := newWatcher(Options{Every: time.Hour, Ring: ring, Tell: func(e Event) error { events <- e; return nil }})
	w.apart, w.repeat = 0, 0  // others may make faults meanwhile
	w.purse.start = time.Hour // the test itself takes time of the processor
	look := w.look
	w.look = func(ctx context.Context, said *evidence.Said, points []evidence.MemoryPoint) *seen {
		defer func() { first <- struct{}{} }()
		return look(ctx, said, points)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.run(ctx) }()
	defer func() {
		cancel()
		if err := get(t, ended); err != nil {
			t.Error(err)
		}
	}()
	get(t, first)
	world, err := faultfs.Make(t.Context(), "ext4-journal-eio", t.TempDir())
	if errors.Is(err, faultfs.ErrUnavailable) {
		testenv.Lacks(t, err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := world.Close(); err != nil {
			t.Error(err)
		}
	}()
	// Others may make faults meanwhile, so that which comes first is not certain, and where they are many the
	// message may be one of those that are only counted.
	for message, found := false, false; !message || !found; {
		e := get(t, events)
		message = message || e.Kind == Message && (e.Count > 1 || slices.Contains(e.Fields, EventField{"device", world.Hurt.Name}))
		found = found || e.Kind == Found && e.Code == "FS01" && strings.HasSuffix(e.Object, ":"+world.Hurt.Name)
	}
}

// TestHungForLong: a mount that does not answer is asked by one child, however often the machine is examined;
// no thread is left at each, and what is known of others goes on being told.
func TestHungForLong(t *testing.T) {
	testenv.NeedRoot(t)
	world, err := faultfs.Make(t.Context(), "stuck-fuse", t.TempDir())
	if errors.Is(err, faultfs.ErrUnavailable) {
		testenv.Lacks(t, err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	w := &looker{o: &Options{}, asker: &ask.Asker{}, probe: evidence.ProbeOptions{Between: 200 * time.Millisecond,
		Patience: ask.Options{Patience: 300 * time.Millisecond, Total: time.Hour}}}
	t.Cleanup(func() {
		if err := world.Close(); err != nil {
			t.Error(err)
		}
		for until := time.Now().Add(soon); w.asker.Left() > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(until) {
				t.Fatal("children that asked mounts do not end")
			}
		}
	})
	var threads []int
	for range 3 {
		s := w.look(t.Context(), &evidence.Said{}, []evidence.MemoryPoint{})
		if s.err != nil {
			t.Fatal(s.err)
		}
		if left := w.asker.Left(); left > 1 {
			t.Errorf("%d children are left, want one", left)
		}
		i := slices.IndexFunc(s.e.Mounts, func(m evidence.Mount) bool { return m.Point == world.Mount })
		if i < 0 || s.e.Mounts[i].Probe != nil && !s.e.Mounts[i].Probe.Hung {
			t.Errorf("the mount that hangs is said to answer, or is not there: %d", i)
		}
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		threads = append(threads, len(tasks))
	}
	// The runtime may start some for itself.
	if threads[2] > threads[0]+4 {
		t.Errorf("threads after each look: %v", threads)
	}
}
