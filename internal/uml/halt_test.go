// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package uml

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// TestHalted: a guest that was off when its kernel was aborted has ended; nothing else that a kernel ends with is an
// end in order.
func TestHalted(t *testing.T) {
	const off = "EXT4-fs (ubda): unmounting filesystem.\r\nreboot: System halted\r\n"
	for _, c := range []struct {
		how, console string
		want         bool
	}{
		{"kill -ABRT $$", off, true},
		{"exit 96", off, true}, // the stage's word for it
		{"exit 96", "reboot: Power down", true},
		{"kill -ABRT $$", "reboot: System halted\nKernel panic - not syncing", false},
		{"kill -ABRT $$", "", false},
		{"kill -SEGV $$", off, false},
		{"exit 1", off, false},
		{"exit 97", off, false},
	} {
		cmd := exec.Command("sh")
		cmd.Stdin = strings.NewReader("ulimit -c 0; " + c.how)
		e := (*exec.ExitError)(nil)
		if err := cmd.Run(); !errors.As(err, &e) {
			t.Fatalf("%s = %v", c.how, err)
		}
		if got := aborted(e) && halted([]byte(c.console)); got != c.want {
			t.Errorf("%q with %q at its end: %v, want %v", c.how, c.console, got, c.want)
		}
	}
}
