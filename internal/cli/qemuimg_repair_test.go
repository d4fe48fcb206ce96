// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/qemuimg"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// qresult is all that a caller of qemu-img sees.
type qresult struct {
	Code           int
	Stdout, Stderr string
}

func (r qresult) String() string {
	return fmt.Sprintf("exit status %d\nstdout:\n%sstderr:\n%s", r.Code, r.Stdout, r.Stderr)
}

// realImg runs the qemu-img of this machine.
func realImg(t *testing.T, args ...string) qresult {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "qemu-img", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return qresult{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// ourImg runs the qemu-img of this program.
func ourImg(t *testing.T, args ...string) qresult {
	t.Helper()
	var out, errOut bytes.Buffer
	code := RunQemuImg(t.Context(), append([]string{"qemu-img"}, args...), strings.NewReader(""), &out, &errOut)
	return qresult{code, out.String(), errOut.String()}
}

// ownLines are those that qemu-img has nothing like.
var ownLines = regexp.MustCompile(`(?m)^shisa: .*\n`)

// TestQemuImgRepairs holds check -r against that of qemu-img, on copies of the same broken images. What
// both say must be equal to the byte, but for lines that begin with "shisa: " and for the differences that
// mendedFaults names; for those the golden file has what shisa says. Afterwards qemu-img finds in ours
// what we said of it, guests read the same from both, nothing was punched out of ours, and undo gives the
// old bytes back.
func TestQemuImgRepairs(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	file := mustAbs(t, "testdata/qemuimg_repair.golden")
	dir := testenv.DiskDir(t)
	t.Chdir(dir)
	t.Setenv("SHISA_STATE", filepath.Join(dir, "state"))
	makeBases(t, dir)
	golden := map[string]string{}
	for _, c := range mendedFaults() {
		base, err := os.ReadFile(c.base)
		if err != nil {
			t.Fatal(err)
		}
		broken := c.fault(base)
		for _, m := range []struct{ mode, differs string }{{"leaks", c.leaks}, {"all", c.all}} {
			t.Run(c.name+"|"+m.mode, func(t *testing.T) {
				got := repairBoth(t, broken, m.mode, m.differs)
				if m.differs != "" {
					golden[c.name+", -r "+m.mode+": "+m.differs] = got.String()
				}
			})
		}
	}
	compareGolden(t, file, golden)
}

// repairBoth repairs copies of an image with both programs, and gives what ours said.
func repairBoth(t *testing.T, broken []byte, mode, differs string) qresult {
	t.Helper()
	json := []string{"check", "-f", "qcow2", "-r", mode, "--output=json", "x.qcow2"}
	writeSparse(t, "x.qcow2", broken)
	wantJSON := realImg(t, json...)
	writeSparse(t, "x.qcow2", broken)
	gotJSON := ourImg(t, json...)
	undoIt(t, broken)

	writeSparse(t, "x.qcow2", broken)
	want := realImg(t, "check", "-f", "qcow2", "-r", mode, "x.qcow2")
	if err := os.Rename("x.qcow2", "theirs.qcow2"); err != nil {
		t.Fatal(err)
	}
	writeSparse(t, "x.qcow2", broken)
	before := blocks(t, "x.qcow2")
	got := ourImg(t, "check", "-f", "qcow2", "-r", mode, "x.qcow2")
	own := strings.Join(ownLines.FindAllString(got.Stderr, -1), "")
	bare := func(r qresult) qresult {
		r.Stderr = ownLines.ReplaceAllString(r.Stderr, "")
		return r
	}
	same := cmp.Diff(want, bare(got)) == "" && cmp.Diff(wantJSON, bare(gotJSON)) == ""
	switch {
	case differs == "" && !same:
		t.Errorf("check -r %s (-want +got):\n%s%s", mode, cmp.Diff(want, bare(got)), cmp.Diff(wantJSON, bare(gotJSON)))
	case differs != "" && same:
		t.Errorf("check -r %s is the same as that of qemu-img, want the difference %q", mode, differs)
	}
	if now := realImg(t, "check", "-f", "qcow2", "x.qcow2"); got.Code != 1 && now.Code != got.Code {
		t.Errorf("qemu-img check afterwards = %d, want what we said, %d", now.Code, got.Code)
	}
	if blocks(t, "x.qcow2") < before {
		t.Errorf("disk use fell from %d blocks to %d", before, blocks(t, "x.qcow2"))
	}
	// What qemu-img leaves misaligned it cannot read; what was not finished is as it was.
	if r := realImg(t, "compare", "theirs.qcow2", "x.qcow2"); r.Code != 0 && got.Code != 1 &&
		realImg(t, "compare", "theirs.qcow2", "theirs.qcow2").Code == 0 {
		t.Errorf("guests read something else: %v", r)
	}
	kept := strings.Count(own, "shisa undo")
	if _, err := os.Stat("x.qcow2.shisa-undo"); kept > 1 || (err == nil) != (kept == 1) {
		t.Errorf("the undo file is there: %v; it is told %d times in\n%s", err == nil, kept, own)
	}
	undoIt(t, broken)
	got.Stderr = strings.ReplaceAll(got.Stderr, mustAbs(t, "x.qcow2"), "DIR/x.qcow2")
	return got
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// undoIt takes the repair of x.qcow2 back, and removes it with its undo file.
func undoIt(t *testing.T, want []byte) {
	t.Helper()
	undo := "x.qcow2.shisa-undo"
	if _, err := os.Stat(undo); err == nil {
		if status, out, errOut := call("undo", "--state", os.Getenv("SHISA_STATE"), "x.qcow2"); status != 0 {
			t.Errorf("shisa undo = %d\n%s%s", status, out, errOut)
		}
	}
	now, err := os.ReadFile("x.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(now, want) {
		t.Error("the image is not as it was before the repair")
	}
	for _, path := range []string{"x.qcow2", undo} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// writeSparse writes a file with a hole where a block of it is zero.
func writeSparse(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(data))); err != nil {
		t.Fatal(err)
	}
	const block = 4096
	for off := 0; off < len(data); off += block {
		p := data[off:min(off+block, len(data))]
		if len(bytes.TrimLeft(p, "\x00")) == 0 {
			continue
		}
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
}

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

// compareGolden holds what shisa says where it differs against the golden file.
func compareGolden(t *testing.T, file string, all map[string]string) {
	t.Helper()
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "=== %s\n%s\n", name, all[name])
	}
	if os.Getenv("SHISA_UPDATE") == "1" {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("what shisa says (-want +got):\n%s", diff)
	}
}

// noSync is a disk whose changed images never reach it.
type noSync struct{ diskio.Disk }

func (d noSync) OpenForRepair(path string) (diskio.Writable, error) {
	f, err := d.Disk.OpenForRepair(path)
	return noSyncFile{f}, err
}

type noSyncFile struct{ diskio.Writable }

func (noSyncFile) Sync() error { return syscall.EIO }

// TestQemuImgRefusesUnfinished: what was left in the middle is recovered first.
func TestQemuImgRefusesUnfinished(t *testing.T) {
	t.Chdir(t.TempDir())
	state := mustAbs(t, "state")
	t.Setenv("SHISA_STATE", state)
	if err := lab.Write("x.qcow2", lab.Spec{VirtualBytes: 1 << 20, TailLeaks: 3}); err != nil {
		t.Fatal(err)
	}
	f, err := diskio.Open("x.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	q := &qemuRepairer{tool: "test", now: time.Now}
	p, err := q.Plan(t.Context(), qemuimg.RepairJob{Path: "x.qcow2", File: f, Leaks: true,
		Check: qcow2.CheckOptions{DataFileBytes: -1}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = apply.Apply(t.Context(), p, apply.Options{Disk: noSync{diskio.Host()}, StateDir: state})
	if !errors.Is(err, apply.ErrInterrupted) {
		t.Fatalf("Apply = %v, want %v", err, apply.ErrInterrupted)
	}
	before, err := os.ReadFile("x.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	got := ourImg(t, "check", "-r", "leaks", "x.qcow2")
	if got.Code != 1 || got.Stdout != "" || !strings.Contains(got.Stderr, apply.ErrUnfinished.Error()) ||
		!strings.HasSuffix(got.Stderr, "\nqemu-img: Check failed\nshisa: shisa recover x.qcow2\n") {
		t.Errorf("check -r of an unfinished change = %v", got)
	}
	if now, err := os.ReadFile("x.qcow2"); err != nil || !bytes.Equal(now, before) {
		t.Errorf("the image was changed (%v)", err)
	}
	if status, out, errOut := call("recover", "--state", state, "x.qcow2"); status != 0 {
		t.Fatalf("shisa recover = %d\n%s%s", status, out, errOut)
	}
	if got := ourImg(t, "check", "-r", "leaks", "x.qcow2"); got.Code != 0 {
		t.Errorf("check -r after recovering = %v", got)
	}
}
