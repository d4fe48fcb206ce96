// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// How many instructions the verifier may follow in one program. It gives up at a million, older ones
// follow up to four times as much as newer ones, and loading is what a scan takes longest for.
const (
	maxVerified       = 100_000
	maxVerifiedEngine = 400_000
)

// TestVerified holds that the kernel takes each program by itself, and is soon done with it. The hooks
// of functions it may refuse to all.
func TestVerified(t *testing.T) {
	testenv.NeedRoot(t)
	for object, one := range map[string]struct {
		open func() (*ebpf.CollectionSpec, error)
		most uint32
		may  bool // be refused
	}{
		"mounts": {loadMounts, maxVerified, false}, "refs": {loadRefs, maxVerified, false},
		"watch": {loadWatch, maxVerifiedEngine, false}, "window": {loadWindow, maxVerifiedEngine, false},
		"fentry": {loadFentry, maxVerifiedEngine, true}, "kprobe": {loadKprobe, maxVerifiedEngine, true},
		"pollers": {loadPollers, maxVerified, false}, "underway": {loadUnderway, maxVerified, false},
		"removers": {loadRemovers, maxVerified, false},
	} {
		all, err := one.open()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range slices.Sorted(maps.Keys(all.Programs)) {
			t.Run(object+"/"+name, func(t *testing.T) {
				spec := all.Copy()
				maps.DeleteFunc(spec.Programs, func(other string, _ *ebpf.ProgramSpec) bool { return other != name })
				var c *ebpf.Collection
				if err := unlimited(func() (err error) { c, err = ebpf.NewCollection(spec); return err }); one.may && errors.Is(err, unix.EPERM) {
					t.Log(&oneLine{err})
					return
				} else if err != nil {
					t.Fatal(&oneLine{err})
				}
				defer c.Close()
				info, err := c.Programs[name].Info()
				if err != nil {
					t.Fatal(err)
				}
				n, known := info.VerifiedInstructions() // Linux 5.16
				t.Logf("%d instructions followed", n)
				if known && n > one.most {
					t.Errorf("%d instructions followed, want %d at most", n, one.most)
				}
			})
		}
	}
}
