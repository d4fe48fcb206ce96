// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
)

// FuzzTables walks tables of mounts that make no sense, and takes options of overlays apart.
func FuzzTables(f *testing.F) {
	f.Add("20 1 8:1 / / rw - ext4 a rw\n30 20 8:2 / /a rw - ext4 b rw\n20 30 8:2 / /a rw - ext4 b rw\n", "/a/b")
	f.Add("20 20 8:1 / / rw - ext4 a rw\n20 20 8:2 / / rw - ext4 b rw\n", "/")
	f.Add("lowerdir=/a:/b\\:c,upperdir=/d\\,e", "\\")
	f.Fuzz(func(t *testing.T, table, path string) {
		mounts, _ := linux.ParseMounts([]byte(table))
		if m, ok := walk(mounts, path); ok && m.ID != 0 && !strings.HasPrefix(m.Point, "/") && m.Point != "" && !below(m.Point, path) {
			t.Errorf("walk(%q) = %+v", path, m)
		}
		for _, dir := range layersOf(table) {
			if len(dir) > len(table) {
				t.Errorf("a name grew: %q", dir)
			}
		}
		if path != "" && finding.Word(path) == "" {
			t.Errorf("Word(%q) is empty", path)
		}
	})
}
