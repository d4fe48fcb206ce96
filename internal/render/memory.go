// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/doctor/trend"
	machine "github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// MemorySchema is the schema of a MemoryDocument.
const MemorySchema = "shisa.doctor-mem/1"

// MemoryDocument tells what becomes of a machine's memory.
type MemoryDocument struct {
	Status     []int       `json:"status"`
	Time       time.Time   `json:"time"`
	Total      int64       `json:"total_bytes"`
	Available  int64       `json:"available_bytes"`
	SUnreclaim int64       `json:"sunreclaim_bytes"`
	Slabs      []SlabInfo  `json:"slabs"`
	Own        MemoryTrend `json:"sunreclaim"`
	Free       MemoryTrend `json:"available"`
	// Ends: memory will be used up; the times are when, Late absent where it may never be.
	Ends  bool      `json:"ends"`
	Early time.Time `json:"early,omitempty"`
	Best  time.Time `json:"best,omitempty"`
	Late  time.Time `json:"late,omitempty"`
	// Unknown says why it cannot be told, "" if it can.
	Unknown string `json:"unknown"`
}

// SlabInfo is a cache of the kernel.
type SlabInfo struct {
	Name    string `json:"name"`
	Bytes   int64  `json:"size_bytes"`
	Objects int64  `json:"objects"`
}

// MemoryTrend is what a series does.
type MemoryTrend struct {
	Shape trend.Shape `json:"shape"`
	// PerHour is the slope; it lies between the two others with 95 % certainty.
	PerHour     int64 `json:"bytes_per_hour"`
	PerHourLow  int64 `json:"bytes_per_hour_low"`
	PerHourHigh int64 `json:"bytes_per_hour_high"`
	Points      int   `json:"points"`
	Span        int64 `json:"span_seconds"`
}

func newTrend(l trend.Line) MemoryTrend {
	return MemoryTrend{l.Shape, int64(l.Slope * 3600), int64(l.Low * 3600), int64(l.High * 3600), l.Points,
		int64(l.Span.Seconds())}
}

// NewMemory makes a document of memory and its forecast, for which atLeast is the time that points have
// to span.
func NewMemory(m *machine.Memory, f doctor.MemoryForecast, atLeast time.Duration, now time.Time) *MemoryDocument {
	d := &MemoryDocument{Time: now, Total: m.Total, Available: m.Available, SUnreclaim: m.SUnreclaim,
		Slabs: []SlabInfo{}, Own: newTrend(f.SUnreclaim), Free: newTrend(f.Available),
		Status: []int{finding.StatusClean}}
	for _, s := range m.Slabs {
		d.Slabs = append(d.Slabs, SlabInfo(s))
	}
	grows := f.SUnreclaim.Shape == trend.Grows
	switch {
	case f.Ends && grows:
		d.Ends, d.Early, d.Best, d.Late = true, f.End.Early, f.End.Best, f.End.Late
		d.Status[0] = finding.StatusFound
	case f.SUnreclaim.Shape == trend.Short:
		d.Unknown = fmt.Sprintf("there are %s over %s; at least 10 over %s are needed", Count(int64(f.SUnreclaim.Points),
			"point", "points"), f.SUnreclaim.Span.Round(time.Second), atLeast)
	case f.SUnreclaim.Shape == trend.Sawtooth:
		d.Unknown = "the kernel's own memory grows and falls back again and again"
	case f.Available.Shape == trend.Falls:
		d.Unknown = "available memory falls, and it is not the kernel's own memory that grows"
	}
	if d.Unknown != "" {
		d.Status[0] = finding.StatusCannotTell
	}
	return d
}

// Memory writes the document for people.
func Memory(w io.Writer, d *MemoryDocument, s Style) error {
	o := newOut(w, s)
	o.line("memory            ", Bytes(d.Total), ", available ", Bytes(d.Available))
	o.line("the kernel's own  ", Bytes(d.SUnreclaim), " that cannot be given back (SUnreclaim)")
	for _, v := range []struct {
		name string
		t    MemoryTrend
	}{{"SUnreclaim", d.Own}, {"available", d.Free}} {
		o.line("  ", v.name, ": ", v.t.words())
	}
	if len(d.Slabs) > 0 {
		rows := [][]string{}
		for _, x := range d.Slabs {
			rows = append(rows, []string{Text(x.Name), Bytes(x.Bytes), Count(x.Objects, "object", "objects")})
		}
		o.line()
		o.table([]string{"CACHE", "SIZE", "OBJECTS"}, rows, make([]string, len(rows)), nil)
	}
	o.line()
	o.prose(o.memoryWord(d)+"  ", d.verdict())
	return o.flush()
}

func (o *out) memoryWord(d *MemoryDocument) string {
	switch {
	case d.Ends:
		return o.paint(red, "LEAK")
	case d.Unknown != "":
		return o.paint(magenta, "CANNOT TELL")
	}
	return o.paint(green, "CLEAN")
}

func (d *MemoryDocument) verdict() string {
	switch {
	case d.Ends && d.Late.IsZero():
		return "memory is used up about " + minute(d.Best) + ", from " + minute(d.Early) + " on"
	case d.Ends:
		return "memory is used up about " + minute(d.Best) + " (" + minute(d.Early) + " to " +
			minute(d.Late) + ")"
	case d.Unknown != "":
		return Text(d.Unknown)
	}
	return "the kernel's own memory does not grow for good"
}

func (t MemoryTrend) words() string {
	over := fmt.Sprintf("%s over %s", Count(int64(t.Points), "point", "points"), time.Duration(t.Span)*time.Second)
	switch t.Shape {
	case trend.Short:
		return "too little is known, " + over
	case trend.Flat:
		return "neither grows nor falls, " + over
	case trend.Sawtooth:
		return "grows and falls back, " + over
	}
	return fmt.Sprintf("%s by %s an hour (%s to %s), %s", t.Shape, rate(t.PerHour), rate(t.PerHourLow), rate(t.PerHourHigh), over)
}

// rate gives a change for people.
func rate(n int64) string {
	if n < 0 {
		return "-" + Bytes(-n)
	}
	return Bytes(n)
}

// MemoryLine writes the document as one line of a list.
func MemoryLine(w io.Writer, d *MemoryDocument) error {
	_, err := fmt.Fprintf(w, "%s  available %s, SUnreclaim %s, %s\n", d.Time.Format(time.RFC3339), Bytes(d.Available),
		Bytes(d.SUnreclaim), d.verdict())
	return err
}
