// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab"
)

// storage is a file whose reads a test changes.
type storage struct {
	*diskio.File
	before func(off int64) error
}

func (s storage) ReadAt(p []byte, off int64) (int, error) {
	if err := s.before(off); err != nil {
		return 0, err
	}
	return s.File.ReadAt(p, off)
}

// An image on storage that hangs is given up; the others are examined all the same. The clock is one
// that goes on only while all wait.
func TestHangingStorage(t *testing.T) {
	dir := t.TempDir()
	for i := range 4 {
		makeImage(t, fmt.Sprintf("%s/%d.qcow2", dir, i), small(""))
	}
	const timeout = time.Minute
	for _, tc := range []struct {
		name string
		from int64 // of the file, where reading hangs
		want string
	}{
		{"in the header", 0, "1.qcow2 - cannot_tell blind(file: the storage does not answer: no read ended for 1m0s)"},
		{"in a table", 65536, "1.qcow2 qcow2 cannot_tell blind(image: the storage does not answer: no read ended for 1m0s)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hang := make(chan struct{})
				defer close(hang)
				r := newRunner(Options{ReadTimeout: timeout})
				r.reader = func(f *diskio.File) io.ReaderAt {
					return storage{f, func(off int64) error {
						if strings.HasSuffix(f.Name(), "/1.qcow2") && off >= tc.from {
							<-hang
						}
						return nil
					}}
				}
				start := time.Now()
				rep, err := r.whole(t.Context(), []string{dir})
				if took := time.Since(start); err != nil || took < timeout || took > 2*timeout {
					t.Errorf("Run = %v after %v, want it after %v or a little more", err, took, timeout)
				}
				got := show(rep, dir)
				if got[0] != "cannot_tell [4]" || got[1] != tc.want || rep.Summary.Clean != 3 {
					t.Errorf("Run = %s\nwant %s", strings.Join(got, "\n"), tc.want)
				}
			})
		})
	}
}

// Ctrl-C ends a run although the storage hangs.
func TestStopWhileHanging(t *testing.T) {
	dir := t.TempDir()
	makeImage(t, dir+"/a.qcow2", small(""))
	synctest.Test(t, func(t *testing.T) {
		hang, under := make(chan struct{}), make(chan struct{})
		defer close(hang)
		var once sync.Once
		r := newRunner(Options{})
		r.reader = func(f *diskio.File) io.ReaderAt {
			return storage{f, func(off int64) error {
				if off >= 65536 {
					once.Do(func() { close(under) })
					<-hang
				}
				return nil
			}}
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-under
			cancel()
		}()
		start := time.Now()
		rep, err := r.whole(ctx, []string{dir})
		if took := time.Since(start); !errors.Is(err, context.Canceled) || took > cancelGrace {
			t.Errorf("Run = %v after %v, want %v after %v", err, took, context.Canceled, cancelGrace)
		}
		if rep.Verdict != finding.CannotTell {
			t.Errorf("Verdict = %s, want %s", rep.Verdict, finding.CannotTell)
		}
	})
}

// A sector that cannot be read is a blind spot, and the rest is examined.
func TestReadErrors(t *testing.T) {
	dir := t.TempDir()
	makeImage(t, dir+"/a.qcow2", lab.Spec{VirtualBytes: 4 << 30, Fill: .01, Seed: 1})
	var n atomic.Int64
	for _, tc := range []struct {
		name    string
		fails   func(off int64) bool
		checked bool
		status  string
	}{
		{"the header", func(off int64) bool { return off == 0 }, false, "[1]"},
		{"one table", func(off int64) bool { return off == 4<<16 }, true, "[4]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n.Store(0)
			r := newRunner(Options{})
			r.reader = func(f *diskio.File) io.ReaderAt {
				return storage{f, func(off int64) error {
					if tc.fails(off) {
						n.Add(1)
						return syscall.EIO
					}
					return nil
				}}
			}
			rep, _ := r.whole(t.Context(), []string{dir})
			if fmt.Sprint(rep.Status) != tc.status || len(rep.Images)+len(rep.Blind) != 1 {
				t.Fatalf("Run = %s after %d failed reads, want %s", strings.Join(show(rep, dir), "\n"), n.Load(), tc.status)
			}
			if len(rep.Images) == 1 && rep.Images[0].Checked != tc.checked {
				t.Errorf("Checked = %v, want %v", rep.Images[0].Checked, tc.checked)
			}
		})
	}
}

// The rate of reading is kept over all images together.
func TestIOLimit(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		makeImage(t, fmt.Sprintf("%s/%d.qcow2", dir, i), small(""))
	}
	var mu sync.Mutex
	clock := time.Unix(1e9, 0)
	var read int64
	r := newRunner(Options{IOLimit: 1 << 20,
		Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return clock },
		Sleep: func(ctx context.Context, d time.Duration) error {
			mu.Lock()
			defer mu.Unlock()
			clock = clock.Add(d)
			return ctx.Err()
		}})
	r.reader = func(f *diskio.File) io.ReaderAt { return counted{f, &read} }
	if _, err := r.whole(t.Context(), []string{dir}); err != nil {
		t.Fatal(err)
	}
	took := clock.Sub(time.Unix(1e9, 0)).Seconds()
	// The last read is not waited for.
	if bytes := float64(atomic.LoadInt64(&read)); took < (bytes-1<<18)/(1<<20)*.9 || took == 0 {
		t.Errorf("%.0f bytes took %.3f s at 1 MiB/s", bytes, took)
	}
}

type counted struct {
	*diskio.File
	n *int64
}

func (c counted) ReadAt(p []byte, off int64) (int, error) {
	atomic.AddInt64(c.n, int64(len(p)))
	return c.File.ReadAt(p, off)
}

// As many images are examined at once as the memory allows.
func TestMemoryLimit(t *testing.T) {
	dir := t.TempDir()
	for i := range 8 {
		makeImage(t, fmt.Sprintf("%s/%d.qcow2", dir, i), small(""))
	}
	for _, tc := range []struct {
		memory int64
		want   int64
	}{{1, 1}, {baseBytes + 1, 1}, {0, 4}} {
		var mu sync.Mutex
		at, most := map[string]int{}, 0
		r := newRunner(Options{Workers: 4, MemoryBytes: tc.memory})
		r.reader = func(f *diskio.File) io.ReaderAt {
			return storage{f, func(off int64) error {
				if off < 65536 {
					return nil // looking what it is
				}
				mu.Lock()
				at[f.Name()]++
				most = max(most, len(at))
				mu.Unlock()
				time.Sleep(time.Millisecond)
				mu.Lock()
				if at[f.Name()]--; at[f.Name()] == 0 {
					delete(at, f.Name())
				}
				mu.Unlock()
				return nil
			}}
		}
		rep, err := r.whole(t.Context(), []string{dir})
		if err != nil || len(rep.Images) != 8 {
			t.Fatalf("Run = %v", err)
		}
		if int64(most) > tc.want {
			t.Errorf("with %d bytes %d images were examined at once, want %d at most", tc.memory, most, tc.want)
		}
		if tc.memory != 1 && rep.Verdict != finding.Clean {
			t.Errorf("with %d bytes: %s", tc.memory, strings.Join(show(rep, dir), "\n"))
		}
	}
}

// Past the page cache the result is the same.
func TestDirect(t *testing.T) {
	dir := t.TempDir()
	makeImage(t, dir+"/a.qcow2", leaking())
	makeImage(t, dir+"/b.qcow2", small(""), "l1-entry-wiped")
	with, without := checkLines(t, dir, Options{Direct: true}, dir), checkLines(t, dir, Options{}, dir)
	if strings.Join(with, "\n") != strings.Join(without, "\n") {
		t.Errorf("direct: %s\nnot: %s", strings.Join(with, "\n"), strings.Join(without, "\n"))
	}
}
