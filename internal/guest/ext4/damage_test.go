// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
