// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// agent asks for a file of a mount once, as a monitoring agent does, and ends.
const agent = `
#include <fcntl.h>
#include <unistd.h>
__attribute__((noinline)) int GuestInfo_GetDiskInfo(const char *path)
{
	int fd = open(path, O_RDONLY);
	char c = 0;
	if (write(1, &c, 1) != 1 || read(0, &c, 1) < 0)
		return -1;
	close(fd);
	return fd;
}
int main(int argc, char **argv) { return GuestInfo_GetDiskInfo(argv[1]) < 0; }
`

// failOnce has the agent hold the mount while a umount fails, and gives what is told of it. The agent has
// ended by then.
func failOnce(t *testing.T, tr *Trace, p mountpoint, program string) (Failure, holders.Holder) {
	t.Helper()
	c := exec.Command(program, filepath.Join(p.target, "file"))
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	umount := unix.Unmount(p.target, 0)
	if err := errors.Join(in.Close(), c.Wait()); err != nil || umount != unix.EBUSY {
		t.Fatalf("umount = %v, want %v; the agent: %v", umount, unix.EBUSY, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	f, err := tr.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(f.Holders, func(h holders.Holder) bool { return h.Process.PID == c.Process.Pid })
	if i < 0 {
		t.Fatalf("%+v does not name the agent", f)
	}
	return f, f.Holders[i]
}

// TestStacks has a program without frame pointers make a umount fail and end: its function is named
// all the same, and so is the kernel's.
func TestStacks(t *testing.T) {
	testenv.Need(t, "gcc")
	for _, engine := range testenv.Engines() {
		t.Run(engine, func(t *testing.T) {
			p := newMountpoint(t)
			program := filepath.Join(t.TempDir(), "agent")
			build := exec.Command("gcc", "-O2", "-fomit-frame-pointer", "-x", "c", "-o", program, "-")
			build.Stdin = strings.NewReader(agent)
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			host, mounts := linux.Open(""), []linux.Mount{p.mounted(t)}
			s, notes := NewStacks(context.Background(), host, mounts)
			t.Cleanup(func() { s.Close() })
			if len(notes) > 0 {
				testenv.Lacks(t, strings.Join(notes, "; "))
			}
			tr := started(t, Options{Engine: engine, Mounts: mounts, Stacks: s})
			f, h := failOnce(t, tr, p, program)
			// On a machine that is too busy the kernel may drop what it tells of new mappings, and a process
			// that is gone by then has no stack. That it did has to be told of.
			for said := int64(0); len(h.UserStack) == 0 && f.Lost.Programs > said; {
				said = f.Lost.Programs
				f, h = failOnce(t, tr, p, program)
			}
			for _, want := range []string{"GuestInfo_GetDiskInfo", "main"} {
				if !slices.ContainsFunc(h.UserStack, func(x holders.Frame) bool { return x.Symbol == want }) {
					t.Errorf("the user's stack has no %s: %v", want, h.UserStack)
				}
			}
			if engine != probe.Syscall && !slices.ContainsFunc(h.KernelStack, func(x holders.Frame) bool {
				return strings.Contains(x.Symbol, "path_openat")
			}) {
				t.Errorf("the kernel's stack has no path_openat: %v", h.KernelStack)
			}
			comm, err := os.ReadFile("/proc/self/comm")
			if err != nil {
				t.Fatal(err)
			}
			if h.Process.Parent != strings.TrimSpace(string(comm)) || h.Process.Exe != program || h.Process.Cmdline[0] != program {
				t.Errorf("the agent is %+v", h.Process)
			}
			bundle(t, f)
		})
	}
}

// TestLostPrograms holds that it is told of when the kernel could not tell what programs have mapped.
func TestLostPrograms(t *testing.T) {
	p := newMountpoint(t)
	host, mounts := linux.Open(""), []linux.Mount{p.mounted(t)}
	s, notes := NewStacks(context.Background(), host, mounts)
	t.Cleanup(func() { s.Close() })
	if len(notes) > 0 {
		testenv.Lacks(t, strings.Join(notes, "; "))
	}
	tr := started(t, Options{Engine: probe.Syscall, Mounts: mounts, Stacks: s})
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lost := func() Lost {
		t.Helper()
		l, err := tr.Lost()
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if l := lost(); l.Programs != 0 || l.Count() != l.Drops+l.Tables+l.Compat {
		t.Fatalf("lost %+v at the begin", l)
	}
	// Each takes some 120 bytes of the 256 KiB that are read every 50 ms.
	for range 100_000 {
		m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
		if err = errors.Join(err, unix.Munmap(m)); err != nil {
			t.Fatal(err)
		}
		if lost().Programs > 0 {
			break
		}
	}
	l := lost()
	if l.Programs == 0 || l.Count() < l.Programs {
		t.Fatalf("lost %+v after so many mappings", l)
	}
	open, err := os.Open(filepath.Join(p.target, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(busy(p.target), open.Close()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	failure, err := tr.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if failure.Lost.Programs < l.Programs || !slices.ContainsFunc(failure.Notes, func(n string) bool {
		return strings.Contains(n, "mapped could be told of")
	}) {
		t.Errorf("%+v does not tell that %d records were lost", failure, l.Programs)
	}
}

// busy has a umount fail.
func busy(path string) error {
	if err := unix.Unmount(path, 0); err != unix.EBUSY {
		return fmt.Errorf("umount = %w, want %w", err, unix.EBUSY)
	}
	return nil
}

// bundle holds that the evidence has what a person needs.
func bundle(t *testing.T, f Failure) {
	t.Helper()
	files, err := Bundle(f, Tables(context.Background(), linux.Open(""), f))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, x := range files {
		all[x.Name] = x.Data
	}
	for name, want := range map[string]string{
		"failure.json": `"held_ns"`, "stacks.txt": "GuestInfo_GetDiskInfo", "mounts.txt": "proc",
	} {
		if name == "failure.json" && f.Engine == probe.Syscall {
			want = `"syscall": "close"`
		}
		if !bytes.Contains(all[name], []byte(want)) {
			t.Errorf("%s has no %s:\n%s", name, want, all[name])
		}
	}
}

// TestCommand holds that a command finds in its environment what failed, and that its own failure is
// told.
func TestCommand(t *testing.T) {
	var out bytes.Buffer
	var failed error
	f := Failure{Mount: Mount{ID: 7, Path: "/mnt/a b"}, Engine: "watch"}
	Command(`echo "$SHISA_MOUNT_ID $SHISA_MOUNT"; exit 3`, os.Environ(), &out, func(err error) { failed = err })(
		context.Background(), f)
	if got, want := out.String(), "7 /mnt/a b\n"; got != want {
		t.Errorf("the command wrote %q, want %q", got, want)
	}
	if failed == nil || !strings.Contains(failed.Error(), "exit status 3") {
		t.Errorf("the command failed with %v, want exit status 3", failed)
	}
}
