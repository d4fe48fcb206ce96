// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/vm"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestEmptyDrive has a machine with a drive of the host that has no disk in it.
func TestEmptyDrive(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	m := vm.Machine{MemoryMiB: 1024, Args: []string{"-drive", "if=none,id=empty,media=cdrom", "-device", "ide-cd,drive=empty"}}
	guestOn(t, m, vm.Debian12, []suite{{pkg: "internal/refs", run: "^TestEmptyDrive$", must: []string{"TestEmptyDrive"},
		env: []string{"SHISA_TEST_ALL=1"}, modules: []string{"ahci", "sr_mod"}}})
}
