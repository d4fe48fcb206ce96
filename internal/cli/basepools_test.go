// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/config"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/render"
)

// TestTogether: a pool that fails again and again is told of once, and tried again; the others are not disturbed, and all
// end when they are asked to.
func TestTogether(t *testing.T) {
	var stdout, stderr bytes.Buffer
	s := newStdio(strings.NewReader(""), &stdout, &stderr)
	o := &poolOptions{joint: newJoint([]config.Pool{{Path: "/good"}, {Path: "/bad"}}, "")}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var tries atomic.Int32
	err := o.together(ctx, time.Millisecond, s, func(ctx context.Context, o *poolOptions, _ *stdio) error {
		if o.pool == "/good" {
			<-ctx.Done()
			return ctx.Err()
		}
		if tries.Add(1) == 5 {
			stop()
		}
		return errors.New("not mounted")
	})
	if !errors.Is(err, context.Canceled) || tries.Load() != 5 {
		t.Errorf("together = %v after %d tries", err, tries.Load())
	}
	if got := stderr.String(); got != "shisa: /bad: not mounted\n" {
		t.Errorf("told was %q, want it once", got)
	}
}

// hook is a writer that calls itself.
type hook func(text string)

func (h hook) Write(text []byte) (int, error) {
	h(string(text))
	return len(text), nil
}

// TestRiskTakenOnce: that a pool may be another one than it was is so for what is there at the start. When its storage is
// taken away while it is watched, no pool begins on the directory below.
func TestRiskTakenOnce(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	path, state := filepath.Join(dir, "pool"), filepath.Join(dir, "state")
	base := filepath.Join(path, "_base")
	unmount := func() {
		if err := errors.Join(os.RemoveAll(path), os.MkdirAll(base, 0o755)); err != nil {
			t.Error(err)
		}
	}
	unmount()
	was := &poolOptions{baseName: "_base", state: state, pool: path}
	if _, err := was.protect(t.Context(), bases.ProtectOptions{}, nil, newStdio(nil, io.Discard, io.Discard)); err != nil {
		t.Fatal(err)
	}
	unmount()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	passes := 0
	s := newStdio(strings.NewReader(""), hook(func(text string) {
		if !strings.Contains(text, "shielded") {
			return
		}
		if passes++; passes == 1 {
			unmount()
		} else {
			stop()
		}
	}), io.Discard)
	o := &poolOptions{baseName: "_base", state: state, joint: newJoint([]config.Pool{{Path: path}}, "")}
	var ends []error
	err = o.together(ctx, time.Millisecond, s, func(ctx context.Context, o *poolOptions, s *stdio) error {
		err := o.watch(ctx, bases.ProtectOptions{KeepAlive: time.Second}, []string{newPoolRisk + path}, s)
		if ends = append(ends, err); len(ends) == 2 {
			stop()
		}
		return err
	})
	if !errors.Is(err, context.Canceled) || passes != 1 || len(ends) != 2 || !errors.Is(ends[1], bases.ErrOtherPool) {
		t.Errorf("together = %v after %d passes that ended with %v, want %v begun anew", err, passes, ends, bases.ErrOtherPool)
	}
	if _, err := os.Lstat(filepath.Join(base, pool.Dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a pool was begun where nothing is mounted: %v", err)
	}
}

// TestPoolsStatus: one pool that could not be looked at is a gap as long as another one could, and a refusal stays one.
func TestPoolsStatus(t *testing.T) {
	why := &render.BasePoolError{}
	for _, c := range []struct {
		name string
		all  []render.BasePool
		want []int
	}{
		{"all fine", []render.BasePool{{Status: []int{0}}, {Status: []int{0}}}, []int{0}},
		{"one failed", []render.BasePool{{Status: []int{0}}, {Status: []int{1}, Error: why}}, []int{finding.StatusCannotTell}},
		{"all failed", []render.BasePool{{Status: []int{1}, Error: why}, {Status: []int{1}, Error: why}}, []int{1}},
		{"found and refused", []render.BasePool{{Status: []int{3, 4}}, {Status: []int{5}, Error: why}}, []int{3, 5, 4}},
	} {
		if got := poolsStatus(c.all); !slices.Equal(got, c.want) {
			t.Errorf("%s: poolsStatus = %v, want %v", c.name, got, c.want)
		}
	}
}
