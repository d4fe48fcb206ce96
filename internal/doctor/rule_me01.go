// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/trend"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

const (
	// MinSpan is the least time that memory has to be watched for a forecast: shorter than that, any
	// start of a service is a leak.
	MinSpan = 6 * time.Hour
	// suspect is the part of all memory from which on memory of the kernel that cannot be given back
	// is worth an answer, if nothing is known of how it grew.
	suspect = 0.15
	// soon and near are how far ahead the end has to be to be told as a danger, and as a warning.
	soon, near = 48 * time.Hour, 14 * 24 * time.Hour
)

// ruleME01 finds memory of the kernel that grows for good. Page cache is no part of it: it is given back.
func ruleME01() Rule {
	r := Rule{Rule: finding.ME01, Needs: []evidence.Part{evidence.PartMemory}, Reach: Upward,
		Guard: "what falls back again and again, what is noise, and less than six hours are no leak",
		Test:  "on leaks, sawteeth and noise made by numbers, and on leaks planted in a kernel until it had no memory left"}
	r.Judge = func(e *evidence.Evidence) []Result {
		o := hostObject(e)
		m := &e.Memory
		if len(m.Series) == 0 || m.Total == 0 && e.Kind != "disk" {
			return nil
		}
		f := Forecast(m, MinSpan)
		used := float64(m.SUnreclaim) / float64(max(m.Total, 1))
		switch {
		case f.SUnreclaim.Shape == trend.Grows && f.Ends:
			return []Result{fail(leaks(&r, e, f))}
		case used >= suspect && f.SUnreclaim.Shape == trend.Short:
			return []Result{unknown(o, fmt.Sprintf("%.0f %% of the memory is the kernel's own, and whether that grows is "+
				"not known: it was watched for %s; shisa doctor mem --watch does", used*100, m.Span().Round(time.Second)))}
		case used >= suspect && f.SUnreclaim.Shape == trend.Sawtooth:
			return []Result{unknown(o, fmt.Sprintf("%.0f %% of the memory is the kernel's own; it grows and falls back "+
				"again and again, so that whether something is left each time cannot be told", used*100))}
		}
		return []Result{pass(o)}
	}
	return r
}

// MemoryForecast is what becomes of a machine's memory.
type MemoryForecast struct {
	// SUnreclaim and Available are the lines of both, in bytes per second.
	SUnreclaim, Available trend.Line
	// Ends: what is available will be used up; End is when.
	Ends bool
	End  trend.Forecast
}

// Forecast tells what becomes of the memory; what is available is less what is held all the same. It ends
// when as much more is used as is available now: by
// the line of what is available where that falls as well, else by that of the kernel's own memory.
// Fewer points than ten, or less time than that given, tell nothing.
func Forecast(m *evidence.Memory, atLeast time.Duration) MemoryForecast {
	var own, free []trend.Point
	for _, p := range m.Series {
		if p.SUnreclaim >= 0 {
			own = append(own, trend.Point{Time: p.Time, Value: float64(p.SUnreclaim)})
		}
		if p.Available >= 0 {
			free = append(free, trend.Point{Time: p.Time, Value: float64(max(p.Available-p.Held, 0))})
		}
	}
	f := MemoryForecast{SUnreclaim: trend.Fit(own, atLeast), Available: trend.Fit(free, atLeast)}
	if f.Available.Shape == trend.Falls {
		f.End, f.Ends = f.Available.Reaches(0)
	} else if f.SUnreclaim.Shape == trend.Grows && len(free) > 0 {
		f.End, f.Ends = f.SUnreclaim.Reaches(f.SUnreclaim.Level + f.Available.Level)
	}
	return f
}

func leaks(r *Rule, e *evidence.Evidence, fc MemoryForecast) *Finding {
	m := &e.Memory
	l := fc.SUnreclaim
	perDay := func(slope float64) string { return fmt.Sprintf("%.1f MiB a day", slope*86400/(1<<20)) }
	facts := []Fact{{Source: evidence.Source{Path: evidence.SeriesPath}, Value: fmt.Sprintf(
		"SUnreclaim grows by %s (%s to %s), %d points over %s", perDay(l.Slope), perDay(l.Low), perDay(l.High), l.Points,
		l.Span.Round(time.Minute))}}
	for _, s := range m.Slabs[:min(len(m.Slabs), 3)] {
		facts = append(facts, Fact{Source: evidence.Source{Path: "/proc/slabinfo"}, Value: fmt.Sprintf(
			"%s: %d MiB in %d objects", s.Name, s.Bytes>>20, s.Objects)})
	}
	late := "open"
	if !fc.End.Late.IsZero() {
		late = fc.End.Late.UTC().Format("2006-01-02 15:04")
	}
	f := found(r, hostObject(e), 0.85, "leak", fmt.Sprintf("the kernel's own memory grows by %s; at this rate memory is "+
		"used up about %s UTC (%s to %s)", perDay(l.Slope), fc.End.Best.UTC().Format("2006-01-02 15:04"),
		fc.End.Early.UTC().Format("2006-01-02 15:04"), late), facts...)
	switch left := fc.End.Best.Sub(e.Now); {
	case left > near:
		f.Severity = finding.Note
	case left > soon:
		f.Severity = finding.Warning
	}
	f.Remedies = []Remedy{
		{Text: "see which cache it is; the largest are named above", Command: "slabtop --once --sort=c"},
		{Text: "restart the machine at a time of your choosing before then, not by a timer that cannot be stopped, " +
			"and not while backups run"},
		{Text: "another kernel: the leak is one of its own or of a module"},
	}
	return f
}
