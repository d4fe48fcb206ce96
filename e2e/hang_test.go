// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/shisa-vm/shisa/internal/lab/vm"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// hangWay names the way in which a guest's kernel is to hang.
const hangWay = "SHISA_HANGS"

// TestHangs has the kernels of guests hang, and holds that a guest fails then and its console ends with where: in a
// call that never ends, by the kernel's own watch; with interrupts off, where nothing in the kernel can watch, when the
// guest has used up its time; and so for a program that never ends, of two processors as well: one of them says where it is.
func TestHangs(t *testing.T) {
	testenv.NeedVM(t)
	testenv.Need(t, vm.QEMU, "apt-get", "dpkg-deb")
	t.Parallel()
	tests := built(t, module+"/e2e", true)
	for _, c := range []struct {
		way     string
		machine vm.Machine
		limit   bool
		shows   []string
	}{
		{"call", vm.Machine{Kernel: []string{"watchdog_thresh=2"}}, false, []string{"soft lockup", "bpf_test_run"}},
		{"interrupts", vm.Machine{Limit: 15 * time.Second}, true, []string{"NMI", "bpf_trace_run"}},
		{"program", vm.Machine{Limit: 15 * time.Second}, true, []string{"NMI", "Comm: e2e.test"}},
		{"one of two programs", vm.Machine{CPUs: 2, Limit: 15 * time.Second}, true, []string{"NMI"}},
	} {
		t.Run(c.way, func(t *testing.T) {
			i := imageOf(t, vm.Debian12)
			i.Files = map[string]string{"/lab/bin/e2e.test": tests}
			i.Checks = []vm.Check{{Name: c.way, Timeout: 2 * time.Hour, Env: []string{testenv.InGuest + "=1", hangWay + "=" + c.way},
				Command: []string{"/lab/bin/e2e.test", "-test.run=^TestHangInside$", "-test.timeout=0"}}}
			ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
			defer cancel()
			r, err := c.machine.Run(ctx, i)
			if err == nil || errors.Is(err, vm.ErrLimit) != c.limit || ctx.Err() != nil {
				t.Fatalf("the error is %v, want one, and by the limit: %v", err, c.limit)
			}
			t.Logf("%v of wall clock, %v of processor", r.Took.Round(time.Millisecond), r.CPU.Round(time.Millisecond))
			for _, want := range append(c.shows, "Kernel panic", "Call Trace") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in %v", want, err)
				}
			}
		})
	}
}

// TestHangInside never ends.
func TestHangInside(t *testing.T) {
	testenv.NeedGuest(t)
	kind := map[string]ebpf.ProgramType{"call": ebpf.SocketFilter, "interrupts": ebpf.RawTracepoint}[os.Getenv(hangWay)]
	if kind == ebpf.UnspecifiedProgram {
		for {
			continue
		}
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: kind, License: "GPL", Instructions: endless()})
	if err != nil {
		t.Fatal(err)
	}
	if kind == ebpf.SocketFilter {
		_, err = p.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	} else if _, err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_switch", Program: p}); err == nil {
		time.Sleep(time.Second) // others have their turn, which does not come to its end
	}
	t.Fatalf("the kernel goes on: %v", err)
}

// endless is a program of bpf(2) that runs for years: a loop of eight million turns, each of which is such a loop again.
func endless() asm.Instructions {
	integer := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	pointer := &btf.Pointer{Target: &btf.Void{}}
	function := func(name string, linkage btf.FuncLinkage, params ...btf.FuncParam) asm.Instruction {
		f := &btf.Func{Name: name, Linkage: linkage, Type: &btf.FuncProto{Return: integer, Params: params}}
		return btf.WithFuncMetadata(asm.Mov.Imm(asm.R0, 0).WithSymbol(name), f)
	}
	loop := func(turn string) asm.Instructions {
		const turns = 1 << 23 // BPF_MAX_LOOPS
		return asm.Instructions{
			asm.Mov.Imm(asm.R1, turns),
			asm.Instruction{OpCode: asm.LoadImmOp(asm.DWord), Dst: asm.R2, Src: asm.PseudoFunc, Constant: -1}.WithReference(turn),
			asm.Mov.Imm(asm.R3, 0),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnLoop.Call(),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		}
	}
	turn := []btf.FuncParam{{Name: "index", Type: integer}, {Name: "context", Type: pointer}}
	all := append(asm.Instructions{function("begin", btf.GlobalFunc, btf.FuncParam{Name: "context", Type: pointer})},
		loop("outer")...)
	all = append(append(all, function("outer", btf.StaticFunc, turn...)), loop("inner")...)
	return append(all, function("inner", btf.StaticFunc, turn...), asm.Return())
}
