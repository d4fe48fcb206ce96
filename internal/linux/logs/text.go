// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"bufio"
	"errors"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/klog"
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

// text is one log while it is read.
type text struct {
	*reader
	file
	calendar calendar
	first    when
	last     when
	timed    bool
	lines    int
	found    []found
	damage   string
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
	stream, done, err := unpacked(in)
	if err != nil {
		r.gap(f.path, "%v", err)
		return time.Time{}
	}
	defer done()
	t := &text{reader: r, file: f}
	if section, plain := stream.(*io.SectionReader); plain && in.Size() > r.left {
		// The newest is at the end.
		r.gap(f.path, "its first %d bytes were not read: more than %d bytes of logs", in.Size()-r.left, r.o.Bytes)
		_, _ = section.Seek(in.Size()-r.left, io.SeekStart)
	}
	t.scan(stream)
	return t.end(bound)
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
			t.line(strings.TrimRight(string(line), "\r\n\x00"))
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
	line, version := priority(line)
	s, rest, ok := parseStamp(line, t.zone)
	if !ok {
		if t.kind == qemuKind && t.timed {
			t.take(said{program: "qemu", text: line}, found{at: t.last})
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
	if s.program == "kernel" {
		f.Text, f.since, f.hasSince = klog.Unstamp(s.text)
	}
	match, ok := t.matcher.Match(s.program, f.Text)
	if !ok || foreign(s.program, s.pid) {
		return
	}
	f.Form, f.Fields = match.Form, match.Fields
	if t.kind == qemuKind {
		f.Fields = append(f.Fields, klog.Field{Name: "machine", Value: strings.TrimSuffix(path.Base(t.series), ".log")})
	}
	t.found = append(t.found, f)
	if len(t.found) > maxMessages {
		t.found = slices.Delete(t.found, 0, len(t.found)/2)
		t.damage = "more than " + strconv.Itoa(maxMessages) + " messages that matter: the oldest were left out"
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
	if match, ok := t.matcher.Match("kernel", rec.Text); ok {
		m.Form, m.Fields = match.Form, match.Fields
		t.found = append(t.found, found{Message: m, at: at})
	}
}

// end finds out the years, and hands over what was found.
func (t *text) end(bound time.Time) time.Time {
	if t.ctx.Err() != nil {
		return time.Time{}
	}
	if bound.IsZero() {
		bound = t.o.Now
	}
	year := 0
	if t.calendar.any {
		year = t.calendar.year(bound)
	}
	var last time.Time
	s := Source{Path: t.path, Entries: int64(t.lines), Persistent: true, Damage: t.damage}
	if t.timed {
		s.From, s.To = t.calendar.resolve(t.first, year), t.calendar.resolve(t.last, year)
		last = s.To
		// A daemon may write in another zone than the machine now has: the last line came with the last
		// change of the file.
		if d := t.mtime.Sub(s.To); t.last.zoneless && d > 0 && d < 26*time.Hour {
			s.To = t.mtime
		}
	}
	t.log.Sources = append(t.log.Sources, s)
	for i := range t.found {
		f := &t.found[i]
		f.Time = t.calendar.resolve(f.at, year)
		if f.Time.Before(t.since) {
			continue
		}
		if t.kind == syslogKind || t.kind == journalctlKind {
			var before time.Time
			if !f.first {
				before = t.calendar.resolve(f.before, year)
			}
			t.track.text(&f.Message, before, last)
		}
		if !ofUnit(f.Form) && !t.seen.twice(t.series, t.hostOf(&f.Message), &f.Message) {
			t.keep(f.Message)
		}
	}
	return s.From
}
