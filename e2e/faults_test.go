// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	"github.com/shisa-vm/shisa/internal/lab/vm"
)

// TestFaultsDebian12 holds what Debian 12's kernel shows of storage that fails.
func TestFaultsDebian12(t *testing.T) {
	var must []string
	for _, s := range faultfs.Scenarios() {
		must = append(must, "TestScenarios/"+s.Name)
	}
	guest(t, vm.Debian12, []suite{{pkg: "internal/lab/faultfs",
		run: "^(TestScenarios|TestTrap|TestKilled)$", env: []string{"SHISA_TEST_ALL=1"}, must: must,
		modules: []string{"xfs", "btrfs", "autofs4"}, tools: []string{"mkfs.xfs", "mkfs.btrfs", "dd"}}})
}

// TestMessagesDebian12 holds that what this kernel says of them is known.
func TestMessagesDebian12(t *testing.T) {
	guest(t, vm.Debian12, []suite{{pkg: "internal/linux/klog", run: "AreRecognised$",
		env: []string{"SHISA_TEST_ALL=1"}, must: []string{"TestFaultsAreRecognised", "TestDevicesAreRecognised/md",
			"TestDevicesAreRecognised/multipath", "TestDevicesAreRecognised/scsi"},
		modules: []string{"xfs", "btrfs", "raid1", "dm-multipath", "dm-round-robin", "scsi_debug", "sd_mod"},
		tools:   []string{"mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mdadm", "dmsetup", "losetup", "dd", "cat"}}})
}
