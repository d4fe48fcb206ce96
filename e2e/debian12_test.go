// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/holders/trace"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/lab/vm"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestDebian12 proves in Debian 12's kernel what other kernels refuse: all engines work there, and name
// who made umounts fail. TestDebian12Probe and TestDebian12Trace have the tests of the engines' own packages.
// Each has a guest of its own: what they do takes the emulation half a minute to a minute.
func TestDebian12(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	var must []string
	for _, e := range trace.Names() {
		must = append(must, "TestTracing/"+e)
	}
	said(t, guest(t, vm.Debian12, []suite{{pkg: "e2e", run: "^TestTracing$", env: everything(trace.Names()), must: must}},
		enginesAsked()))
}

func TestDebian12Devices(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	guest(t, vm.Debian12, []suite{{pkg: "e2e", run: "^TestDevices$", env: everything(nil),
		must: []string{"TestDevices/mapper", "TestDevices/md", "TestDevices/nbd"}}})
}

func TestDebian12Probe(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	must := []string{"TestHooks/fentry", "TestHooks/kprobe", "TestPollers", "TestPollersRelative", "TestKilled"}
	for _, e := range trace.Names() {
		must = append(must, "TestHeld/"+e, "TestElsewhere/"+e, "TestRingFull/"+e)
	}
	guest(t, vm.Debian12, []suite{{pkg: "internal/linux/probe", env: everything(trace.Names()), must: must,
		run: "^Test(Hooks|Held|Elsewhere|RingFull|Pollers|PollersRelative|Killed)$"}})
}

// TestDebian12Removers has a remover that has ended named by its command.
func TestDebian12Removers(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	guest(t, vm.Debian12, []suite{
		{pkg: "internal/linux/probe", run: "^TestVerified$/^removers", env: everything(nil), must: []string{"TestVerified/removers/removes"}},
		{pkg: "internal/linux/notice", run: "^Test(Watch|Ended|EndedUnknown)$", env: everything(nil),
			must: []string{"TestWatch", "TestEnded", "TestEndedUnknown"}},
	})
}

func TestDebian12Trace(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	guest(t, vm.Debian12, []suite{{pkg: "internal/holders/trace", run: "^Test(Engines|Auto|Any)$",
		env: everything(trace.Names()), must: []string{"TestEngines", "TestAuto", "TestAny"}}})
}

// TestDebian12Two has the engines that other kernels refuse watch two processors. It has the host's clock, so that what
// the program does within a second on a machine of its own is not asked of it.
func TestDebian12Two(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	hooks := []string{probe.Fentry, probe.Kprobe}
	var must []string
	for _, e := range hooks {
		must = append(must, "TestHooks/"+e, "TestHeld/"+e, "TestElsewhere/"+e, "TestRingFull/"+e)
	}
	guestOn(t, vm.Machine{CPUs: 2, MemoryMiB: 1536}, vm.Debian12, []suite{{pkg: "internal/linux/probe",
		run: "^Test(Hooks|Held|Elsewhere|RingFull)$", env: everything(hooks), must: must}})
}

// TestShort is what "make test" has a guest for: the engines that other kernels refuse name a holder
// there, and every kind of holder is found. The tests with Debian12 in their names have all of it.
func TestShort(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	short(t, vm.Debian12)
}

// TestDebian12Cloud has that in the kernel that Debian 12 has for guests.
func TestDebian12Cloud(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	short(t, vm.Debian12Cloud)
}

// TestDebian12RT has it in a kernel in which nearly everything can be interrupted.
func TestDebian12RT(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	short(t, vm.Debian12RT)
}

func short(t *testing.T, kernel string) {
	t.Helper()
	hooks := []string{probe.Fentry, probe.Kprobe}
	must := []string{}
	for _, e := range hooks {
		must = append(must, "TestTracing/"+e, "TestTracing/"+e+"/"+hold.CallLoop)
	}
	said(t, guest(t, kernel, []suite{
		{pkg: "e2e", run: "^TestTracing$/./^" + hold.CallLoop + "$", env: everything(hooks), must: must},
		kinds(),
	}, enginesAsked()))
}

// everything says that a guest has all that tests need, and these engines.
func everything(engines []string) []string {
	return []string{"SHISA_TEST_ALL=1", "SHISA_TEST_ENGINES=" + strings.Join(engines, ",")}
}

// enginesAsked has the program say which engines work.
func enginesAsked() vm.Check {
	return vm.Check{Name: "engines", Timeout: 5 * time.Minute,
		Command: []string{"/usr/bin/shisa", "holders", "--engines", "--json"}}
}

// said holds that all of them do.
func said(t *testing.T, r *vm.Report) {
	t.Helper()
	x, _ := r.Result("engines")
	var said struct {
		Engines []trace.EngineState `json:"engines"`
		Auto    string              `json:"auto"`
	}
	if err := json.Unmarshal([]byte(x.Stdout), &said); err != nil || !x.OK {
		t.Fatalf("shisa holders --engines: %s: %v\n%s", x.Error, err, x.Stderr)
	}
	if len(said.Engines) != len(trace.Names()) || said.Auto != probe.Fentry {
		t.Errorf("%d engines, of which %q is taken; want %d and %s", len(said.Engines), said.Auto,
			len(trace.Names()), probe.Fentry)
	}
	for i, e := range said.Engines {
		if e.Name != trace.Names()[i] || !e.Usable || e.Name != probe.Syscall && len(e.Missing) > 0 {
			t.Errorf("%+v, want that it works and sees everything", e)
		}
	}
}
