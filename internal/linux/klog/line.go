// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package klog

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// ErrRecord: a record of /dev/kmsg is not in the form that the kernel writes.
var ErrRecord = errors.New("is not a record of the kernel's log")

// Record is one message of the kernel's ring.
type Record struct {
	// Priority is 0 (emergency) to 7, Facility 0 for the kernel itself; -1 where that is not told.
	Priority, Facility int
	// Sequence counts the messages; -1 where that is not told.
	Sequence int64
	// Since is the time since the boot, Wall the time of the day; which of them is known, HasSince and
	// Wall.IsZero tell.
	Since    time.Duration
	HasSince bool
	Wall     time.Time
	// Continued: it goes on from the message before.
	Continued bool
	Text      string
	// Subsystem and Device are of the device that speaks: "scsi", "+scsi:0:0:0:0" or "b8:0".
	Subsystem, Device string
}

// ParseKmsg reads one record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg): "6,1234,5678,-;text",
// then lines " KEY=VALUE".
func ParseKmsg(record string) (Record, error) {
	head, rest, ok := strings.Cut(record, ";")
	if !ok {
		return Record{}, ErrRecord
	}
	part := strings.SplitN(head, ",", 5)
	if len(part) < 3 {
		return Record{}, ErrRecord
	}
	prefix, e1 := strconv.ParseUint(part[0], 10, 31)
	seq, e2 := strconv.ParseInt(part[1], 10, 64)
	usec, e3 := strconv.ParseInt(part[2], 10, 64)
	if e1 != nil || e2 != nil || e3 != nil || seq < 0 || usec < 0 || usec > int64(1<<62)/1000 {
		return Record{}, ErrRecord
	}
	text, keys, _ := strings.Cut(rest, "\n")
	r := Record{Priority: int(prefix & 7), Facility: int(prefix >> 3), Sequence: seq, HasSince: true,
		Since: time.Duration(usec) * time.Microsecond, Text: unescape(text)}
	r.Continued = len(part) > 3 && part[3] == "+"
	for line := range strings.SplitSeq(keys, "\n") {
		key, value, _ := strings.Cut(strings.TrimPrefix(line, " "), "=")
		switch key {
		case "SUBSYSTEM":
			r.Subsystem = unescape(value)
		case "DEVICE":
			r.Device = unescape(value)
		}
	}
	return r, nil
}

// unescape undoes \xNN, by which the kernel writes what is not printable.
func unescape(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if v, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// ParseDmesg reads a line that dmesg(1) printed, in any of its forms: "[12345.678901] text", with
// -T "[Sun Nov 22 09:00:00 2026] text", with -x "kern  :warn  : [ ...", with -r "<4>[ ...",
// with --time-format iso "2026-11-22T09:00:00,678901+00:00 text"; also with the caller "[  T123]" that
// CONFIG_PRINTK_CALLER adds. Local is the zone of -T.
func ParseDmesg(line string, local *time.Location) (Record, bool) {
	r := Record{Priority: -1, Facility: -1, Sequence: -1}
	line = strings.TrimRight(line, "\r\n")
	line = r.prefix(line)
	switch {
	case strings.HasPrefix(line, "["):
		stamp, text, ok := strings.Cut(line[1:], "]")
		if !ok || !r.stamp(strings.TrimSpace(stamp), local) {
			return Record{}, false
		}
		r.Text = withoutCaller(strings.TrimPrefix(text, " "))
		return r, true
	case len(line) > 20 && line[4] == '-' && line[10] == 'T':
		stamp, text, _ := strings.Cut(line, " ")
		at, err := time.Parse(time.RFC3339Nano, strings.Replace(stamp, ",", ".", 1))
		if err != nil {
			return Record{}, false
		}
		r.Wall, r.Text = at.UTC(), text
		return r, true
	}
	return Record{}, false
}

// prefix takes "<4>" or "kern  :warn  : " from the beginning.
func (r *Record) prefix(line string) string {
	if strings.HasPrefix(line, "<") {
		number, rest, ok := strings.Cut(line[1:], ">")
		if n, err := strconv.ParseUint(number, 10, 16); ok && err == nil {
			r.Priority, r.Facility = int(n&7), int(n>>3)
			return rest
		}
	}
	facility, rest, ok := strings.Cut(line, ":")
	level, text, two := strings.Cut(rest, ":")
	if ok && two && len(facility) <= 8 && strings.HasPrefix(facility, "kern") {
		levels := []string{"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}
		for i, l := range levels {
			if strings.TrimSpace(level) == l {
				r.Priority, r.Facility = i, 0
				return strings.TrimPrefix(text, " ")
			}
		}
	}
	return line
}

// stamp reads what stands in the brackets.
func (r *Record) stamp(s string, local *time.Location) bool {
	if since, ok := sinceBoot(s); ok {
		r.Since, r.HasSince = since, true
		return true
	}
	at, err := time.ParseInLocation("Mon Jan _2 15:04:05 2006", s, local)
	r.Wall = at.UTC()
	return err == nil
}

// sinceBoot reads "12345.678901".
func sinceBoot(s string) (time.Duration, bool) {
	whole, part, ok := strings.Cut(s, ".")
	if !ok || len(part) != 6 || len(whole) > 10 || digits(whole) != len(whole) || digits(part) != 6 || whole[0] == '-' {
		return 0, false
	}
	seconds, e1 := strconv.ParseInt(whole, 10, 64)
	micros, e2 := strconv.ParseInt(part, 10, 64)
	if e1 != nil || e2 != nil || seconds > int64(1<<62)/1e9 {
		return 0, false
	}
	return time.Duration(seconds)*time.Second + time.Duration(micros)*time.Microsecond, true
}

// Unstamp takes the kernel's own time from the beginning of a message that a syslog daemon kept:
// "[12345.678901] text".
func Unstamp(text string) (rest string, since time.Duration, has bool) {
	if !strings.HasPrefix(text, "[") {
		return text, 0, false
	}
	stamp, after, ok := strings.Cut(text[1:], "]")
	if !ok || len(stamp) > 20 {
		return text, 0, false
	}
	if since, has = sinceBoot(strings.TrimSpace(stamp)); !has {
		return text, 0, false
	}
	return withoutCaller(strings.TrimPrefix(after, " ")), since, true
}

// withoutCaller takes "[ T1234] " or "[C0] " from the beginning.
func withoutCaller(text string) string {
	if !strings.HasPrefix(text, "[") {
		return text
	}
	caller, rest, ok := strings.Cut(text[1:], "]")
	caller = strings.TrimSpace(caller)
	if !ok || len(caller) < 2 || caller[0] != 'T' && caller[0] != 'C' || digits(caller[1:]) != len(caller)-1 {
		return text
	}
	return strings.TrimPrefix(rest, " ")
}
