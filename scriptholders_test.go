// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"errors"
	"os/exec"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// mountFor runs mount(8), and takes away what is mounted on the last argument at the end of the script,
// however that ends.
func mountFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mount [OPTION...] WHAT DIR")
	}
	dir := ts.MkAbs(args[len(args)-1])
	args[len(args)-1] = dir
	ts.Defer(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			ts.Logf("unmount %s: %v", dir, err)
		}
	})
	c := exec.Command("mount", args...)
	c.Dir = ts.Getenv("WORK")
	if out, err := c.CombinedOutput(); err != nil {
		ts.Fatalf("mount: %v: %s", err, strings.TrimSpace(string(out)))
	}
}
