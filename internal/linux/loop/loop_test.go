// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package loop

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestAttach holds that the device shows the file, bears the name, and goes with its last user.
func TestAttach(t *testing.T) {
	testenv.NeedRoot(t)
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "file"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := []byte(strings.Repeat("sector..", 512))
	if _, err := f.Write(text); err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("name", 20)
	fd, n, err := Attach(int(f.Fd()), Options{Flags: unix.LO_FLAGS_READ_ONLY, Name: name})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) {
		testenv.Lacks(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, len(text))
	if k, err := unix.Pread(fd, p, 0); err != nil || string(p[:k]) != string(text) {
		t.Errorf("Pread() = %d, %v, want what is in the file", k, err)
	}
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil || unix.ByteSliceToString(info.File_name[:]) != name[:63] {
		t.Errorf("its name is %q, %v, want %q", info.File_name, err, name[:63])
	}
	if info.Flags&unix.LO_FLAGS_READ_ONLY == 0 || info.Flags&unix.LO_FLAGS_AUTOCLEAR == 0 {
		t.Errorf("its flags are %#x, want read only, and to go by itself", info.Flags)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
	backing := "/sys/block/loop" + strconv.Itoa(n) + "/loop/backing_file"
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(time.Millisecond) {
		at, err := os.ReadFile(backing)
		if err != nil || strings.TrimSpace(string(at)) != f.Name() {
			return // it is gone, or somebody else's by now
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still there", Path(n))
		}
	}
}

// TestNoFile holds that what is no file is an error.
func TestNoFile(t *testing.T) {
	testenv.NeedRoot(t)
	if fd, n, err := Attach(-1, Options{}); err == nil {
		t.Errorf("Attach(-1) = %d, %d, nil, want an error", fd, n)
	}
}
