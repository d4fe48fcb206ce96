// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
)

// world is a disk in a sparse file.
type world struct {
	*os.File
	size int64
}

// newWorld makes a disk of zeros.
func newWorld(t testing.TB, size int64) *world {
	t.Helper()
	f, err := os.Create(filepath.Join(testenv.DiskDir(t), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return &world{f, size}
}

// disk is w as Find takes it.
func (w *world) disk(name string) Disk { return Disk{Name: name, Data: w, Size: w.size} }

// write puts bytes at a place of w.
func (w *world) write(t testing.TB, off int64, b []byte) {
	t.Helper()
	if _, err := w.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// bytes reads n bytes at a place of w.
func (w *world) bytes(t testing.TB, off, n int64) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := w.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	return b
}

// run starts a program with the text as its input. DISK stands for the name of w.
func (w *world) run(t testing.TB, stdin string, command string) string {
	t.Helper()
	return run(t, stdin, strings.Fields(strings.ReplaceAll(command, "DISK", w.Name()))...)
}

func run(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	testenv.Need(t, args[0])
	c := exec.Command(args[0], args[1:]...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.Output()
	if err != nil {
		text := ""
		if e, ok := err.(*exec.ExitError); ok {
			text = string(e.Stderr)
		}
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out, text)
	}
	return string(out)
}

// find looks at disks.
func find(t testing.TB, disks ...Disk) *Layout {
	t.Helper()
	l, err := Find(t.Context(), disks)
	if err != nil {
		t.Fatal(err)
	}
	checkLayout(t, l)
	return l
}

// checkLayout wants what holds of every layout.
func checkLayout(t testing.TB, l *Layout) {
	t.Helper()
	names := map[string]bool{}
	for i, v := range l.Volumes {
		key := fmt.Sprintf("%d/%s", v.Disk, v.Name)
		if names[key] {
			t.Errorf("two volumes of disk %d have the name %q", v.Disk, v.Name)
		}
		names[key] = true
		for _, in := range v.In {
			if in < 0 || in >= i {
				t.Errorf("volume %s lies in volume %d, which does not come before it", v.Name, in)
			}
		}
		if v.Kind == "" || v.Size < 0 {
			t.Errorf("volume %s has the kind %q and %d bytes", v.Name, v.Kind, v.Size)
		}
	}
}

// text is a layout for a comparison: a line for each volume.
func (l *Layout) text() string {
	var b strings.Builder
	for _, v := range l.Volumes {
		fmt.Fprintf(&b, "%s %s %d+%d\n", v.Name, v.Kind, v.Start, v.Size)
	}
	return b.String()
}
