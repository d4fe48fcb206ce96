// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"slices"
	"strings"
	"testing"
)

// layer gives every package its height. A package may import packages of a lower height, and a
// package in a folder may import the folder's own package.
var layer = map[string]int{
	"cmd/shisa":                 9,
	"bench":                     9,
	"e2e":                       9,
	"internal/cli":              8,
	"internal/render":           7,
	"internal/qemuimg":          7,
	"internal/fix":              6,
	"internal/scan":             6,
	"internal/umount":           6,
	"internal/apply":            5,
	"internal/holders/trace":    5,
	"internal/inside":           5,
	"internal/mount":            5,
	"internal/repair":           5,
	"internal/check":            4,
	"internal/doctor":           5,
	"internal/doctor/stories":   6,
	"internal/doctor/trend":     1,
	"internal/doctor/reboots":   4,
	"internal/doctor/stall":     1,
	"internal/doctor/watch":     6,
	"internal/evidence":         4,
	"internal/linux/tree":       2,
	"internal/linux/ask":        2,
	"internal/linux/logs":       3,
	"internal/linux/units":      3,
	"internal/linux/klog":       1,
	"internal/linux/calendar":   1,
	"internal/holders":          4,
	"internal/holders/evidence": 5,
	"internal/vault":            4,
	"internal/disk":             3,
	"internal/jail":             3,
	"internal/lab":              3,
	"internal/lab/cut":          3,
	"internal/lab/hold":         3,
	"internal/lab/debian":       2,
	"internal/lab/vm":           3,
	"internal/lab/vhost":        3,
	"internal/lab/vm/init":      3,
	"internal/lab/stalls":       4,
	"internal/lab/faultfs":      3,
	"internal/lab/nova":         3,
	"internal/lab/zoo":          4,
	"internal/lab/demo":         7,
	"internal/lab/sweep":        5,
	"internal/lab/nspawn":       4,
	"internal/lab/cutfs":        4,
	"internal/image":            2,
	"internal/image/qcow2":      2,
	"internal/image/raw":        2,
	"internal/image/vdi":        2,
	"internal/image/vhdx":       2,
	"internal/image/vmdk":       2,
	"internal/image/vpc":        2,
	"internal/image/imagetest":  2,
	"internal/linux":            2,
	"internal/linux/stack":      2,
	"internal/linux/code":       2,
	"internal/linux/probe":      2,
	"internal/linux/loop":       2,
	"internal/linux/notice":     3,
	"internal/linux/apart":      3,
	"internal/guest":            2,
	"internal/guest/xfs":        2,
	"internal/guest/ext4":       2,
	"internal/guest/files":      1,
	"internal/guest/volume":     1,
	"internal/guest/filestest":  2,
	"internal/guest/busy":       1,
	"internal/refs":             4,
	"internal/refs/protocol":    1,
	"internal/refs/pool":        3,
	"internal/refs/nova":        1,
	"internal/refs/glance":      1,
	"internal/refs/config":      2,
	"internal/refs/roll":        6,
	"internal/refs/judge":       4,
	"internal/refs/fleet":       4,
	"internal/refs/ways":        5,
	"internal/refs/blame":       5,
	"internal/apply/bases":      5,
	"internal/hypervisor":       2,
	"internal/diskio":           1,
	"internal/plan":             1,
	"internal/uml":              1,
	"internal/finding":          0,
	"internal/testenv":          0,

	"internal/linux/journal":             1,
	"internal/linux/journal/journaltest": 1,
}

// onlyBy names the packages that few may import, and who those are; tests may import all.
var onlyBy = map[string][]string{
	"internal/lab":             {"internal/cli", "bench", "internal/lab/sweep", "internal/lab/demo"}, // it writes images
	"internal/lab/demo":        {"internal/cli"},                                                     // it writes files, and mounts
	"internal/lab/zoo":         {"bench"},                                                            // it runs qemu-img
	"internal/lab/cutfs":       {"bench", "internal/lab/sweep"},                                      // it mounts
	"internal/lab/sweep":       {"bench"},                                                            // it runs programs on broken images
	"internal/lab/cut":         {},                                                                   // for tests
	"internal/lab/faultfs":     {"bench"},                                                            // it mounts, and makes it fail
	"internal/lab/hold":        {"bench"},                                                            // it keeps mounts busy
	"internal/doctor/stories":  {"bench", "internal/lab/demo"},                                       // it holds what tests need
	"internal/linux/loop":      {"internal/mount", "internal/lab/hold", "internal/lab/faultfs"},      // it makes devices
	"internal/lab/vm":          {"bench", "internal/lab/vm/init", "internal/lab/nspawn"},             // it runs QEMU
	"internal/lab/nova":        {},                                                                   // it runs OpenStack Nova
	"internal/lab/debian":      {"internal/lab/nova", "internal/lab/vm"},                             // it runs apt
	"internal/lab/nspawn":      {},                                                                   // it boots systemd
	"internal/lab/vhost":       {},                                                                   // it runs QEMU's block layer
	"internal/image/imagetest": {},
	"internal/guest/filestest": {},
	"internal/guest/busy":      {"bench", "internal/guest/filestest"}, // it writes files
	"internal/testenv":         {"internal/image/imagetest", "internal/guest/filestest"},
	"internal/cli":             {"cmd/shisa"},
	"internal/apply":           {"internal/cli"}, // it changes images
	"internal/apply/bases":     {"internal/cli"}, // it changes pools of bases

	"internal/linux/journal/journaltest": {"bench"}, // it runs systemd
}

// budget names every outside module and the packages that may use it, here and in their tests.
// A new one needs a record in doc/decisions.
var budget = map[string][]string{
	"github.com/cilium/ebpf":       {"internal/linux/probe", "e2e"}, // there to make a kernel hang
	"github.com/hanwen/go-fuse/v2": {"internal/lab/cutfs", "internal/lab/faultfs", "internal/mount"},
	"github.com/klauspost/compress": {"internal/image/qcow2", "internal/image/vmdk", "internal/lab", "internal/linux/journal",
		"internal/linux/logs", "internal/linux/tree"},
	"github.com/spf13/cobra": {"internal/cli"},
	"go.yaml.in/yaml/v3":     {"internal/doctor", "internal/refs/config"},
	"github.com/spf13/pflag": {"internal/cli"}, // cobra's own: its types of flags
	"golang.org/x/sync":      {"internal/image/qcow2", "internal/check", "internal/disk", "bench"},
	"golang.org/x/sys": {"internal/diskio", "internal/linux", "internal/linux/stack", "internal/umount", "internal/hypervisor", "internal/cli", "internal/evidence",
		"internal/testenv", "internal/lab/cutfs", "internal/lab/demo", "internal/lab/hold", "internal/lab/vm", "internal/lab/vm/init", "internal/lab/stalls", "internal/guest/filestest",
		"bench",
		"internal/guest/busy", "internal/inside", "internal/jail", "internal/mount", "internal/holders",
		"internal/holders/trace", "internal/holders/evidence",
		"internal/linux/probe", "internal/linux/notice", "internal/linux/tree", "internal/linux/ask", "internal/linux/loop", "internal/linux/apart", "internal/lab/faultfs", "internal/doctor", "internal/doctor/watch",
		"internal/uml", "internal/fix"},
	"golang.org/x/term":  {"internal/cli"},
	"go.uber.org/goleak": {"internal/testenv"},
}

// testBudget names the modules that any test may use and no product code may.
var testBudget = []string{
	"github.com/google/go-cmp", "github.com/rogpeppe/go-internal", "pgregory.net/rapid",
	"golang.org/x/sys",
}

// support are the packages that exist for tests and may import what only tests need.
var support = []string{"internal/testenv", "internal/image/imagetest", "internal/guest/filestest"}

func TestLayers(t *testing.T) {
	for _, s := range sources(t) {
		if s.dir == "." {
			continue // these tests
		}
		height, ok := layer[s.dir]
		if !ok {
			t.Errorf("%s has no layer: add it to layers_test.go and doc/architecture.md", s.dir)
			continue
		}
		for _, i := range s.file.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			to, inside := strings.CutPrefix(path, module+"/")
			switch {
			case !inside && strings.Contains(strings.Split(path, "/")[0], "."):
				if !affordable(s, path) {
					t.Errorf("%s imports %s, which is outside the import budget", s.at(i), path)
				}
			case !inside:
				if path == "testing" && !s.test && !slices.Contains(support, s.dir) {
					t.Errorf("%s imports testing, which ends up in the product", s.at(i))
				}
			case s.test:
				// A test may use what it likes: it is never imported.
			case layer[to] >= height && !strings.HasPrefix(s.dir, to+"/"):
				t.Errorf("%s (layer %d) imports %s (layer %d): imports go down only; move the shared part down",
					s.at(i), height, to, layer[to])
			}
			if who, few := onlyBy[to]; few && !s.test && !slices.Contains(who, s.dir) {
				t.Errorf("%s imports %s, which only %v may", s.at(i), to, who)
			}
		}
	}
}

// affordable tells whether the import budget has the module of path for s.
func affordable(s *source, path string) bool {
	has := func(m string) bool { return path == m || strings.HasPrefix(path, m+"/") }
	if s.test || slices.Contains(support, s.dir) {
		if slices.ContainsFunc(testBudget, has) {
			return true
		}
	}
	for m, who := range budget {
		if has(m) && slices.Contains(who, s.dir) {
			return true
		}
	}
	return false
}

func TestEveryPackageIsThere(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range sources(t) {
		seen[s.dir] = seen[s.dir] || !s.test
	}
	for dir := range layer {
		if !seen[dir] {
			t.Errorf("%s has a layer and no code: take it out of layers_test.go", dir)
		}
	}
}

func TestPackageComments(t *testing.T) {
	where := map[string][]string{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		where[s.dir] = append(where[s.dir], "")
		if s.file.Doc != nil {
			where[s.dir][len(where[s.dir])-1] = s.path
		}
	}
	for dir, files := range where {
		files = slices.DeleteFunc(files, func(f string) bool { return f == "" })
		if len(files) != 1 {
			t.Errorf("%s has its package comment in %q, want one file that has it", dir, files)
		}
	}
}
