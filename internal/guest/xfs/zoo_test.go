// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
)

func openFS(ctx context.Context, volume io.ReaderAt, size int64) (files.FS, error) {
	f, err := Open(ctx, volume, size)
	if err != nil {
		return nil, err // not a nil of another type
	}
	return f, nil
}

// animal is a small file system of the zoo, which is packed in testdata/zoo.
type animal struct {
	variant
	size int64
	// crashed: it was not unmounted, and its log has something to replay.
	crashed bool
}

// zoo has each of variants, made smaller, and those that crashed.
func zoo() []animal {
	var list []animal
	for _, v := range variants() {
		a := animal{variant: v, size: 40 << 20}
		switch v.name {
		case "v5 4k sectors many groups":
			a.size, a.mkfs = 128<<20, []string{"-s", "size=4096", "-d", "agcount=8"}
		case "v5 log stripe":
			a.size = 120 << 20
		default:
			a.mkfs = append([]string{"-d", "agcount=2"}, v.mkfs...)
		}
		list = append(list, a)
	}
	list[len(list)-2].fill.BigDirectory = 300 // in blocks of 512 bytes that takes a tree of hashes
	big := list[0]
	big.name, big.fill.BigDirectory = "v5 big directory", 900
	list = append(list, big)
	for _, i := range []int{0, 1, 8, 9} {
		a := list[i]
		a.name, a.crashed = a.name+" crashed", true
		list = append(list, a)
	}
	return list
}

func (a *animal) file() string {
	return filepath.Join("testdata", "zoo", strings.ReplaceAll(a.name, " ", "-")+".gz")
}

// make packs the file system.
func (a *animal) make(t *testing.T) {
	t.Helper()
	args := append([]string{"mkfs.xfs", "-q", "--unsupported"}, a.mkfs...)
	disk := filestest.Make(t, t.TempDir(), a.size, append(args, "DISK")...)
	if a.foreign() {
		does := "small"
		if a.crashed {
			does = "later"
		}
		c := guest(t, disk, does, a.variant, filepath.Join(t.TempDir(), "none"))
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		filestest.Pack(t, disk, a.file())
		return
	}
	dir, unmount := filestest.Mount(t, disk, "xfs", a.opts...)
	filestest.Small(t, dir, a.fill)
	if a.crashed {
		filestest.Later(t, dir)
	} else {
		unmount()
	}
	filestest.Pack(t, disk, a.file())
}

// TestZoo holds that each file system of the zoo is what it is there for. With SHISA_UPDATE=1 it
// makes them anew.
func TestZoo(t *testing.T) {
	for _, a := range zoo() {
		t.Run(a.name, func(t *testing.T) {
			if os.Getenv("SHISA_UPDATE") == "1" {
				a.make(t)
			}
			d := filestest.Unpack(t, a.file())
			f, err := Open(t.Context(), d, d.Size())
			if err != nil {
				t.Fatal(err)
			}
			count, view, err := files.Survey(t.Context(), f, nil)
			state := files.Clean
			if a.crashed {
				state = files.Recovered
			}
			if err != nil || view.State != state || len(view.Problems) > 0 || count.Names < 300 ||
				f.v5 == a.v4() {
				t.Errorf("%+v, %+v, %v", count, view, err)
			}
		})
	}
}

// TestFlips turns bits of the metadata over.
func TestFlips(t *testing.T) {
	for _, a := range zoo() {
		t.Run(a.name, func(t *testing.T) {
			filestest.Flips(t, filestest.Unpack(t, a.file()), openFS,
				filestest.Flip{Short: 10, Long: 10_000, Checked: !a.v4()})
		})
	}
}

// TestHiddenAttributes turns over, in version 4, the flags that hide an attribute.
func TestHiddenAttributes(t *testing.T) {
	for bit, want := range map[byte]string{attrParent: "without the feature",
		attrIncomplete: "was begun and not ended"} {
		img := image(t, "testdata/zoo/v4.gz")
		turned := 0
		if err := openBytes(t, img).Owners(t.Context(), []files.Range{{Length: int64(len(img))}},
			func(o files.Owner) error {
				if b := img[o.Range.Offset:]; o.What == "extended attributes" && be16(b, 8) == attrLeafMagic {
					b[32+6] ^= bit // of its first entry
					turned++
				}
				return nil
			}); err != nil || turned == 0 {
			t.Fatalf("%d leaves, %v", turned, err)
		}
		f := openBytes(t, img)
		if err := files.Walk(t.Context(), f, files.Ino(f.root), "/", func(n *files.Found) error {
			_ = n.File.Xattrs(t.Context(), func(string, []byte) error { return nil })
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if v := f.View(); v.State != files.Incomplete || len(v.Problems) != turned ||
			!strings.Contains(v.Problems[0].What, want) {
			t.Errorf("flag 0x%x: the view is %+v, want %d problems with %q", bit, v, turned, want)
		}
	}
}

// TestDirectoryOfSameBlocks has a directory whose extents lead to the same blocks again and again.
func TestDirectoryOfSameBlocks(t *testing.T) {
	img := image(t, "testdata/zoo/v4.gz")
	f := openBytes(t, img)
	dir, err := f.inode(t.Context(), f.root)
	if err == nil {
		err = files.Walk(t.Context(), f, files.Ino(f.root), "/", func(n *files.Found) error {
			if n.Path == "/directories/1" {
				dir = n.File.(*file).inode
			}
			return nil
		})
	}
	if err != nil || dir.format != formatExtents {
		t.Fatalf("format %d, %v", dir.format, err)
	}
	const count = 5
	length := f.groupLength(0)
	raw := img[dir.off:][:f.super.inode]
	binary.BigEndian.PutUint64(raw[64:], uint64(f.blocks))
	binary.BigEndian.PutUint32(raw[76:], count)
	raw[82] = 0 // no attribute fork
	for i := range uint64(count) {
		e := raw[dir.head()+extentBytes*int(i):]
		binary.BigEndian.PutUint64(e, i*uint64(length)<<9)
		binary.BigEndian.PutUint64(e[8:], uint64(length))
	}
	f = openBytes(t, img)
	if dir, err = f.inode(t.Context(), dir.ino); err != nil {
		t.Fatal(err)
	}
	blocks := int64(0)
	w := forkWalk{n: dir, fork: dir.dataFork(), fn: func(e *extent) error {
		blocks += e.count
		return nil
	}}
	err = w.walk(t.Context())
	if err == nil || blocks > f.blocks || !strings.Contains(err.Error(), "the file system has") {
		t.Errorf("%d blocks are walked over, of %d: %v", blocks, f.blocks, err)
	}
}

// TestHeld reads directories while so many others are being read that no more is kept.
func TestHeld(t *testing.T) {
	f := openBytes(t, image(t, "testdata/zoo/v5-big-directory.gz"))
	if _, _, err := files.Survey(t.Context(), f, nil); err != nil || f.held.Load() != 0 {
		t.Fatalf("after a walk %d bytes are held, %v", f.held.Load(), err)
	}
	f.held.Store(maxHeld - 3)
	_, view, err := files.Survey(t.Context(), f, nil)
	if err != nil || view.State != files.Incomplete ||
		!strings.Contains(fmt.Sprint(view.Problems), errHeld.Error()) {
		t.Errorf("the view is %+v, %v", view, err)
	}
}

// TestReplayIsBounded has a log that begins transactions, and things to do, without end.
func TestReplayIsBounded(t *testing.T) {
	f := openBytes(t, image(t, "testdata/v5.gz"))
	r := &replay{j: &journal{f: f}, open: map[uint32]*transaction{}, intents: map[uint64]item{}}
	operation := make([]byte, operationBytes)
	operation[8], operation[9] = clientTransaction, opStart
	var err error
	begun := uint32(0)
	for ; err == nil && begun < 1<<20; begun++ {
		binary.BigEndian.PutUint32(operation, begun)
		err = r.record(&record{operations: 1, data: operation})
	}
	if err == nil || begun > maxOpenBytes/transactionCost+1 {
		t.Errorf("%d transactions are open, %v", begun, err)
	}
	number := uint64(0)
	for err = nil; err == nil && number < 1<<20; number++ {
		it := intentBytes(itemEFI, number, 20, 3)
		err = r.item(&it, 1)
	}
	if err == nil || number > maxIntentBytes/intentCost+1 {
		t.Errorf("%d intents are kept, %v", number, err)
	}
	for done := range number {
		it := intentBytes(itemEFD, done)
		if err := r.item(&it, 1); err != nil {
			t.Fatal(err)
		}
	}
	if r.begun != 0 || len(r.intents) != 0 {
		t.Errorf("%d intents of %d bytes are left", len(r.intents), r.begun)
	}
}
