// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/lab/vm"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestDebian12Kinds has every kind of holder that Debian 12's kernel knows made and looked for there.
func TestDebian12Kinds(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	guest(t, vm.Debian12, []suite{kinds()})
}

// kinds is the suite of all kinds of holders. Three Debian 12's kernel does not know: a probe of bpf(2), a
// file of FUSE that the kernel reads by itself, and an image of erofs without a loop device.
func kinds() suite {
	must := []string{}
	for _, k := range hold.Kinds() {
		if !slices.Contains([]string{"bpf-uprobe", "fuse-backing", "erofs-image"}, k.Name) {
			must = append(must, "TestKinds/"+k.Name)
		}
	}
	return suite{pkg: "internal/linux/probe", run: "^TestKinds$", must: must}
}
