// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/watch"
)

// WatchSchema is the schema of a watch.Event in JSON.
const WatchSchema = "shisa.doctor-event/1"

// WatchLine writes an event as one line for people.
func WatchLine(w io.Writer, e *watch.Event, s Style) error {
	o := newOut(w, s)
	word, color := watchWord(e)
	words := []string{e.Time.Format(time.RFC3339), o.paint(color, word)}
	for _, word := range []string{e.Code, e.Object} {
		if word != "" && e.Kind != watch.Message {
			words = append(words, Text(word))
		}
	}
	o.line(strings.Join(words, "  ") + "  " + Text(e.Summary))
	return o.flush()
}

// watchWord is what an event begins with, and its colour.
func watchWord(e *watch.Event) (word, color string) {
	switch e.Kind {
	case watch.Found:
		st := stateOf(e.Severity)
		return st.word, st.color
	case watch.Message:
		return fmt.Sprintf("kernel (%s)", Text(e.Form)), ""
	case watch.Over:
		return "over", green
	case watch.Memory:
		return "memory", ""
	case watch.CannotTell:
		return stateBlind.word, stateBlind.color
	}
	return "LOST MESSAGES", magenta
}

// WatchMetrics writes what a watch knows as OpenMetrics text.
func WatchMetrics(w io.Writer, s *watch.Status) error {
	m := &metrics{bufio.NewWriter(w)}
	if s.Report != nil {
		m.report(s.Report)
		m.gauge("shisa_watch_examined_timestamp_seconds", "When the machine was examined last.", seconds(s.Examined))
	}
	m.watch(s)
	if s.Memory != nil {
		m.gauge("shisa_memory_available_bytes", "What can be had without swapping.", float64(s.Memory.Available))
		m.gauge("shisa_memory_sunreclaim_bytes", "The kernel's own memory that cannot be given back.",
			float64(s.Memory.SUnreclaim))
		m.family("shisa_memory_used_up_timestamp_seconds", "When memory will be used up, where it falls or leaks for good.")
		if s.Forecast.Ends {
			m.sample("shisa_memory_used_up_timestamp_seconds", seconds(s.Forecast.End.Best))
		}
	}
	return m.end()
}

// watch writes what the watch tells of itself.
func (m *metrics) watch(s *watch.Status) {
	m.counter("shisa_watch_examinations", "How often the machine was examined.", float64(s.Examinations))
	m.gauge("shisa_watch_examination_seconds", "How long the last examination took.", s.Took.Seconds())
	m.gauge("shisa_watch_failed", "1 where the last examination could not be made.", number(s.Failed != ""))
	m.gauge("shisa_watch_interval_seconds", "How often the machine is to be examined.", s.Every.Seconds())
	m.gauge("shisa_watch_following", "1 where the kernel's messages are read.", number(s.Following))
	m.counter("shisa_watch_messages", "Messages of the kernel that are known.", float64(s.Messages))
	m.counter("shisa_watch_lost_messages", "Messages of the kernel that were overwritten before they were read.",
		float64(s.Lost))
	m.gauge("shisa_watch_children_left", "Children that wait for a mount that does not answer.", float64(s.Left))
	m.counter("shisa_watch_cpu_seconds", "Processor time of the watch and its children.", s.Processor.Seconds())
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// seconds gives a time as OpenMetrics has them: since 1970.
func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
