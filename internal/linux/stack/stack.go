// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package stack gives names to the addresses on call stacks: those of the kernel, and those of a
// program, of which only the registers and a copy of a piece of its stack are left. Programs are
// mostly built without frame pointers, so their stacks are walked by the tables for exceptions
// (.eh_frame), which stay in stripped programs too.
//
// A program may be anybody's: its file and its stack are hostile bytes.
package stack

import (
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
)

const (
	// maxFrames bounds a walk: deeper stacks are cut, and said to be. perf(1) stops at 127.
	maxFrames = 128
	// registers are those of the larger architecture, by DWARF's numbers: arm64 has x0 to x30 and sp.
	registers = 32
)

// Frame is one function on a stack, the innermost first.
type Frame struct {
	// Module is the file as the process names it, "kernel", or the name of a kernel module.
	Module string `json:"module"`
	// Symbol is the function, "" where nothing tells; Offset is in bytes from its start, or from the
	// start of the file's image in memory.
	Symbol string `json:"symbol"`
	Offset uint64 `json:"offset"`
	// BuildID is the file's, in hex, "" if it has none.
	BuildID string `json:"build_id"`
	// Guessed: reached by a frame pointer, for there was no table; it may be wrong.
	Guessed bool `json:"guessed"`

	pc uint64 // the address in memory
}

// String is the frame on one line, as "libc.so.6`fstatat+0xa".
func (f Frame) String() string {
	text := filepath.Base(f.Module)
	if f.Symbol != "" {
		text += "`" + f.Symbol
	}
	if f.Guessed {
		text = "? " + text
	}
	return fmt.Sprintf("%s+0x%x", text, f.Offset)
}

// Sample is what was copied of a thread at one moment.
type Sample struct {
	// PC is where it was. Regs are its registers by the numbers that DWARF gives them on this
	// architecture; Known has the bit of each that was copied. The stack pointer must be.
	PC    uint64
	Regs  [registers]uint64
	Known uint64
	// Stack is the memory from the stack pointer upwards.
	Stack []byte
}

// Set sets register n.
func (s *Sample) Set(n int, v uint64) {
	s.Regs[n] = v
	s.Known |= 1 << n
}

// arch is what a walk needs to know of an architecture.
type arch struct {
	sp, fp  int    // stack pointer and frame pointer
	ra      uint64 // the column of the return address
	mask    uint64 // of an address: arm64 keeps a signature above
	machine uint16 // e_machine of its files
}

// walk is one walk up a stack.
type walk struct {
	arch
	base uint64 // address of the first byte of the sample's stack
	// exact: PC is where the frame goes on by itself. Else it is after a call, and may be the first
	// byte of the next function: what called is before it.
	exact bool
	Sample
}

// word is the machine word at an address of the stack.
func (w *walk) word(at uint64) (uint64, bool) {
	off := at - w.base
	if at < w.base || off+8 > uint64(len(w.Stack)) {
		return 0, false
	}
	return binary.LittleEndian.Uint64(w.Stack[off:]), true
}

// reg is register n, if it is known.
func (w *walk) reg(n uint64) (uint64, bool) {
	if n >= registers || w.Known&(1<<n) == 0 {
		return 0, false
	}
	return w.Regs[n], true
}

// Unwinder walks the stacks of programs. It keeps what it read of their files. It is for one
// goroutine at a time.
type Unwinder struct {
	root    string
	arch    arch
	skip    func(Mapping) bool
	modules map[key]*module
	order   []key // of modules, oldest first
}

// NewUnwinder returns one for the system below root, "" being the one that runs, on the
// architecture that this program is built for. Files of which skip says true are not opened: opening
// a file keeps its mount busy, and where the storage is dead it may hang. skip may be nil.
func NewUnwinder(root string, skip func(Mapping) bool) *Unwinder {
	return &Unwinder{root: root, arch: host, skip: skip, modules: map[key]*module{}}
}

// User walks the stack of a program whose mappings are given, the innermost frame first. why says
// where the walk ended early, and is "" where it came to the outermost frame. pid is where the
// program's files are looked for while it lives; it may be gone.
func (u *Unwinder) User(ctx context.Context, pid int, s Sample, maps []Mapping) (frames []Frame, why string) {
	w := &walk{arch: u.arch, exact: true, Sample: s}
	sp, ok := w.reg(uint64(w.sp))
	if !ok {
		return nil, "the stack pointer was not copied"
	}
	w.base = sp
	guessed := false
	for n := 0; ; n++ {
		if n == maxFrames {
			return frames, fmt.Sprintf("the stack has more than %d frames", maxFrames)
		}
		at, mapped := find(maps, w.PC)
		if !mapped {
			if n == 0 || !guessed {
				return frames, fmt.Sprintf("nothing is mapped at 0x%x", w.PC)
			}
			return frames, "a frame pointer led out of the program"
		}
		pc := w.PC
		if !w.exact {
			pc--
		}
		m, cause := u.module(ctx, pid, at)
		f := Frame{Module: at.Path, Offset: w.PC - at.Start + at.Offset, Guessed: guessed, pc: w.PC}
		var vaddr uint64
		if m != nil {
			var inImage bool
			if vaddr, inImage = m.vaddr(at, pc); inImage {
				f.BuildID = m.buildID
				f.Symbol, f.Offset = m.symbol(vaddr)
				f.Offset += w.PC - pc
			} else {
				m, cause = nil, "the address is in no segment of the file"
			}
		}
		frames = append(frames, f)
		next, how := w.up(m, vaddr, n == 0)
		switch how {
		case outermost:
			return frames, ""
		case broken:
			if cause == "" {
				cause = "nothing tells who called"
			}
			return frames, cause
		case cut:
			return frames, fmt.Sprintf("the copy of the stack, %d bytes, ends here", len(s.Stack))
		}
		guessed = how == byPointer
		*w = next
	}
}

// step is how a frame led to the one that called it.
type step int

const (
	byTable   step = iota // the tables of the file
	byPointer             // the frame pointer: a guess
	outermost             // there is none
	cut                   // it is beyond the copy of the stack
	broken                // nothing tells
)

// up is the walk at the caller. m may be nil.
func (w *walk) up(m *module, vaddr uint64, innermost bool) (walk, step) {
	if m != nil {
		if r, ok := m.rules(vaddr); ok {
			return w.apply(r)
		}
	}
	return w.chain(innermost)
}

// chain follows the frame pointer: at it lie the caller's and the return address.
func (w *walk) chain(innermost bool) (walk, step) {
	fp, known := w.reg(uint64(w.fp))
	sp, _ := w.reg(uint64(w.sp))
	if !known {
		return *w, broken
	}
	if fp == 0 && !innermost {
		return *w, outermost
	}
	if fp < sp || fp%8 != 0 {
		return *w, broken
	}
	up, ok1 := w.word(fp)
	pc, ok2 := w.word(fp + 8)
	switch {
	case !ok1 || !ok2:
		return *w, cut
	case pc&w.mask == 0:
		return *w, outermost
	case up != 0 && up <= fp:
		return *w, broken
	}
	next := *w
	next.Known = 0
	next.Set(w.fp, up)
	next.Set(w.sp, fp+16)
	next.PC, next.exact = pc&w.mask, false
	return next, byPointer
}
