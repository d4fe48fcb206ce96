// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package imagetest

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/shisa-vm/shisa/internal/image"
)

// Qemu runs a program of qemu in dir and gives what it prints.
func Qemu(t testing.TB, dir, name string, args ...string) []byte {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Dir = dir
	out, err := c.Output()
	if err != nil {
		var text []byte
		if e, ok := err.(*exec.ExitError); ok {
			text = e.Stderr
		}
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, text)
	}
	return out
}

// Scribble has qemu-io write n ranges of the disk of size bytes in the image at path: patterns of any
// length, zeros and discarded ranges, at borders of units and elsewhere.
func Scribble(t testing.TB, rnd *rand.Rand, path, format string, size, unit int64, n int) {
	t.Helper()
	args := []string{"-f", format, "-d", "unmap"}
	for i := range n {
		off := rnd.Int64N(size)
		length := 1 + rnd.Int64N(3*unit)
		switch rnd.IntN(4) {
		case 0:
			off, length = off/unit*unit, unit*(1+rnd.Int64N(2))
		case 1:
			off, length = off&^511, 512*(1+rnd.Int64N(64))
		}
		off &^= 511
		length = min((length+511)&^511, size-off)
		switch rnd.IntN(6) {
		case 0:
			args = append(args, "-c", fmt.Sprintf("write -q -z %d %d", off, length))
		case 1:
			args = append(args, "-c", fmt.Sprintf("write -q -z -u %d %d", off, length))
		default:
			args = append(args, "-c", fmt.Sprintf("write -q -P %d %d %d", 1+i%255, off, length))
		}
	}
	Qemu(t, "", "qemu-io", append(args, path)...)
}

// Content is the disk in the image at path as qemu-img convert gives it.
func Content(t testing.TB, path, format string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	Qemu(t, "", "qemu-img", "convert", "-f", format, "-O", "raw", path, raw)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Refused tells whether qemu-img cannot read the image at path.
func Refused(t testing.TB, path, format string) bool {
	t.Helper()
	return Fails(t, "qemu-img", "convert", "-f", format, "-O", "raw", path, filepath.Join(t.TempDir(), "raw"))
}

// MapEntry is one of qemu-img map.
type MapEntry struct {
	Start, Length       int64
	Present, Zero, Data bool
	Compressed          bool
	Offset              *int64
}

// QemuMap is the map of the image at path as qemu-img gives it.
func QemuMap(t testing.TB, path, format string) []MapEntry {
	t.Helper()
	var m []MapEntry
	if err := json.Unmarshal(Qemu(t, "", "qemu-img", "map", "-f", format, "--output", "json", path), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// Spoil calls look for n copies of the image data that have one to three bytes changed within the
// places, each of which is an offset and a length. look opens the copy, which it may change, and does with
// it what it can; it must not panic, and take no more than maxBytes.
func Spoil(t *testing.T, data []byte, places [][2]int64, n int, maxBytes uint64, look func(data []byte)) {
	t.Helper()
	spoiled := make([]byte, len(data))
	for seed := range uint64(n) {
		rnd := rand.New(rand.NewPCG(seed, 0x5eed))
		copy(spoiled, data)
		text := ""
		for range 1 + rnd.IntN(3) {
			place := places[rnd.IntN(len(places))]
			off := place[0] + rnd.Int64N(place[1])
			if rnd.IntN(2) == 0 {
				spoiled[off] ^= 1 << rnd.IntN(8)
			} else {
				spoiled[off] = byte(rnd.Uint32())
			}
			text += fmt.Sprintf(" %#02x at %#x", spoiled[off], off)
		}
		if used := allocated(func() { look(spoiled) }); used > maxBytes {
			t.Errorf("seed %d,%s: it takes %d bytes", seed, text, used)
		}
		if t.Failed() {
			t.Fatalf("seed %d:%s", seed, text)
		}
	}
}

// allocated is how many bytes fn allocates.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// Walk maps and reads the disk d, up to most extents and pieces of it, and holds the two against each
// other: what the map calls zeros reads as zeros. known tells which errors may come of it.
func Walk(t *testing.T, d image.Reader, most int, known func(error) bool) {
	t.Helper()
	pos, n := int64(0), 0
	buf := make([]byte, 4096)
	enough := fmt.Errorf("enough")
	err := d.Map(context.Background(), 0, d.Size(), func(e image.Extent) error {
		if int64(e.Guest) != pos || e.Length <= 0 || e.Length > d.Size()-pos || e.Kind > image.Compressed {
			t.Errorf("Map gives %+v at %#x of %#x", e, pos, d.Size())
			return enough
		}
		pos += e.Length
		if n++; n > most {
			return enough
		}
		p := buf[:min(e.Length, int64(len(buf)))]
		m, err := d.ReadAt(p, int64(e.Guest))
		switch stored := e.Kind == image.Data || e.Kind == image.Compressed; {
		case err != nil && !stored:
			t.Errorf("ReadAt(%#x) = %v, which has no bytes: %+v", e.Guest, err, e)
		case err != nil && !known(err):
			t.Errorf("ReadAt(%#x) = %v", e.Guest, err)
		case err == nil && m != len(p):
			t.Errorf("ReadAt(%#x) = %d of %d bytes", e.Guest, m, len(p))
		case !stored:
			for i, b := range p {
				if b != 0 {
					t.Errorf("ReadAt gives %#02x at %#x for %+v", b, int(e.Guest)+i, e)
					return enough
				}
			}
		}
		return nil
	})
	switch {
	case err == nil && pos != d.Size():
		t.Errorf("Map ends at %#x of %#x", pos, d.Size())
	case err != nil && err != enough && !known(err):
		t.Errorf("Map = %v", err)
	}
}

// Fails tells whether a program of qemu ends with an error.
func Fails(t testing.TB, name string, args ...string) bool {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	if err := c.Run(); err != nil && c.ProcessState == nil {
		t.Fatal(err)
	}
	return !c.ProcessState.Success()
}
