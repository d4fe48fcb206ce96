// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio_test

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// newImage makes a small qcow2 image.
func newImage(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, "1M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img create: %v: %s", err, out)
	}
	return path
}

// startQemuIO opens an image with qemu-io until the test ends, and returns when it is open.
func startQemuIO(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("qemu-io", args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	io.WriteString(in, "length\n")
	for s := bufio.NewScanner(out); s.Scan(); {
		if strings.Contains(s.Text(), "MiB") {
			go io.Copy(io.Discard, out)
			return
		}
	}
	t.Fatalf("qemu-io %v did not open the image", args)
}

func locks(t *testing.T, path string) diskio.LockState {
	t.Helper()
	f, err := diskio.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := f.Locks()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLocks(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	for _, tc := range []struct {
		name           string
		args           []string // of qemu-io; nil: nobody opens it
		want           diskio.LockState
		writer, reader bool
	}{
		{name: "nobody"},
		{"writer", []string{}, diskio.LockState{
			Used: [4]bool{true, true, false, true}, NotShared: [4]bool{false, true, false, true},
		}, true, false},
		{"reader", []string{"-r"}, diskio.LockState{
			Used: [4]bool{true}, NotShared: [4]bool{false, true, false, true},
		}, false, true},
		{"sharing reader", []string{"-r", "-U"}, diskio.LockState{Used: [4]bool{true}}, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := newImage(t)
			if tc.args != nil {
				startQemuIO(t, append(tc.args, "-f", "qcow2", path)...)
			}
			got := locks(t, path)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("Locks() (-want +got):\n%s", diff)
			}
			if got.Writer() != tc.writer || got.Reader() != tc.reader {
				t.Errorf("%v: Writer() = %v, Reader() = %v, want %v, %v", got, got.Writer(), got.Reader(),
					tc.writer, tc.reader)
			}
		})
	}
}

// Locks of other programs on these bytes are told apart from QEMU's.
func TestLocksForeign(t *testing.T) {
	for _, tc := range []struct {
		name   string
		typ    int16
		start  int64
		length int64
		want   string
		writer bool
	}{
		{"whole file for writing", unix.F_WRLCK, 0, 0,
			"a write lock from byte 0 to the end, which is not QEMU's", true},
		{"one byte for writing", unix.F_WRLCK, 101, 1,
			"a write lock from byte 101 to byte 101, which is not QEMU's", true},
		{"whole file for reading", unix.F_RDLCK, 0, 0,
			"a read lock from byte 0 to the end, which is not QEMU's", false},
		{"elsewhere", unix.F_WRLCK, 0, 100, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x")
			other, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			lk := unix.Flock_t{Type: tc.typ, Start: tc.start, Len: tc.length}
			if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
				t.Fatal(err)
			}
			got := locks(t, path)
			if got.Foreign != tc.want || got.Writer() != tc.writer {
				t.Errorf("Locks() = %q, Writer() = %v, want %q, %v", got.Foreign, got.Writer(), tc.want, tc.writer)
			}
			if !tc.writer && got.Reader() != (tc.want != "") {
				t.Errorf("Locks().Reader() = %v with %q", got.Reader(), got.Foreign)
			}
		})
	}
}

// A machine must be able to start at any moment while we look at its image.
func TestLocksKeepNobodyOut(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := newImage(t)
	f, err := diskio.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := f.Locks(); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 20 {
		out, err := exec.Command("qemu-io", "-f", "qcow2", "-c", "length", path).CombinedOutput()
		if err != nil || strings.Contains(string(out), "lock") {
			t.Errorf("open for writing while we look: %v: %s", err, out)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What could not be asked is an error, never "no locks".
func TestLocksError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := diskio.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if s, err := f.Locks(); err == nil {
		t.Errorf("Locks() of a closed file = %v, want an error", s)
	}
}
