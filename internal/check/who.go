// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"context"
	"io"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// InUse says who uses the file at path now, and whether that keeps it from being changed: a program
// may write to it, or holds a lock on it. Who only reads it without a lock keeps nobody from
// anything. Of the options it takes ReadTimeout, Root and Now. The error is that of opening, or of
// ctx.
func InUse(ctx context.Context, path string, opts Options) (u Use, busy bool, err error) {
	r := newRunner(opts)
	c := candidate{path: path}
	f, err := r.open(ctx, c, false)
	if err != nil {
		return Use{}, false, err
	}
	defer f.Close()
	j := &job{candidate: c, stat: f.Stat(), real: r.realPath(ctx, path)}
	if u, err = r.use(ctx, f, j); err != nil {
		return Use{}, false, err
	}
	if u.State == UseRead {
		locks, err := diskio.Within(ctx, r.timeout, f.Locks, nil)
		return u, err == nil && (locks.Reader() || locks.Writer()), ctx.Err()
	}
	return u, u.State == UseWrite, nil
}

// Guarded is an open file that is read under the eyes of somebody who gives it up when the storage
// hangs. It may be used by several goroutines at once.
type Guarded struct {
	g *guard
	f *diskio.File
}

// Reading runs fn, which reads an open file through the reader that it is given and in no other
// way, and gives it up when none of its reads ends for timeout (diskio.ErrTimeout), or when ctx ends and
// fn does not follow. It closes the file once fn has returned, whenever that is. 0 is
// DefaultReadTimeout.
func Reading[T any](ctx context.Context, f *diskio.File, timeout time.Duration,
	fn func(*Guarded) (T, error),
) (T, error) {
	if timeout <= 0 {
		timeout = DefaultReadTimeout
	}
	g := &guard{ctx: ctx, r: f, timeout: timeout, started: time.Now()}
	return during(ctx, g, func() (T, error) { return fn(&Guarded{g, f}) }, func() { f.Close() })
}

// ReadAt is io.ReaderAt.
func (r *Guarded) ReadAt(p []byte, off int64) (int, error) { return r.g.ReadAt(p, off) }

// Data calls fn for each range of [off, off+length) that is not a hole, in ascending order.
func (r *Guarded) Data(
	ctx context.Context, off, length int64, fn func(off, length int64) error,
) error {
	if r.g.gone.Load() {
		return errAbandoned
	}
	return r.f.Data(ctx, off, length, fn)
}

// Also puts another reader under the same eyes.
func (r *Guarded) Also(other io.ReaderAt) io.ReaderAt { return &beside{r.g, other} }

type beside struct {
	g *guard
	r io.ReaderAt
}

func (b *beside) ReadAt(p []byte, off int64) (int, error) { return b.g.read(b.r, p, off) }
