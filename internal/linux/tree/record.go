// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package tree

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// Recorder is a tree that remembers every question and its answer, so that a bundle gives the same ones.
// Files that are opened are not remembered, only those that are read at once: who reads a file in parts
// has to leave what it found as a file of an overlay.
type Recorder struct {
	Tree

	mu      sync.Mutex
	answers map[question]*answer
}

// question is a call of a Tree's method.
type question struct {
	op   string // "read", "list", "link", "open", "attributes"
	name string
}

// answer is what came back.
type answer struct {
	text    []byte
	entries []Entry
	// outcome is "" for none that failed, else how it did, with reason.
	outcome string
	reason  string
}

// Record remembers what is asked of a tree.
func Record(t Tree) *Recorder {
	return &Recorder{Tree: t, answers: map[question]*answer{}}
}

// outcomes are the ways in which a question fails, with the errors that they stand for.
var outcomes = []struct {
	word string
	err  error
}{
	{"missing", fs.ErrNotExist}, {"denied", fs.ErrPermission}, {"timeout", diskio.ErrTimeout},
	{"not_collected", ErrNotCollected}, {"avoided", ErrAvoided}, {"cut", ErrTooLarge}, {"invalid", fs.ErrInvalid},
}

// outcomeOf makes a word of an error.
func outcomeOf(err error) (word, reason string) {
	if err == nil {
		return "", ""
	}
	for _, o := range outcomes {
		if errors.Is(err, o.err) {
			return o.word, cause(err).Error()
		}
	}
	return "failed", cause(err).Error()
}

// keep remembers an answer. Of two to one question the one that says more counts.
func (r *Recorder) keep(op, name string, text []byte, entries []Entry, err error) {
	a := &answer{text: slices.Clone(text), entries: slices.Clone(entries)}
	a.outcome, a.reason = outcomeOf(err)
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.answers[question{op, name}]
	if old == nil || len(old.text) <= len(text) {
		r.answers[question{op, name}] = a
	}
}

// Read is that of Tree.
func (r *Recorder) Read(ctx context.Context, name string, limit int64) ([]byte, error) {
	b, err := r.Tree.Read(ctx, name, limit)
	r.keep("read", name, b, nil, err)
	return b, err
}

// List is that of Tree.
func (r *Recorder) List(ctx context.Context, name string) ([]Entry, error) {
	all, err := r.Tree.List(ctx, name)
	r.keep("list", name, nil, all, err)
	return all, err
}

// Link is that of Tree.
func (r *Recorder) Link(ctx context.Context, name string) (string, error) {
	text, err := r.Tree.Link(ctx, name)
	r.keep("link", name, []byte(text), nil, err)
	return text, err
}

// Open is that of Tree.
func (r *Recorder) Open(ctx context.Context, name string) (File, error) {
	f, err := r.Tree.Open(ctx, name)
	if err != nil {
		r.keep("open", name, nil, nil, err)
		return nil, err
	}
	r.keep("open", name, nil, nil, errNotKept)
	return f, nil
}

// errNotKept is the answer of a bundle to who opens a file that was open.
var errNotKept = &fs.PathError{Op: "open", Err: ErrNotCollected}

// Info says of what a bundle is.
type Info struct {
	// Kind is that of the tree that was recorded, Made when.
	Kind    Kind      `json:"kind"`
	Made    time.Time `json:"made"`
	Version string    `json:"version"`
	Label   string    `json:"label"`
	// LeftOut is what was taken out of the files before they were kept.
	LeftOut []LeftOut `json:"left_out"`
}

// LeftOut is something that was taken out of a file.
type LeftOut struct {
	Name string `json:"name"`
	// What it was, in words; Count how often.
	What  string `json:"what"`
	Count int    `json:"count"`
}
