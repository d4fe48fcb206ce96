// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

// Kernels of today are built without version 4 of the format. User Mode Linux of the distribution is
// a kernel of before, as a program: the test starts itself in it, on the host's own file system.
const (
	guestDoes = "SHISA_XFS_GUEST" // what the guest is to do
	guestOut  = "SHISA_XFS_OUT"   // where it leaves what it saw
	guestFill = "SHISA_XFS_FILL"
	guestOpts = "SHISA_XFS_OPTS" // of its mount
)

// kernelTree has a kernel with version 4 mount a file system, do something in it, and tell what it
// shows: "show", or "fill" with what is to be filled in before.
func kernelTree(t *testing.T, disk, does string, v variant) filestest.Tree {
	t.Helper()
	out := filepath.Join(t.TempDir(), "tree")
	text := new(bytes.Buffer)
	c := guest(t, disk, does, v, out)
	c.Stdout, c.Stderr = text, text
	// It may abort when its machine is off already: what counts is what it left.
	ended := c.Run()
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatalf("the guest left nothing: %v, %v\n%s", err, ended, text)
	}
	var tree filestest.Tree
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(&tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

// guest is the command that starts this test in a kernel with version 4.
func guest(t *testing.T, disk, does string, v variant, out string) *exec.Cmd {
	t.Helper()
	testenv.Need(t, "linux.uml")
	dir := t.TempDir()
	self, err := inGuest()
	if err != nil {
		t.Fatal(err)
	}
	preload, err := uml.Preload(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("linux.uml", "mem=400M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/",
		"rw", "ubd0="+disk, "con=null", "con0=null,fd:1", "uml_dir="+dir, "quiet", "init="+self,
		"TMPDIR="+dir, guestDoes+"="+does, guestOut+"="+out,
		fmt.Sprintf("%s=%d", guestFill, v.fill.BigDirectory),
		guestOpts+"="+strings.Join(v.opts, ","), "--", "-test.run=^TestInGuest$")
	c.Env = append(os.Environ(), preload)
	return c
}

// inGuest gives the program that runs in the guest: these tests, without the race detector.
var inGuest = sync.OnceValues(func() (string, error) {
	if !raceDetector {
		return filepath.Abs(os.Args[0])
	}
	name := guestProgram()
	if out, err := exec.Command("go", "test", "-c", "-o", name, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go test -c: %w: %s", err, out)
	}
	return name, nil
})

// guestProgram is the name of what inGuest builds.
func guestProgram() string { return filepath.Join(os.TempDir(), "guest.test") }

// withGuest takes away at the end what inGuest built.
type withGuest struct{ *testing.M }

func (w withGuest) Run() int {
	status := w.M.Run()
	if err := os.RemoveAll(guestProgram()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	return status
}

// TestInGuest is what the guest runs, as its only process; it never returns there.
func TestInGuest(t *testing.T) {
	does := os.Getenv(guestDoes)
	if does == "" || os.Getpid() != 1 {
		return
	}
	defer func() {
		os.Stdout.Sync()
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}()
	must := func(err error) {
		if err != nil {
			t.Error(err)
			fmt.Println(err)
			unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		}
	}
	must(unix.Mount("proc", "/proc", "proc", 0, ""))
	dir := t.TempDir()
	must(unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	must(unix.Mknod(dir+"/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(98, 0))))
	at := dir + "/at"
	must(os.Mkdir(at, 0o755))
	must(unix.Mount(dir+"/disk", at, "xfs", unix.MS_NOATIME, os.Getenv(guestOpts)))
	switch does {
	case "load":
		for seed := range uint64(2) {
			go load(at, seed)
		}
		for {
			time.Sleep(700 * time.Millisecond)
			unix.Sync()
		}
	case "attributes":
		go attributes(at)
		for {
			unix.Sync()
		}
	case "ahead":
		ahead(t, at)
		return
	case "few":
		few(t, at, false)
		must(unix.Unmount(at, 0))
		return
	case "crash":
		few(t, at, true)
		return
	case "small", "later":
		big, err := strconv.Atoi(os.Getenv(guestFill))
		must(err)
		filestest.Small(t, at, filestest.Fill{BigDirectory: big, ACLs: true, SmallTimes: true})
		if does == "small" {
			must(unix.Unmount(at, 0))
			return
		}
		filestest.Later(t, at)
		return
	case "fill":
		big, err := strconv.Atoi(os.Getenv(guestFill))
		must(err)
		filestest.Populate(t, at, filestest.Fill{BigDirectory: big, ACLs: true, SmallTimes: true})
		more(t, at)
		must(unix.Unmount(at, 0))
		must(unix.Mount(dir+"/disk", at, "xfs", unix.MS_NOATIME, ""))
	}
	tree := filestest.ReadMounted(t, at)
	must(unix.Unmount(at, 0))
	b := new(bytes.Buffer)
	must(gob.NewEncoder(b).Encode(tree))
	must(os.WriteFile(os.Getenv(guestOut), b.Bytes(), 0o600))
}
