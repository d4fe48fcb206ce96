// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"maps"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// maxVerified is how many instructions the verifier may follow in one program. It gives up at a
// million, older ones follow more than newer ones, and loading is what a scan takes longest for.
const maxVerified = 100_000

// TestVerified holds that the kernel takes each program by itself, and is soon done with it.
func TestVerified(t *testing.T) {
	testenv.NeedRoot(t)
	for object, open := range map[string]func() (*ebpf.CollectionSpec, error){
		"mounts": loadMounts, "refs": loadRefs,
	} {
		all, err := open()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range slices.Sorted(maps.Keys(all.Programs)) {
			t.Run(object+"/"+name, func(t *testing.T) {
				spec := all.Copy()
				maps.DeleteFunc(spec.Programs, func(other string, _ *ebpf.ProgramSpec) bool { return other != name })
				var c *ebpf.Collection
				if err := unlimited(func() (err error) { c, err = ebpf.NewCollection(spec); return err }); err != nil {
					t.Fatal(&oneLine{err})
				}
				defer c.Close()
				info, err := c.Programs[name].Info()
				if err != nil {
					t.Fatal(err)
				}
				n, known := info.VerifiedInstructions() // Linux 5.16
				t.Logf("%d instructions followed", n)
				if known && n > maxVerified {
					t.Errorf("%d instructions followed, want %d at most", n, maxVerified)
				}
			})
		}
	}
}
