// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/imagetest"
)

// view makes an image.Reader of a chain: the entries of its map without their layers.
type view struct{ *Chain }

func (v view) Map(ctx context.Context, off image.GuestOff, length int64, fn func(image.Extent) error) error {
	var cur image.Extent
	put := func() error {
		e := cur
		cur.Length = 0
		if e.Length == 0 {
			return nil
		}
		return fn(e)
	}
	failed := false
	err := v.Chain.Map(ctx, off, length, func(e *Entry) error {
		x := image.Extent{Guest: e.Start, Length: e.Length, Host: e.Offset, HasHost: e.HasOffset}
		switch {
		case e.Compressed:
			x.Kind = image.Compressed
		case e.Data:
			x.Kind = image.Data
		case e.Present:
			x.Kind = image.Zero
		}
		if cur.Length > 0 && cur.Kind == x.Kind && cur.HasHost == x.HasHost &&
			(!x.HasHost || int64(cur.Host)+cur.Length == int64(x.Host)) {
			cur.Length += x.Length
			return nil
		}
		err := put()
		failed = err != nil
		cur = x
		return err
	})
	if err == nil || !failed && ctx.Err() == nil {
		if perr := put(); perr != nil {
			return perr
		}
	}
	return err
}

func TestChainConforms(t *testing.T) {
	for _, seed := range seeds(2, 40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			path := randomChain(t, newRand(9000+seed))
			want := bytesOf(t, path)
			imagetest.Run(t, func(t *testing.T) (image.Reader, []byte) {
				return view{mustOpen(t, path, follow)}, want
			})
		})
	}
	t.Run("deep", func(t *testing.T) {
		path := deep(t, 20)
		imagetest.Run(t, func(t *testing.T) (image.Reader, []byte) {
			want := make([]byte, 1<<20)
			if _, err := mustOpen(t, filepath.Join(filepath.Dir(path), "0"), Options{}).ReadAt(want, 0); err != nil {
				t.Fatal(err)
			}
			return view{mustOpen(t, path, Options{})}, want
		})
	})
}
