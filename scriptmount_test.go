// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestMountScript runs scripts that mount: they need root, FUSE and loop devices.
func TestMountScript(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4", "mkfs.vfat", "debugfs", "losetup", "umount")
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/mount",
		RequireUniqueNames: true,
		WorkdirRoot:        t.TempDir(),
		Cmds:               scriptCommands,
		Setup: func(env *testscript.Env) error {
			env.Setenv("NO_COLOR", "1")
			env.Setenv("GORACE", testenv.NoWait)
			env.Setenv("SHISA_STATE", env.WorkDir+"/state")
			return nil
		},
	})
}
