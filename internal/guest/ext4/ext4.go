// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package ext4 reads ext2, ext3 and ext4 without mounting them. What a crash left in the journal is
// replayed first, in memory, as the kernel does it; the volume is never written.
//
// Whatever has a checksum is verified, and numbers are held against the size of the volume before
// they are used. What does not fit is a problem of the view (internal/guest/files), with its place.
package ext4

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// FS is a file system that is being looked into. It implements files.FS.
type FS struct {
	meta    *cache // the volume with the journal replayed
	super   *super
	groups  []group
	zones   []run // blocks of metadata, ascending; only where no checksum guards the maps
	record  files.Record
	orphans map[files.Ino]bool
	notes   *files.Notes
	// hashed is how many names directories keep while they are read, held the bytes of their blocks.
	hashed, held atomic.Int64
}

// Open opens the file system on a volume of size bytes. Its journal is read if it has something to
// replay. The errors are ErrNotExt, ErrUnsupported, those of ctx and of reading; what is damaged
// beside the superblock is no error but a problem of the view.
func Open(ctx context.Context, volume io.ReaderAt, size int64) (*FS, error) {
	notes := new(files.Notes)
	s, err := readSuper(ctx, newCache(volume, size), notes)
	if err != nil {
		return nil, err
	}
	noteErrors(s, notes)
	record := s.record()
	replayed, err := replay(ctx, volume, size, s, notes, &record)
	if err != nil {
		return nil, err
	}
	fs := &FS{meta: newCache(replayed, size), super: s, notes: notes, record: record}
	if replayed != volume {
		// The journal may hold another superblock.
		if fs.super, err = readSuper(ctx, fs.meta, notes); err != nil {
			return nil, err
		}
		noteErrors(fs.super, notes)
	}
	if total := fs.super.blocks * fs.super.blockBytes; total > size {
		notes.Note(files.Problem{What: fmt.Sprintf(
			"the file system has %d bytes, its volume only %d", total, size), Offset: size,
			Hides: true})
	}
	if err := fs.readGroups(ctx, fs.super.groups); err != nil {
		return nil, err
	}
	fs.findZones()
	if err := fs.checkMMP(ctx); err != nil {
		return nil, err
	}
	if err := fs.readOrphans(ctx); err != nil {
		return nil, err
	}
	return fs, nil
}

// readSuper reads the superblock of a file system that can be read.
func readSuper(ctx context.Context, c *cache, notes *files.Notes) (*super, error) {
	s, err := findSuper(ctx, c)
	if s == nil {
		return nil, err
	}
	if err != nil {
		notes.Note(files.Problem{What: fmt.Sprintf("superblock: %v", err), Offset: superAt,
			Length: superBytes, Hides: true})
	}
	return s, s.supported()
}

// noteErrors says what the kernel wrote down about the file system: that it met errors, or that
// it was not unmounted where no journal makes up for that.
func noteErrors(s *super, notes *files.Notes) {
	b := s.raw
	if state, count := le16(b, 58), le32(b, 404); state&stateErrors != 0 || count > 0 {
		what := fmt.Sprintf("the kernel noted %d errors", count)
		if name, _, _ := bytes.Cut(b[424:456], []byte{0}); count > 0 {
			what += fmt.Sprintf("; the first at %d seconds, in inode %d, by %q, line %d",
				int64(b[632])<<32|int64(le32(b, 408)), le32(b, 412), name, le32(b, 456))
		}
		notes.Note(files.Problem{What: what, Offset: s.at, Length: superBytes})
	}
	if s.trusted && s.compat&compatJournal == 0 && le16(b, 58)&stateValid == 0 {
		notes.Note(files.Problem{What: "it was not unmounted and has no journal: what was being " +
			"changed may be missing", Offset: s.at, Length: superBytes, Hides: true})
	}
}

// replay gives the volume with its journal replayed; the volume itself if there is nothing to
// replay. Damage of the journal is noted.
func replay(ctx context.Context, volume io.ReaderAt, size int64, s *super, notes *files.Notes,
	record *files.Record) (io.ReaderAt, error) {
	needed := s.incompat&incompatRecover != 0
	if s.compat&compatJournal == 0 {
		if needed {
			notes.Note(files.Problem{What: "the superblock says that the journal is to be replayed, and " +
				"that there is none: what it holds was not replayed", Offset: s.at, Length: superBytes,
				Hides: true})
		}
		return volume, nil
	}
	problem := func(err error) {
		what := fmt.Sprintf("journal: %v", err)
		if needed {
			what += "; what it holds was not replayed"
		}
		notes.Note(files.Problem{What: what, Offset: -1, Ino: s.journal(), Hides: needed})
	}
	if s.journal() == 0 {
		if needed {
			problem(errors.New("it is on another device"))
		}
		return volume, nil
	}
	// What is read before the replay may contradict itself without harm.
	before := &FS{meta: newCache(volume, size), super: s, notes: new(files.Notes)}
	if err := before.readGroups(ctx, int64(s.journal()-1)/s.inodesPerGroup+1); err != nil {
		return nil, err
	}
	j, err := before.openJournal(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		problem(err)
		return volume, nil
	}
	if j.damaged != nil {
		notes.Note(files.Problem{What: fmt.Sprintf("journal: %v; the copy of its map in the superblock "+
			"is used", j.damaged), Offset: -1, Ino: s.journal()})
	}
	record.Aborted = int64(j.errno)
	if j.errno != 0 {
		notes.Note(files.Problem{What: fmt.Sprintf("the journal was given up by the kernel, error %d",
			j.errno), Offset: -1, Ino: s.journal()})
	}
	if j.start == 0 {
		return volume, j.unstarted(ctx, needed, problem)
	}
	if !needed && s.trusted {
		notes.Note(files.Problem{What: "the superblock says that nothing is to be replayed, the " +
			"journal that something is; as in the kernel, it was not", Offset: -1, Ino: s.journal(),
			Hides: true})
		return volume, nil
	}
	needed = true
	r := &recovery{ctx: ctx, j: j}
	if err := r.recover(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		problem(err)
	} else if tags, err := r.fastCommits(); ctx.Err() != nil {
		return nil, ctx.Err()
	} else if err != nil || tags > 0 {
		notes.Note(files.Problem{What: cmp.Or(err, fmt.Errorf("the journal ends with fast commits of "+
			"%d records, which were not replayed", tags)).Error(), Offset: -1, Ino: s.journal(),
			Hides: true})
	}
	for _, p := range r.problems {
		notes.Note(p)
	}
	if r.transactions > 0 {
		notes.Replayed(r.transactions, r.count)
	}
	if len(r.blocks) == 0 {
		return volume, nil
	}
	return &replayed{volume: volume, size: s.blockBytes, blocks: r.blocks}, nil
}

// checkMMP verifies the block that says which host has the file system mounted.
func (fs *FS) checkMMP(ctx context.Context) error {
	const magic, sumAt = 0x004d4d50, 1020
	block := fs.super.mmpBlock()
	if block == 0 {
		return nil
	}
	err := fmt.Errorf("block %d, of %d", block, fs.super.blocks)
	at := int64(-1)
	if fs.super.hasBlock(block, 1) {
		at = block * fs.super.blockBytes
		var b []byte
		b, err = fs.block(ctx, block)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case err != nil:
		case le32(b, 0) != magic:
			err = fmt.Errorf("magic is 0x%x", le32(b, 0))
		case fs.super.sums && sum32(fs.super.seed, b[:sumAt]) != le32(b, sumAt):
			err = fmt.Errorf("checksum is 0x%x, want 0x%x", le32(b, sumAt),
				sum32(fs.super.seed, b[:sumAt]))
		}
	}
	if err != nil {
		fs.notes.Note(files.Problem{What: fmt.Sprintf("multiple mount protection: %v", err),
			Offset: at})
	}
	return nil
}

// Info describes the file system.
func (fs *FS) Info() files.Info {
	info := fs.super.info()
	info.Record = fs.record
	for i := range fs.groups {
		if g := &fs.groups[i]; g.state != groupLost {
			info.FreeBytes += int64(g.freeBlocks) * fs.super.clusterBlocks * fs.super.blockBytes
			info.FreeInodes += int64(g.freeInodes)
		}
	}
	return info
}

// View gives the state of what was read so far.
func (fs *FS) View() files.View { return fs.notes.View() }

// block reads a block.
func (fs *FS) block(ctx context.Context, block int64) ([]byte, error) {
	return fs.meta.read(ctx, block*fs.super.blockBytes, fs.super.blockBytes)
}

// note notes what could not be read, and gives the error for it. That reading was called off is no
// fault of the file system.
func (fs *FS) note(what string, at int64, ino files.Ino, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fs.notes.Fail(what, at, ino, err)
}
