// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package watch follows a machine: it hears what its kernel says, examines it again and again, at once
// where the kernel said something that matters, and tells what changed.
//
// It is to run for months on machines that are in trouble, so everything is bounded: the processor time
// that it takes (pace.go), the messages that it reads in a second, the events that it tells at once, what
// it remembers, and who asks for its numbers (serve.go). A mount that does not answer is asked by one
// child, once, however long that takes.
package watch

import (
	"context"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/linux/klog"
	"github.com/shisa-vm/shisa/internal/linux/logs"
)

const (
	// apart is the least time between two examinations, together is how long is waited after a message
	// for those that come with it.
	apart, together = 5 * time.Second, 500 * time.Millisecond
	// repeat is how long the same message about the same thing has no further examination made, but those in
	// their time; maxAbout bounds the things that are remembered for that.
	repeat   = 10 * time.Minute
	maxAbout = 1000
	// maxAlike is how many messages of one form are told one by one between two examinations.
	maxAlike = 20
)

// Options say how a machine is followed.
type Options struct {
	// Every is the time between two examinations.
	Every time.Duration
	// Version is that of the program, Label what the machine is called before it was examined.
	Version, Label string
	// Rules are those of the user.
	Rules []doctor.Rule
	// Ring gives the kernel's messages; where it is nil, NoRing says why it cannot be read.
	Ring   Ring
	NoRing error
	// Series keeps points of memory.
	Series *evidence.Series
	// Spaces keeps points of the room in file systems, nil for none.
	Spaces *evidence.SpaceSeries
	// Tell takes an event. Its error ends the watch.
	Tell func(Event) error
	// Listener is where Page is served to who asks for it by HTTP, nil for nowhere. Both belong to the
	// watch then.
	Listener net.Listener
	Page     func(io.Writer, *Status) error
}

// Status is what is known now.
type Status struct {
	// Report, Memory and Forecast are of the last examination; Report is nil before the first.
	Report   *doctor.Report
	Memory   *evidence.Memory
	Forecast doctor.MemoryForecast
	// Examined is when that was, Took how long it took, Examinations how many there were; Failed is why
	// the last one could not be made, "" if it was.
	Examined     time.Time
	Took         time.Duration
	Examinations int64
	Failed       string
	// Messages is how many the kernel said whose form is known, Lost how many were overwritten before they
	// were read. Following: the kernel's messages are read.
	Messages, Lost int64
	Following      bool
	// Every is the time between two examinations, Left how many children wait for a mount, Processor the
	// time of the processor that all this took.
	Every     time.Duration
	Left      int
	Processor time.Duration
}

// watcher is one run.
type watcher struct {
	o       Options
	matcher *klog.Matcher
	asker   *ask.Asker
	look    func(context.Context, *evidence.Said, []evidence.MemoryPoint) *seen
	purse   *purse
	// apart, together and repeat are the constants, but in tests.
	apart, together, repeat time.Duration

	needs  map[string][]evidence.Part
	memory memory
	things things
	alike  map[string]int64
	// label and boot are of the machine, as the last examination told.
	label, boot string
	looked      time.Time // when the last examination began
	asked       time.Time // when a message asked for one that was not made yet, else zero
	// about is when messages of a form about a thing asked for one.
	about map[string]time.Time

	mu     sync.Mutex
	status Status
}

// Run follows the machine until ctx ends, which is no error.
func Run(ctx context.Context, o Options) error {
	w := newWatcher(o)
	return w.run(ctx)
}

func newWatcher(o Options) *watcher {
	w := &watcher{o: o, matcher: klog.New(), asker: &ask.Asker{}, things: things{}, alike: map[string]int64{},
		needs: map[string][]evidence.Part{}, label: o.Label, purse: newPurse(processorTime, time.Now()),
		apart: apart, together: together, repeat: repeat, about: map[string]time.Time{}}
	for _, r := range append(doctor.Rules(), o.Rules...) {
		w.needs[r.Code] = r.Needs
	}
	w.look = (&looker{o: &w.o, asker: w.asker}).look
	w.status.Every, w.status.Following = o.Every, o.Ring != nil
	return w
}

func (w *watcher) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	records := make(chan record)
	if w.o.Ring != nil {
		wait.Go(func() { follow(ctx, w.o.Ring, records) })
	}
	if w.o.Listener != nil {
		wait.Go(func() { serve(ctx, w.o.Listener, func(to io.Writer) error { return w.o.Page(to, w.now()) }) })
	}
	looks := make(chan *seen, 1)
	looking := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-records:
			if err := w.hear(r); err != nil {
				return err
			}
		case s := <-looks:
			looking = false
			if err := w.take(ctx, s); err != nil {
				return err
			}
		case <-timer.C:
			looking, w.looked, w.asked = true, time.Now(), time.Time{}
			said, points := w.memory.said(w.looked, w.o.Every), w.points()
			wait.Go(func() { looks <- w.look(ctx, said, points) })
		}
		if !looking {
			timer.Reset(time.Until(w.next()))
		}
	}
}

// points are those of memory that are remembered.
func (w *watcher) points() []evidence.MemoryPoint {
	if w.o.Series == nil {
		return []evidence.MemoryPoint{}
	}
	return w.o.Series.Points
}

// next is when the next examination is made: in its time, or soon after a message that matters, and later
// where the last ones took more of the processor than they may.
func (w *watcher) next() time.Time {
	if w.looked.IsZero() {
		return time.Time{}
	}
	at := w.looked.Add(w.o.Every)
	if !w.asked.IsZero() {
		soon := w.asked.Add(w.together)
		if first := w.looked.Add(w.apart); first.After(soon) {
			soon = first
		}
		if soon.Before(at) {
			at = soon
		}
	}
	now := time.Now()
	if paid := now.Add(w.purse.wait(now)); paid.After(at) {
		at = paid
	}
	return at
}

// now gives the status as of now.
func (w *watcher) now() *Status {
	w.mu.Lock()
	s := w.status
	w.mu.Unlock()
	s.Left, s.Processor = w.asker.Left(), processorTime()
	return &s
}

func (w *watcher) update(change func(*Status)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.status)
}

// tell tells an event, with what is the same in all.
func (w *watcher) tell(e Event) error {
	if e.Time.IsZero() {
		e.Time = time.Now().UTC()
	}
	if e.Machine == "" {
		e.Machine = w.label
	}
	if e.Fields == nil {
		e.Fields = []EventField{}
	}
	e.Count = max(e.Count, 1)
	return w.o.Tell(e)
}

// ask has an examination made soon.
func (w *watcher) ask() {
	if w.asked.IsZero() {
		w.asked = time.Now()
	}
}

// news tells whether a message says something that none said for a while: a device that complains again and
// again is looked at once for it.
func (w *watcher) news(e *evidence.Event) bool {
	key := e.Form
	for _, name := range []string{"device", "member", "address", "controller", "map", "pool", "server", "node"} {
		key += "\x00" + e.Fields[name]
	}
	if at, known := w.about[key]; known && time.Since(at) < w.repeat {
		return false
	}
	if len(w.about) >= maxAbout {
		clear(w.about)
	}
	w.about[key] = time.Now()
	return true
}

// hear takes a record of the kernel's.
func (w *watcher) hear(r record) error {
	if r.err != nil {
		w.update(func(s *Status) { s.Following = false })
		return w.tell(Event{Kind: CannotTell, Severity: finding.Warning,
			Summary: "the kernel's messages cannot be followed any more: " + r.err.Error()})
	}
	if r.lost != 0 {
		if err := w.lose(r.lost); err != nil {
			return err
		}
	}
	now := time.Now().UTC()
	m, known := logs.Heard(w.matcher, r.Record, now, w.boot)
	if !known {
		return nil
	}
	w.update(func(s *Status) { s.Messages++ })
	e := evidence.Heard(&m)
	w.memory.hear(e)
	if m.Form.Severity.Rank() <= finding.Warning.Rank() && w.news(&e) {
		w.ask()
	}
	if w.alike[m.Form.Name]++; w.alike[m.Form.Name] > maxAlike {
		return nil
	}
	names := []string{}
	for _, f := range m.Fields {
		if !slices.Contains(names, f.Name) {
			names = append(names, f.Name)
		}
	}
	return w.tell(said(&e, m.Form.Severity, names))
}

// lose tells that messages were lost. What they said is looked for in logs.
func (w *watcher) lose(n int64) error {
	w.update(func(s *Status) { s.Lost += max(n, 1) })
	w.memory.forget()
	w.ask()
	e := Event{Kind: Lost, Severity: finding.Warning, Count: n,
		Summary: strconv.FormatInt(n, 10) + " messages of the kernel were overwritten before they were read"}
	if n < 0 {
		e.Summary = "messages of the kernel were overwritten before they were read; how many is not known"
	}
	return w.tell(e)
}

// take takes an examination.
func (w *watcher) take(ctx context.Context, s *seen) error {
	if ctx.Err() != nil {
		return nil
	}
	if err := w.also(); err != nil {
		return err
	}
	if s.err != nil {
		return w.failed(s.err)
	}
	w.memory.keep(s)
	w.label, w.boot = s.e.Label, s.e.Host.BootID
	forecast := doctor.Forecast(&s.e.Memory, doctor.MinSpan)
	memory, first := s.e.Memory, false
	w.update(func(st *Status) {
		first = st.Report == nil
		st.Report, st.Memory, st.Forecast = s.report, &memory, forecast
		st.Examined, st.Took, st.Failed = s.begun.UTC(), s.took, ""
		st.Examinations++
	})
	now := thingsIn(s.report, w.needs)
	if first && w.o.Ring == nil && w.o.NoRing != nil {
		now["ring"] = thing{Event: Event{Kind: CannotTell, Severity: finding.Warning,
			Summary: "the kernel's messages cannot be followed: " + w.o.NoRing.Error()}}
	}
	for _, key := range []string{"ring", "series"} { // no examination is about these
		if t, was := w.things[key]; was {
			now[key] = t
		}
	}
	for _, e := range change(w.things, now, s.report) {
		if err := w.tell(e); err != nil {
			return err
		}
	}
	w.things = now
	if w.o.Spaces != nil {
		if _, err := w.o.Spaces.Keep(s.e.SpaceNow()); err != nil {
			return w.trouble(err)
		}
	}
	return w.remember(&s.e.Memory)
}

// failed tells once that nothing can be examined. What was found before stays as it was told.
func (w *watcher) failed(why error) error {
	var told bool
	w.update(func(st *Status) { told, st.Failed = st.Failed == why.Error(), why.Error() })
	if told {
		return nil
	}
	e := Event{Kind: CannotTell, Severity: finding.Warning, Summary: "the machine cannot be examined: " + why.Error()}
	w.things["examination"] = thing{Event: e}
	return w.tell(e)
}

// also tells of the messages that were not told one by one.
func (w *watcher) also() error {
	for form, n := range w.alike {
		if n <= maxAlike {
			continue
		}
		n -= maxAlike
		err := w.tell(Event{Kind: Message, Severity: finding.Note, Form: form, Count: n,
			Summary: strconv.FormatInt(n, 10) + " more messages of the form " + form})
		if err != nil {
			return err
		}
	}
	clear(w.alike)
	return nil
}

// remember keeps a point of memory, if it is time for one.
func (w *watcher) remember(m *evidence.Memory) error {
	if w.o.Series == nil || len(m.Series) == 0 {
		return nil
	}
	p := m.Series[len(m.Series)-1]
	kept, err := w.o.Series.Keep(p)
	if err != nil {
		return w.trouble(err)
	}
	if !kept {
		return nil
	}
	delete(w.things, "series")
	return w.tell(Event{Kind: Memory, Severity: finding.Note, Summary: "a point of memory was kept", Fields: []EventField{
		{"available_bytes", strconv.FormatInt(p.Available, 10)}, {"sunreclaim_bytes", strconv.FormatInt(p.SUnreclaim, 10)}}})
}

// trouble tells once that points of memory cannot be kept: a full disk is no reason to end.
func (w *watcher) trouble(err error) error {
	const key = "series"
	if old, known := w.things[key]; known && old.Summary == err.Error() {
		return nil
	}
	e := Event{Kind: CannotTell, Severity: finding.Warning, Summary: err.Error()}
	w.things[key] = thing{Event: e}
	return w.tell(e)
}
