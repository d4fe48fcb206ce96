// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/lab/vm"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

// umlFirst is the first argument of these tests when they are the first process of a guest; the second
// names the file with the plan.
const umlFirst = "first-of-a-guest"

// umlMachine is a guest of User Mode Linux. Its root is this machine's, read-only, with nothing in /var and
// /run and with the tests' temporary files in memory.
type umlMachine struct {
	// programs is where umlPrograms put them.
	programs  string
	memoryMiB int
	modules   []string
	// parameters are those of modules by their names.
	parameters map[string]string
	disks      []uml.Disk
	// more are words of the kernel's command line.
	more []string
}

// guestMay is how long a guest may take, on a machine that has much else to do. One that hangs is ended before
// the tests are.
const guestMay = 20 * time.Minute

// umlPrograms builds these tests and the program for guests, into a directory that lasts as long as t.
func umlPrograms(t *testing.T) string {
	t.Helper()
	testenv.Need(t, uml.Program)
	dir := t.TempDir()
	builtInto(t, dir, map[string]string{"tests": built(t, module+"/e2e", true), "shisa": built(t, module+"/cmd/shisa", false)})
	return dir
}

// run runs one test of this package in the guest, with more of an environment, and holds that it passed.
func (m umlMachine) run(t *testing.T, test string, env ...string) {
	t.Helper()
	files, err := uml.Modules(uml.ModulesDir, m.modules...)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".ko")
		if p := m.parameters[name]; p != "" {
			files[i] += " " + p
		}
	}
	s := suite{pkg: "e2e", run: "^" + test + "$", must: []string{test}, env: append(env, "SHISA_TEST_ALL=1",
		"PATH="+m.programs+":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/run", "TMPDIR=/run/temp")}
	c := s.check()
	c.Command[0] = filepath.Join(m.programs, "tests")
	text, err := json.Marshal(vm.Plan{Modules: files, Checks: []vm.Check{c}})
	if err != nil {
		t.Fatal(err)
	}
	plan := filepath.Join(t.TempDir(), "plan.json")
	if err := os.WriteFile(plan, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := uml.RunUnconfined(t.Context(), uml.Options{Root: "/", Init: c.Command[0], Args: []string{umlFirst, plan},
		MemoryMiB: m.memoryMiB, Disks: m.disks, Append: m.more, Timeout: guestMay})
	t.Logf("%s: %v of wall clock, %v of processor", test, r.Took.Round(time.Millisecond), r.CPU.Round(time.Millisecond))
	if err != nil || len(r.Lines) != 1 {
		t.Fatalf("the guest said %d lines, want one: %v\n%s", len(r.Lines), err, r.Console)
	}
	var l vm.Line
	if err := json.Unmarshal(r.Lines[0], &l); err != nil || l.Result == nil {
		t.Fatalf("in the guest: %v, %s\n%s", err, r.Lines[0], r.Console)
	}
	s.judge(t, &vm.Report{Results: []vm.Result{*l.Result}})
	if t.Failed() {
		t.Logf("its console ends with\n%s", r.Console)
	}
}

// umlGuest is the first process of a guest. It turns the machine off without writing anything back: what
// does not answer would be waited for.
func umlGuest(plan string) {
	if err := umlChecks(plan); err != nil {
		fmt.Println("first process:", err)
	}
	fmt.Println(unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

func umlChecks(plan string) error {
	text, err := os.ReadFile(plan)
	if err != nil {
		return err
	}
	var p vm.Plan
	if err := json.Unmarshal(text, &p); err != nil {
		return err
	}
	for _, m := range []struct{ fs, at string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"},
		{"tmpfs", "/run"}, {"tmpfs", "/var"}} {
		if err := unix.Mount(m.fs, m.at, m.fs, unix.MS_NOSUID, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	say, err := uml.NewReporter()
	if err != nil {
		return err
	}
	fail := func(err error) error { return errors.Join(err, say.Say(vm.Line{Failed: err.Error()})) }
	for _, f := range p.Modules {
		file, parameters, _ := strings.Cut(f, " ")
		if err := uml.Load(file, parameters); err != nil {
			return fail(err)
		}
	}
	if err := umlPlaces(); err != nil {
		return fail(err)
	}
	for _, c := range p.Checks {
		if err := say.Say(vm.Line{Result: umlCheck(c)}); err != nil {
			return err
		}
	}
	return say.Close()
}

// umlPlaces makes what programs expect of a machine that has been started.
func umlPlaces() error {
	for _, dir := range []string{"/run/temp", "/var/log", "/var/lib", "/var/tmp"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	// Only where its module is loaded.
	if err := unix.Mount("nfsd", "/proc/fs/nfsd", "nfsd", 0, ""); err != nil && !errors.Is(err, unix.ENOENT) &&
		!errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("mount nfsd: %w", err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return errors.Join(unix.Sethostname([]byte("guest")), unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo))
}

func umlCheck(c vm.Check) *vm.Result {
	ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
	defer cancel()
	begun := time.Now()
	p := exec.CommandContext(ctx, c.Command[0], c.Command[1:]...)
	p.Env, p.Dir, p.WaitDelay = c.Env, "/", time.Second
	out, words := vm.Tail{Max: vm.MaxOutput / 8}, vm.Tail{Max: vm.MaxOutput / 8} // the line of a report is bounded
	p.Stdout, p.Stderr = &out, &words
	err := p.Run()
	r := &vm.Result{Name: c.Name, OK: err == nil, Took: time.Since(begun), Exit: -1,
		Stdout: string(bytes.ToValidUTF8(out.Bytes(), nil)), Stderr: string(bytes.ToValidUTF8(words.Bytes(), nil))}
	if err != nil {
		r.Error = err.Error()
	}
	if p.ProcessState != nil {
		r.Exit = p.ProcessState.ExitCode()
	}
	return r
}
