// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/testenv"
)

const (
	// flips is how many single bytes are changed, flipsLong how many with SHISA_LONG=1.
	flips     = 200
	flipsLong = 4000
	flipSeed  = 20240917
)

// flipped are the images of the zoo in which bytes are changed.
var flipped = []string{
	"base.qcow2", "v2.qcow2", "c512.qcow2", "c4k.qcow2", "ext.qcow2", "ext64.qcow2", "snaps.qcow2", "snaps2.qcow2",
	"bitmaps.qcow2", "data.qcow2", "dataraw.qcow2", "mid.qcow2", "zstd.qcow2", "pmeta.qcow2", "pext.qcow2", "rc1.qcow2",
	"luks.qcow2", "onraw.qcow2",
}

// metadata lists ranges of an image that hold metadata and are in use.
func metadata(t *testing.T, p []byte) [][2]int64 {
	t.Helper()
	r := strings.NewReader(string(p))
	h, err := qcow2.ReadHeader(r, int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	word := func(off int64) int64 { return int64(binary.BigEndian.Uint64(p[off:]) & qcow2.OffsetMask) }
	l1, reft := int64(h.L1Off), int64(h.ReftableOff)
	list := [][2]int64{{0, 112}, {112, 400}, {l1, h.L1Entries * 8}, {reft, 8}}
	for i := range h.L1Entries {
		if table := word(l1 + 8*i); table != 0 {
			list = append(list, [2]int64{table, min(h.ClusterSize(), 8*70)})
		}
	}
	list = append(list, [2]int64{word(reft), min(h.ClusterSize(), 100)})
	if h.Snapshots > 0 {
		list = append(list, [2]int64{int64(h.SnapshotsOff), 150}, [2]int64{word(int64(h.SnapshotsOff)), 16})
	}
	if h.Bitmaps != nil {
		dir := int64(h.Bitmaps.DirOff)
		list = append(list, [2]int64{dir, h.Bitmaps.DirSize}, [2]int64{word(dir), 16})
	}
	if h.CryptLen > 0 {
		list = append(list, [2]int64{int64(h.CryptOff), luksHeaderBytes})
	}
	return list
}

func testFlips(t *testing.T) {
	n := flips
	if testenv.Long() {
		n = flipsLong
	}
	rnd := rand.New(rand.NewPCG(flipSeed, 1))
	for i := range n {
		name := flipped[i%len(flipped)]
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		places := metadata(t, data)
		place := places[rnd.IntN(len(places))]
		off := min(place[0]+rnd.Int64N(place[1]), int64(len(data))-1)
		was := data[off]
		if data[off] = byte(rnd.Uint32()); rnd.IntN(2) == 0 {
			data[off] = was ^ 1<<rnd.IntN(8)
		}
		writeFile(t, "flip.qcow2", data)
		t.Run(fmt.Sprintf("%s at %#x: %#02x to %#02x", name, off, was, data[off]), func(t *testing.T) {
			same(t, "check", "--output=json", "flip.qcow2")
			others := [][]string{
				{"info", "--output=json", "flip.qcow2"}, {"map", "--output=json", "flip.qcow2"}, {"compare", "-s", "flip.qcow2", name},
			}
			for j, args := range others {
				if testenv.Long() || i/len(flipped)%len(others) == j {
					same(t, args...)
				}
			}
		})
	}
}
