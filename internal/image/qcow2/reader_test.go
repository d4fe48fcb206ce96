// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/imagetest"
)

// sizeFor is a disk of some clusters and tables, not a multiple of either.
func sizeFor(clusterBits uint32) int64 {
	return min(5<<19, int64(300)<<clusterBits) + 7*512
}

func TestConformance(t *testing.T) {
	for _, f := range []features{
		{version: 2, clusterBits: 9},
		{version: 2, clusterBits: 16},
		{version: 3, clusterBits: 9},
		{version: 3, clusterBits: 12},
		{version: 3, clusterBits: 16},
		{version: 3, clusterBits: 21},
		{version: 3, clusterBits: 14, extended: true},
		{version: 3, clusterBits: 16, extended: true},
		{version: 3, clusterBits: 21, extended: true},
		{version: 3, clusterBits: 9, zstd: true},
		{version: 3, clusterBits: 16, zstd: true},
		{version: 3, clusterBits: 16, zstd: true, extended: true},
		{version: 3, clusterBits: 9, dataFile: true},
		{version: 3, clusterBits: 16, dataFile: true},
		{version: 3, clusterBits: 14, dataFile: true, extended: true},
	} {
		f.sizeBytes = sizeFor(f.clusterBits)
		t.Run(fmt.Sprintf("%+v", f), func(t *testing.T) {
			g := draw(t, rand.New(rand.NewPCG(5, uint64(f.clusterBits))), f)
			before := bytes.Clone(g.file)
			imagetest.Run(t, func(t *testing.T) (image.Reader, []byte) {
				return show(t, g),
					g.want
			})
			if !bytes.Equal(g.file, before) {
				t.Error("the image was changed")
			}
			d := show(t, g)
			if _, err := d.ReadAt(make([]byte, d.Size()), 0); err != nil || d.Missing() != 0 {
				t.Errorf("ReadAt(all): %v, %d bytes missing, want none", err, d.Missing())
			}
		})
	}
}

// Any image that can be drawn reads back as what was put into it.
func TestDrawnReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := features{
			version:     rapid.Uint32Range(2, 3).Draw(t, "version"),
			clusterBits: rapid.Uint32Range(9, 17).Draw(t, "cluster_bits"),
		}
		if f.version == 3 {
			f.dataFile = rapid.Bool().Draw(t, "data file")
			f.zstd = rapid.Bool().Draw(t, "zstd")
			f.extended = f.clusterBits >= 14 && rapid.Bool().Draw(t, "extended")
		}
		f.sizeBytes = 512 * rapid.Int64Range(0, min(2<<20, int64(100)<<f.clusterBits)/512).Draw(t,
			"sectors")
		g := draw(t, rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)), f)
		d := show(t, g)
		got := bytes.Repeat([]byte{0xa5}, len(g.want))
		if n, err := d.ReadAt(got, 0); n != len(got) || err != nil {
			if len(got) > 0 {
				t.Fatalf("ReadAt(all) = %d, %v, want %d", n, err, len(got))
			}
		}
		if !bytes.Equal(got, g.want) {
			t.Fatalf("ReadAt(all) gives other bytes than were written")
		}
	})
}
