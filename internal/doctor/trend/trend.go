// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package trend tells whether a value grows for good, how fast, and when it will have reached a bound.
//
// The slope is that of Theil and Sen: the median of the slopes between all pairs of points. Up to 29 %
// of the points may be anything without moving it far. Its interval comes from the distribution of
// Kendall's score (P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63,
// 1968, section 6).
package trend

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Point is a value at one time.
type Point struct {
	Time  time.Time
	Value float64
}

// Shape is what a series looks like.
type Shape string

// The shapes.
const (
	// Short: there are too few points, or they span too little time.
	Short Shape = "too_short"
	// Flat: whether it grows or falls cannot be told from its noise.
	Flat Shape = "flat"
	// Sawtooth: it grows and falls back again and again.
	Sawtooth Shape = "sawtooth"
	// Grows and Falls: it does so all the time.
	Grows Shape = "grows"
	Falls Shape = "falls"
)

// Line is what a series does. The slopes are per second.
type Line struct {
	Shape Shape
	// Slope is the best estimate; with 95 % certainty it is between Low and High.
	Slope, Low, High float64
	// At is the time of the last point, Level the value of the line there.
	At    time.Time
	Level float64
	// Points is how many there were, Span the time from the first to the last.
	Points int
	Span   time.Duration
}

const (
	// minPoints is the least from which an interval makes sense; ten points in order happen by chance
	// once in millions.
	minPoints = 10
	// maxPoints bounds the pairs: what is more is joined to medians of neighbours first.
	maxPoints = 500
	// sigma95 is how many standard deviations 95 % of a normal distribution lie within.
	sigma95 = 1.96
	// maxFall is the part of all growth that may be lost again in one fall of something that grows.
	maxFall = 0.5
	// minGrowth is the part of the level by which a series has to move to be called moving.
	minGrowth = 0.01
)

// Fit tells what a series does that spans at least the given time. The points need no order; of those
// with one time the last counts.
func Fit(points []Point, atLeast time.Duration) Line {
	ps := inOrder(points)
	l := Line{Shape: Short, Points: len(ps)}
	if len(ps) > 0 {
		l.At, l.Level = ps[len(ps)-1].Time, ps[len(ps)-1].Value
		l.Span = l.At.Sub(ps[0].Time)
	}
	if len(ps) < minPoints || l.Span < atLeast || l.Span <= 0 {
		return l
	}
	ps = thin(ps, maxPoints)
	l.slopes(ps)
	l.Shape = l.shape(ps)
	return l
}

// inOrder sorts points by time, each time once, and leaves out what is no number.
func inOrder(points []Point) []Point {
	ps := slices.DeleteFunc(slices.Clone(points), func(p Point) bool {
		return math.IsNaN(p.Value) || math.IsInf(p.Value, 0)
	})
	slices.SortStableFunc(ps, func(a, b Point) int { return a.Time.Compare(b.Time) })
	out := ps[:0]
	for i, p := range ps {
		if i+1 == len(ps) || !ps[i+1].Time.Equal(p.Time) {
			out = append(out, p)
		}
	}
	return out
}

// thin joins neighbours to their medians until at most n points are left.
func thin(ps []Point, n int) []Point {
	size := (len(ps) + n - 1) / n
	if size < 2 {
		return ps
	}
	var out []Point
	for group := range slices.Chunk(ps, size) {
		values := make([]float64, len(group))
		for i, p := range group {
			values[i] = p.Value
		}
		slices.Sort(values)
		out = append(out, Point{Time: group[len(group)/2].Time, Value: values[len(values)/2]})
	}
	return out
}

// slopes fills in the line through the points.
func (l *Line) slopes(ps []Point) {
	n := len(ps)
	all := make([]float64, 0, n*(n-1)/2)
	for i := range ps {
		for j := i + 1; j < n; j++ {
			all = append(all, (ps[j].Value-ps[i].Value)/ps[j].Time.Sub(ps[i].Time).Seconds())
		}
	}
	slices.Sort(all)
	pairs := float64(len(all))
	f := float64(n)
	wide := sigma95 * math.Sqrt(f*(f-1)*(2*f+5)/18)
	l.Slope = median(all)
	l.Low = all[clamp(int((pairs-wide)/2), len(all))]
	l.High = all[clamp(int((pairs+wide)/2)+1, len(all))]
	// The level is that of the median line at the end.
	levels := make([]float64, n)
	for i, p := range ps {
		levels[i] = p.Value + l.Slope*l.At.Sub(p.Time).Seconds()
	}
	slices.Sort(levels)
	l.Level = median(levels)
}

// median is that of sorted values.
func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func clamp(i, n int) int { return min(max(i, 0), n-1) }

// shape names what the points do.
func (l *Line) shape(ps []Point) Shape {
	moved := math.Abs(l.Slope) * l.Span.Seconds()
	up, down := fallsBack(ps, 1), fallsBack(ps, -1)
	switch {
	case isSmooth(ps) && (up && down || up && l.Low > 0 || down && l.High < 0):
		return Sawtooth
	case moved < minGrowth*math.Abs(l.Level):
		return Flat
	case l.Low > 0:
		return Grows
	case l.High < 0:
		return Falls
	}
	return Flat
}

// isSmooth tells whether neighbours are nearer to each other than any two points are: a sawtooth is
// smooth between its falls, noise is not. It is the ratio of von Neumann, which is 2 for noise.
func isSmooth(ps []Point) bool {
	mean, steps, spread := 0.0, 0.0, 0.0
	for _, p := range ps {
		mean += p.Value / float64(len(ps))
	}
	for i, p := range ps {
		spread += (p.Value - mean) * (p.Value - mean)
		if i > 0 {
			steps += (p.Value - ps[i-1].Value) * (p.Value - ps[i-1].Value)
		}
	}
	return steps < spread
}

// fallsBack tells whether a series that goes up (sign 1) or down (-1) loses more than maxFall of its
// whole range at once. Single points that jump are smoothed away before.
func fallsBack(ps []Point, sign float64) bool {
	const around = 2 // neighbours on each side
	smooth := make([]float64, len(ps))
	for i := range ps {
		near := make([]float64, 0, 2*around+1)
		for j := max(0, i-around); j < min(len(ps), i+around+1); j++ {
			near = append(near, sign*ps[j].Value)
		}
		slices.Sort(near)
		smooth[i] = median(near)
	}
	whole := slices.Max(smooth) - slices.Min(smooth)
	top, worst := smooth[0], 0.0
	for _, v := range smooth {
		top = max(top, v)
		worst = max(worst, top-v)
	}
	return worst > maxFall*whole && whole > 0
}

// Forecast is when a line reaches a value: best estimate and interval. Late is zero where it may never
// do.
type Forecast struct {
	Early, Best, Late time.Time
}

// maxAhead bounds forecasts: what lies further ahead than ten years is never.
const maxAhead = 10 * 365 * 24 * time.Hour

// Reaches tells when a line that moves will be at a value; ok is false for one that does not move
// towards it, or not within ten years.
func (l Line) Reaches(value float64) (f Forecast, ok bool) {
	slopes := []float64{l.Low, l.Slope, l.High}
	if value < l.Level {
		slices.Reverse(slopes)
	}
	at := func(slope float64) time.Time {
		after := (value - l.Level) / slope
		if cmp.Compare(after, 0) < 0 || math.IsInf(after, 0) || math.IsNaN(after) ||
			after > maxAhead.Seconds() {
			return time.Time{}
		}
		return l.At.Add(time.Duration(after * float64(time.Second)))
	}
	f = Forecast{Early: at(slopes[2]), Best: at(slopes[1]), Late: at(slopes[0])}
	return f, !f.Best.IsZero()
}
