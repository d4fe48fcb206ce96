// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package zoo

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"
)

// Load says how a Writer writes.
type Load struct {
	// Bytes is the size of the disk, Rate how many requests a second are made, RequestBytes the
	// most that one writes; 0 means 64 KiB.
	Bytes        int64
	Rate         int
	RequestBytes int64
	Seed         uint64
}

// Writer is a qemu-io that writes to an image at random places, as a running guest does: data,
// zeros, discarded ranges, and a flush now and then.
type Writer struct {
	cmd      *exec.Cmd
	cancel   context.CancelFunc
	requests atomic.Int64
	done     chan error // what feeding ended with
	errs     bytes.Buffer
}

const defaultRequestBytes = 64 << 10

// StartWriter begins to write to the image at path. It goes on until Stop, or ctx ends.
func StartWriter(ctx context.Context, path string, l Load) (*Writer, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &Writer{cancel: cancel, done: make(chan error, 1)}
	// Killing it at the end of ctx would leave the image as a crash does; closing its input lets
	// it end as it should.
	w.cmd = exec.Command("qemu-io", "-f", "qcow2", filepath.Base(path))
	w.cmd.Dir, w.cmd.Stderr = filepath.Dir(path), &w.errs
	in, err := w.cmd.StdinPipe()
	if err == nil {
		err = w.cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("start a writer on %s: %w", path, err)
	}
	go func() {
		err := w.feed(ctx, in, l)
		w.done <- errors.Join(err, in.Close())
	}()
	return w, nil
}

// feed asks for requests at an even pace.
func (w *Writer) feed(ctx context.Context, in io.Writer, l Load) error {
	r := rand.New(rand.NewPCG(l.Seed, 1))
	most := cmp.Or(l.RequestBytes, defaultRequestBytes)
	tick := time.NewTicker(time.Second / time.Duration(max(1, l.Rate)))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		size := (1 + r.Int64N(most/512)) * 512
		off := r.Int64N(max(1, (l.Bytes-size)/512)) * 512
		line := fmt.Sprintf("write -P %d %d %d\n", r.IntN(256), off, size)
		switch r.IntN(40) {
		case 0, 1, 2:
			line = fmt.Sprintf("discard %d %d\n", off/most*most, most)
		case 3, 4:
			line = fmt.Sprintf("write -z -u %d %d\n", off, size)
		case 5, 6:
			line = "flush\n"
		}
		if _, err := io.WriteString(in, line); err != nil {
			return fmt.Errorf("ask qemu-io: %w", err)
		}
		w.requests.Add(1)
	}
}

// Requests is how many requests were made so far.
func (w *Writer) Requests() int64 { return w.requests.Load() }

// PID is the process that writes.
func (w *Writer) PID() int { return w.cmd.Process.Pid }

// Stop ends the writing and waits until the image is closed.
func (w *Writer) Stop() error {
	w.cancel()
	err := errors.Join(<-w.done, w.cmd.Wait())
	if err != nil {
		err = fmt.Errorf("writer: %w: %s", err, w.errs.Bytes())
	}
	return err
}
