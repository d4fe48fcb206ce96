// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/cutfs"
	"github.com/shisa-vm/shisa/internal/lab/sweep"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestPowerCut has the program, as it is built for users, repair and undo on a disk whose power is
// cut at a few of its writes, and with SHISA_LONG=1 at every one. Afterwards "shisa recover" leaves
// the image as it was before or as it was meant to be, and never worse.
func TestPowerCut(t *testing.T) {
	// The scripts have a qemu-img of their own, which is this program; here the real one judges.
	t.Setenv("PATH", strings.Join(slices.DeleteFunc(filepath.SplitList(os.Getenv("PATH")), func(dir string) bool {
		return strings.Contains(dir, "testscript-main")
	}), string(filepath.ListSeparator)))
	testenv.Need(t, "qemu-img")
	testenv.NeedRoot(t)
	program := filepath.Join(t.TempDir(), "shisa")
	build := exec.Command("go", "build", "-o", program, "./cmd/shisa")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if out, err := exec.Command(program, "help").CombinedOutput(); err != nil {
		t.Fatalf("help: %v\n%s", err, out)
	} else if !strings.Contains(string(out), "repair ") {
		t.Log("the program has no repair yet")
		return
	}
	o := sweep.Options{Cuts: testenv.Rounds(2, 5, 0), Seeds: testenv.Rounds(1, 2, 8), Again: testenv.Rounds(1, 1, 2)}
	for _, c := range sweep.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			table, err := sweep.Run(t.Context(), t.TempDir(), c, sweep.Shisa(program), o)
			if errors.Is(err, cutfs.ErrUnavailable) {
				testenv.Lacks(t, "FUSE: "+err.Error())
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d changes, exit status %d; %v", table.Changes, table.Exit, table)
			if table.Exit != 0 && table.Exit != 3 || table.Changes == 0 {
				t.Errorf("repair without a cut = exit status %d after %d changes, want 0 or 3 after some: %s",
					table.Exit, table.Changes, table.Output)
			}
			if table.Worse() > 0 || table.Between > 0 || table.Failed > 0 || table.False > 0 ||
				table.Unfenced > 0 || table.NotUndone {
				t.Errorf("%v\n%d states between before and after", table, table.Between)
			}
			if table.End.Gone > 0 || table.End.Errors > 0 && table.Exit == 0 {
				t.Errorf("repaired without a cut: %v, exit status %d", table.End, table.Exit)
			}
			for _, b := range table.Bad {
				t.Log(b)
			}
		})
	}
}
