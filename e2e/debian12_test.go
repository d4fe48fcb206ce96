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
)

// TestDebian12 proves in Debian 12's kernel what other kernels refuse: all engines work there, and name
// who made umounts fail.
func TestDebian12(t *testing.T) {
	env := everything(trace.Names())
	tracing, engines := []string{"TestDevices/mapper", "TestDevices/md", "TestDevices/nbd"}, []string{}
	for _, e := range trace.Names() {
		tracing = append(tracing, "TestTracing/"+e)
		engines = append(engines, "TestHeld/"+e, "TestElsewhere/"+e, "TestRingFull/"+e)
	}
	said(t, guest(t, vm.Debian12, []suite{
		{pkg: "e2e", run: "^Test(Devices|Tracing)$", env: env, must: tracing},
		{pkg: "internal/linux/probe", env: env,
			run: "^Test(Hooks|Held|Elsewhere|RingFull|Pollers|PollersRelative|Killed)$",
			must: append(engines, "TestHooks/fentry", "TestHooks/kprobe", "TestPollers",
				"TestPollersRelative", "TestKilled")},
		{pkg: "internal/holders/trace", run: "^Test(Engines|Auto|Any)$", env: env,
			must: []string{"TestEngines", "TestAuto", "TestAny"}},
	}, enginesAsked()))
}

// TestShort is what "make test" has a guest for: the engines that other kernels refuse name a holder
// there, and every kind of holder is found. TestDebian12 and TestDebian12Kinds have all of it.
func TestShort(t *testing.T) {
	hooks := []string{probe.Fentry, probe.Kprobe}
	must := []string{}
	for _, e := range hooks {
		must = append(must, "TestTracing/"+e, "TestTracing/"+e+"/"+hold.CallLoop)
	}
	// One processor is half the work for the emulation: whoever holds waits there until it is let go on.
	said(t, guestOn(t, vm.Machine{CPUs: 1, MemoryMiB: 1536}, vm.Debian12, []suite{
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
