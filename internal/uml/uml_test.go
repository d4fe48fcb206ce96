// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package uml_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

// asked is what guests of these tests are asked for: "look", or "wait" for ever.
const asked = "TestsOfUML"

func TestMain(m *testing.M) {
	if uml.IsStage(os.Args) {
		os.Exit(uml.Stage())
	}
	if len(os.Args) == 4 && os.Args[1] == waitArg {
		fmt.Fprintln(os.Stderr, waiting(os.Args[2], os.Args[3]))
		return
	}
	if os.Getpid() == 1 && len(os.Args) > 2 && os.Args[1] == asked {
		if err := first(os.Args[2]); err != nil {
			fmt.Println("first process:", err)
		}
		fmt.Println(uml.PowerOff())
		return
	}
	testenv.Main(m)
}

// look is what a guest reports.
type look struct {
	Names  []string
	Env    string
	Read   string
	Failed string
}

// first is the first process of a guest.
func first(what string) error {
	if err := uml.Prepare(); err != nil {
		return err
	}
	r, err := uml.NewReporter()
	if err != nil {
		return err
	}
	switch what {
	case "wait":
		if err := r.Say("waiting"); err != nil {
			return err
		}
		time.Sleep(time.Hour)
	case "chatter":
		for {
			if err := r.Say(strings.Repeat("x", 100)); err != nil {
				return err
			}
		}
	case "rubbish":
		return os.WriteFile(uml.ReportPath, []byte("{\n"), 0)
	}
	l := look{Env: os.Getenv("COLOUR")}
	err = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && slices.Contains([]string{"/dev", "/proc", "/sys"}, path) {
			return fs.SkipDir
		}
		l.Names = append(l.Names, path)
		return err
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile("/x", nil, 0o600); err != nil {
		l.Failed = err.Error()
	}
	f, err := os.OpenFile(uml.DiskPath(0), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	p := make([]byte, 16)
	if _, err := f.ReadAt(p, 1<<20); err != nil {
		return err
	}
	l.Read = string(p)
	if _, err := f.WriteAt(bytes.ToUpper(p), 2<<20); err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close(), r.Say(l), r.Say("done"))
}

// guestProgram names what guestFile gave before, for tests that are started once more.
const guestProgram = "SHISA_TEST_UML_GUEST"

// guestFile gives a program for guests: this one, static.
func guestFile(t *testing.T) string {
	t.Helper()
	if name := os.Getenv(guestProgram); name != "" {
		return name
	}
	to := filepath.Join(t.TempDir(), "guest")
	c := exec.Command("go", "test", "-c", "-o", to, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v: %s", err, out)
	}
	return to
}

// disk makes a disk of 4 MiB that begins with some bytes.
func disk(t *testing.T, head string) string {
	t.Helper()
	raw := make([]byte, 4<<20)
	copy(raw, head)
	copy(raw[1<<20:], "sixteen letters.")
	name := filepath.Join(t.TempDir(), "disk,with a comma")
	if err := os.WriteFile(name, raw, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, 0o666); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestRunUser runs a guest for a user without any rights.
func TestRunUser(t *testing.T) {
	testenv.Need(t, uml.Program, "setpriv")
	if os.Geteuid() != 0 {
		testRun(t)
		return
	}
	// Where everybody finds it, with a place for temporary files.
	dir, err := os.MkdirTemp("/tmp", "shisa-uml-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(os.Chmod(dir, 0o777), os.Rename(guestFile(t), dir+"/tests")); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", dir+"/tests",
		"-test.v", "-test.run=^TestRun$")
	c.Env = append(os.Environ(), "TMPDIR="+dir, guestProgram+"="+dir+"/tests")
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestRun ") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

func TestRun(t *testing.T) {
	testenv.Need(t, uml.Program)
	testRun(t)
}

func testRun(t *testing.T) {
	name := disk(t, "")
	r, err := uml.Run(t.Context(), uml.Options{MemoryMiB: 96, Init: "/init", Args: []string{asked, "look"},
		Files: []uml.File{{Name: "init", Path: guestFile(t)}, {Name: "a/b", Content: []byte("b")}},
		Env:   []string{"COLOUR=red"}, Disks: []uml.Disk{{Path: name}}})
	if err != nil {
		t.Fatalf("Run = %v; its console ends with\n%s", err, r.Console)
	}
	t.Logf("took %v, CPU %v", r.Took, r.CPU)
	if len(r.Lines) != 2 || string(r.Lines[1]) != `"done"` {
		t.Fatalf("Run gave %d lines (%s), want 2; its console ends with\n%s", len(r.Lines), r.Lines, r.Console)
	}
	var l look
	if err := json.Unmarshal(r.Lines[0], &l); err != nil {
		t.Fatal(err)
	}
	want := []string{"/", "/a", "/a/b", "/init", "/mnt", "/run", "/tmp"}
	if !slices.Equal(l.Names, want) {
		t.Errorf("the guest sees %q, want %q", l.Names, want)
	}
	if l.Env != "red" || l.Read != "sixteen letters." || !strings.Contains(l.Failed, "read-only") {
		t.Errorf("the guest says %+v", l)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(raw[2<<20:][:16]); got != "SIXTEEN LETTERS." {
		t.Errorf("the guest wrote %q", got)
	}
}

// TestForeign gives a guest a disk that begins as a copy-on-write file of User Mode Linux does, one that names
// a file of the host. The kernel asks for the length of that file, in its own root, and finds none.
func TestForeign(t *testing.T) {
	testenv.Need(t, uml.Program)
	// arch/um/drivers/cow_user.c, struct cow_header_v2.
	name := disk(t, "OOOM\x00\x00\x00\x02/etc/hostname")
	r, err := uml.Run(t.Context(), uml.Options{Init: "/init", Args: []string{asked, "look"},
		Files: []uml.File{{Name: "init", Path: guestFile(t)}}, Disks: []uml.Disk{{Path: name}}})
	if err != nil || len(r.Lines) != 0 || !strings.Contains(string(r.Console), "open /dev/ubda: no such file") {
		t.Errorf("Run = %v, %s; its console ends with\n%s", err, r.Lines, r.Console)
	}
}

// TestConfined looks at the guest's kernel from outside.
func TestConfined(t *testing.T) {
	testenv.Need(t, uml.Program)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	guest := guestFile(t)
	go func() {
		_, err := uml.Run(ctx, uml.Options{Init: "/init", Args: []string{asked, "wait"},
			Files: []uml.File{{Name: "init", Path: guest}}, Disks: []uml.Disk{{Path: disk(t, "")}}})
		ended <- err
	}()
	pid := kernelOf(t, ended)
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	wants := []string{"NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"}
	if os.Geteuid() == 0 {
		wants = append(wants, "Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:\t \n")
	}
	for _, want := range wants {
		if !strings.Contains(string(status), want) {
			t.Errorf("its status lacks %q:\n%s", want, status)
		}
	}
	names, err := os.ReadDir("/proc/" + pid + "/root")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if !slices.Contains([]string{"kernel", "memory", "root", "dev", "disk0", "lib", "lib64", "usr"}, n.Name()) {
			t.Errorf("it sees /%s", n.Name())
		}
	}
	mounts, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil || strings.Count(string(mounts), "\n") != 3 {
		t.Errorf("it has the mounts\n%s%v, want its root, its disk and /dev/null", mounts, err)
	}
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		its, err2 := os.Readlink("/proc/" + pid + "/ns/" + ns)
		if err != nil || err2 != nil || own == its {
			t.Errorf("namespace %s: %s, its %s, %v, %v", ns, own, its, err, err2)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v, want it cancelled", err)
	}
}

// kernelOf waits for the kernel of a guest that this process started, and gives its number.
func kernelOf(t *testing.T, ended <-chan error) string {
	t.Helper()
	for {
		for _, stage := range children(strconv.Itoa(os.Getpid())) {
			for _, pid := range children(stage) {
				if name, err := os.ReadFile("/proc/" + pid + "/cmdline"); err == nil &&
					strings.HasPrefix(string(name), "/kernel/linux") {
					return pid
				}
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("Run = %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func children(pid string) []string {
	var all []string
	tasks, _ := filepath.Glob("/proc/" + pid + "/task/*/children")
	for _, name := range tasks {
		raw, err := os.ReadFile(name)
		if err == nil {
			all = append(all, strings.Fields(string(raw))...)
		}
	}
	return all
}

// TestEnds ends guests that would not end.
func TestEnds(t *testing.T) {
	testenv.Need(t, uml.Program)
	guest := guestFile(t)
	for _, c := range []struct {
		what    string
		timeout time.Duration
		want    string
	}{
		{"wait", 3 * time.Second, "the guest was ended after 3s"},
		{"chatter", 0, "more than 10000 lines"},
		{"rubbish", 0, uml.ErrReport.Error()},
	} {
		r, err := uml.Run(t.Context(), uml.Options{Init: "/init", Args: []string{asked, c.what}, Timeout: c.timeout,
			Files: []uml.File{{Name: "init", Path: guest}}})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Run = %v, want %q; %d lines, its console ends with\n%s", c.what, err, c.want, len(r.Lines),
				r.Console)
		}
	}
}

// TestUnconfined runs a guest whose root is the host's.
func TestUnconfined(t *testing.T) {
	testenv.Need(t, uml.Program)
	r, err := uml.RunUnconfined(t.Context(), uml.Options{Root: "/", Init: guestFile(t),
		Args: []string{asked, "rubbish"}})
	if !errors.Is(err, uml.ErrReport) {
		t.Errorf("RunUnconfined = %v, want %v; its console ends with\n%s", err, uml.ErrReport, r.Console)
	}
}

// TestNotConfined does not run what it cannot confine: this root may make no namespaces.
func TestNotConfined(t *testing.T) {
	testenv.Need(t, uml.Program)
	testenv.NeedRoot(t)
	if testenv.AsUser(t) {
		return
	}
	_, err := uml.Run(t.Context(), uml.Options{Init: "/init", Files: []uml.File{{Name: "init"}}})
	if !errors.Is(err, uml.ErrConfine) {
		t.Errorf("Run = %v, want %v", err, uml.ErrConfine)
	}
}

func TestRefused(t *testing.T) {
	for name, o := range map[string]uml.Options{
		"a root":        {Root: "/", Init: "/init"},
		"a blank":       {Init: "/in it"},
		"a newline":     {Init: "/init", Args: []string{"a\nb"}},
		"a way out":     {Init: "/init", Files: []uml.File{{Name: "../x"}}},
		"no name":       {Init: "/init", Files: []uml.File{{}}},
		"much memory":   {Init: "/init", MemoryMiB: 1 << 20},
		"no such disk":  {Init: "/init", Disks: []uml.Disk{{Path: "/nonexistent"}}},
		"no such file":  {Init: "/init", Files: []uml.File{{Name: "init", Path: "/nonexistent"}}},
		"no User Mode ": {Init: "/init", Program: "/nonexistent"},
	} {
		if name == "no such disk" || name == "no such file" {
			testenv.Need(t, uml.Program)
		}
		if r, err := uml.Run(t.Context(), o); err == nil || r == nil {
			t.Errorf("%s: Run = %v, want an error", name, err)
		}
	}
	_, err := uml.Run(t.Context(), uml.Options{Init: "/init", Program: "/nonexistent"})
	if !errors.Is(err, uml.ErrUnavailable) {
		t.Errorf("Run without a kernel = %v, want %v", err, uml.ErrUnavailable)
	}
}

func TestModules(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "6.1")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"modules.dep":     "a/top.ko: a/mid-dle.ko a/low.ko\na/mid-dle.ko: a/low.ko\na/low.ko:\na/alone.ko:\n",
		"modules.builtin": "kernel/fs/ext4/ext4.ko\n",
	} {
		if err := os.WriteFile(filepath.Join(at, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := uml.Modules(dir, "ext4", "mid_dle", "top")
	want := []string{at + "/a/low.ko", at + "/a/mid-dle.ko", at + "/a/top.ko"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Modules = %q, %v, want %q", got, err, want)
	}
	if _, err := uml.Modules(dir, "none"); !errors.Is(err, uml.ErrUnavailable) {
		t.Errorf("Modules of one that is not there = %v, want %v", err, uml.ErrUnavailable)
	}
}
