// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// doubtful counts the answers of rules about what is hurt.
type doubtful struct {
	Worlds, Answers, Unknown int
	// Unavailable are the worlds that this kernel cannot make.
	Unavailable []string
}

// doubts makes real faults whose signs can be read, and counts what the rules cannot tell of them.
func doubts(ctx context.Context, b *bench, dir string) (res result) {
	var d doubtful
	if err := b.apart(ctx, dir, "doubts", &d); err != nil {
		return result{missing: err.Error()}
	}
	res.text = fmt.Sprintf("%d of %d answers about %d worlds", d.Unknown, d.Answers, d.Worlds)
	if len(d.Unavailable) > 0 {
		res.text += "; not made: " + strings.Join(d.Unavailable, ", ")
	}
	if d.Answers == 0 {
		res.failed = "no rule said anything"
	}
	res.goals = []outcome{{goal: count("unknown", 0), got: float64(d.Unknown)}}
	return res
}

// doubts is that in a mount namespace. What hangs cannot be read, and is left out.
func (a *apart) doubts(ctx context.Context) (d doubtful, err error) {
	for _, s := range faultfs.Scenarios() {
		if err = errors.Join(err, a.doubt(ctx, s.Name, &d)); err != nil {
			return d, err
		}
	}
	return d, nil
}

func (a *apart) doubt(ctx context.Context, name string, d *doubtful) (err error) {
	dir, err := a.directory()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	w, err := faultfs.Make(ctx, name, dir)
	if errors.Is(err, faultfs.ErrUnavailable) {
		d.Unavailable = append(d.Unavailable, name)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if w.Hangs {
		return nil
	}
	e, err := liveEvidence(ctx)
	if err != nil {
		return err
	}
	d.Worlds++
	for _, rule := range doctor.Rules() {
		for _, r := range answers(&rule, e) {
			if !isOf(w, r.Object) {
				continue
			}
			d.Answers++
			if r.Outcome == doctor.Unknown {
				d.Unknown++
				fmt.Fprintf(a.log, "      %s: %s of %s: %s\n", name, rule.Code, r.Object, r.Why)
			}
		}
	}
	return nil
}

// liveEvidence asks this machine.
func liveEvidence(ctx context.Context) (e *evidence.Evidence, err error) {
	l, err := tree.OpenLive(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	now := time.Now()
	files, err := evidence.Probe(ctx, l, evidence.ProbeOptions{Now: now, Asker: &ask.Asker{}})
	if err != nil {
		return nil, err
	}
	return evidence.Gather(ctx, tree.Overlay(l, files), evidence.Options{Now: now, Label: "h"})
}

// answers are those of a rule; that a part is not known counts for all that there is of a world.
func answers(r *doctor.Rule, e *evidence.Evidence) []doctor.Result {
	for _, p := range r.Needs {
		if why, known := e.Known(p); !known {
			var all []doctor.Result
			for i := range e.Mounts {
				all = append(all, doctor.Result{Outcome: doctor.Unknown, Why: string(p) + ": " + why,
					Object: doctor.Object{Kind: doctor.Mount, On: e.Label, Name: e.Mounts[i].Point}})
			}
			return all
		}
	}
	return r.Judge(e)
}

// isOf tells whether an object is of a world: its disks, what is on them, and where that is mounted. A mount that
// another name space has as well is asked here.
func isOf(w *faultfs.World, o doctor.Object) bool {
	names := []string{}
	for _, d := range append(slices.Clone(w.Disks), w.Hurt) {
		if d != nil {
			names = append(names, d.Name)
		}
	}
	switch o.Kind {
	case doctor.Device, doctor.FileSystem, doctor.File:
		name, _, _ := strings.Cut(o.Name, ":")
		return slices.Contains(names, name)
	case doctor.Mount:
		return strings.HasPrefix(o.Name, w.Dir+"/") && !strings.Contains(o.Name, "@")
	}
	return false
}
