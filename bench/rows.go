// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"fmt"
	"os"
	"slices"
)

// row is one line of the table.
type row struct {
	name  string
	image *disk // nil where the row makes its own
	space int64 // what it takes on disk beside the image
	// scales: a quick run takes a sixteenth of that.
	scales bool
	// ours and theirs are the arguments behind the program's name; theirs may be empty.
	ours, theirs func(path string) []string
	// exits are the exit statuses that each may have.
	oursExit, theirsExit []int
	cold                 bool
	// counted: both say the same counts of the image, or the row has failed: being fast and wrong
	// is worth nothing.
	counted bool
	goals   []goal
	special func(ctx context.Context, b *bench, dir string) result
}

// result is what a row came to.
type result struct {
	theirs, ours       cost
	oursRan, theirsRan bool
	goals              []outcome
	text, theirsText   string // said in place of costs
	below              *below // a table of its own, below all rows
	// failed says what went wrong: a required value cannot be reached then. missing says why
	// something could not be measured.
	failed, missing string
}

// goal is a value that must be reached, and one that is aimed at (0 for none).
type goal struct {
	what      string
	must, aim float64
	// value measures it; with lower set a small value is good.
	value func(ours, theirs cost) float64
	lower bool
	unit  string
	// always: holds for small images too, so a quick run judges it.
	always bool
	// shown: nothing is required of it.
	shown bool
}

type outcome struct {
	goal
	got float64
	// ceiling is the value at which the storage itself is the limit, 0 where it was not measured. It
	// explains a goal that is not reached and excuses nothing.
	ceiling float64
}

func (o outcome) met() bool { return o.shown || o.reaches(o.must) }

// limited reports whether the storage is too slow for the goal.
func (o outcome) limited() bool { return o.ceiling != 0 && o.ceiling < o.must }
func (o outcome) aimed() bool {
	return o.aim != 0 && o.reaches(o.aim)
}

func (o outcome) reaches(v float64) bool {
	if o.lower {
		return o.got <= v
	}
	return o.got >= v
}

func cpuRatio(must, aim float64) goal {
	return goal{what: "CPU", must: must, aim: aim, unit: "x less",
		value: func(o, t cost) float64 { return t.cpu.Seconds() / o.cpu.Seconds() }}
}

func wallRatio(must, aim float64) goal {
	return goal{what: "wall", must: must, aim: aim, unit: "x less",
		value: func(o, t cost) float64 { return t.wall.Seconds() / o.wall.Seconds() }}
}

func memoryRatio(must float64) goal {
	return goal{what: "memory", must: must, unit: "x less",
		value: func(o, t cost) float64 { return float64(t.memory) / float64(o.memory) }}
}

func memoryUnder(mib float64) goal {
	return goal{what: "memory", must: mib, lower: true, unit: " MiB",
		value: func(o, _ cost) float64 { return float64(o.memory) / (1 << 20) }}
}

func wallUnder(seconds float64) goal {
	return goal{what: "wall", must: seconds, lower: true, unit: " s",
		value: func(o, _ cost) float64 { return o.wall.Seconds() }}
}

func cpuUnder(ms float64) goal {
	return goal{what: "CPU", must: ms, lower: true, unit: " ms",
		value: func(o, _ cost) float64 { return o.cpu.Seconds() * 1000 }}
}

func count(what string, must float64) goal {
	return goal{what: what, must: must, lower: true, always: true}
}

func check(path string) []string { return []string{"check", path} }

func allRows() []row {
	d := disks()
	checked := func(name, image string, goals ...goal) row {
		return row{name: name, image: d[image], ours: check, theirs: check,
			oursExit: []int{0}, theirsExit: []int{0}, counted: true, goals: goals}
	}
	cold := checked("cold, O_DIRECT, 1 TiB sequential", "seq-1T", wallRatio(25, 40))
	cold.cold = true
	cold.ours = func(p string) []string { return []string{"check", "--direct", p} }
	cold.theirs = func(p string) []string { return []string{"check", "-T", "none", p} }
	maps := checked("JSON map of a fragmented 64 GiB", "random-64G", cpuRatio(10, 0))
	maps.ours = func(p string) []string { return []string{"map", "--output=json", p} }
	maps.theirs, maps.counted = maps.ours, false
	huge := checked("20 KB with a hole of 1100 GB", "bomb-1100G", memoryUnder(32), wallUnder(.2))
	huge.theirsExit, huge.counted = []int{1}, false // it refuses: file too large
	rows := []row{
		checked("1 TiB sequential", "seq-1T", cpuRatio(20, 40), memoryRatio(5)),
		checked("1 TiB + 4 snapshots", "snap-1T", cpuRatio(20, 40)),
		checked("1 TiB in runs of 16 clusters", "runs-1T", cpuRatio(100, 200)),
		checked("64 GiB random", "random-64G", cpuRatio(400, 1000)),
		checked("8 TiB sequential", "seq-8T", cpuRatio(20, 40), memoryUnder(64)),
		checked("20 KB with a hole of 400 GB", "bomb-400G", memoryUnder(32), wallUnder(.2)),
		huge,
		cold,
		maps,
		{name: "start (shisa version)", ours: func(string) []string { return []string{"version"} },
			oursExit: []int{0}, goals: []goal{cpuUnder(20)}},
		{name: "live: checks under random writes", space: liveSpace, special: live},
		{name: "answers that stayed open", special: open},
	}
	return slices.Concat(rows, repairRows(), powerCutRows(), insideRows(), memoryRows(), crashRows(),
		holdersRows(), umountRows(), traceRows(), journalRows(), watchRows(), doctorRows(), baseRows())
}

func (r row) measure(ctx context.Context, b *bench, dir string) result {
	if r.special != nil {
		return r.special(ctx, b, dir)
	}
	var path string
	if r.image != nil {
		var err error
		if path, err = b.make(ctx, r.image, dir); err != nil {
			return result{missing: err.Error()}
		}
		defer os.Remove(path)
	}
	res, err := r.compare(ctx, b, path)
	if err != nil {
		res.missing = err.Error()
	}
	return res
}

// compare runs both programs in turn, so that both see the same machine.
func (r row) compare(ctx context.Context, b *bench, path string) (res result, err error) {
	ours := append([]string{b.shisa}, r.ours(path)...)
	var theirs []string
	if r.theirs != nil {
		theirs = append([]string{b.qemuImg}, r.theirs(path)...)
	}
	var oursCosts, theirsCosts []cost
	for range b.runs {
		if theirs != nil {
			c, err := r.once(ctx, path, theirs, r.theirsExit)
			if err != nil {
				return res, err
			}
			theirsCosts = append(theirsCosts, c)
		}
		c, err := r.once(ctx, path, ours, r.oursExit)
		if err != nil {
			return result{failed: err.Error()}, nil
		}
		oursCosts = append(oursCosts, c)
	}
	res.ours, res.oursRan = median(oursCosts), true
	if res.ours.memory, err = peakMemory(ctx, ours); err != nil {
		return res, err
	}
	if theirs != nil {
		res.theirs, res.theirsRan = median(theirsCosts), true
		if res.theirs.memory, err = peakMemory(ctx, theirs); err != nil {
			return res, err
		}
	}
	if r.counted {
		if res.failed, err = b.sameCounts(ctx, path); err != nil {
			return res, err
		}
	}
	for _, g := range r.goals {
		res.goals = append(res.goals, outcome{goal: g, got: g.value(res.ours, res.theirs)})
	}
	if r.cold {
		disk, err := diskTime(ctx, path, b.runs)
		if err != nil {
			return res, err
		}
		for i, g := range r.goals {
			res.goals[i].ceiling = g.value(cost{cpu: disk, wall: disk}, res.theirs)
		}
	}
	return res, nil
}

func (r row) once(ctx context.Context, path string, argv []string, exits []int) (cost, error) {
	if path != "" {
		var err error
		if r.cold {
			err = cool(path)
		} else {
			err = warm(ctx, path)
		}
		if err != nil {
			return cost{}, err
		}
	}
	c, errs, err := timeRun(ctx, argv)
	if err == nil && !slices.Contains(exits, c.exit) {
		err = fmt.Errorf("%v: exit status %d, want one of %v: %s", argv, c.exit, exits, errs)
	}
	return c, err
}
