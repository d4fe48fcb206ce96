// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The language of faults. A rule is one line:
//
//	OP ACTION [CONDITION ...]
//
//	OP         read | write | fsync | discard    what the request is; any is all of these four
//	           look                              names, attributes, opening, listing, statfs
//	ACTION     eio | enospc | edquot | estale | etimedout | enodev
//	                                             it fails with this, and nothing of it is done
//	           delay=DURATION                    it is answered so much later (200ms, 3s)
//	           hang                              it is not answered until the rule is lifted
//	           lose                              write: answered as done, and not done
//	           flip                              read: one bit of each 512 bytes comes back inverted
//	CONDITION  range=OFF+LEN[,OFF+LEN ...]       only what touches one of these ranges of the file
//	           range=OFF+                        ... from here to the end
//	           new                               write: only what needs space in the store: a hole
//	           after=N                           not the first N of those
//	           after=SIZE                        not as long as they are SIZE bytes together
//	           times=N                           not more than N of those
//
// OFF and LEN are bytes, decimal or hexadecimal (0x1000), or with a unit: 64k, 16M, 1G. SIZE has to
// have a unit, B for bytes (after=512B), as a plain number counts requests.
//
// Rules are asked in the order in which they were set. The first one that lets a request fail, lost
// or flipped decides; after a delay, or a hang that was lifted, the next ones are asked. fsync and
// look have no place, so no range. A request that touches a range is hit as a whole.

// ErrLanguage: the text is no rule, for errors.Is.
var ErrLanguage = errors.New("no rule of faults")

const (
	// maxRules is how many rules a file has; each request asks them all.
	maxRules = 64
	// maxRanges is how many ranges a rule has: a journal is in a handful of pieces.
	maxRanges = 256
	// maxRuleBytes is longer than a rule of that many ranges is.
	maxRuleBytes = 64 << 10
	// maxDelay is more than anybody waits for in a test.
	maxDelay = time.Hour
	// sectorBytes is the unit in which flip hurts what is read.
	sectorBytes = 512
)

// Op is what a request asks for.
type Op string

// The operations of the language.
const (
	Read    Op = "read"
	Write   Op = "write"
	Fsync   Op = "fsync"
	Discard Op = "discard"
	Any     Op = "any"
	Look    Op = "look"
)

// The actions that are not the name of an error.
const (
	actDelay = "delay"
	actHang  = "hang"
	actLose  = "lose"
	actFlip  = "flip"
)

// errnos are the errors that a request can fail with, by their names in the language.
func errnos() map[string]unix.Errno {
	return map[string]unix.Errno{"eio": unix.EIO, "enospc": unix.ENOSPC, "edquot": unix.EDQUOT,
		"estale": unix.ESTALE, "etimedout": unix.ETIMEDOUT, "enodev": unix.ENODEV}
}

// Range is a part of a file, in bytes.
type Range struct {
	Off int64
	Len int64 // 0 is all up to the end, whatever that is
}

func (r Range) touches(off, n int64) bool {
	return off+n > r.Off && (r.Len == 0 || off < r.Off+r.Len)
}

func (r Range) String() string {
	if r.Len == 0 {
		return fmt.Sprintf("%#x+", r.Off)
	}
	return fmt.Sprintf("%#x+%d", r.Off, r.Len)
}

// Ranges is the condition that something is in one of these.
func Ranges(list []Range) string {
	texts := make([]string, len(list))
	for i, r := range list {
		texts[i] = r.String()
	}
	return "range=" + strings.Join(texts, ",")
}

// rule is a line of the language.
type rule struct {
	op            Op
	action        string // an error's name, or one of the others
	delay         time.Duration
	ranges        []Range
	onlyNew       bool
	afterRequests int64
	afterBytes    int64
	times         int64 // 0 is no limit
}

// parse reads a rule. The error is ErrLanguage.
func parse(text string) (*rule, error) {
	r, err := parseRule(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %.80q: %w", ErrLanguage, text, err)
	}
	return r, nil
}

func parseRule(text string) (*rule, error) {
	if len(text) > maxRuleBytes {
		return nil, fmt.Errorf("longer than %d bytes", maxRuleBytes)
	}
	words := strings.Fields(text)
	if len(words) < 2 {
		return nil, errors.New("an operation and an action are needed")
	}
	r := &rule{op: Op(words[0])}
	if !slices.Contains([]Op{Read, Write, Fsync, Discard, Any, Look}, r.op) {
		return nil, fmt.Errorf("no operation is called %q", words[0])
	}
	if err := r.setAction(words[1]); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, w := range words[2:] {
		name, value, has := strings.Cut(w, "=")
		if seen[name] {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		seen[name] = true
		if err := r.setCondition(name, value, has); err != nil {
			return nil, fmt.Errorf("%.40q: %w", w, err)
		}
	}
	return r, r.fits()
}

func (r *rule) setAction(word string) (err error) {
	name, value, has := strings.Cut(word, "=")
	r.action = name
	_, fails := errnos()[name]
	switch {
	case has && name == actDelay:
		r.delay, err = time.ParseDuration(value)
		if err == nil && (r.delay <= 0 || r.delay > maxDelay) {
			err = fmt.Errorf("%s is not between 0 and %s", r.delay, maxDelay)
		}
		return err
	case has || !fails && name != actHang && name != actLose && name != actFlip:
		return fmt.Errorf("no action is called %q", word)
	}
	return nil
}

func (r *rule) setCondition(name, value string, has bool) (err error) {
	switch {
	case name == "new" && !has:
		r.onlyNew = true
	case name == "range" && has:
		r.ranges, err = parseRanges(value)
	case name == "after" && has:
		if n := len(value); n > 0 && strings.Contains("BkMGT", value[n-1:]) {
			r.afterBytes, err = parseSize(value)
		} else {
			r.afterRequests, err = parseSize(value)
		}
	case name == "times" && has:
		if r.times, err = parseSize(value); err == nil && r.times == 0 {
			err = errors.New("none at all")
		}
	default:
		return errors.New("no such condition")
	}
	return err
}

// fits holds the parts of a rule against each other.
func (r *rule) fits() error {
	switch {
	case r.action == actLose && r.op != Write:
		return errors.New("only what is written can be lost")
	case r.action == actFlip && r.op != Read:
		return errors.New("only what is read can be flipped")
	case r.onlyNew && r.op != Write:
		return errors.New("only what is written needs space")
	case len(r.ranges) > 0 && (r.op == Fsync || r.op == Look):
		return fmt.Errorf("%s has no place", r.op)
	case r.afterBytes > 0 && (r.op == Fsync || r.op == Look):
		return fmt.Errorf("%s has no length", r.op)
	}
	return nil
}

func parseRanges(text string) ([]Range, error) {
	list := strings.Split(text, ",")
	if len(list) > maxRanges {
		return nil, fmt.Errorf("more than %d ranges", maxRanges)
	}
	var all []Range
	for _, part := range list {
		from, length, found := strings.Cut(part, "+")
		off, err := parseSize(from)
		if err != nil || !found {
			return nil, errors.Join(errors.New("a range is OFF+LEN"), err)
		}
		r := Range{Off: off}
		if length != "" {
			if r.Len, err = parseSize(length); err != nil {
				return nil, err
			}
			if r.Len == 0 || r.Off+r.Len < 0 {
				return nil, errors.New("a range has a length, and an end that can be counted")
			}
		}
		all = append(all, r)
	}
	return all, nil
}

// parseSize reads a number of bytes or of requests.
func parseSize(text string) (int64, error) {
	shift := 0
	if n := len(text); n > 1 && !strings.HasPrefix(text, "0x") {
		if i := strings.IndexByte("BkMGT", text[n-1]); i >= 0 {
			text, shift = text[:n-1], 10*i
		}
	}
	digits, base := text, 10
	if hex, ok := strings.CutPrefix(text, "0x"); ok {
		digits, base = hex, 16
	}
	if strings.HasPrefix(digits, "+") || strings.HasPrefix(digits, "-") {
		return 0, fmt.Errorf("%.40q is no number", text)
	}
	n, err := strconv.ParseInt(digits, base, 64)
	if err != nil {
		return 0, fmt.Errorf("%.40q is no number", text)
	}
	if n<<shift>>shift != n {
		return 0, fmt.Errorf("%.40q is too large", text)
	}
	return n << shift, nil
}

// String is the rule in the language.
func (r *rule) String() string {
	words := []string{string(r.op), r.action}
	if r.action == actDelay {
		words[1] += "=" + r.delay.String()
	}
	if len(r.ranges) > 0 {
		words = append(words, Ranges(r.ranges))
	}
	if r.onlyNew {
		words = append(words, "new")
	}
	if r.afterBytes > 0 {
		words = append(words, fmt.Sprintf("after=%dB", r.afterBytes))
	} else if r.afterRequests > 0 {
		words = append(words, fmt.Sprintf("after=%d", r.afterRequests))
	}
	if r.times > 0 {
		words = append(words, fmt.Sprintf("times=%d", r.times))
	}
	return strings.Join(words, " ")
}

// about tells whether a rule is about a request.
func (r *rule) about(op Op, off, n int64) bool {
	if r.op != op && (r.op != Any || op == Look) {
		return false
	}
	if len(r.ranges) == 0 {
		return true
	}
	return slices.ContainsFunc(r.ranges, func(g Range) bool { return g.touches(off, n) })
}
