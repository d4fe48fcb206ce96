// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"errors"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/klog"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// maxRing is more than the kernel's ring can hold (CONFIG_LOG_BUF_SHIFT, at most 25).
const maxRing = 64 << 20

const ringPath = "/dev/kmsg"

// ring reads what the kernel still has of its messages. It has no times of the day: they are the
// present less the time since the boot, which leaves out sleep and steps of the clock.
func (r *reader) ring() {
	b, err := r.t.Read(r.ctx, ringPath, maxRing)
	if err != nil && !errors.Is(err, tree.ErrTooLarge) {
		r.missed(ringPath, err)
		return
	}
	if r.o.Booted.IsZero() {
		r.gap(ringPath, "when the kernel was started is not known, and so not when it said what")
		return
	}
	s := Source{Path: ringPath}
	for record := range records(string(b)) {
		rec, err := klog.ParseKmsg(record)
		if err != nil {
			s.Damage = "a record " + err.Error()
			continue
		}
		at := r.o.Booted.Add(rec.Since)
		if s.Entries++; s.From.IsZero() {
			s.From = at
			if rec.Sequence > 0 {
				s.Damage = "its beginning was overwritten"
			}
		}
		s.To = at
		r.record(rec, at)
	}
	r.log.Sources = append(r.log.Sources, s)
}

func (r *reader) record(rec klog.Record, at time.Time) {
	m, ok := ofRing(r.matcher, rec, at, r.o.BootID)
	if ok {
		r.keep(ringPath, m)
	}
}

// ofRing gives the message of a record; ok is false if its form is not known.
func ofRing(matcher *klog.Matcher, rec klog.Record, at time.Time, bootID string) (m Message, ok bool) {
	m = Message{Program: "kernel", Text: rec.Text, Time: at.UTC(), Exact: true, Boot: plainID(bootID), Path: ringPath,
		since: rec.Since, hasSince: true, Count: 1, Last: at.UTC()}
	if rec.Facility > 0 {
		// A program wrote into the ring: "systemd[1]: text".
		name, text, ok := strings.Cut(rec.Text, ": ")
		if !ok {
			return m, false
		}
		m.Program, _, _ = strings.Cut(name, "[")
		m.Text = text
	}
	ok = m.match(matcher)
	return m, ok
}

// Heard gives the message of a record that the kernel's ring just got, at a time, in a boot; ok is false
// where its form is not known, or says nothing that matters by itself.
func Heard(matcher *klog.Matcher, rec klog.Record, at time.Time, bootID string) (m Message, ok bool) {
	m, ok = ofRing(matcher, rec, at, bootID)
	return m, ok && !idle(m.Form)
}

// records divides what was read from /dev/kmsg: lines that begin with a space belong to the record
// before.
func records(s string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for s != "" {
			end := 0
			for {
				i := strings.IndexByte(s[end:], '\n')
				if i < 0 {
					end = len(s)
					break
				}
				if end += i + 1; end >= len(s) || s[end] != ' ' {
					break
				}
			}
			if !yield(s[:end]) {
				return
			}
			s = s[end:]
		}
	}
}

// plainID writes an id as journals do, without dashes.
func plainID(id string) string { return strings.ReplaceAll(id, "-", "") }
