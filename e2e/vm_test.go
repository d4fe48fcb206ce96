// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"context"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/lab/vm"
	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/testenv"
)

const module = "github.com/shisa-vm/shisa"

func TestMain(m *testing.M) {
	if url := os.Getenv(fetchURL); url != "" {
		if err := fetch(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	switch {
	case os.Getpid() == 1 && len(os.Args) > 2 && os.Args[1] == umlFirst:
		umlGuest(os.Args[2])
	case os.Getpid() == 1 && len(os.Args) > 2 && os.Args[1] == umlRoot:
		umlSystemd(os.Args[2])
	case hold.IsChild(os.Args):
		hold.Serve()
	case ask.IsChild(os.Args):
		os.Exit(ask.Serve())
	}
	os.Exit(testenv.Checked(withOnce{m}).Run())
}

// modules are what the tests need of a kernel that a machine has loaded or built in.
func modules() []string {
	return []string{"loop", "ext4", "crc32c_generic", "overlay", "fuse", "erofs", "binfmt_misc",
		"dm_mod", "raid1", "nbd"}
}

// tools are the programs that the tests call.
func tools() []string {
	return []string{"sh", "stat", "df", "ls", "cat", "tail", "timeout", "sleep", "mount", "umount", "losetup",
		"mkfs.ext4", "mkfs.erofs", "fuser", "lsof", "dmsetup", "mdadm", "qemu-nbd", "setpriv"}
}

// suite are the tests of a package that run in a guest.
type suite struct {
	pkg string // below the module
	// run and skip are what go test takes.
	run, skip string
	// must are tests that have to be among those that ran and passed.
	must []string
	env  []string
	// modules and tools are what it needs besides what all have.
	modules, tools []string
}

func (s suite) name() string { return path.Base(s.pkg) + ".test" }

func (s suite) check() vm.Check {
	c := vm.Check{Name: s.name(), Command: []string{"/lab/bin/" + s.name(), "-test.v", "-test.timeout=600s"},
		Timeout: 620 * time.Second, Env: append(s.env, testenv.InGuest+"=1")}
	if s.run != "" {
		c.Command = append(c.Command, "-test.run="+s.run)
	}
	if s.skip != "" {
		c.Command = append(c.Command, "-test.skip="+s.skip)
	}
	return c
}

// guestPatience is how long a guest may take on a machine that does ten other things.
const guestPatience = 40 * time.Minute

// guest runs suites in the kernel of a Debian package. It has one processor, so that its clock is its own.
func guest(t *testing.T, kernel string, suites []suite, also ...vm.Check) *vm.Report {
	t.Helper()
	return guestOn(t, vm.Machine{MemoryMiB: 1536}, kernel, suites, also...)
}

// guestOn does so on a machine.
func guestOn(t *testing.T, m vm.Machine, kernel string, suites []suite, also ...vm.Check) *vm.Report {
	t.Helper()
	testenv.NeedVM(t)
	programs, loaded := tools(), modules()
	for _, s := range suites {
		programs, loaded = append(programs, s.tools...), append(loaded, s.modules...)
	}
	testenv.Need(t, append(programs, vm.QEMU, "apt-get", "dpkg-deb")...)
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	i := imageOf(t, kernel)
	i.Modules, i.Programs, i.Checks = loaded, programs, also
	i.Files = map[string]string{"/usr/bin/shisa": built(t, module+"/cmd/shisa", false)}
	for _, s := range suites {
		i.Files["/lab/bin/"+s.name()] = built(t, module+"/"+s.pkg, true)
		i.Checks = append(i.Checks, s.check())
	}
	r, err := m.Run(ctx, i)
	if err != nil {
		t.Error(err) // what it said until then is told all the same
	}
	if r == nil {
		t.FailNow()
	}
	t.Logf("%s %s, up after %v; %v of wall clock, %v of processor", i.Kernel.Package, i.Kernel.Version,
		r.Booted.Took.Round(time.Millisecond), r.Took.Round(time.Millisecond), r.CPU.Round(time.Millisecond))
	for _, s := range suites {
		t.Run(s.name(), func(t *testing.T) { s.judge(t, r) })
	}
	return r
}

// imageOf is a guest with nothing but the kernel of a Debian package and its first process.
func imageOf(t *testing.T, kernel string) vm.Image {
	t.Helper()
	return vm.Image{Kernel: kernelOf(t, kernel), Init: built(t, vm.InitPackage, false)}
}

// passed is what go test -v prints of a test that passed; a subtest is indented.
var passed = regexp.MustCompile(`(?m)^ *--- PASS: (\S+) `)

func (s suite) judge(t *testing.T, r *vm.Report) {
	got, _ := r.Result(s.name())
	t.Logf("%v of the guest's clock", got.Took.Round(time.Millisecond))
	if !got.OK {
		t.Errorf("%s: %s\n%s\n%s", s.name(), got.Error, got.Stdout, got.Stderr)
		return
	}
	var names []string
	for _, m := range passed.FindAllStringSubmatch(got.Stdout, -1) {
		names = append(names, m[1])
	}
	for _, must := range s.must {
		if !slices.Contains(names, must) {
			t.Errorf("%s is not among what passed: %s\n%s", must, strings.Join(names, " "), got.Stdout)
		}
	}
	if testing.Verbose() {
		t.Log(got.Stdout)
	}
}
