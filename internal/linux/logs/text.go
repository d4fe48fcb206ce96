// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"bufio"
	"errors"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/klog"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// maxLine is how much of a line is looked at; the rest is skipped.
const maxLine = 16 << 10

// readTexts reads the logs in text. A file is no newer than the oldest line of the one that followed it.
func (r *reader) readTexts(all []file) {
	bound, series, left := time.Time{}, "", 0
	for _, f := range all {
		if r.ctx.Err() != nil {
			return
		}
		if f.series != series {
			bound, series = time.Time{}, f.series
		}
		if !f.mtime.IsZero() && f.mtime.Before(r.since) {
			continue
		}
		if bound.IsZero() || f.mtime.Before(bound) && !f.mtime.IsZero() {
			bound = f.mtime
		}
		if r.left <= 0 {
			left++
			continue
		}
		if first := r.readText(f, bound); !first.IsZero() {
			bound = first
		}
	}
	if left > 0 {
		r.gap("/var/log", "%d logs were not read: more than %d bytes", left, r.o.Bytes)
	}
}

// maxPending is how many messages wait for the end of a log, which tells their years. A log with more is
// read twice.
const maxPending, maxPendingBytes = 4096, 4 << 20

// text is one log while it is read.
type text struct {
	*reader
	file
	calendar calendar
	first    when
	last     when
	timed    bool
	lines    int
	entries  int64 // lines that have something
	damage   string
	// found waits for the year; passed means that it became too much.
	found   []found
	pending int // bytes of them
	passed  bool
	// settled: the year of the last line is known, and how often it changed before.
	settled     bool
	year, rolls int
	from, to    time.Time // of the first and last line, then
}

// found is a message whose year is not known yet, with the time of the line before.
type found struct {
	Message
	at, before when
	first      bool // there is none before
}

// readText reads one log, and gives the time of its first line.
func (r *reader) readText(f file, bound time.Time) (first time.Time) {
	in, err := r.t.Open(r.ctx, f.path)
	if err != nil {
		r.missedFile(f.path, err)
		return time.Time{}
	}
	defer in.Close()
	t, left := &text{reader: r, file: f}, r.left
	if !t.pass(in) {
		return time.Time{}
	}
	first = t.settle(bound)
	if !t.passed {
		for i := range t.found {
			t.emit(&t.found[i])
		}
		return first
	}
	again, rest := *t, r.left
	again.found, again.passed, again.timed, again.lines, again.entries, again.calendar = nil, false, false, 0, 0, calendar{}
	r.left = left
	again.pass(in)
	r.left = rest
	return first
}

// pass reads the log from its beginning; ok is false where it cannot be.
func (t *text) pass(in tree.File) (ok bool) {
	stream, done, err := unpacked(in)
	if err != nil {
		t.gap(t.path, "%v", err)
		return false
	}
	defer done()
	if t.kind == anyKind {
		if stream, err = t.noArchive(stream); err != nil {
			t.gap(t.path, "%v", err)
			return false
		}
	}
	if section, plain := stream.(*io.SectionReader); plain && in.Size() > t.left {
		// The newest is at the end.
		if !t.settled {
			t.gap(t.path, "its first %d bytes were not read: more than %d bytes of logs", in.Size()-t.left, t.o.Bytes)
		}
		_, _ = section.Seek(in.Size()-t.left, io.SeekStart)
	}
	t.scan(stream)
	return t.ctx.Err() == nil
}

// scan reads line by line.
func (t *text) scan(in io.Reader) {
	b := bufio.NewReaderSize(in, maxLine)
	for {
		line, err := b.ReadSlice('\n')
		t.left -= int64(len(line))
		long := errors.Is(err, bufio.ErrBufferFull)
		if len(line) > 0 {
			t.lines++
			text := strings.TrimRight(string(line), "\r\n\x00")
			if text != "" { // what a crash left of a line is zeros
				t.entries++
			}
			t.line(text)
		}
		for long {
			line, err = b.ReadSlice('\n')
			t.left -= int64(len(line))
			long = errors.Is(err, bufio.ErrBufferFull)
		}
		switch {
		case errors.Is(err, io.EOF) || t.ctx.Err() != nil:
			return
		case err != nil:
			t.damage = "after line " + strconv.Itoa(t.lines) + ": " + err.Error()
			return
		case t.left <= 0:
			if _, err := b.Peek(1); errors.Is(err, io.EOF) {
				return
			}
			t.damage = "more than " + strconv.Itoa(int(t.o.Bytes)) + " bytes of logs: not read from line " + strconv.Itoa(t.lines+1)
			return
		}
	}
}

// line reads one line.
func (t *text) line(line string) {
	switch t.kind {
	case dmesgKind:
		t.dmesgLine(line)
		return
	case journalctlKind:
		if strings.HasPrefix(line, "-- ") {
			return
		}
	}
	if t.kind == anyKind {
		line = unwrapped(line)
	}
	line, version := priority(line)
	s, rest, ok := parseStamp(line, t.zone)
	if t.passed {
		if ok {
			t.time(t.calendar.next(s))
		}
		return
	}
	if !ok {
		if t.kind == qemuKind && t.timed {
			t.take(said{program: "qemu", text: line}, found{at: t.last})
		}
		if t.kind == anyKind {
			t.untimed(line)
		}
		return
	}
	f := found{at: t.calendar.next(s), before: t.last, first: !t.timed}
	f.Exact = !s.zoneless && !s.yearless
	t.time(f.at)
	if what, ok := t.said(rest, version); ok {
		t.take(what, f)
	}
}

// time takes the time of a line.
func (t *text) time(at when) {
	if !t.timed {
		t.first = at
	}
	t.last, t.timed = at, true
}

// said reads what stands behind the time.
func (t *text) said(rest string, version bool) (said, bool) {
	switch t.kind {
	case qemuKind:
		return said{program: "qemu", text: strings.TrimPrefix(rest, ": ")}, true
	case libvirtKind:
		return said{program: "libvirtd", text: libvirtText(strings.TrimPrefix(rest, ": "))}, true
	case novaKind:
		return said{program: "nova", text: novaText(rest)}, true
	case anyKind:
		return anySaid(rest, version)
	}
	if version {
		return parse5424(rest)
	}
	s, ok := parseSaid(rest)
	if t.kind == clusterKind && klog.Program(s.program) == "" {
		s.program = strings.TrimSuffix(path.Base(t.series), ".log")
		s.text = clean(s.program, s.text)
	}
	return s, ok
}

// take keeps a message if its form is known.
func (t *text) take(s said, f found) {
	f.Program, f.Host, f.Text, f.Path, f.Line = s.program, s.host, s.text, t.path, t.lines
	if t.kind == anyKind && (f.Host == "" || f.Host == "localhost") {
		f.Host = nodeOf(t.path)
	}
	if s.program == "kernel" {
		f.Text, f.since, f.hasSince = klog.Unstamp(s.text)
	}
	if !f.match(t.matcher) || foreign(s.program, s.pid) || t.o.Want != nil && !t.o.Want(&f.Message) {
		return
	}
	if t.kind == qemuKind {
		f.Fields = append(f.Fields, klog.Field{Name: "machine", Value: strings.TrimSuffix(path.Base(t.series), ".log")})
	}
	t.pend(f)
}

// pend keeps a message until its year is known.
func (t *text) pend(f found) {
	if t.settled {
		t.emit(&f)
		return
	}
	if t.passed {
		return
	}
	t.found = append(t.found, f)
	if t.pending += f.bytes(); len(t.found) > maxPending || t.pending > maxPendingBytes {
		t.found, t.passed = nil, true
	}
}

// dmesgLine is a line of dmesg: its time is since a boot whose time may be known.
func (t *text) dmesgLine(line string) {
	rec, ok := klog.ParseDmesg(line, t.zone)
	if !ok {
		return
	}
	at := when{stamp: stamp{at: rec.Wall}}
	if rec.Wall.IsZero() {
		if t.o.Booted.IsZero() || !strings.HasPrefix(t.path, "/sos_commands") {
			at.at = t.mtime
		} else {
			at.at = t.o.Booted.Add(rec.Since)
		}
	}
	t.time(at)
	m := Message{Program: "kernel", Text: rec.Text, Path: t.path, Line: t.lines, since: rec.Since, hasSince: rec.HasSince}
	if m.match(t.matcher) {
		t.pend(found{Message: m, at: at})
	}
}

// settle finds out the years, and gives the time of the first line.
func (t *text) settle(bound time.Time) time.Time {
	if bound.IsZero() {
		bound = t.o.Now
	}
	if t.calendar.any {
		t.year = t.calendar.year(bound)
	}
	t.settled, t.rolls = true, t.calendar.roll
	s := Source{Path: t.path, Entries: t.entries, Persistent: true, Damage: t.damage}
	if t.timed {
		t.from, t.to = t.resolve(t.first), t.resolve(t.last)
		s.From, s.To = t.from, t.to
		// A daemon may write in another zone than the machine now has: the last line came with the last
		// change of the file.
		if d := t.mtime.Sub(s.To); t.last.zoneless && d > 0 && d < 26*time.Hour {
			s.To = t.mtime
		}
	}
	t.log.Sources = append(t.log.Sources, s)
	return s.From
}

// resolve gives a time with its year.
func (t *text) resolve(w when) time.Time { return resolve(w, t.year-t.rolls) }

// emit hands over a message.
func (t *text) emit(f *found) {
	if f.Time = t.resolve(f.at); f.Time.Before(t.since) {
		return
	}
	if t.kind == syslogKind || t.kind == journalctlKind {
		var before time.Time
		if !f.first {
			before = t.resolve(f.before)
		}
		t.track.text(&f.Message, before, t.to)
	}
	t.keep(t.series, f.Message)
}
