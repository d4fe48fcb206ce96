// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// Held is a base that was set aside.
type Held struct {
	// ID is that of its quarantine, Name the name it had before.
	ID, Name string
	// Path is the file.
	Path                      string
	File                      diskio.ID
	SizeBytes, AllocatedBytes int64
	Modified                  time.Time
	// Since is when its names were changed last, by the clock of the file server: the moment that it was set
	// aside, or later. Nobody can put that time back.
	Since time.Time
	// Links is how many names the file has: one is that of its shield.
	Links uint64
	// Claimed: it is about to be removed for good.
	Claimed bool
}

// HeldName is the name of a base in quarantine, and of one that was claimed.
func HeldName(id, name string) string { return id + "." + name }

// ParseHeldName takes the name of a base in quarantine apart.
func ParseHeldName(s string) (id, name string, ok bool) {
	id, name, ok = strings.Cut(s, ".")
	return id, name, ok && IsID(id) && IsName(name)
}

// held reads what was set aside, and what was claimed.
func (s *State) held(claimed bool) func(ctx context.Context, dir string, timeout time.Duration) error {
	return func(ctx context.Context, dir string, timeout time.Duration) error {
		names, err := listAll(ctx, dir, timeout)
		for _, n := range names {
			path := filepath.Join(dir, n)
			id, name, ok := ParseHeldName(n)
			if !ok {
				s.Unread = append(s.Unread, fmt.Errorf("%s %w: a base that was set aside is called ID.NAME", path, ErrPool))
				continue
			}
			e, err := diskio.WithinAt(ctx, path, timeout, func() (diskio.Entry, error) { return diskio.LookEntry(path) }, nil)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.Is(err, fs.ErrNotExist):
				continue // it was brought back meanwhile
			case err != nil:
				s.Unread = append(s.Unread, err)
				continue
			}
			s.Held = append(s.Held, Held{ID: id, Name: name, Path: path, File: e.ID, SizeBytes: e.SizeBytes,
				AllocatedBytes: e.AllocatedBytes, Modified: e.ModTime, Since: e.ChangeTime, Links: e.Links, Claimed: claimed})
		}
		return err
	}
}

func (s *State) pins(ctx context.Context, dir string, timeout time.Duration) error {
	names, err := listAll(ctx, dir, timeout)
	for _, n := range names {
		if unfinished(n) || takenBack(n) {
			continue
		}
		var p Pin
		text, there, err := document(ctx, dir, n, timeout)
		if err == nil && there {
			p, err = ParsePin(filepath.Join(dir, n), text)
		}
		if err == nil && there && PinName(p.ID) != n {
			err = fmt.Errorf("%s %w: its id is %s", filepath.Join(dir, n), ErrPool, p.ID)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			s.Unread = append(s.Unread, err)
		case there:
			s.Pins = append(s.Pins, p)
		}
	}
	return err
}

func (s *State) intents(ctx context.Context, dir string, timeout time.Duration) error {
	names, err := listAll(ctx, dir, timeout)
	for _, n := range names {
		if unfinished(n) {
			continue
		}
		var i Intent
		text, there, err := document(ctx, dir, n, timeout)
		if err == nil && there {
			i, err = ParseIntent(filepath.Join(dir, n), text)
		}
		if err == nil && there && IntentName(i.ID, i.Act) != n {
			err = fmt.Errorf("%s %w: it is %s of %s", filepath.Join(dir, n), ErrPool, i.Act, i.ID)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			s.Unread = append(s.Unread, err)
		case there:
			s.Intents = append(s.Intents, i)
		}
	}
	return err
}

// document gives the text of a document; there is false for one that was taken away meanwhile.
func document(ctx context.Context, dir, name string, timeout time.Duration) (text []byte, there bool, err error) {
	text, err = read(ctx, filepath.Join(dir, name), timeout)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	return text, err == nil, err
}

// unfinished tells of a document that is being written, or never was to its end: see put of apply/bases.
func unfinished(name string) bool {
	return strings.HasPrefix(name, ".") && strings.HasSuffix(name, ".new")
}

// listAll is listWith for a directory in which nothing but regular files has any business: anything else is an error,
// which comes with the names.
func listAll(ctx context.Context, dir string, timeout time.Duration) ([]string, error) {
	if err := ownDir(ctx, dir, timeout); err != nil {
		return nil, err
	}
	var odd error
	names, err := listWith(ctx, dir, timeout, func(path string) {
		odd = errors.Join(odd, fmt.Errorf("%s %w: it is no regular file", path, ErrPool))
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s was taken away while it was read", dir) // it was there, and may have held anything
	}
	return names, errors.Join(err, odd)
}
