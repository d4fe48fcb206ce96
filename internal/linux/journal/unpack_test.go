// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// contents are texts of every sort that compressors treat in their own way.
func contents() map[string][]byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 70_000)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	words := []string{"disk", "error", "sector ", "0x", "\n", "vda1", ": "}
	var prose strings.Builder
	for prose.Len() < 90_000 {
		prose.WriteString(words[rnd.IntN(len(words))])
	}
	return map[string][]byte{
		"empty": {}, "byte": {7}, "zeros": make([]byte, 300_000), "noise": noise,
		"prose": []byte(prose.String()), "mixed": append(append([]byte{}, noise...), prose.String()...),
	}
}

// TestXZ: what xz(1) packs with any parameters is unpacked, and what is damaged is no more than an
// error.
func TestXZ(t *testing.T) {
	testenv.Need(t, "xz")
	for name, want := range contents() {
		for _, how := range []string{"--check=none --lzma2=dict=1MiB,mode=fast,nice=128,mf=hc3,depth=4",
			"--check=crc64", "--check=sha256 -9e", "--lzma2=lc=0,lp=4,pb=0", "--lzma2=lc=4,lp=0,pb=4",
			"--check=crc32 --block-size=30000", "--lzma2=lc=1,lp=2,pb=1,dict=4KiB"} {
			cmd := exec.Command("xz", append(strings.Fields(how), "-c", "-T1")...)
			cmd.Stdin = bytes.NewReader(want)
			packed, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			var z lzma
			for range 2 { // the second time it has been used
				got, err := z.unpack([]byte("before"), packed)
				if err != nil || string(got) != "before"+string(want) {
					t.Errorf("%s %s: unpacked %d bytes, %v, want %d", name, how, len(got), err, len(want))
				}
			}
			broken(t, packed, func(b []byte) ([]byte, error) { return z.unpack(nil, b) })
		}
	}
}

// broken cuts and changes what is packed: the result is an error or other bytes, but no more than
// the bound.
func broken(t *testing.T, packed []byte, unpack func([]byte) ([]byte, error)) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 5 {
		if got, err := unpack(packed[:rnd.IntN(len(packed))]); err == nil && len(got) > 0 {
			// Only the index and the footer may be missing: the hash tells whether it is right.
			if len(got) > maxValue {
				t.Errorf("%d bytes unpacked of a cut file", len(got))
			}
		}
		b := bytes.Clone(packed)
		b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
		if got, _ := unpack(b); len(got) > maxValue {
			t.Errorf("%d bytes unpacked of a changed file", len(got))
		}
	}
}

// TestLZ4: blocks byte by byte.
func TestLZ4(t *testing.T) {
	size := func(n uint64, b ...byte) []byte { return append(le.AppendUint64(nil, n), b...) }
	long := append(size(300, 0xf0, 255, 30), bytes.Repeat([]byte{'x'}, 300)...)
	for _, c := range []struct {
		name string
		src  []byte
		want string
		err  error
	}{
		{"literals", size(3, 0x30, 'a', 'b', 'c'), "abc", nil},
		{"overlapping copy", size(10, 0x11, 'a', 1, 0, 0x40, 'b', 'c', 'd', 'e'), "aaaaaabcde", nil},
		{"copy of two", size(9, 0x22, 'a', 'b', 2, 0, 0x10, 'z'), "ababababz", nil},
		{"long literals", long, strings.Repeat("x", 300), nil},
		{"nothing", nil, "", errPacked},
		{"no block", size(3), "", errPacked},
		{"too short", size(4, 0x30, 'a', 'b', 'c'), "", errPacked},
		{"too long", size(2, 0x30, 'a', 'b', 'c'), "", errPacked},
		{"literals behind the end", size(9, 0x90, 'a'), "", errPacked},
		{"before the beginning", size(9, 0x10, 'a', 2, 0, 0x40, 'b', 'c', 'd', 'e'), "", errPacked},
		{"no distance", size(9, 0x10, 'a', 0, 0, 0x40, 'b', 'c', 'd', 'e'), "", errPacked},
		{"copy beyond the size", size(4, 0x1f, 'a', 1, 0, 255, 0), "", errPacked},
		{"length without an end", size(99, 0xf0, 255, 255), "", errPacked},
		{"cut in a distance", size(9, 0x10, 'a', 1), "", errPacked},
		{"a size that no block has", size(maxValue, 0x10, 'a'), "", errPacked},
		{"too large", size(maxValue+1, 0x10, 'a'), "", errTooLarge},
		{"overflow", size(1<<63, 0x10, 'a'), "", errTooLarge},
	} {
		got, err := unpackLZ4([]byte("-"), c.src)
		if string(got) != "-"+c.want || !errors.Is(err, c.err) {
			t.Errorf("unpackLZ4(%s) = %q, %v, want %q, %v", c.name, got, err, c.want, c.err)
		}
	}
}

func TestZstd(t *testing.T) {
	w, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var u unpacker
	for name, want := range contents() {
		packed := w.EncodeAll(want, nil)
		got, err := u.unpack([]byte("before"), packed, packedZstd)
		if name != "empty" && (err != nil || string(got) != "before"+string(want)) {
			t.Errorf("%s: unpacked %d bytes, %v, want %d", name, len(got), err, len(want))
		}
		if len(packed) > 0 {
			broken(t, packed, func(b []byte) ([]byte, error) { return u.unpack(nil, b, packedZstd) })
		}
	}
	large := w.EncodeAll(make([]byte, maxValue+1), nil)
	if got, err := u.unpack(nil, large, packedZstd); err == nil || len(got) > 0 {
		t.Errorf("unpack of %d bytes = %d bytes, %v, want an error", maxValue+1, len(got), err)
	}
	if _, err := u.unpack(nil, large, 7); err == nil {
		t.Error("unpack with unknown flags succeeded")
	}
}
