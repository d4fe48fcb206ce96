// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/image"
)

// follow is how qemu opens a chain.
var follow = Options{Policy: Policy{Follow: true}}

func mustOpen(t testing.TB, path string, o Options) *Chain {
	t.Helper()
	c, err := Open(t.Context(), path, o)
	if err != nil {
		t.Fatalf("Open(%s) = %v", path, err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	})
	return c
}

func TestChainReadsAsQemu(t *testing.T) {
	for _, seed := range seeds(5, 300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := newRand(seed)
			path := randomChain(t, r)
			c := mustOpen(t, path, follow)
			want := bytesOf(t, path)
			got := make([]byte, c.Size())
			if n, err := c.ReadAt(got, 0); err != nil || int64(n) != c.Size() {
				t.Fatalf("ReadAt(all) = %d, %v, want %d", n, err, c.Size())
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("ReadAt(all) differs from qemu-img convert in sector %#x, sizes %d and %d",
					firstDifference(got, want[:len(got)]), len(got), len(want))
			}
			for range 50 {
				off, n := r.Int64N(c.Size()+600), r.IntN(200000)
				m, err := c.ReadAt(got[:min(n, len(got))], off)
				wantN := int(max(0, min(int64(min(n, len(got))), c.Size()-off)))
				if m != wantN || !bytes.Equal(got[:m], want[min(off, c.Size()):][:m]) {
					t.Fatalf("ReadAt(%d bytes at %#x) = %d, %v, want %d", n, off, m, err, wantN)
				}
				if wantEOF := m < min(n, len(got)); wantEOF != errors.Is(err, io.EOF) || err != nil && !wantEOF {
					t.Fatalf("ReadAt(%d bytes at %#x) = %v, want EOF: %v", n, off, err, wantEOF)
				}
			}
		})
	}
}

// qemuEntry is an element of the list that qemu-img map --output=json prints.
type qemuEntry struct {
	Start   int64  `json:"start"`
	Length  int64  `json:"length"`
	Depth   int    `json:"depth"`
	Present bool   `json:"present"`
	Zero    bool   `json:"zero"`
	Data    bool   `json:"data"`
	Offset  *int64 `json:"offset"`
}

func qemuMap(t *testing.T, path string, args ...string) []qemuEntry {
	t.Helper()
	out, errOut, status := output(t, ".", "qemu-img", append(append([]string{"map", "--output=json"}, args...), path)...)
	if status != 0 {
		t.Fatalf("qemu-img map %s = %d\n%s", path, status, errOut)
	}
	var es []qemuEntry
	if err := json.Unmarshal([]byte(out), &es); err != nil {
		t.Fatal(err)
	}
	return es
}

func chainMap(t *testing.T, c *Chain, off, length int64) []qemuEntry {
	t.Helper()
	var es []qemuEntry
	err := c.Map(t.Context(), image.GuestOff(off), length, func(e *Entry) error {
		q := qemuEntry{int64(e.Start), e.Length, e.Depth, e.Present, e.Zero, e.Data, nil}
		if e.HasOffset {
			q.Offset = new(int64)
			*q.Offset = int64(e.Offset)
		}
		es = append(es, q)
		return nil
	})
	if err != nil {
		t.Fatalf("Map() = %v", err)
	}
	return es
}

func TestMapAsQemu(t *testing.T) {
	for _, seed := range seeds(10, 1000) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := newRand(1000 + seed)
			path := randomChain(t, r)
			size := mustOpen(t, path, follow).Size()
			off := r.Int64N(size)
			sameMap(t, path, 0, size)
			sameMap(t, path, off, 1+r.Int64N(size-off))
			keep(t, path)
		})
	}
}

// sameMap compares a part of a map with that of qemu-img. Space that is reserved but not written to
// is a hole for the file system only until one of its pages happens to be read ahead, so the two may
// see different things; then both look once more.
func sameMap(t *testing.T, path string, off, length int64) {
	t.Helper()
	diff := ""
	for range 5 {
		want := qemuMap(t, path, fmt.Sprintf("--start-offset=%d", off), fmt.Sprintf("--max-length=%d", length))
		if diff = cmp.Diff(want, chainMap(t, mustOpen(t, path, follow), off, length)); diff == "" {
			return
		}
	}
	t.Errorf("Map(%d, %d) differs from qemu-img map (-qemu +shisa):\n%s", off, length, diff)
}

// keep prints how a chain that failed a test looks.
func keep(t *testing.T, path string) {
	if t.Failed() && os.Getenv("SHISA_LONG") != "" {
		out, _, _ := output(t, ".", "qemu-img", "info", "-U", "--backing-chain", path)
		t.Log(out)
	}
}
