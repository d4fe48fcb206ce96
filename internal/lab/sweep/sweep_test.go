// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package sweep

import (
	"errors"
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/cutfs"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func named(t *testing.T, name string) Case {
	t.Helper()
	for _, c := range Cases() {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no case is called %q", name)
	return Case{}
}

func ran(t *testing.T, c Case, tool Tool, o Options) *Table {
	t.Helper()
	testenv.Need(t, "qemu-img")
	testenv.NeedRoot(t)
	table, err := Run(t.Context(), t.TempDir(), c, tool, o)
	if errors.Is(err, cutfs.ErrUnavailable) {
		testenv.Lacks(t, "FUSE: "+err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: exit %d after %d changes; %v", c.Name, table.Exit, table.Changes, table)
	for _, b := range table.Bad {
		t.Log("  ", b)
	}
	return table
}

// TestQemuImg sweeps every case that qemu-img can do. The measure is sound only if its repairs end
// as they are known to.
func TestQemuImg(t *testing.T) {
	o := Options{Cuts: 8, Seeds: 2}
	if testenv.Long() {
		o = Options{Seeds: 8}
	}
	for _, c := range Cases() {
		if c.QemuImg == nil {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			table := ran(t, c, QemuImg("qemu-img"), o)
			if table.Changes == 0 || table.States < 4 {
				t.Errorf("%+v, want changes and states", table)
			}
			if e := table.End; e.Errors != 0 || e.Leaks != 0 {
				t.Errorf("repaired without a cut: %v, want neither errors nor leaks", e)
			}
			lost := c.Name == "L1 entry wiped" // which it takes for leaks, and frees
			if (table.End.Gone > 0) != lost {
				t.Errorf("repaired without a cut: %v, lost = %v", table.End, lost)
			}
		})
	}
}

// TestBadTools: programs that do harm are found out, each by the count that is for it.
func TestBadTools(t *testing.T) {
	testenv.Need(t, "sh", "dd")
	shell := func(script string) Tool {
		return Tool{Repair: func(_ Case, dir string) []string {
			return []string{"sh", "-c", script, "sh", dir + "/" + imageName}
		}}
	}
	// The second cluster has the refcount table, the last ones hold data.
	const wreck = `dd if=/dev/zero of="$1" bs=1024 seek=1 count=1 conv=notrunc,fsync status=none`
	const wipe = `dd if=/dev/zero of="$1" bs=1024 seek=900 count=1 conv=notrunc,fsync status=none`
	c := named(t, "refcounts raised in place")
	for _, b := range []struct {
		name string
		tool Tool
		got  func(*Table) int
	}{
		{"more errors", shell(wreck), func(t *Table) int { return t.More }},
		{"lost data", shell(wipe), func(t *Table) int { return t.Lost }},
		{"claims success", shell(wipe + " 2>/dev/null; exit 0"), func(t *Table) int { return t.False }},
		{"fails to recover", Tool{Repair: shell("exit 0").Repair, Recover: func(string) []string {
			return []string{"sh", "-c", "exit 6"}
		}, RecoverExits: []int{0}}, func(t *Table) int { return t.Failed }},
		{"recovers to something else", Tool{Repair: shell("exit 0").Repair, Recover: func(dir string) []string {
			return []string{"sh", "-c", `echo x >> "$1" && sync "$1"`, "sh", dir + "/" + imageName}
		}, RecoverExits: []int{0}}, func(t *Table) int { return t.Between }},
		{"has no fence", Tool{Repair: shell(wipe + "; " + wreck).Repair, Recover: func(string) []string {
			return []string{"true"}
		}, RecoverExits: []int{0}}, func(t *Table) int { return t.Unfenced }},
		{"does not undo", Tool{Repair: shell("exit 0").Repair, Undo: func(dir string) []string {
			return []string{"sh", "-c", `echo x >> "$1"`, "sh", dir + "/" + imageName}
		}}, func(t *Table) int {
			if t.NotUndone {
				return t.Between
			}
			return 0
		}},
	} {
		t.Run(b.name, func(t *testing.T) {
			if table := ran(t, c, b.tool, Options{Seeds: 1}); b.got(table) == 0 {
				t.Errorf("%+v: was not found out", table)
			}
		})
	}
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		n, most int
		want    []int
	}{
		{1, 0, []int{1}}, {4, 0, []int{1, 2, 3, 4}}, {5, 9, []int{1, 2, 3, 4, 5}},
		{100, 3, []int{1, 50, 99, 100}},
	} {
		if got := spread(c.n, c.most); !slices.Equal(got, c.want) {
			t.Errorf("spread(%d, %d) = %v, want %v", c.n, c.most, got, c.want)
		}
	}
}
