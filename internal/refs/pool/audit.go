// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// ErrChain: a line of the audit is not the one that was written, or one is missing before it.
var ErrChain = errors.New("the audit was changed")

// maxEntryBytes bounds a line of the audit: names of 4096 bytes, escaped, and more.
const maxEntryBytes = 64 << 10

// damagedSuffix ends the names of audits that did not hold, and that a person set aside.
const damagedSuffix = ".damaged"

// DamagedName is the name of the audit of a node that did not hold. It tells no decision anything any more, and the history
// of a base what it did.
func DamagedName(node, id string) string { return node + "." + id + damagedSuffix }

// IsDamaged tells whether a name is such a one.
func IsDamaged(name string) bool {
	rest, ok := strings.CutSuffix(name, damagedSuffix)
	return ok && IsID(rest[strings.LastIndexByte(rest, '.')+1:])
}

// Entry is one line of the audit: one thing that was done to one base.
type Entry struct {
	Time time.Time `json:"time"`
	Node string    `json:"node"`
	// Act is what was done: "shield", "unshield", "touch", "record", "restore", "removed" ...
	Act   string `json:"act"`
	Name  string `json:"name"`
	Inode uint64 `json:"inode"`
	// Path is the file that it was done to.
	Path string `json:"path"`
	// Why says in words what for, or who did it.
	Why string `json:"why"`
	// Prev is the Sum of the line before, "" in the first; Sum is the SHA-256 of this one without it.
	Prev string `json:"prev"`
	Sum  string `json:"sum"`
}

// sum is the digest of an entry.
func (e Entry) sum() (string, error) {
	e.Sum = ""
	text, err := json.Marshal(e)
	if err != nil {
		return "", err
	}
	s := sha256.Sum256(text)
	return hex.EncodeToString(s[:]), nil
}

// Each text of an entry is bounded, so that a line is one that is read again: JSON takes six bytes for one at most.
const (
	maxWordBytes = 256
	maxTextBytes = 4 << 10
)

// Line gives the entry as a line that follows the one with the digest prev. Names of files may hold any bytes, and a
// digest needs letters that are read as they were written.
func (e Entry) Line(prev string) (line []byte, sum string, err error) {
	e.Prev, e.Time = prev, e.Time.UTC()
	for s, most := range map[*string]int{&e.Node: maxWordBytes, &e.Act: maxWordBytes, &e.Name: maxWordBytes, &e.Path: maxTextBytes,
		&e.Why: maxTextBytes} {
		if len(*s) > most {
			*s = (*s)[:most] + "..."
		}
		*s = strings.ToValidUTF8(*s, "\uFFFD")
	}
	if e.Sum, err = e.sum(); err != nil {
		return nil, "", err
	}
	line, err = json.Marshal(e)
	return append(line, '\n'), e.Sum, err
}

// ReadAudit reads an audit and follows its chain. The entries before the first that is wrong are given with
// ErrChain. cut: the last line has no end, as after a power cut while it was written; it is not given.
func ReadAudit(r io.Reader) (all []Entry, cut bool, err error) {
	cut, err = eachEntry(r, func(e *Entry) { all = append(all, *e) })
	return all, cut, err
}

// eachEntry follows the chain of an audit, and gives each entry.
func eachEntry(r io.Reader, each func(*Entry)) (cut bool, err error) {
	b := bufio.NewReaderSize(r, maxEntryBytes)
	prev := ""
	for n := 1; ; n++ {
		line, err := b.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return len(line) > 0, nil
		case errors.Is(err, bufio.ErrBufferFull):
			return false, fmt.Errorf("%w: line %d has more than %d bytes", ErrChain, n, maxEntryBytes)
		case err != nil:
			return false, err
		}
		var e Entry
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil {
			return false, fmt.Errorf("%w: line %d: %w", ErrChain, n, err)
		}
		sum, err := e.sum()
		switch {
		case err != nil:
			return false, err
		case e.Prev != prev:
			return false, fmt.Errorf("%w: line %d does not follow the one before it", ErrChain, n)
		case e.Sum != sum:
			return false, fmt.Errorf("%w: line %d does not have its digest", ErrChain, n)
		}
		prev = e.Sum
		each(&e)
	}
}
