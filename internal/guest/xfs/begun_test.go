// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
)

// attributes sets and removes extended attributes of a few files for good.
func attributes(dir string) {
	rng := rand.New(rand.NewPCG(20, 28))
	value := bytes.Repeat([]byte("v"), 2000)
	for i := range 8 { // many, so that a change meets a sync
		os.WriteFile(fmt.Sprintf("%s/%d", dir, i), nil, 0o644)
	}
	for {
		at := fmt.Sprintf("%s/%d", dir, rng.IntN(8))
		name := fmt.Sprintf("user.%d", rng.IntN(3))
		switch rng.IntN(8) {
		case 0:
			unix.Removexattr(at, name)
		case 1, 2:
			unix.Setxattr(at, name, value[:500+rng.IntN(1500)], 0)
		default:
			unix.Setxattr(at, name, value[:20+rng.IntN(80)], 0)
		}
	}
}

// makeBegun packs a file system of version 4 that was copied while an attribute was being set.
func makeBegun(t *testing.T, name string) {
	t.Helper()
	v := variant{mkfs: []string{"-m", "crc=0,finobt=0", "-b", "size=512", "-n", "ftype=0"}}
	dir := filestest.CloneDir(t, 4<<30)
	args := append([]string{"mkfs.xfs", "-q", "--unsupported"}, v.mkfs...)
	disk := filestest.Make(t, dir, 34<<20, append(args, "-d", "agcount=2", "-l", "size=4806b", "DISK")...)
	end := run(t, disk, v, "attributes")
	defer end()
	for try := range 2000 {
		time.Sleep(5 * time.Millisecond)
		at := filepath.Join(dir, fmt.Sprintf("copy%d", try))
		filestest.Clone(t, disk, at)
		if local, remote := begun(t, open(t, at)); local+remote > 0 {
			filestest.Pack(t, at, name)
			return
		}
		if err := os.Remove(at); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("no copy has an attribute that was begun")
}

// begun counts the entries of attributes that were begun and not ended, in their leaf and elsewhere.
func begun(t *testing.T, f *FS) (local, remote int) {
	t.Helper()
	if err := f.Owners(t.Context(), []files.Range{{Length: f.size}}, func(o files.Owner) error {
		if o.What != "extended attributes" {
			return nil
		}
		for at := o.Range.Offset; at < o.Range.Offset+o.Range.Length; at += f.block {
			b, err := f.read(at, f.block)
			if err != nil {
				return err
			}
			if be16(b, 8) != attrLeafMagic {
				continue
			}
			for i := range int(be16(b, 12)) {
				switch flags := b[32+8*i+6]; {
				case flags&attrIncomplete == 0:
				case flags&attrLocal != 0:
					local++
				default:
					remote++
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return local, remote
}

// TestBegun holds attributes that were begun and not ended when a machine stopped against what the
// kernel makes of them: it does not show them, and nothing is missing. One has its value elsewhere;
// one is in a leaf, where its name is that of the value that counts until it is ended.
func TestBegun(t *testing.T) {
	const name = "testdata/begun4.gz"
	if os.Getenv("SHISA_UPDATE") == "1" {
		makeBegun(t, name)
	}
	twin := image(t, "testdata/zoo/v4.gz")
	beginTwin(t, twin)
	for _, tc := range []struct {
		name          string
		img           []byte
		state         files.State
		local, remote int
	}{
		{"elsewhere", image(t, name), files.Recovered, 0, 1},
		{"in a leaf", twin, files.Clean, 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(disk, tc.img, 0o600); err != nil {
				t.Fatal(err)
			}
			f := openBytes(t, tc.img)
			if local, remote := begun(t, f); local != tc.local || remote != tc.remote {
				t.Errorf("%d attributes were begun in leaves, %d elsewhere, want %d and %d", local, remote,
					tc.local, tc.remote)
			}
			same(t, f, kernelTree(t, disk, "show", variant{}), tc.state)
			if v := f.View(); len(v.Problems) > 0 {
				t.Errorf("problems: %+v", v.Problems)
			}
		})
	}
}

// beginTwin gives an attribute in a leaf another one of its name that was begun.
func beginTwin(t *testing.T, img []byte) {
	t.Helper()
	done := false
	if err := openBytes(t, img).Owners(t.Context(), []files.Range{{Length: int64(len(img))}},
		func(o files.Owner) error {
			b := img[o.Range.Offset:]
			count := int(be16(b, 12))
			last := 32 + 8*(count-1)
			if done || o.What != "extended attributes" || be16(b, 8) != attrLeafMagic ||
				b[last+6]&attrLocal == 0 || int(be16(b, 16)) < last+16 {
				return nil
			}
			copy(b[last+8:], b[last:last+8])
			b[last+8+6] |= attrIncomplete
			binary.BigEndian.PutUint16(b[12:], uint16(count+1))
			// The free piece behind the entries is that much shorter.
			for at := 20; at < 32; at += 4 {
				if int(be16(b, at)) == last+8 {
					binary.BigEndian.PutUint16(b[at:], uint16(last+16))
					binary.BigEndian.PutUint16(b[at+2:], be16(b, at+2)-8)
				}
			}
			done = true
			return nil
		}); err != nil || !done {
		t.Fatalf("no leaf has room: %v", err)
	}
}
