// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// victimDir in the environment names the directories of a process that makes holders until it is
// killed, one for each of killed.
const victimDir = "SHISA_HOLD_VICTIM"

// killed are the kinds that would outlive the one who made them, and one that would not.
func killed() []Kind {
	var all []Kind
	for _, k := range Kinds() {
		if k.outlives || k.Name == "open-fd" || k.Name == "loop" {
			all = append(all, k)
		}
	}
	return all
}

// beVictim makes the holders, prints the numbers of their processes, and waits.
func beVictim(dir string) error {
	var pids []string
	for _, k := range killed() {
		d, err := NewDisk(context.Background(), filepath.Join(dir, k.Name))
		if err != nil {
			return err
		}
		h, err := Make(context.Background(), k, d.Place)
		if err != nil {
			return err
		}
		pids = append(pids, strconv.Itoa(h.process.cmd.Process.Pid))
	}
	fmt.Println(strings.Join(pids, " "))
	select {}
}

// TestKilled holds that nothing stays of what a program made that is killed.
func TestKilled(t *testing.T) {
	needs(t)
	dir := t.TempDir()
	for _, k := range killed() {
		if err := os.Mkdir(filepath.Join(dir, k.Name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	runtime.LockOSThread() // the victim ends with the thread that started it
	defer runtime.UnlockOSThread()
	victim := exec.Command("/proc/self/exe")
	victim.Env = append(os.Environ(), victimDir+"="+dir)
	victim.Stderr = os.Stderr
	victim.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pids := strings.Fields(line)
	if err != nil || len(pids) != len(killed()) {
		t.Errorf("the victim said %q, %v, want %d numbers", line, err, len(killed()))
	}
	if loops := left(t, dir); len(loops) < len(killed()) {
		t.Errorf("left() = %q before the kill, want %d disks and more", loops, len(killed()))
	}
	err = victim.Process.Kill()
	if waitErr := victim.Wait(); err != nil || waitErr == nil {
		t.Errorf("kill = %v, %v, want a process that was killed", err, waitErr)
	}
	var still []string
	err = until(func() (bool, error) {
		still = slices.DeleteFunc(slices.Clone(pids), func(pid string) bool {
			n, err := strconv.Atoi(pid)
			return err != nil || errors.Is(unix.Kill(n, 0), unix.ESRCH)
		})
		return len(still) == 0, nil
	})
	if err != nil {
		t.Errorf("the processes %q are there: %v", still, err)
	}
	err = until(func() (bool, error) { return len(left(t, dir)) == 0, nil })
	if err != nil {
		t.Errorf("left behind: %q: %v", left(t, dir), err)
	}
}

// left lists what the kernel has that is below a directory and would outlive its maker.
func left(t *testing.T, dir string) []string {
	t.Helper()
	tracing := "/sys/kernel/tracing"
	c := &child{}
	if err := c.special("tracefs", tracing, unix.TRACEFS_MAGIC); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range append(files, "/proc/swaps", tracing+"/uprobe_events") {
		text, err := os.ReadFile(f)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a loop device that was taken away
			t.Fatal(err)
		}
		if strings.Contains(string(text), dir) {
			found = append(found, f+": "+strings.TrimSpace(string(text)))
		}
	}
	for _, undo := range c.undo {
		if err := undo(); err != nil {
			t.Fatal(err)
		}
	}
	return found
}
