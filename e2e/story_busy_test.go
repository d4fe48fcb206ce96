// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"encoding/json"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/holders/trace"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestStoryBusy is the story of an umount that fails at random: a program looks into the mount again and again, and is
// gone whenever somebody asks who holds it. Suspected wrongly is another one that does the same elsewhere. The mount is
// unmounted all the same, and whoever is named is who it was.
func TestStoryBusy(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "sh", "sleep", "go")
	p, shisa := newPlace(t), newShisa(t)
	poller, decoy := looksInto(t, p.target), looksInto(t, p.source)
	exact := 0
	// It may meet a moment in which nobody looks, or a process that ended before it was named.
	for round := 0; round < 50 && exact == 0; round++ {
		var r struct {
			State  string          `json:"state"`
			Failed []trace.Failure `json:"failed"`
		}
		out := shisa.says(t, 0, "umount", "--json", "--wait", "1m", p.target)
		if err := json.Unmarshal([]byte(out), &r); err != nil || r.State != "unmounted" {
			t.Fatalf("%v: %s", err, out)
		}
		for _, f := range r.Failed {
			if h := holding(f, decoy); h != nil {
				t.Errorf("a program is named that looks into another mount: %+v", h)
			}
			if h := holding(f, poller); h != nil && h.Certainty != holders.Overlap {
				exact++
			}
		}
		if err := p.mount(); err != nil {
			t.Fatal(err)
		}
	}
	if exact == 0 {
		t.Error("nobody was named who looks into the mount")
	}
}

// looksInto starts what goes to a directory again and again, and gives its process.
func looksInto(t *testing.T, dir string) int {
	t.Helper()
	c := exec.Command("sh", "-c", `while :; do (cd "$0" && exec sleep 0.02); sleep 0.005; done`, dir)
	c.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Kill(-c.Process.Pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
		_ = c.Wait() // killed, as was meant
	})
	return c.Process.Pid
}
