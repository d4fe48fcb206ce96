// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/shisa-vm/shisa/internal/lab/hold"
)

// holdersRows hold shisa holders against the kernel's answer to umount(2), and against what fuser and
// lsof say.
func holdersRows() []row {
	return []row{
		{name: "holders: every kind", special: kindsRow},
		{name: "holders: 50 scans, 2,000 processes, a hung FUSE mount", special: crowdRow},
	}
}

// kindAsks is how often an answer that is wrong is asked for again: others on the machine look at
// processes, too, and each look is one more reference for a moment. A miss is asked for once.
const kindAsks = 5

// kindsFound is what became of all kinds of holders.
type kindsFound struct {
	// Rows are the cells of each kind that could be made; Unmade are those that could not, and why.
	Rows   [][]string
	Unmade []string
	// Untrue are kinds that the kernel did not take for what they are.
	Untrue []string
	// Harmful counts those of Rows that keep something busy, Unknown those of them that no scan can
	// name.
	Harmful, Unknown int
	// Again counts answers that were asked for once more.
	Again int
}

// kinds makes each kind, and asks everybody about it.
func (a *apart) kinds(ctx context.Context) (f kindsFound, err error) {
	ask := []hold.Looker{hold.Fuser(), hold.Lsof(), hold.Shisa(a.Shisa)}
	for _, k := range hold.Kinds() {
		var r hold.Row
		for asked := 1; ; asked++ {
			r, err = a.kind(ctx, k, ask)
			if err != nil || asked == kindAsks || !strings.HasPrefix(r.Said[len(ask)-1], hold.Wrong) {
				break
			}
			fmt.Fprintln(a.log, "      asked again:", r)
			f.Again++
		}
		if errors.Is(err, hold.ErrUnavailable) {
			f.Unmade = append(f.Unmade, err.Error())
			continue
		}
		if err != nil {
			return f, err
		}
		if !r.True() {
			f.Untrue = append(f.Untrue, r.String())
		}
		if k.Effect != hold.Harmless {
			f.Harmful++
		}
		if k.Effect == hold.Blocks && k.Word == "" {
			f.Unknown++
		}
		f.Rows = append(f.Rows, r.Cells())
	}
	return f, nil
}

func (a *apart) kind(ctx context.Context, k hold.Kind, ask []hold.Looker) (r hold.Row, err error) {
	dir, err := a.directory()
	if err != nil {
		return r, err
	}
	r, err = hold.Measure(ctx, k, dir, ask...)
	return r, errors.Join(err, os.RemoveAll(dir))
}

func kindsRow(ctx context.Context, b *bench, dir string) result {
	var f kindsFound
	if err := b.apart(ctx, dir, "kinds", &f); err != nil {
		return result{missing: err.Error()}
	}
	return f.result()
}

// The columns of a row of kindsFound.
const (
	kindName = iota
	kindUmount
	kindDevice
	kindFuser
	kindLsof
	kindShisa
)

var kindsHead = []string{"kind", "umount", "device after", "fuser -m", "lsof +f --", "shisa holders"}

// result judges what was said. A holder that shisa neither names nor says to be there is a silent miss.
func (f kindsFound) result() result {
	missed := func(column int) (n int) {
		for _, r := range f.Rows {
			if strings.HasPrefix(r[column], hold.Missed) {
				n++
			}
		}
		return n
	}
	named, unexplained, wrong := 0, 0, 0
	for _, r := range f.Rows {
		switch said := r[kindShisa]; {
		case said == hold.Named:
			named++
		case said == hold.Unexplained:
			unexplained++
		case strings.HasPrefix(said, hold.Wrong):
			wrong++
		}
	}
	res := result{
		theirsText: fmt.Sprintf("of %d fuser misses %d, lsof %d", f.Harmful, missed(kindFuser),
			missed(kindLsof)),
		text: fmt.Sprintf("names %d of %d, %d unexplained", named, f.Harmful, unexplained),
		below: &below{title: "Kinds of holders: " + strings.Join([]string{
			hold.Named + ": named",
			hold.Blamed + ": named, though it keeps no umount from succeeding",
			hold.Missed + ": missed",
			hold.Unexplained + ": said to be there, unnamed",
			hold.Silent + ": nobody to be named, and nobody is"}, "; ") + ".",
			lines: append([][]string{kindsHead}, f.Rows...)},
		goals: []outcome{
			{goal: count("silent misses", 0), got: float64(missed(kindShisa))},
			{goal: count("wrong answers", 0), got: float64(wrong)},
			{goal: count("unexplained", float64(f.Unknown)), got: float64(unexplained)}},
	}
	if f.Again > 0 {
		res.text += fmt.Sprintf(", asked again %d times", f.Again)
	}
	for _, why := range f.Unmade {
		res.below.notes = append(res.below.notes, "Not made here: "+why+".")
	}
	if len(f.Untrue) > 0 {
		res.failed = "the kernel takes it for something else: " + strings.Join(f.Untrue, "; ")
	}
	return res
}
