// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// clockTick is the unit of times in /proc: USER_HZ is 100 wherever Go runs (proc(5), sysconf(3)).
	clockTick = 10 * time.Millisecond
	// startField is where /proc/PID/stat has the start, counted from behind the name (proc(5), field 22 of all).
	startField = 19
	// maxBootBytes is enough for what comes before the line "btime" of /proc/stat: a line for each processor, and
	// the counts of all interrupts.
	maxBootBytes = 4 << 20
)

// Started tells when a process was started, to a second or so: the kernel keeps how long after its own start that was.
func (h *Host) Started(pid int) (time.Time, error) {
	boot, err := h.booted()
	if err != nil {
		return time.Time{}, err
	}
	path := h.root + "/proc/" + strconv.Itoa(pid) + "/stat"
	text, err := readSome(path, 4096)
	if err != nil {
		return time.Time{}, err
	}
	// The name in brackets may have brackets and blanks in it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) <= startField {
		return time.Time{}, fmt.Errorf("%s has %d fields behind the name: %q", path, len(fields), text)
	}
	ticks, err := strconv.ParseInt(fields[startField], 10, 64)
	if err != nil || ticks < 0 || ticks > int64(1<<62/clockTick) {
		return time.Time{}, fmt.Errorf("%s: the start is %q", path, fields[startField])
	}
	return boot.Add(time.Duration(ticks) * clockTick).UTC(), nil
}

// booted is when the kernel was started.
func (h *Host) booted() (time.Time, error) {
	path := h.root + "/proc/stat"
	text, err := readSome(path, maxBootBytes)
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, is := strings.CutPrefix(line, "btime "); is {
			s, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			if err != nil {
				return time.Time{}, fmt.Errorf("%s: btime is %q", path, rest)
			}
			return time.Unix(s, 0).UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%s has no btime", path)
}
