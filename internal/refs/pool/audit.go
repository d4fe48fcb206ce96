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

// auditSuffix ends the names of audits, and maxAuditStem bounds what stands before it: a file has a name of 255 bytes, and an
// audit that is put aside gets an id and another ending.
const (
	auditSuffix  = ".jsonl"
	maxAuditStem = 255 - len(".0123456789abcdef0123456789abcdef") - len(damagedSuffix)
)

// AuditName is the name of the audit of a node: that of its documents, but for its end. Any host writes one, whatever it is
// called: of a name that none of its documents could have, since it is too long or there is none, it has the digest.
func AuditName(node string) string {
	stem := strings.TrimSuffix(NodeFile(node), ".json")
	if len(stem) > maxAuditStem || node == "" {
		sum := sha256.Sum256([]byte(node))
		end := "%-" + hex.EncodeToString(sum[:16]) // no name that is escaped has that
		stem = stem[:min(len(stem), maxAuditStem-len(end))] + end
	}
	return stem + auditSuffix
}

// RawAuditName is the name that some programs before the first release gave the audit of a node, "" where that leads elsewhere.
func RawAuditName(node string) string {
	if node == "" || strings.ContainsAny(node, "/\x00") {
		return ""
	}
	return node + auditSuffix
}

// AuditAside is the name of an audit that had another one, and whose last line has no end: the next line goes to a new one.
func AuditAside(name, id string) string {
	return strings.TrimSuffix(name, auditSuffix) + "." + id + auditSuffix
}

// DamagedName is the name of an audit that had another one, and did not hold. It tells no decision anything any more, and the
// history of a base what it did.
func DamagedName(name, id string) string {
	return strings.TrimSuffix(name, auditSuffix) + "." + id + damagedSuffix
}

// IsDamagedOf tells whether a name is that of an audit which had another one, and did not hold.
func IsDamagedOf(name, was string) bool {
	rest, ok := strings.CutPrefix(name, strings.TrimSuffix(was, auditSuffix)+".")
	id, damaged := strings.CutSuffix(rest, damagedSuffix)
	return ok && damaged && IsID(id) // n1 has none by that of n1.example.org
}

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

// Valid is a text as a document can carry it: names of files may hold any bytes, and the digest of a document needs letters that
// are read as they were written.
func Valid(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }

// Line gives the entry as a line that follows the one with the digest prev.
func (e Entry) Line(prev string) (line []byte, sum string, err error) {
	e.Prev, e.Time = prev, e.Time.UTC()
	for s, most := range map[*string]int{&e.Node: maxWordBytes, &e.Act: maxWordBytes, &e.Name: maxWordBytes, &e.Path: maxTextBytes,
		&e.Why: maxTextBytes} {
		if len(*s) > most {
			*s = (*s)[:most] + "..."
		}
		*s = Valid(*s)
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
