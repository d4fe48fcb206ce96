// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// victimDir in the environment makes this program the one that is killed.
const victimDir = "SHISA_FAULTFS_VICTIM"

// victimWorlds in the environment names the worlds that it makes.
const victimWorlds = "SHISA_FAULTFS_WORLDS"

// beVictim makes worlds, prints the processes that are in them, and waits.
func beVictim(dir string) error {
	var pids []string
	for name := range strings.FieldsSeq(os.Getenv(victimWorlds)) {
		at := filepath.Join(dir, name)
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		w, err := Make(context.Background(), name, at)
		if err != nil {
			return err
		}
		for _, fs := range w.served {
			pids = append(pids, strconv.Itoa(fs.PID()))
		}
		for _, u := range w.Stuck {
			pids = append(pids, strconv.Itoa(u.PID))
		}
	}
	fmt.Println(strings.Join(pids, " "))
	select {}
}

// TestKilled holds that nothing stays of a program that is killed: while much hangs, and where
// nobody but the server is left to see the end of its mounts.
func TestKilled(t *testing.T) {
	t.Run("hanging", func(t *testing.T) {
		killed(t, "hang-writer stuck-fuse stuck-fuse-killed many-mounts", 9)
	})
	t.Run("alone", func(t *testing.T) { killed(t, "delay", 1) })
}

// killed kills a program that made worlds with so many processes in them and one disk.
func killed(t *testing.T, worlds string, processes int) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4")
	available(t, apart())
	dir := t.TempDir()
	victim := exec.Command("/proc/self/exe")
	victim.Env = append(os.Environ(), victimDir+"="+dir, victimWorlds+"="+worlds)
	victim.Stderr = os.Stderr
	out, err := victim.StdoutPipe()
	must(t, err)
	victim.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	ended := make(chan error, 1)
	must(t, launch(victim, ended))
	line, err := bufio.NewReader(out).ReadString('\n')
	pids := strings.Fields(line)
	if err != nil || len(pids) != processes {
		t.Errorf("the victim said %q, %v, want %d numbers", line, err, processes)
	}
	loops := loopsBelow(t, dir)
	if len(loops) != 1 {
		t.Fatalf("loop devices before the kill: %q, want 1", loops)
	}
	before := fileOf(t, loops[0])
	must(t, victim.Process.Kill())
	<-ended
	err = until(func() (bool, error) {
		pids = slices.DeleteFunc(pids, func(pid string) bool {
			n, err := strconv.Atoi(pid)
			return err != nil || errors.Is(unix.Kill(n, 0), unix.ESRCH)
		})
		return len(pids) == 0, nil
	})
	if err != nil {
		t.Errorf("the processes %q are there: %v", pids, err)
	}
	// By now its file has another path, or none.
	if err := until(func() (bool, error) { return fileOf(t, loops[0]) != before, nil }); err != nil {
		t.Errorf("%s is left behind: %v", loops[0], err)
	}
}

// fileOf is the file of a loop device, by device and inode; none where it has none.
func fileOf(t *testing.T, name string) [2]uint64 {
	t.Helper()
	fd, err := unix.Open("/dev/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if errors.Is(err, unix.ENXIO) {
		return [2]uint64{}
	}
	must(t, err)
	return [2]uint64{info.Device, info.Inode}
}

// loopsBelow names the loop devices on files below a directory.
func loopsBelow(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, d := range devices {
		// One of somebody else may go at any time.
		if text, err := os.ReadFile(d); err == nil && strings.HasPrefix(string(text), dir+"/") {
			found = append(found, strings.Split(d, "/")[3])
		}
	}
	return found
}
