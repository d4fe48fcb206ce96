// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRefusal holds that a refusal is told in one line, and that no single reason is made up for one
// that the kernel gives no reason for.
func TestRefusal(t *testing.T) {
	const hint = " (MEMLOCK may be too low, consider rlimit.RemoveMemlock)"
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("load program: %w"+hint, unix.EPERM),
			"load program: operation not permitted; the kernel does not say why: its lockdown"},
		{fmt.Errorf("load program: %w: R1 type=scalar\n\tlog", unix.EACCES),
			"load program: permission denied: R1 type=scalar"},
	} {
		got := (&oneLine{c.err}).Error()
		if !strings.HasPrefix(got, c.want) || strings.Contains(got, "\n") || strings.Contains(got, "consider") {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
