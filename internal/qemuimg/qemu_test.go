// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestAgainstQemu holds this package against the qemu-img of the machine. The zoo is made once for
// all its parts.
func TestAgainstQemu(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	dir := testenv.DiskDir(t)
	makeZoo(t, dir)
	t.Chdir(dir)
	all := images(t)
	for _, part := range []struct {
		name string
		test func(*testing.T)
	}{
		{"images", func(t *testing.T) { testImages(t, all) }},
		{"command lines", testCommandLines},
		{"locks", testLocks},
		{"running", testRunning},
		{"flips", testFlips},
		{"differences", testDifferences},
	} {
		t.Run(part.name, func(t *testing.T) {
			if part.name != "locks" { // there qemu-io opens images for writing
				diskio.RequireUnchanged(t, files(t, all)...)
			}
			part.test(t)
		})
	}
}

// images are the names of all that is in the zoo.
func images(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"sub/over.qcow2"}
	for _, e := range entries {
		if e.Name() != "fifo" { // qemu-img waits there for ever
			names = append(names, e.Name())
		}
	}
	return names
}

// files are those of names that are files.
func files(t *testing.T, names []string) []string {
	t.Helper()
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		st, err := os.Stat(name)
		return err != nil || !st.Mode().IsRegular()
	})
}

// circles are images that lead back into their own chain. qemu-img opens those until its memory is
// used up.
var circles = []string{"self.qcow2", "self2.qcow2", "a.qcow2", "b.qcow2"}

func testImages(t *testing.T, names []string) {
	for _, name := range names {
		t.Run(strings.ReplaceAll(name, "/", "|"), func(t *testing.T) {
			lines := []string{"info", "info --output=json", "info --backing-chain --output=json", "check",
				"map --output=json", "map"}
			if strings.Contains(name, "luks") || strings.HasPrefix(name, "bad") {
				lines = lines[1:4:4]
			} else if strings.Contains(name, "on") { // a share of them
				lines = append(lines, "info -f raw", "info --backing-chain", "check --output=json",
					"check -q -U -f qcow2", "map -f raw -U")
			}
			for _, line := range lines {
				args := strings.Fields(line)
				if slices.Contains(circles, name) && args[0] != "info" {
					continue
				}
				same(t, append(args, name)...)
			}
		})
	}
}
