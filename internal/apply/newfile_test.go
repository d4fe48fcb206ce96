// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/cut"
	"github.com/shisa-vm/shisa/internal/plan"
)

const newPath = "/img/new.img"

// newWorld is a disk with an image whose header is lost, and what is to be made of it.
func newWorld(t *testing.T) (d *cut.Disk, n NewFile, before, after []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(9, 9))
	before = make([]byte, 200_000)
	for i := range before {
		before[i] = byte(r.Uint32())
	}
	after = slices.Clone(before)
	n = NewFile{Source: imagePath, Target: newPath, SizeBytes: int64(len(before))}
	for _, w := range []plan.Write{
		{Phase: plan.New, Offset: 512, New: bytes.Repeat([]byte("n"), 1000)},
		{Phase: plan.Point, Offset: 150_000, New: []byte("pointer")},
		{Phase: plan.Switch, Offset: 0, New: bytes.Repeat([]byte("header.."), 64)},
	} {
		w.Old = slices.Clone(before[w.Offset:w.End()])
		n.Writes = append(n.Writes, w)
		copy(after[w.Offset:], w.New)
	}
	d = cut.New(t.Context())
	d.Put(imagePath, before)
	return d, n, before, after
}

// newHolds checks that the source is what it was, and that the new file is whole or no image.
func newHolds(t *testing.T, d *cut.Disk, what string, before, after []byte) (made bool) {
	t.Helper()
	if got, ok := d.Get(imagePath); !ok || !bytes.Equal(got, before) {
		t.Errorf("%s: the source was changed", what)
	}
	got, ok := d.Get(newPath)
	made = ok && bytes.Equal(got, after)
	// One byte of the new header is enough to be taken for an image.
	if ok && !made && len(got) > 512 && bytes.Equal(got[:8], after[:8]) &&
		!bytes.Equal(got[512:], after[512:]) {
		t.Errorf("%s: a part of the copy has the new header", what)
	}
	return made
}

func TestMakeNew(t *testing.T) {
	d, n, before, after := newWorld(t)
	o := Options{Disk: d, Verify: isNew(after)}
	if err := MakeNew(t.Context(), n, o); err != nil {
		t.Fatal(err)
	}
	if !newHolds(t, d, "after MakeNew", before, after) {
		t.Error("the new file is not what it should be")
	}
	if err := MakeNew(t.Context(), n, o); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second MakeNew = %v, want %v", err, fs.ErrExist)
	}
	if !newHolds(t, d, "after the second", before, after) {
		t.Error("the new file was touched")
	}
}

// TestMakeNewCrash cuts the power after every operation.
func TestMakeNewCrash(t *testing.T) {
	states := 0
	for k := 0; ; k++ {
		d, n, before, after := newWorld(t)
		fault(t, d, "crash after op "+strconv.Itoa(k))
		err := MakeNew(t.Context(), n, Options{Disk: d})
		if err == nil {
			if states < 30 {
				t.Errorf("%d states after %d operations, want 30 or more", states, k)
			}
			return
		}
		survivors(d, k, func(i int, s *cut.Disk) {
			states++
			newHolds(t, s, fmt.Sprintf("cut after %d, state %d", k, i), before, after)
		})
	}
}

// TestMakeNewFails: after an error there is no new file.
func TestMakeNewFails(t *testing.T) {
	errCheck := errors.New("the check found something")
	for _, tt := range []struct {
		name   string
		change func(d *cut.Disk, n *NewFile, o *Options)
		want   error
	}{
		{"other bytes", func(_ *cut.Disk, n *NewFile, _ *Options) { n.Writes[1].Old[0] ^= 1 }, ErrChanged},
		{"another length", func(_ *cut.Disk, n *NewFile, _ *Options) { n.SizeBytes++ }, ErrChanged},
		{"no switch", func(_ *cut.Disk, n *NewFile, _ *Options) { n.Writes = n.Writes[:2] }, ErrNewFile},
		{"no writes", func(_ *cut.Disk, n *NewFile, _ *Options) { n.Writes = nil }, ErrNewFile},
		{"wrong order", func(_ *cut.Disk, n *NewFile, _ *Options) {
			n.Writes[0], n.Writes[1] = n.Writes[1], n.Writes[0]
		}, ErrNewFile},
		{"first sector twice", func(_ *cut.Disk, n *NewFile, _ *Options) { n.Writes[0].Offset = 100 }, ErrNewFile},
		{"past the end", func(_ *cut.Disk, n *NewFile, _ *Options) { n.Writes[1].Offset = n.SizeBytes - 1 }, ErrNewFile},
		{"failed check", func(_ *cut.Disk, _ *NewFile, o *Options) {
			o.Verify = func(context.Context, io.ReaderAt, int64) error { return errCheck }
		}, errCheck},
		{"no source", func(_ *cut.Disk, n *NewFile, _ *Options) { n.Source = "/img/none" }, fs.ErrNotExist},
		{"the same file", func(_ *cut.Disk, n *NewFile, _ *Options) { n.Target = n.Source }, fs.ErrExist},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, n, before, after := newWorld(t)
			o := Options{Disk: d}
			tt.change(d, &n, &o)
			if err := MakeNew(t.Context(), n, o); !errors.Is(err, tt.want) {
				t.Errorf("MakeNew() = %v, want %v", err, tt.want)
			}
			newHolds(t, d, tt.name, before, after)
			if _, ok := d.Get(newPath); ok {
				t.Error("a new file is left")
			}
		})
	}
}

// TestMakeNewErrors: an error of any operation leaves no new file and the source as it was.
func TestMakeNewErrors(t *testing.T) {
	d, n, _, _ := newWorld(t)
	fault(t, d, "")
	if err := MakeNew(t.Context(), n, Options{Disk: d}); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= len(d.Ops()); i++ {
		d, n, before, after := newWorld(t)
		fault(t, d, "EIO on op "+strconv.Itoa(i))
		if err := MakeNew(t.Context(), n, Options{Disk: d}); err == nil {
			t.Errorf("MakeNew with an error of operation %d succeeds", i)
		}
		newHolds(t, d, "error of operation "+strconv.Itoa(i), before, after)
	}
}
