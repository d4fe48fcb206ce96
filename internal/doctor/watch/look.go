// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package watch

import (
	"context"
	"fmt"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// maxThreads is how many threads this program may have and still look: each call that waits for storage
// keeps one, and what does not answer for days must not take one a minute.
const maxThreads = 64

// seen is what one examination saw.
type seen struct {
	report *doctor.Report
	e      *evidence.Evidence
	took   time.Duration
	// logs is what the logs said, as far as this examination read them, begun when it did; cost is the
	// processor time that it took.
	logs  *evidence.Said
	begun time.Time
	cost  time.Duration
	err   error
}

// looker examines the machine that it runs on.
type looker struct {
	o     *Options
	asker *ask.Asker
	probe evidence.ProbeOptions // how long to wait, in tests
}

// look examines the machine; said is what its logs say, nil to have them read.
func (l *looker) look(ctx context.Context, said *evidence.Said, series []evidence.MemoryPoint) *seen {
	s := &seen{begun: time.Now()}
	before := processorTime()
	s.report, s.e, s.err = l.examine(ctx, said, series)
	if s.err == nil && said == nil {
		logs := evidence.SaidIn(s.e)
		s.logs = &logs
	}
	s.took, s.cost = time.Since(s.begun), processorTime()-before
	return s
}

func (l *looker) examine(ctx context.Context, said *evidence.Said, series []evidence.MemoryPoint) (
	*doctor.Report, *evidence.Evidence, error,
) {
	t, err := tree.OpenLive(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer t.Close()
	if threads, err := t.List(ctx, "/proc/self/task"); err == nil && len(threads) > maxThreads {
		return nil, nil, fmt.Errorf("%d calls of this program wait for storage that does not answer: nothing is looked at "+
			"until they come back", len(threads))
	}
	now := time.Now()
	probe := l.probe
	probe.Now, probe.Version, probe.Asker = now, l.o.Version, l.asker
	files, err := evidence.Probe(ctx, t, probe)
	if err != nil {
		return nil, nil, err
	}
	spaces := []evidence.SpacePoint{}
	if l.o.Spaces != nil {
		spaces = l.o.Spaces.Points
	}
	e, err := evidence.Gather(ctx, tree.Overlay(t, files), evidence.Options{Now: now, Said: said, Series: series, Spaces: spaces})
	if err != nil {
		return nil, nil, err
	}
	return doctor.Examine([]*evidence.Evidence{e}, l.o.Rules), e, nil
}

// maxHeard bounds the messages that are remembered between two readings of the logs.
const maxHeard = 4096

// memory is what logs said when they were read last, and what the kernel said since.
type memory struct {
	logs  *evidence.Said // nil before the first time, and where they have to be read again
	read  time.Time
	cost  time.Duration
	heard []evidence.Event
	index map[string]int
	// torn is when something was not remembered: logs that were read before do not have it.
	torn time.Time
}

// fits tells whether the logs need not be read again: where that costs much it is done less often.
func (m *memory) fits(now time.Time, every time.Duration) bool {
	return m.logs != nil && now.Sub(m.read) < max(every, time.Duration(float64(m.cost)/logShare))
}

// said is what logs and the kernel said, for an examination; nil has the logs read.
func (m *memory) said(now time.Time, every time.Duration) *evidence.Said {
	if !m.fits(now, every) {
		return nil
	}
	s := *m.logs
	s.Log.Events = append(s.Log.Events[:len(s.Log.Events):len(s.Log.Events)], m.heard...)
	return &s
}

// keep takes what an examination read of logs. What the kernel said before that is among it.
func (m *memory) keep(s *seen) {
	if s.logs == nil || s.begun.Before(m.torn) {
		return
	}
	later := m.heard
	m.logs, m.read, m.cost, m.heard, m.index = s.logs, s.begun, s.cost, nil, map[string]int{}
	for _, e := range later {
		if e.Last.After(s.begun) {
			m.hear(e)
		}
	}
}

// hear remembers a message. What says the same as one before is counted there.
func (m *memory) hear(e evidence.Event) {
	key := e.Form + "\x00" + e.Text
	i, again := m.index[key]
	switch {
	case again:
		m.heard[i].Count, m.heard[i].Last = m.heard[i].Count+e.Count, e.Last
	case len(m.heard) >= maxHeard:
		m.forget()
	default:
		if m.index == nil {
			m.index = map[string]int{}
		}
		m.index[key] = len(m.heard)
		m.heard = append(m.heard, e)
	}
}

// forget has the logs read at the next examination, as when messages were lost.
func (m *memory) forget() { m.logs, m.heard, m.index, m.torn = nil, nil, nil, time.Now() }
