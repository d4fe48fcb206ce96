// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"context"
	"math"
	"runtime"
	"slices"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/stack"
)

// Stacks gives names to the frames of stacks. It is used by one goroutine.
type Stacks interface {
	// Tick is called every now and then, also while nothing happens.
	Tick()
	// Note: a stack of this process may be asked for; it may be gone then. start is when it started,
	// in ns since the boot.
	Note(pid int, start int64)
	// Kernel names addresses of the kernel, User walks a user's stack: regs by the numbers of DWARF,
	// the program counter being the last, and the bytes from the stack pointer on.
	Kernel(addrs []uint64) []holders.Frame
	User(pid int, start int64, regs []uint64, stack []byte) []holders.Frame
	// Lost is how much was not told of what programs have mapped, which names the functions of those that
	// are gone. Any goroutine may ask.
	Lost() int64
	Close() error
}

const (
	// maxNoted bounds the processes whose mappings are kept for when they are gone.
	maxNoted = 256
	// pcAMD64 and pcARM64 are where the program counter is among the registers.
	pcAMD64, pcARM64 = 16, 32
)

// symbols are the Stacks of the running system.
type symbols struct {
	ctx    context.Context
	kernel *stack.Kernel   // nil: it hides its addresses
	follow *stack.Follower // nil: the kernel refuses it
	unwind *stack.Unwinder
	noted  map[noted][]stack.Mapping
	order  []noted
}

type noted struct {
	pid   int
	start int64
}

// NewStacks returns the Stacks of the running system, for the time of ctx. notes says what they lack.
// No file is opened on the mounts that are watched, which that would keep busy, nor on file systems
// that may hang.
func NewStacks(ctx context.Context, host *linux.Host, watched []linux.Mount) (s Stacks, notes []string) {
	y := &symbols{ctx: ctx, noted: map[noted][]stack.Mapping{}}
	var err error
	if y.kernel, err = stack.OpenKernel(""); err != nil {
		notes = append(notes, "stacks of the kernel have no names: "+err.Error())
	}
	if y.follow, err = stack.Follow(""); err != nil {
		notes = append(notes, "programs that end at once may have no stack: "+err.Error())
	}
	table, err := host.Mounts(ctx, 0)
	if err != nil {
		notes = append(notes, "stacks of programs have no names: "+err.Error())
	}
	y.unwind = stack.NewUnwinder("", func(m stack.Mapping) bool {
		// Only the name tells: the kernel's records of mappings have no device.
		at := mountAt(table, m.Path)
		return err != nil || at.ID == 0 || linux.MayHang(at.Type) != "" ||
			slices.ContainsFunc(watched, func(w linux.Mount) bool { return w.Dev == at.Dev })
	})
	return y, notes
}

func (y *symbols) Tick() {
	if y.follow != nil {
		y.follow.Take()
	}
}

func (y *symbols) Note(pid int, start int64) {
	k := noted{pid, start}
	if _, ok := y.noted[k]; ok {
		return
	}
	maps, err := y.mappings(pid)
	if err != nil {
		return // User finds none either
	}
	if len(y.order) == maxNoted {
		delete(y.noted, y.order[0])
		y.order = y.order[1:]
	}
	y.noted[k] = maps
	y.order = append(y.order, k)
}

func (y *symbols) mappings(pid int) ([]stack.Mapping, error) {
	if y.follow != nil {
		return y.follow.Mappings(pid)
	}
	return stack.Maps("", pid)
}

func (y *symbols) Kernel(addrs []uint64) []holders.Frame {
	return y.kernel.Frames(y.kernel.Inner(addrs))
}

func (y *symbols) User(pid int, start int64, regs []uint64, bytes []byte) []holders.Frame {
	maps, known := y.noted[noted{pid, start}]
	pc := map[string]int{"amd64": pcAMD64, "arm64": pcARM64}[runtime.GOARCH]
	if !known || len(regs) <= pc {
		return nil
	}
	at := stack.Sample{PC: regs[pc], Stack: bytes}
	for i, r := range regs[:pc] {
		at.Set(i, r)
	}
	frames, _ := y.unwind.User(y.ctx, pid, at, maps)
	return frames
}

func (y *symbols) Lost() int64 {
	if y.follow == nil {
		return 0 // the notes say that nothing is followed
	}
	return int64(min(y.follow.Lost(), math.MaxInt64))
}

func (y *symbols) Close() error {
	if y.follow == nil {
		return nil
	}
	return y.follow.Close()
}
