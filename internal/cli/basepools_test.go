// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/config"
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
