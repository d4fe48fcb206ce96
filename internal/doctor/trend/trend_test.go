// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trend

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// series makes points a step apart.
func series(n int, step time.Duration, value func(i int) float64) []Point {
	ps := make([]Point, n)
	for i := range ps {
		ps[i] = Point{Time: start.Add(time.Duration(i) * step), Value: value(i)}
	}
	return ps
}

func TestShape(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	noise := func(level float64) float64 { return level * (1 + 0.02*r.NormFloat64()) }
	for _, c := range []struct {
		name   string
		points []Point
		want   Shape
	}{
		{"nothing", nil, Short},
		{"nine points", series(9, time.Hour, func(i int) float64 { return float64(i) }), Short},
		{"five hours", series(300, time.Minute, func(i int) float64 { return float64(i) }), Short},
		{"one value", series(100, time.Hour, func(int) float64 { return 5 }), Flat},
		{"zeros", series(100, time.Hour, func(int) float64 { return 0 }), Flat},
		{"noise", series(200, time.Hour, func(int) float64 { return noise(1000) }), Flat},
		{"a leak", series(100, time.Hour, func(i int) float64 { return noise(1000 + 30*float64(i)) }), Grows},
		{"a leak with wild points", series(100, time.Hour, func(i int) float64 {
			if i%7 == 3 {
				return 50_000 * r.Float64()
			}
			return 1000 + 30*float64(i)
		}), Grows},
		{"what is used up", series(100, time.Hour, func(i int) float64 { return noise(9000 - 50*float64(i)) }), Falls},
		{"a sawtooth", series(200, time.Hour, func(i int) float64 { return noise(1000 + 100*float64(i%40)) }), Sawtooth},
		{"one fall to the start", series(100, time.Hour, func(i int) float64 {
			if i < 70 {
				return 1000 + 30*float64(i)
			}
			return 1000 + 30*float64(i-70)
		}), Sawtooth},
		{"less than the noise of a page", series(500, time.Hour, func(i int) float64 {
			return 1e9 + float64(i)*100
		}), Flat},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Fit(c.points, 6*time.Hour); got.Shape != c.want {
				t.Errorf("Fit = %+v, want %s", got, c.want)
			}
		})
	}
}

// TestForecast holds that a leak's end is told within 25 %, and that the interval holds it.
func TestForecast(t *testing.T) {
	const bound = 16e9
	inside, n := 0, 0
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		perHour := 5e6 * math.Exp(3*r.Float64())
		base := 1e9 * (1 + r.Float64())
		ps := series(12+r.IntN(300), time.Hour, func(i int) float64 {
			return base + perHour*float64(i) + 20e6*r.NormFloat64()
		})
		l := Fit(ps, 6*time.Hour)
		if l.Shape != Grows || l.Level > bound/2 {
			continue // not yet told from the noise, or nearly there
		}
		n++
		f, ok := l.Reaches(bound)
		if !ok {
			t.Fatalf("seed %d: %+v never reaches %g", seed, l, bound)
		}
		want := start.Add(time.Duration((bound - base) / perHour * float64(time.Hour)))
		if f.Early.Before(want) && (f.Late.IsZero() || f.Late.After(want)) {
			inside++
		}
		left, got := want.Sub(l.At), f.Best.Sub(l.At)
		if d := math.Abs(got.Seconds()-left.Seconds()) / left.Seconds(); d > 0.25 && len(ps) > 48 {
			t.Errorf("seed %d: forecast in %s, true in %s", seed, got, left)
		}
	}
	if n < 120 || inside < n*85/100 {
		t.Errorf("%d of 200 leaks were seen, the interval held the truth for %d of them", n, inside)
	}
}

func TestReaches(t *testing.T) {
	up := Line{Slope: 1, Low: 0.5, High: 2, At: start, Level: 100}
	down := Line{Slope: -1, Low: -2, High: 0.5, At: start, Level: 100}
	for _, c := range []struct {
		name  string
		line  Line
		value float64
		want  Forecast
		ok    bool
	}{
		{"up", up, 200, Forecast{start.Add(50 * time.Second), start.Add(100 * time.Second), start.Add(200 * time.Second)}, true},
		{"away", up, 50, Forecast{}, false},
		{"down, perhaps never", down, 0, Forecast{Early: start.Add(50 * time.Second), Best: start.Add(100 * time.Second)}, true},
		{"too far", Line{Slope: 1e-9, Low: 1e-9, High: 1e-9, At: start}, 1e9, Forecast{}, false},
		{"not at all", Line{At: start}, 10, Forecast{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, ok := c.line.Reaches(c.value); got != c.want || ok != c.ok {
				t.Errorf("Reaches(%g) = %v, %t, want %v, %t", c.value, got, ok, c.want, c.ok)
			}
		})
	}
}
