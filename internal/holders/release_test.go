// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"strings"
	"testing"
)

// TestReleaseOfTheRoot: umount(2) of a root makes its file system read-only, so nobody is told to do it.
func TestReleaseOfTheRoot(t *testing.T) {
	for _, k := range []Kind{NestedMount, Mounted, Bind, Namespace} {
		for _, pid := range []int{0, 7} {
			for _, path := range []string{"/", "/mnt"} {
				h := Holder{Kind: k, Path: path, FD: -1, Process: Process{PID: pid}}
				unmounts := path != "/" && (pid != 0 || k != Namespace)
				if got := h.release(); strings.Contains(got, "umount") != unmounts || got == "" {
					t.Errorf("release of %s of %s by process %d = %q", k, path, pid, got)
				}
			}
		}
	}
}
