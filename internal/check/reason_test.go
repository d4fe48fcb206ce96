// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestReason(t *testing.T) {
	read := &fs.PathError{Op: "read", Path: "a.qcow2", Err: syscall.EIO}
	for _, tc := range []struct {
		name string
		err  error
		want string
	}{
		{"the file itself", read, "input/output error"},
		{"a place in it", fmt.Errorf("cannot be read at %#x: the header extensions: %w", 0x70, read),
			"cannot be read at 0x70: the header extensions: input/output error"},
		{"no path", syscall.EIO, "input/output error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := reason(tc.err); got != tc.want {
				t.Errorf("reason(%v) = %q, want %q", tc.err, got, tc.want)
			}
		})
	}
}
