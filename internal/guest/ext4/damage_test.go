// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// fillSmall makes few files of all kinds, so that damage often hits one.
func fillSmall(t testing.TB, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for d := range 4 {
		sub := filepath.Join(dir, fmt.Sprintf("dir%d", d))
		must(os.Mkdir(sub, 0o755))
		for f := range 40 * (d*d + 1) {
			name := filepath.Join(sub, fmt.Sprintf("%s%d", strings.Repeat("f", f%30), f))
			must(os.WriteFile(name, []byte(strings.Repeat("content", f%50)), 0o644))
		}
	}
	// Many extents, so that there are blocks of the map.
	f, err := os.Create(filepath.Join(dir, "fragmented"))
	must(err)
	for i := range int64(300) {
		_, err := f.WriteAt([]byte("piece"), i*12<<10)
		must(err)
	}
	must(f.Close())
	must(os.Symlink(strings.Repeat("long/", 40), filepath.Join(dir, "link")))
	must(os.Symlink("short", filepath.Join(dir, "short")))
}

// TestFlips turns bits of the metadata over.
func TestFlips(t *testing.T) {
	for _, v := range []variant{
		{name: "4k", mkfs: "-b 4096", sums: true},
		{name: "inline", mkfs: "-b 1024 -O inline_data", sums: true},
		{name: "no-csum", mkfs: "-b 1024 -O ^metadata_csum"},
		{name: "ext3", mkfs: "-b 1024", kind: "ext3"},
		{name: "ext2", mkfs: "-b 2048", kind: "ext2"},
	} {
		t.Run(v.name, func(t *testing.T) {
			rounds := 40
			if testenv.Long() {
				rounds = 10_000
			}
			v.size = 32 * mib
			v.mkfs += " -N 1024 -O ^resize_inode"
			disk := v.make(t, func(dir string) { fillSmall(t, dir) })
			filestest.Flips(t, disk, openFS, filestest.Flip{Rounds: rounds, Seed: 1, Checked: v.sums})
		})
	}
}
