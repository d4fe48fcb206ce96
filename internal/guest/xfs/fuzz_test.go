// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
)

// The seeds are file systems of 34 MiB with a few of everything, packed in testdata.
func seeds(f *testing.F) map[string][]byte {
	f.Helper()
	images := map[string][]byte{}
	for _, name := range []string{"v4.gz", "v5.gz", "crashed4.gz", "crashed5.gz"} {
		images[name] = image(f, "testdata/"+name)
	}
	return images
}

func image(t testing.TB, name string) []byte { return filestest.Unpack(t, name).Bytes() }

// change lays the bytes of a fuzzer over an image: 3 bytes of position, 1 of value each, and makes
// the checksums of version 5 right again, so that what is behind them is reached.
func change(img, edits []byte) []byte {
	img = bytes.Clone(img)
	for ; len(edits) >= 4 && len(img) > 0; edits = edits[4:] {
		// Every other edit is for what stands at the beginning: the superblock and the first group.
		at := int(edits[0])<<16 | int(edits[1])<<8 | int(edits[2])
		if at%2 == 0 {
			at %= 64 << 10
		}
		img[at%len(img)] = edits[3]
		repair(img, at%len(img))
	}
	return img
}

// repair makes the checksum of what stands around a position right.
func repair(img []byte, at int) {
	f := &FS{super: &super{v5: true, inode: 512}}
	for _, size := range []int{512, 4096} {
		b := img[at/size*size:]
		if len(b) < size {
			continue
		}
		b = b[:size]
		k, ok := f.formOf(b)
		switch {
		case ok && size == 512 && k.crc > 60, ok && size == 4096 && k.crc <= 64:
			setChecksum(b, k.crc)
			return
		case be16(b, 0) == inodeMagic && size == 512:
			setChecksum(b, 100)
			return
		}
	}
}

// useReads is how often all of a file system may be read by what use does. Sound ones take a 25th of
// one; files that overlap are read once each.
const useReads = 20

// counted ends a test that reads without end. Who does not read does not loop: what is in memory is
// bounded by what was read.
type counted struct {
	*bytes.Reader
	left atomic.Int64
}

func (c *counted) ReadAt(p []byte, at int64) (int, error) {
	if c.left.Add(-int64(len(p))) < 0 {
		panic(fmt.Sprintf("%d bytes were read %d times over", c.Size(), useReads))
	}
	return c.Reader.ReadAt(p, at)
}

// use does all that can be done with a file system. It must end, and not panic.
func use(t *testing.T, img []byte) {
	ctx := t.Context()
	r := &counted{Reader: bytes.NewReader(img)}
	r.left.Store(useReads * int64(len(img)))
	f, err := Open(ctx, r, int64(len(img)))
	if err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	if _, _, err = files.Survey(ctx, f, func(n *files.Found) error {
		if n.File == nil {
			return nil
		}
		n.File.Xattrs(ctx, func(string, []byte) error { return nil })
		n.File.Extents(ctx, func(files.Extent) error { return nil })
		n.File.ReadAt(buf, 0)
		n.File.ReadAt(buf, n.File.Stat().Size/2)
		return nil
	}); err == nil {
		f.Owners(ctx, []files.Range{{Length: int64(len(img))}}, func(files.Owner) error { return nil })
	}
}

func FuzzOpen(f *testing.F) {
	images := seeds(f)
	for _, v5 := range []bool{false, true} {
		f.Add(v5, []byte{0, 0, 101, 0xb4, 1, 0, 9, 0xff})
		f.Add(v5, []byte{0, 0, 7, 0, 0, 2, 0, 0})
	}
	f.Fuzz(func(t *testing.T, v5 bool, edits []byte) {
		name := "v4.gz"
		if v5 {
			name = "v5.gz"
		}
		use(t, change(images[name], edits))
	})
}

// FuzzRecover changes the log of a file system that was not unmounted.
func FuzzRecover(f *testing.F) {
	images := seeds(f)
	for _, v5 := range []bool{false, true} {
		f.Add(v5, []byte{0, 0, 0, 0xfe})
		f.Add(v5, []byte{0, 2, 12, 7, 0, 3, 9, 0xff})
	}
	f.Fuzz(func(t *testing.T, v5 bool, edits []byte) {
		name := "crashed4.gz"
		if v5 {
			name = "crashed5.gz"
		}
		img := bytes.Clone(images[name])
		s, err := parseSuper(img, int64(len(img)))
		if err != nil {
			t.Fatal(err)
		}
		group, block, _ := s.split(s.logStart)
		log := img[s.place(group, block):][:s.logBlocks*s.block]
		for ; len(edits) >= 4; edits = edits[4:] {
			at := int(edits[0])<<16 | int(edits[1])<<8 | int(edits[2])
			log[at%len(log)] = edits[3]
		}
		unsum(log)
		use(t, img)
	})
}

// unsum takes the checksums of the records away: one of zero is not verified, as mkfs.xfs writes it.
func unsum(log []byte) {
	for at := 0; at < len(log); at += basicBlock {
		if be32(log, at) == recordMagic {
			clear(log[at+32:][:4])
		}
	}
}

// TestSeeds holds the seeds against what they were made with; SHISA_UPDATE=1 makes them anew.
func TestSeeds(t *testing.T) {
	if os.Getenv("SHISA_UPDATE") == "1" {
		makeSeeds(t)
	}
	for name, state := range map[string]files.State{"v4.gz": files.Clean, "v5.gz": files.Clean,
		"crashed4.gz": files.Recovered, "crashed5.gz": files.Recovered} {
		img := image(t, "testdata/"+name)
		f, err := Open(t.Context(), bytes.NewReader(img), int64(len(img)))
		if err != nil {
			t.Fatal(err)
		}
		count, view, err := files.Survey(t.Context(), f, nil)
		if err != nil || view.State != state || count.Names < 100 {
			t.Errorf("%s: %d names, the view is %+v, want %s: %v", name, count.Names, view, state, err)
		}
	}
}
