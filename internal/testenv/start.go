// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Start starts a program, and returns when it is that program in all that /proc tells of it. Cmd.Start
// returns as soon as the kernel closes what the program does not inherit: on a busy machine it has the
// name of its parent then, some of its parent's files, and no arguments. One that ended is a failure.
func Start(t testing.TB, c *exec.Cmd) {
	t.Helper()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	dir, want := fmt.Sprintf("/proc/%d/", c.Process.Pid), strings.Join(c.Args, "\x00")+"\x00"
	for ; ; time.Sleep(time.Millisecond) {
		args, err := os.ReadFile(dir + "cmdline")
		if err == nil && string(args) == want {
			return
		}
		if stat, statErr := os.ReadFile(dir + "stat"); err != nil || statErr != nil || ended(string(stat)) {
			t.Fatalf("%s ended as it was started: %v, %q, %v", c.Path, err, args, c.Wait())
		}
	}
}

// ended tells whether a process is only left to be waited for (proc(5), /proc/pid/stat).
func ended(stat string) bool {
	at := strings.LastIndex(stat, ") ")
	return at >= 0 && strings.HasPrefix(stat[at+2:], "Z")
}
