// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKilled holds that the syscall engine tells of a program that was killed and held nothing but itself:
// it makes no call that says so.
func TestKilled(t *testing.T) {
	on := scratch(t)
	e := opened(t, Syscall, 0, on)
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(on.Path, "program")
	if err := os.WriteFile(program, b, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, signal := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		c := exec.Command(program, "1000")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Unmount(on.Path, 0); err != unix.EBUSY {
			t.Errorf("umount = %v, want %v", err, unix.EBUSY)
		}
		c.Process.Signal(signal)
		c.Wait()
		h := until(t, e, func(ev Event) bool { return ev.Kind == Suspect && ev.PID == c.Process.Pid && ev.Released })
		if h.Where != program || h.Since != 0 {
			t.Errorf("after %v it let go of %q, held since %d; want %s, and since before the umount",
				signal, h.Where, h.Since, program)
		}
	}
}
