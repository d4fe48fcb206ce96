// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/trend"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

const (
	// aheadOf is how many times as far ahead as it was watched a forecast of room may look: who was seen to write
	// for six hours need not go on for weeks.
	aheadOf = 4
	// resized is the part of its size by which a file system has to change to be another one for a forecast.
	resized = 0.01
)

// filling is what becomes of the room in a file system: of its bytes, or of its inodes.
type filling struct {
	what string // "bytes", "inodes"
	line trend.Line
	// ends: it will be used up; end is when.
	ends bool
	end  trend.Forecast
	// why says why there is no forecast, "" if there is one.
	why string
}

// filled forecasts when a file system will be full: by the room that was seen in it over at least MinSpan.
func filled(e *evidence.Evidence, i int) (bytes, inodes filling) {
	var room, nodes []trend.Point
	key := e.FSs[i].SpaceKey()
	var last evidence.Space
	for _, p := range slices.Backward(e.Spaces) {
		at := slices.IndexFunc(p.Of, func(s evidence.Space) bool { return s.Key == key })
		if at < 0 || key == "" {
			continue
		}
		s := p.Of[at]
		if len(room) == 0 {
			last = s
		}
		if differs(s.Size, last.Size) {
			break // it was made larger or smaller since
		}
		room = append(room, trend.Point{Time: p.Time, Value: float64(s.Free)})
		if last.Inodes > 0 && !differs(s.Inodes, last.Inodes) {
			nodes = append(nodes, trend.Point{Time: p.Time, Value: float64(s.InodesFree)})
		}
	}
	return fill("bytes", room), fill("inodes", nodes)
}

func differs(a, b uint64) bool { return float64(max(a, b)-min(a, b)) > resized*float64(max(a, b)) }

func fill(what string, points []trend.Point) filling {
	f := filling{what: what, line: trend.Fit(points, MinSpan)}
	l := &f.line
	switch l.Shape {
	case trend.Short:
		f.why = "it was seen once, and a forecast takes ten times in six hours; shisa doctor watch remembers"
		if l.Points != 1 {
			f.why = fmt.Sprintf("it was seen %d times within %s, and a forecast takes ten times in six hours; shisa doctor watch "+
				"remembers", l.Points, l.Span.Round(time.Minute))
		}
	case trend.Sawtooth:
		f.why = "it fills and is emptied again and again"
	case trend.Grows:
		f.why = "there is more room than before"
	case trend.Flat:
		f.why = "it changes no more than by chance"
	default:
		f.end, f.ends = l.Reaches(0)
		if ahead := time.Duration(aheadOf) * l.Span; !f.ends || f.end.Best.Sub(l.At) > ahead {
			f.ends, f.why = false, fmt.Sprintf("not within %s, and further a forecast by %s does not reach", ahead.Round(time.Hour),
				l.Span.Round(time.Hour))
		}
	}
	return f
}

// text says in one line what the forecast is, or why there is none.
func (f *filling) text() string {
	if !f.ends {
		return "when there will be none left cannot be told: " + f.why
	}
	late := "open"
	if !f.end.Late.IsZero() {
		late = f.end.Late.UTC().Format("2006-01-02 15:04")
	}
	return fmt.Sprintf("at this rate there will be none left about %s UTC (%s to %s)", f.end.Best.UTC().Format("2006-01-02 15:04"),
		f.end.Early.UTC().Format("2006-01-02 15:04"), late)
}

// fact is where a forecast comes from.
func (f *filling) fact() Fact {
	rate := fmt.Sprintf("%.0f a day", -f.line.Slope*86400)
	if f.what == "bytes" {
		rate = fmt.Sprintf("%.1f MiB a day", -f.line.Slope*86400/(1<<20))
	}
	value := fmt.Sprintf("%d points over %s", f.line.Points, f.line.Span.Round(time.Minute))
	if f.line.Shape == trend.Falls {
		value = "free " + f.what + " fall by " + rate + ", " + value
	}
	return Fact{Source: evidence.Source{Path: evidence.SpaceDir + "/space-*.jsonl"}, Value: value, Text: f.text()}
}

// fills makes a finding of a file system that will be full soon, nil for one that will not as far as can be told.
func fills(r *Rule, e *evidence.Evidence, i int, point string) *Finding {
	bytes, inodes := filled(e, i)
	f := &bytes
	if inodes.ends && (!bytes.ends || inodes.end.Best.Before(bytes.end.Best)) {
		f = &inodes
	}
	if !f.ends || f.end.Best.Sub(e.Now) > near {
		return nil
	}
	kind, what := "fills", "fills up"
	if f.what == "inodes" {
		kind, what = "inodes-fill", "runs out of inodes"
	}
	x := found(r, fsObject(e, i), 0.75, kind, named(e, i)+" "+what+": "+f.text(), f.fact())
	if x.Severity = finding.Warning; f.end.Best.Sub(e.Now) <= soon {
		x.Severity = r.Severity
	}
	x.Reach = Local // nothing of it is hurt yet
	x.Remedies = makeRoom(point, kind)
	return x
}
