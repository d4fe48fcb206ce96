// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// storageDaemon is QEMU's block layer without a machine.
const storageDaemon = "qemu-storage-daemon"

// killedImage has QEMU's block layer write at random places of a qcow2 image through a cache that holds 32
// pieces of tables, never flushing, and kills it: the counts of references are on disk before the tables are.
func killedImage(t *testing.T, dir string, content func(n int) string) string {
	t.Helper()
	const disk, cluster, writes = 2 << 30, 64 << 10, 300
	image, export := filepath.Join(dir, "killed.qcow2"), filepath.Join(dir, "export")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "2G")
	if err := os.WriteFile(export, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var words bytes.Buffer
	c := exec.Command(storageDaemon, "--blockdev", "driver=file,node-name=file,filename="+image, "--blockdev",
		"driver=qcow2,node-name=disk,file=file,l2-cache-size=131072", "--export",
		"type=fuse,id=export,node-name=disk,writable=on,mountpoint="+export)
	c.Stderr = &words
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	gone := false
	end := func() {
		if gone {
			return
		}
		gone = true
		err := errors.Join(c.Process.Kill(), waitKilled(ended), unix.Unmount(export, unix.MNT_DETACH))
		if err != nil {
			t.Errorf("end %s: %v: %s", storageDaemon, err, words.String())
		}
	}
	t.Cleanup(end)
	for fi, err := os.Stat(export); err != nil || fi.Size() != disk; fi, err = os.Stat(export) {
		if len(ended) > 0 || t.Context().Err() != nil {
			t.Fatalf("%s does not serve the image: %v", storageDaemon, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	f := writeAndStop(t, c.Process, export, func(f *os.File) {
		b, err := unix.Mmap(-1, 0, cluster, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		random := rand.New(rand.NewPCG(4, 38))
		for n := range writes {
			copy(b, content(n))
			if _, err := f.WriteAt(b, random.Int64N(disk/cluster)*cluster); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Munmap(b); err != nil {
			t.Fatal(err)
		}
	})
	end()
	_ = f.Close() // who served it is gone
	return image
}

// writeAndStop writes to what a process serves by FUSE, and stops the process before the file is closed, which would
// have QEMU flush. A program that another test starts meanwhile has the file as well until it is executed, and closes it
// then, so none is started.
func writeAndStop(t *testing.T, server *os.Process, export string, write func(*os.File)) *os.File {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := os.OpenFile(export, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	write(f)
	if err := server.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestLeaksOfKilledQEMU has shisa look at what a killed QEMU left: clusters that are lost and hurt nobody. It
// says so, and gives back those that hold nothing that is not elsewhere as well. The guest sees the same before and
// after, and undo gives the same file to the byte.
func TestLeaksOfKilledQEMU(t *testing.T) {
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	testenv.Need(t, storageDaemon, "qemu-img", "go")
	shisa := newShisa(t)
	for _, c := range []struct {
		name   string
		write  func(n int) string
		repair []string
	}{
		{"zeros", func(int) string { return "" }, []string{"repair", "--leaks", "--apply"}},
		{"what is elsewhere too", func(int) string { return "write" },
			[]string{"repair", "--leaks", "--compare-data", "--apply"}},
		// What nothing explains may be the last copy of what a guest wrote.
		{"what is nowhere else", func(n int) string { return fmt.Sprint("write ", n) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := killedImage(t, testenv.DiskDir(t), c.write)
			leaks := leaksOf(t, image)
			t.Logf("%d leaks", leaks)
			if leaks < 38 {
				t.Fatalf("qemu-img counts %d leaks, want 38 and more", leaks)
			}
			before, seen := fileDigest(t, image), guestBytes(t, image)
			said := shisa.says(t, 3, "check", image)
			if !strings.Contains(said, "nothing is hurt; some space is wasted") ||
				!strings.Contains(said, fmt.Sprintf("0 corruptions, %d leaks,", leaks)) {
				t.Errorf("of leaks that are harmless it is said:\n%s", said)
			}
			if c.repair == nil {
				said := shisa.says(t, 3, "repair", "--leaks", "--compare-data", "--apply", image)
				if !strings.Contains(said, "Nothing was changed") || fileDigest(t, image) != before {
					t.Errorf("clusters that hold data were given back:\n%s", said)
				}
				return
			}
			shisa.says(t, 0, append(c.repair, image)...)
			if left := leaksOf(t, image); left != 0 {
				t.Errorf("qemu-img counts %d leaks after the repair", left)
			}
			if guestBytes(t, image) != seen {
				t.Error("the guest sees other bytes after the repair")
			}
			shisa.says(t, 0, "undo", image)
			if fileDigest(t, image) != before {
				t.Error("after undo the image is another one")
			}
		})
	}
}

// leaksOf is how many leaks qemu-img counts, where it finds nothing worse.
func leaksOf(t *testing.T, image string) int {
	t.Helper()
	var judge struct {
		Leaks       int `json:"leaks"`
		Corruptions int `json:"corruptions"`
	}
	out, _ := exec.Command("qemu-img", "check", "--output=json", image).Output() // 3 for leaks
	if err := json.Unmarshal(out, &judge); err != nil || judge.Corruptions != 0 {
		t.Fatalf("qemu-img says %s: %v", out, err)
	}
	return judge.Leaks
}

// program is shisa with a state of its own.
type program struct{ path, state string }

func newShisa(t *testing.T) program {
	t.Helper()
	return program{built(t, module+"/cmd/shisa", false), filepath.Join(t.TempDir(), "state")}
}

// says runs the program, holds its exit status, and gives its stdout.
func (p program) says(t *testing.T, status int, args ...string) string {
	t.Helper()
	var words strings.Builder
	c := exec.Command(p.path, args...)
	c.Env = append(os.Environ(), "SHISA_STATE="+p.state)
	c.Stderr = &words
	out, _ := c.Output() // its status is looked at
	if got := c.ProcessState.ExitCode(); got != status {
		t.Fatalf("shisa %s ended with %d, want %d:\n%s%s", strings.Join(args, " "), got, status, out, words.String())
	}
	return string(out)
}

// fileDigest is the digest of a file.
func fileDigest(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil))
}

// waitKilled waits for a process that was killed.
func waitKilled(ended <-chan error) error {
	if exit := (*exec.ExitError)(nil); !errors.As(<-ended, &exit) || exit.ProcessState.Sys().(syscall.WaitStatus).Signal() !=
		syscall.SIGKILL {
		return errors.New("it ended by itself")
	}
	return nil
}

// guestBytes is the digest of what a guest sees, as QEMU reads it, with the places where it is.
func guestBytes(t *testing.T, image string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "guest.raw")
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, to)
	defer os.Remove(to)
	f, err := os.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	for at := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return string(h.Sum(nil))
		}
		hole, err2 := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(h, "%d:%d:", data, hole)
		if _, err := io.Copy(h, io.NewSectionReader(f, data, hole-data)); err != nil {
			t.Fatal(err)
		}
		at = hole
	}
}
