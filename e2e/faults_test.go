// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	"github.com/shisa-vm/shisa/internal/lab/vm"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestFaultsDebian12 holds what Debian 12's kernel shows of storage that fails, and that what it says of
// it is known.
func TestFaultsDebian12(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	var must []string
	for _, s := range faultfs.Scenarios() {
		must = append(must, "TestScenarios/"+s.Name)
	}
	env := []string{"SHISA_TEST_ALL=1"}
	guest(t, vm.Debian12, []suite{
		{pkg: "internal/lab/faultfs", run: "^(TestScenarios|TestTrap|TestKilled)$", env: env, must: must,
			modules: []string{"xfs", "btrfs", "autofs4"}, tools: []string{"mkfs.xfs", "mkfs.btrfs", "dd"}},
		{pkg: "internal/linux/klog", run: "AreRecognised$", env: env,
			must: []string{"TestFaultsAreRecognised", "TestDevicesAreRecognised/md",
				"TestDevicesAreRecognised/multipath", "TestDevicesAreRecognised/scsi"},
			modules: []string{"raid1", "dm-multipath", "dm-round-robin", "scsi_debug", "sd_mod"},
			tools:   []string{"mkfs.ext4", "mdadm", "dmsetup", "losetup", "cat"}},
		{pkg: "internal/evidence", run: "^TestMapperAsked$", env: env, must: []string{"TestMapperAsked"},
			modules: []string{"dm-multipath", "dm-round-robin", "loop"}, tools: []string{"dmsetup", "losetup", "cat"}},
	})
}
