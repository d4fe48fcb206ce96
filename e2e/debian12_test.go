// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/holders/trace"
	"github.com/shisa-vm/shisa/internal/lab/vm"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

// TestDebian12 proves in Debian 12's kernel what other kernels refuse: all engines work there, and name
// who made umounts fail.
func TestDebian12(t *testing.T) {
	env := []string{"SHISA_TEST_ALL=1", "SHISA_TEST_ENGINES=" + strings.Join(trace.Names(), ",")}
	tracing, engines := []string{"TestDevices/mapper", "TestDevices/md", "TestDevices/nbd"}, []string{}
	for _, e := range trace.Names() {
		tracing = append(tracing, "TestTracing/"+e)
		engines = append(engines, "TestHeld/"+e, "TestElsewhere/"+e, "TestRingFull/"+e)
	}
	r := guest(t, vm.Debian12, []suite{
		{pkg: "e2e", run: "^Test(Devices|Tracing)$", env: env, must: tracing},
		{pkg: "internal/linux/probe", run: "^Test(Hooks|Held|Elsewhere|RingFull|Pollers)$", env: env,
			must: append(engines, "TestHooks/fentry", "TestHooks/kprobe", "TestPollers")},
		{pkg: "internal/holders/trace", run: "^Test(Engines|Auto|Any)$", env: env,
			must: []string{"TestEngines", "TestAuto", "TestAny"}},
	}, vm.Check{Name: "engines", Timeout: 5 * time.Minute,
		Command: []string{"/usr/bin/shisa", "holders", "--engines", "--json"}})
	x, _ := r.Result("engines")
	var said struct {
		Engines []trace.EngineState `json:"engines"`
	}
	if err := json.Unmarshal([]byte(x.Stdout), &said); err != nil || !x.OK {
		t.Fatalf("shisa holders --engines: %s: %v\n%s", x.Error, err, x.Stderr)
	}
	for i, e := range said.Engines {
		if e.Name != trace.Names()[i] || !e.Usable || e.Name != probe.Syscall && len(e.Missing) > 0 {
			t.Errorf("%+v, want that it works and sees everything", e)
		}
	}
}
