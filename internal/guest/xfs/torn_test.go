// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestTorn spoils records of a log. What the kernel takes for a write that was cut off is taken for
// one, and the view is whole only where it was one: where a block of the record is of before. Where the
// kernel refuses, the view is incomplete.
func TestTorn(t *testing.T) {
	whole := image(t, "testdata/crashed5.gz")
	f := openBytes(t, whole)
	f.volume = bytes.NewReader(whole)
	f.cache.drop()
	j := &journal{f: f, blocks: f.logBlocks << f.blockLog / basicBlock}
	j.off, _ = f.extentPlace(f.logStart, f.logBlocks)
	if _, err := j.findHead(); err != nil {
		t.Fatal(err)
	}
	if _, err := j.findTail(t.Context()); err != nil {
		t.Fatal(err)
	}
	var records []record
	if _, err := j.each(t.Context(), j.tail, func(r *record) error {
		records = append(records, *r)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(records) < 20 {
		t.Fatalf("%d records, want more", len(records))
	}
	for _, tc := range []struct {
		name string
		last int // counted from the end, 1 is the last record
		what string
	}{
		{"data of the last", 1, "data"}, {"head of the last", 1, "head"}, {"cycle of the last", 1, "cycle"},
		{"magic of the last", 1, "magic"}, {"UUID of the last", 1, "uuid"}, {"third's head", 3, "head"},
		{"third", 3, "data"}, {"sixth", 6, "cycle"}, {"eighth", 8, "data"}, {"middle", len(records) / 2, "data"},
		{"first", len(records), "data"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img := bytes.Clone(whole)
			r := records[len(records)-tc.last]
			at := j.off + r.start*basicBlock
			switch tc.what {
			case "data":
				img[at+r.heads*basicBlock+5] ^= 1
			case "magic":
				img[at+1] ^= 1
			case "uuid":
				img[at+310] ^= 1
			case "head":
				img[at+13] ^= 1
			case "length":
				img[at+14] ^= 2
			case "torn": // the last block is of before
				clear(img[at+(r.heads+r.blocks-1)*basicBlock:][:basicBlock])
			case "torn head":
				clear(img[at:][:basicBlock])
			case "cycle": // the number of the last block of the record is of the turn before
				img[at+(r.heads+r.blocks-1)*basicBlock+3]--
			}
			disk := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(disk, img, 0o600); err != nil {
				t.Fatal(err)
			}
			g := openBytes(t, img)
			testenv.NeedRoot(t)
			probe := t.TempDir()
			if out, err := exec.Command("mount", "-t", "xfs", "-o", "loop,nouuid", disk, probe).
				CombinedOutput(); err != nil {
				if v := g.View(); v.State != files.Incomplete {
					t.Errorf("the kernel refuses it (%s), the view is %s", out, v.State)
				}
				return
			}
			if out, err := exec.Command("umount", probe).CombinedOutput(); err != nil {
				t.Fatalf("umount: %s", out)
			}
			dir, _ := filestest.Mount(t, disk, "xfs", "nouuid", "ro")
			want := files.Incomplete
			if strings.HasPrefix(tc.what, "torn") {
				want = files.Recovered
			}
			same(t, g, filestest.ReadMounted(t, dir), want)
			t.Log(fmt.Sprint(g.View().Transactions, " transactions"))
		})
	}
}

// TestAnotherUUID gives a file system another UUID, which version 5 then has besides the one in all
// its blocks.
func TestAnotherUUID(t *testing.T) {
	testenv.Need(t, "xfs_admin")
	disk := filestest.Make(t, t.TempDir(), 1<<30, "mkfs.xfs", "-q", "DISK")
	if out, err := exec.Command("xfs_admin", "-U", "generate", disk).CombinedOutput(); err != nil {
		t.Fatalf("xfs_admin: %v\n%s", err, out)
	}
	dir, unmount := filestest.Mount(t, disk, "xfs")
	few(t, dir, true)
	img, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	want := filestest.ReadMounted(t, dir)
	f := openBytes(t, img)
	if f.meta == f.uuid {
		t.Error("the UUIDs are the same")
	}
	got, view, err := filestest.ReadView(t.Context(), f)
	if err != nil || len(got) != len(want) || view.State != files.Recovered {
		t.Errorf("%d names, want %d; the view is %+v: %v", len(got), len(want), view, err)
	}
	unmount()
	dir, _ = filestest.Mount(t, disk, "xfs", "ro")
	same(t, open(t, disk), filestest.ReadMounted(t, dir), files.Clean)
}
