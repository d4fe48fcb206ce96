// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// How fast the storage gives bytes that lie in one piece, asked for in large reads that are under way
// side by side: no program can read scattered metadata faster.
const (
	diskReadBytes = 1 << 20
	diskReaders   = 8
)

// diskTime is how long the storage takes for as many bytes as the image at path has, past the page
// cache: the best of some runs.
func diskTime(ctx context.Context, path string, runs int) (best time.Duration, err error) {
	st, err := diskio.Look(path)
	if err != nil {
		return 0, err
	}
	dense := filepath.Join(filepath.Dir(path), "dense")
	defer os.Remove(dense)
	if err := writeDense(dense, st.AllocatedBytes); err != nil {
		return 0, err
	}
	for range runs {
		d, err := readDense(ctx, dense)
		if err != nil {
			return 0, err
		}
		if best == 0 || d < best {
			best = d
		}
	}
	return best, nil
}

// writeDense writes bytes that no storage can leave out.
func writeDense(path string, n int64) error {
	f, err := diskio.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.Reader, n)
	return errors.Join(err, f.Sync(), f.Close())
}

func readDense(ctx context.Context, path string) (time.Duration, error) {
	f, err := diskio.OpenDirect(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	start := time.Now()
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range diskReaders {
		g.Go(func() error {
			buf := make([]byte, diskReadBytes)
			for {
				off := next.Add(diskReadBytes) - diskReadBytes
				if off >= f.Size() {
					return ctx.Err()
				}
				if _, err := f.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
					return fmt.Errorf("read %s past the page cache: %w", path, err)
				}
			}
		})
	}
	err = g.Wait()
	return time.Since(start), err
}
