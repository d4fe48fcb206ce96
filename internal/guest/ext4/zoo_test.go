// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
)

// animal is a small file system of the zoo, which is packed in testdata/zoo.
type animal struct {
	variant
	// crashed: it was not unmounted, and its journal has something to replay.
	crashed bool
	// from: mkfs fills it from a directory, since the kernel here does not mount it.
	from bool
}

// zoo has each of variants, made smaller, those of them that crashed, and what only mkfs.ext4 makes.
func zoo() []animal {
	var list []animal
	small := func(v variant) variant {
		v.size = 24 * mib
		v.mkfs += " -N 800 -E packed_meta_blocks=1"
		if !strings.Contains(v.mkfs, "^has_journal") && v.kind != "ext2" {
			journal := " -J size=1"
			if strings.Contains(v.mkfs, "-b 2048") {
				journal = " -J size=2"
			} else if strings.Contains(v.mkfs, "-b 4096") {
				journal = " -J size=4"
			}
			v.mkfs += journal
		}
		return v
	}
	for _, v := range append(variants, variant{name: "bigalloc-no-csum",
		mkfs: "-b 1024 -O bigalloc,^metadata_csum -C 8192"}) {
		v.mkfs = strings.Replace(v.mkfs, "-g 2048 -N 40000", "-g 256", 1)
		list = append(list, animal{variant: small(v)})
	}
	for _, v := range []variant{
		{name: "crashed-4k", mkfs: "-b 4096", sums: true},
		{name: "crashed-1k", mkfs: "-b 1024 -O orphan_file,inline_data", sums: true},
		{name: "crashed-no-csum", mkfs: "-b 1024 -O ^metadata_csum"},
		{name: "crashed-ext3", mkfs: "-b 1024", kind: "ext3"},
	} {
		list = append(list, animal{variant: small(v), crashed: true})
	}
	return append(list,
		animal{from: true, variant: variant{name: "64k", size: 48 * mib, sums: true,
			mkfs: "-b 65536 -O ^has_journal -N 800"}},
		animal{from: true, variant: variant{name: "64k-no-csum", size: 48 * mib,
			mkfs: "-b 65536 -O ^has_journal,^metadata_csum -N 800"}})
}

func (a *animal) file() string { return filepath.Join("testdata", "zoo", a.name+".gz") }

// make packs the file system.
func (a *animal) make(t *testing.T) {
	t.Helper()
	fill := func(dir string) { filestest.Small(t, dir, a.fill()) }
	switch {
	case a.from:
		from := t.TempDir()
		fill(from)
		args := append([]string{"mkfs.ext4", "-q", "-F", "-d", from}, strings.Fields(a.mkfs)...)
		filestest.Pack(t, filestest.Make(t, t.TempDir(), a.size, append(args, "DISK")...), a.file())
		return
	case !a.crashed:
		filestest.Pack(t, a.variant.make(t, fill), a.file())
		return
	}
	disk := a.variant.make(t, fill)
	kind := "ext4"
	if a.kind != "" {
		kind = a.kind
	}
	dir, _ := filestest.Mount(t, disk, kind)
	// What is open when its last name goes is an orphan.
	open, err := os.Create(filepath.Join(dir, "open"))
	if err == nil {
		_, err = open.Write(bytes.Repeat([]byte("o"), 10_000))
	}
	if err := errors.Join(err, os.Remove(filepath.Join(dir, "open"))); err != nil {
		t.Fatal(err)
	}
	filestest.Later(t, dir)
	filestest.Pack(t, disk, a.file())
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
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
			fs, err := Open(t.Context(), d, d.Size())
			if err != nil {
				t.Fatal(err)
			}
			count, view, err := files.Survey(t.Context(), fs, nil)
			state := files.Clean
			if a.crashed {
				state = files.Recovered
			}
			if err != nil || view.State != state || len(view.Problems) > 0 || count.Names < 300 ||
				a.crashed != (count.Orphans > 0) || fs.super.sums != a.sums {
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
				filestest.Flip{Short: 12, Long: 10_000, Checked: a.sums})
		})
	}
}

// TestHeld reads directories while so many others are being read that no more is kept.
func TestHeld(t *testing.T) {
	d := filestest.Unpack(t, (&animal{variant: variant{name: "ext3"}}).file())
	fs, err := Open(t.Context(), d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := files.Survey(t.Context(), fs, nil); err != nil || fs.held.Load() != 0 ||
		fs.hashed.Load() != 0 {
		t.Fatalf("after a walk %d bytes and %d names are held, %v", fs.held.Load(), fs.hashed.Load(), err)
	}
	fs.held.Store(maxHeld - 5*4*fs.super.blockBytes)
	count, view, err := files.Survey(t.Context(), fs, nil)
	if err != nil || view.State != files.Incomplete || count.Names < 100 ||
		!strings.Contains(fmt.Sprint(view.Problems), errHeld.Error()) {
		t.Errorf("%d names, the view is %+v, %v", count.Names, view, err)
	}
}
