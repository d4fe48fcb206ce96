// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// logPause is how long a log that is being written may say nothing: the jobs of each hour break it.
const logPause = 2 * time.Hour

// ruleFS07 finds logs that stop while the machine goes on: the first thing that a file system loses
// that takes no writes.
func ruleFS07() Rule {
	r := Rule{Rule: finding.FS07, Needs: []evidence.Part{evidence.PartLog}, Reach: Local,
		Guard: "a machine that keeps its log in memory only is not judged, nor one that was shut down in order; " +
			"the time of an image alone is a note, since a copy has its own",
		Test: "on tables, and on a journal of a machine whose ring went on"}
	r.Judge = func(e *evidence.Evidence) []Result {
		kept, other := newestSources(&e.Log)
		if kept == nil {
			return nil
		}
		o := logPlace(e)
		if e.Kind == tree.Live || e.Kind == tree.Bundle {
			if other == nil || other.To.Sub(kept.To) <= logPause {
				return []Result{pass(o)}
			}
			return []Result{fail(stopped(&r, o, 0.7, kept, ended(other), other.To.Sub(kept.To)))}
		}
		return logOnDisk(&r, e, o, kept)
	}
	return r
}

// newestSources gives the log on disk and the one in memory that go on longest, nil where there is none.
func newestSources(l *evidence.Log) (kept, other *evidence.LogSource) {
	for i := range l.Sources {
		s := &l.Sources[i]
		at := &other
		if s.Persistent {
			at = &kept
		}
		if !s.To.IsZero() && (*at == nil || s.To.After((*at).To)) {
			*at = s
		}
	}
	return kept, other
}

// logPlace is the file system that logs lie on, the machine where that is not known.
func logPlace(e *evidence.Evidence) Object {
	if i := e.MountOf("/var/log"); i >= 0 && e.Mounts[i].FS >= 0 && e.Mounts[i].FS < len(e.FSs) {
		return fsObject(e, e.Mounts[i].FS)
	}
	return hostObject(e)
}

// logOnDisk judges the log of a machine that does not run.
func logOnDisk(r *Rule, e *evidence.Evidence, o Object, kept *evidence.LogSource) []Result {
	if n := len(e.Boots); n > 0 && e.Boots[n-1].End == "shutdown" {
		return []Result{pass(o)}
	}
	var wrote evidence.Source
	for i := range e.FSs {
		s := e.FSs[i].Super
		if s != nil && s.Written.After(wrote.Time) {
			wrote = s.From
			wrote.Time = s.Written
		}
	}
	if d := wrote.Time.Sub(kept.To); !wrote.Time.IsZero() && d > logPause {
		fact := Fact{Source: wrote, Value: wrote.Time.Format(time.RFC3339), Text: "the file system was written last"}
		return []Result{fail(stopped(r, o, 0.6, kept, fact, d))}
	}
	if d := e.DisksChanged.Sub(kept.To); !e.DisksChanged.IsZero() && d > logPause {
		fact := Fact{Source: evidence.Source{Path: "the images", Time: e.DisksChanged},
			Value: e.DisksChanged.Format(time.RFC3339), Text: "the images were written last, unless they were copied then"}
		f := stopped(r, o, 0.3, kept, fact, d)
		f.Severity, f.Reach = finding.Note, Hint
		return []Result{fail(f)}
	}
	if wrote.Time.IsZero() && e.DisksChanged.IsZero() {
		return []Result{unknown(o, "when the machine was alive last is not known from anything but the log itself")}
	}
	return []Result{pass(o)}
}

// ended says where a log ends.
func ended(s *evidence.LogSource) Fact {
	return Fact{Source: evidence.Source{Path: s.Path, Time: s.To}, Value: s.To.Format(time.RFC3339),
		Text: "its last message"}
}

func stopped(r *Rule, o Object, confidence float64, kept *evidence.LogSource, sign Fact, d time.Duration) *Finding {
	f := found(r, o, confidence, "stopped", fmt.Sprintf("%s ends %s before the last sign of the machine: what happened "+
		"then was not written", kept.Path, spell(d)), ended(kept), sign)
	f.Remedies = []Remedy{
		{Text: "take a clean log for no proof: what came after its end is not in it"},
		{Text: "look whether the file system takes writes", Command: "shisa doctor --write-probe"},
	}
	return f
}

// spell writes a time as people do.
func spell(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	}
	if int(d.Seconds()) == 1 {
		return "1 second"
	}
	return fmt.Sprintf("%d seconds", int(d.Seconds()))
}
