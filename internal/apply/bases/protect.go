// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path/filepath"
	"regexp"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// How long a base may have gone without a touch: Nova removes what was not changed for 24 hours, and what it
// resized under a name with its size behind it after one (nova/conf/imagecache.py,
// remove_unused_original_minimum_age_seconds, remove_unused_resized_minimum_age_seconds).
const (
	KeepAlive        = 6 * time.Hour
	KeepAliveResized = 20 * time.Minute
)

func newDone(bases string, s *pool.State) *pool.Done {
	d := &pool.Done{Bases: bases, Shielded: []string{}, Touched: []string{}, Recorded: []string{}, Restored: []string{},
		Unshielded: []string{}, Quarantined: []string{}, Purged: []string{}, Pinned: []string{}, Unpinned: []string{},
		Recovered: []string{}, Forgotten: []string{}, Stays: []pool.Left{}, Unseen: []pool.Left{}, Left: []pool.Left{}}
	if s.Policy != nil {
		d.Pool = s.Policy.UUID
	}
	return d
}

// ProtectOptions say what protecting does beside the shields.
type ProtectOptions struct {
	// KeepAlive is how old a base that is needed may become before it is touched; 0 is as Nova needs it,
	// see KeepAlive and KeepAliveResized.
	KeepAlive time.Duration
	// NoRecord leaves the digests of the content out, which reads all of each base once.
	NoRecord bool
}

// Protect gives every base a shield, touches those that are needed, and records what each holds. One that is needed and
// gone gets its name back from its shield. It may be done
// again and again: what is so already is left as it is. What could not be done for one base is told by Left, and
// the others are done all the same.
func Protect(ctx context.Context, c *refs.Census, p ProtectOptions, o Options) (d *pool.Done, err error) {
	k := newKeeper(o).as("protect")
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return nil, err
	}
	defer func() { err = k.finish(ctx, d, err) }()
	if err := k.begin(ctx, s); err != nil {
		return nil, err
	}
	d = newDone(k.Bases, s)
	now, err := k.now(ctx)
	if err != nil {
		return d, err
	}
	if err := k.heldNeeded(ctx, c, s, d); err != nil {
		return d, err
	}
	// All is announced at once: a receipt is on the disk before what it speaks of, and syncing takes time.
	todo := append(k.missing(c, s, now, d), k.todo(c, p, now, d)...)
	if err := k.will(todo...); err != nil {
		return d, err
	}
	for i := 0; i < len(todo); i++ {
		t := &todo[i]
		var err error
		switch t.What {
		case vault.BaseTouch:
			err = k.touch(ctx, t, d)
		case vault.BaseRestore:
			i++ // its touch, which stands behind it
			err = k.fromShield(ctx, c, s, t, &todo[i], d)
		default:
			err = k.shield(ctx, t, d, "protect")
		}
		if err != nil {
			if stopped(ctx, err) {
				return d, err
			}
			d.Leave(t.Name, err)
		}
	}
	// Shields come first, for all: reading takes long.
	for i := range c.All {
		b := &c.All[i]
		if b.State != refs.Live || p.NoRecord {
			continue
		}
		if err := k.record(ctx, b, s, now, d); err != nil {
			if stopped(ctx, err) {
				return d, err
			}
			d.Leave(b.Name, err)
		}
	}
	return d, nil
}

// ErrStopped is what a Step returns that ends an act.
var ErrStopped = errors.New("stopped")

// stopped tells whether an act ends with an error, and not only for one base.
func stopped(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, ErrStopped)
}

// todo tells which bases need a shield or a touch.
func (k *keeper) todo(c *refs.Census, p ProtectOptions, now time.Time, d *pool.Done) (todo []vault.BaseStep) {
	for i := range c.All {
		b := &c.All[i]
		if b.State != refs.Live {
			continue
		}
		to := k.path(pool.Shields, pool.ShieldName(b.File.Ino, b.Name))
		if e, err := diskio.LookEntry(to); err != nil || e.ID != b.File {
			todo = append(todo, stepAt(vault.BaseShield, b.Name, to, b.File.Ino))
		}
		before, old, err := tooOld(c, b, p, now)
		if err != nil {
			d.Leave(b.Name, err)
		}
		if old {
			todo = append(todo, touchStep(b.Name, b.Path, b.File.Ino, before, now))
		}
	}
	return todo
}

// shield gives a base its second name.
func (k *keeper) shield(ctx context.Context, t *vault.BaseStep, d *pool.Done, why string) error {
	if err := k.step(ctx, "shield "+t.Name); err != nil {
		return err
	}
	to := t.At()
	_, name, _ := pool.ParseShieldName(filepath.Base(to))
	from := filepath.Join(k.Bases, name)
	e, err := diskio.LookEntry(from)
	if err == nil && e.Ino != t.Inode {
		err = &fs.PathError{Op: "shield", Path: from, Err: diskio.ErrChanged}
	}
	if err == nil {
		err = k.Links.Link(e.ID, from, to)
	}
	k.did(*t, err)
	if err != nil {
		return fmt.Errorf("shield: %w", err)
	}
	d.Shielded = append(d.Shielded, name)
	return k.note(ctx, "shield", name, t.Inode, to, why)
}

// resized is the name that Nova gave a base of another size in the same directory: digest_SIZE.
var resized = regexp.MustCompile(`^[0-9a-f]{40}_[0-9]+$`)

// tooOld tells whether a base that is needed, or may be, is to be touched before a cleaner takes it for old, and
// when it was changed last.
func tooOld(c *refs.Census, b *refs.Base, p ProtectOptions, now time.Time) (before time.Time, old bool, err error) {
	if !needed(c, b) {
		return before, false, nil
	}
	age := p.KeepAlive
	if age == 0 {
		age = KeepAlive
		if anyResized(c) {
			age = KeepAliveResized
		}
	}
	e, err := diskio.LookEntry(b.Path)
	if err != nil {
		return before, false, err
	}
	// A time ahead of the file system's own clock is as old as it likes.
	since := now.Sub(e.ModTime)
	return e.ModTime.UTC(), since >= age || since <= -time.Minute, nil
}

// touchStep is a touch that is about to be done. It says before which time it gives, so that it is known after a power cut
// whether that was done, or somebody else touched the base.
func touchStep(name, path string, inode uint64, before, now time.Time) vault.BaseStep {
	t := stepAt(vault.BaseTouch, name, path, inode)
	before, now = before.UTC(), now.UTC()
	t.Before, t.After = &before, &now
	return t
}

// touch gives a base the time of now.
func (k *keeper) touch(ctx context.Context, t *vault.BaseStep, d *pool.Done) error {
	return k.touchBy(ctx, t, t.At(), d)
}

// touchBy is touch by another name of the file.
func (k *keeper) touchBy(ctx context.Context, t *vault.BaseStep, at string, d *pool.Done) error {
	if err := k.step(ctx, "touch "+t.Name); err != nil {
		return err
	}
	e, err := diskio.LookEntry(at)
	if err == nil && e.Ino != t.Inode {
		err = &fs.PathError{Op: "touch", Path: at, Err: diskio.ErrChanged}
	}
	if err == nil {
		err = k.Links.Touch(e.ID, at, *t.After)
		if errors.Is(err, fs.ErrPermission) {
			err = k.Links.Touch(e.ID, at, time.Time{}) // who may write to a file may give it the time of now, and no other
		}
	}
	if err == nil {
		if e, err = diskio.LookEntry(at); err == nil {
			set := e.ModTime.UTC()
			t.After = &set
		}
	}
	k.did(*t, err)
	if err != nil {
		return fmt.Errorf("touch: %w", err)
	}
	d.Touched = append(d.Touched, filepath.Base(t.At()))
	return nil
}

func anyResized(c *refs.Census) bool {
	for i := range c.All {
		if resized.MatchString(c.All[i].Name) {
			return true
		}
	}
	return false
}

// record keeps the digests of what a base holds.
func (k *keeper) record(ctx context.Context, b *refs.Base, s *pool.State, now time.Time, d *pool.Done) error {
	for i := range b.Uses {
		if b.Uses[i].How == refs.Writing {
			return errors.New("record: a program writes to it")
		}
	}
	f, err := diskio.Open(b.Path)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	defer f.Close()
	before := f.Stat()
	if before.ID != b.File {
		return fmt.Errorf("record: %w", diskio.ErrChanged)
	}
	born := f.Born().UTC()
	if old, ok := s.Objects[b.File.Ino]; ok && old.SizeBytes == before.SizeBytes && old.Born.Equal(born) &&
		(old.Name == b.Name || k.has(old.Name, b.File) || pool.IsSilly(b.Name)) { // which base that was only its record tells
		return nil
	}
	whole, parts := sha256.New(), &chunks{each: sha256.New()}
	if err := k.copyTo(ctx, io.MultiWriter(whole, parts), f, b.Path, f.Size()); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	after, err := f.StatNow()
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	// Touching changes the time of change too, so the length and the time of the content tell; those of a
	// file that somebody writes to are new.
	if after.SizeBytes != before.SizeBytes || after.ModTime != before.ModTime {
		return errors.New("record: it was changed meanwhile")
	}
	obj := pool.Object{Schema: pool.ObjectSchema, Name: b.Name, Inode: b.File.Ino, Born: born, SizeBytes: before.SizeBytes,
		Seen: now.UTC(), Format: b.Format, SHA256: hex.EncodeToString(whole.Sum(nil)), Chunks: parts.end()}
	text, err := obj.Text()
	if err != nil {
		return err
	}
	if err := k.step(ctx, "record "+b.Name); err != nil {
		return err
	}
	to := k.path(pool.Objects, pool.ObjectName(b.File.Ino))
	if k.receipt == nil {
		// One that does nothing but record announces that once.
		if err := k.will(stepAt(vault.BaseRecord, b.Name, to, b.File.Ino)); err != nil {
			return err
		}
	}
	err = k.put(to, text)
	k.did(stepAt(vault.BaseRecord, b.Name, to, b.File.Ino), err)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	s.Objects[b.File.Ino] = obj
	d.Recorded = append(d.Recorded, b.Name)
	return k.note(ctx, "record", b.Name, b.File.Ino, b.Path, obj.SHA256)
}

// has tells whether a file has a name in the directory of the bases: of two names of one file the first is recorded.
func (k *keeper) has(name string, id diskio.ID) bool {
	e, err := diskio.LookEntry(filepath.Join(k.Bases, name))
	return err == nil && e.ID == id
}

// chunks makes a digest of each 4 MiB that are written to it.
type chunks struct {
	each hash.Hash
	n    int64
	all  []string
}

func (c *chunks) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := min(int64(len(p)), pool.ChunkBytes-c.n)
		c.each.Write(p[:n])
		c.n, p = c.n+n, p[n:]
		if c.n == pool.ChunkBytes {
			c.flush()
		}
	}
	return total, nil
}

func (c *chunks) flush() {
	c.all = append(c.all, hex.EncodeToString(c.each.Sum(nil)))
	c.each.Reset()
	c.n = 0
}

func (c *chunks) end() []string {
	if c.n > 0 {
		c.flush()
	}
	if c.all == nil {
		return []string{}
	}
	return c.all
}

// newUUID makes a random UUID (RFC 9562, version 4).
func newUUID() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), nil
}
