// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if IsChild(os.Args) {
		Serve()
	}
	if err := Apart(); err != nil {
		fmt.Fprintln(os.Stderr, err) // the tests that need it say so, too
	}
	if dir := os.Getenv(victimDir); dir != "" {
		fmt.Fprintln(os.Stderr, beVictim(dir))
		os.Exit(1)
	}
	testenv.Main(m)
}

// needs is what all of these tests need.
func needs(t *testing.T) {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4", "mkfs.erofs", "fuser", "lsof")
}

// measured is a row of the table, where this machine has what the kind needs.
func measured(t *testing.T, k Kind, ask ...Looker) Row {
	t.Helper()
	needs(t)
	row, err := Measure(t.Context(), k, t.TempDir(), ask...)
	if errors.Is(err, ErrUnavailable) {
		testenv.Lacks(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	return row
}

// named are the kinds of which fuser(1) of psmisc 23.6 and lsof(8) 4.95 name the process. They
// compare devices, so of those in blamed they name one that keeps no umount from succeeding.
var (
	named = map[string]string{"open-fd": "fuser lsof", "open-fd-deleted": "fuser lsof",
		"open-fd-thrice": "fuser lsof", "open-fds": "fuser lsof", "open-fd-shared": "fuser lsof",
		"open-fd-cwd-root":  "fuser lsof",
		"fd-in-flight-open": "fuser lsof", "unix-socket-pending": "fuser",
		"open-fd-pid-namespace": "fuser lsof", "o-path": "fuser lsof",
		"cwd": "fuser lsof", "cwd-deleted": "fuser lsof", "chroot": "fuser lsof", "exe": "fuser lsof",
		"mapping": "fuser lsof", "unix-socket": "fuser", "peer": "fuser lsof",
		"peer-slave": "fuser lsof", "peer-user-namespace": "fuser lsof",
		"lazy-fd": "fuser"}
	blamed = map[string]string{"namespace-fd": "fuser lsof", "namespace-root": "fuser lsof",
		"detached-mount": "fuser lsof", "bind-fd": "lsof", "bind-lazy-fd": "lsof"}
)

// TestKinds holds that each kind does to umount(2) and to the device what it is said to, and
// nothing once it is released. What others say of it is the reason why there is shisa holders.
func TestKinds(t *testing.T) {
	ask := []Looker{Fuser(), Lsof()}
	for _, k := range Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			row := measured(t, k, ask...)
			t.Log(row)
			if !row.True() {
				t.Errorf("Measure(%s) = %s, want it to be what %q says", k.Name, row, k.Effect)
			}
			for i, l := range ask {
				want := Missed
				switch {
				case k.Effect == Harmless:
					want = Silent
				case strings.Contains(named[k.Name], l.Name):
					want = Named
				case strings.Contains(blamed[k.Name], l.Name):
					want = Blamed
				}
				if row.Said[i] != want {
					t.Errorf("%s of %s = %q, want %q", l.Name, k.Name, row.Said[i], want)
				}
			}
		})
	}
}

// TestNames holds that a name stands for one kind.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range slices.Concat(Kinds(), Passing()) {
		if seen[k.Name] || k.make == nil {
			t.Errorf("the kind %s is there twice, or cannot be made", k.Name)
		}
		seen[k.Name] = true
	}
}

// TestUnknownKind holds that what a child says of its failure gets through.
func TestUnknownKind(t *testing.T) {
	_, err := Make(t.Context(), Kind{Name: "no-such"}, Place{Mount: "/nowhere"})
	if err == nil || !strings.Contains(err.Error(), `"no-such"`) || errors.Is(err, ErrUnavailable) {
		t.Errorf("Make(no-such) = %v, want an error that names it", err)
	}
}

// TestApart holds that what others have mounted is let go of: of what is not needed to run programs
// nothing is left.
func TestApart(t *testing.T) {
	needs(t)
	if !apart() {
		testenv.Lacks(t, "a mount namespace of its own")
	}
	at := "/mnt"
	for point, want := range map[string]bool{"/": true, "/dev/pts": true, os.TempDir(): true,
		t.TempDir(): false, at: false} {
		if got := needed(point); got != want {
			t.Errorf("needed(%s) = %t, want %t", point, got, want)
		}
	}
	if err := unix.Mount("others", at, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := Apart(); err != nil {
		t.Errorf("Apart() = %v, want nil", err)
	}
	mounts, err := linux.Open("").Mounts(t.Context(), 0)
	if err != nil || len(mounts) == 0 {
		t.Fatal(len(mounts), err)
	}
	for _, m := range mounts {
		if !needed(m.Point) {
			t.Errorf("%s is still mounted", m.Point)
		}
	}
}
