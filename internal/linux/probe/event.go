// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"bytes"
	"fmt"
	"strings"
	"unsafe"
)

// EventKind is what an engine saw.
type EventKind uint32

// The kinds of events.
const (
	// Umount: a umount ended.
	Umount EventKind = 1
	// Hold: a reference that a umount may have met was dropped.
	Hold EventKind = 2
	// Suspect: a system call that overlapped a umount.
	Suspect EventKind = 3
)

// Call is a system call.
type Call struct {
	Nr   int64 // -1: none was seen
	Args [6]uint64
	Text string // of the argument that is a path, "" if it has none or it was not in memory
}

// Event is what an engine tells of. All that is known of the task is in it: the task may be gone.
type Event struct {
	Kind EventKind
	// TS is when the reference was dropped, or the umount ended; Since when it was taken or began, 0
	// if that was not seen. Both are of CLOCK_MONOTONIC, in ns.
	TS, Since int64
	// Start is when the task started, of CLOCK_BOOTTIME, in ns: with PID it names a process for good.
	Start int64
	// Mount and Super are addresses in the kernel, 0 if not known, Peer that of a busy peer.
	Mount, Super, Peer uint64
	MountID            int
	UniqueID           uint64 // 0 before 6.8
	Dev                uint64 // as in struct stat
	MountNamespace     uint64 // of the mount; 0: it has none, or none any more
	Count, Before      int64  // references: at the end of the umount or after the drop; at the begin
	CountRead          bool
	Ret                int // of umount, where RetRead
	RetRead            bool
	Attached, Children bool // of the mount after the umount
	SameCall           bool // taken and dropped in one system call
	Early              bool // a reference that was there already when the watching began: Since is 0
	Released           bool // a suspect let a file or directory of the mount go
	InFlight           bool // a suspect was seen before the umount ended
	Kernel             bool // a thread of the kernel

	PID, TID, Parent int
	UID              int
	Namespace        uint64 // mount namespace of the task
	CPU              int
	Comm, ParentComm string
	Command          []string // may be cut
	Exe              string   // may lack its first directories, then begins with "..."
	Where            string   // the mount's point or the file let go, as Exe
	Groups           []string // names of the control group, the innermost first
	Got, Let         Call     // what took and what dropped it
	GotStack         []uint64 // of the kernel, innermost first
	LetStack         []uint64
	Regs             []uint64 // the user's registers, in the order of DWARF
	Stack            []byte   // the user's stack from the stack pointer on, at most 16 KiB
}

// Flags of an event, as in engine.h.
const (
	flagKernel   = 1
	flagAttached = 4
	flagChildren = 8
	flagSameCall = 16
	flagRet      = 32
	flagCount    = 64
	flagRelease  = 128
	flagInFlight = 256
	flagEarly    = 1024
)

// headBytes is the size of an event without the stack.
const headBytes = int(unsafe.Sizeof(watchEvent{}))

// decode reads an event as the ring buffer gives it.
func decode(raw []byte) (Event, error) {
	if len(raw) < headBytes {
		return Event{}, fmt.Errorf("read an event of the kernel: it has %d bytes, not %d", len(raw), headBytes)
	}
	var w watchEvent
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&w)), headBytes), raw)
	e := Event{
		Kind: EventKind(w.Kind), TS: int64(w.Ts), Since: int64(w.Since), Start: int64(w.Start),
		Mount: w.Mount, Super: w.Super, Peer: w.Peer, MountID: int(w.MntId), UniqueID: w.Unique,
		Dev: userDev(w.Dev), MountNamespace: uint64(w.MountNs), Count: w.Count, Before: w.Before,
		CountRead: w.Flags&flagCount != 0, Ret: int(w.Ret), RetRead: w.Flags&flagRet != 0,
		Attached: w.Flags&flagAttached != 0, Children: w.Flags&flagChildren != 0,
		SameCall: w.Flags&flagSameCall != 0, Released: w.Flags&flagRelease != 0,
		InFlight: w.Flags&flagInFlight != 0, Early: w.Flags&flagEarly != 0, Kernel: w.Flags&flagKernel != 0,
		PID: int(w.Pid), TID: int(w.Tid), Parent: int(w.Ppid), UID: int(w.Uid),
		Namespace: uint64(w.Mntns), CPU: int(w.Cpu),
		Comm: text(w.Comm[:]), ParentComm: text(w.Pcomm[:]),
		Exe: path(w.Exe[:]), Where: path(w.Where[:]),
		Got:      Call{w.Got.Nr, w.Got.Args, text(w.Got.Text[:])},
		Let:      Call{w.Let.Nr, w.Let.Args, text(w.Let.Text[:])},
		GotStack: frames(w.GotFrames[:], w.Ngot), LetStack: frames(w.LetFrames[:], w.Nlet),
	}
	// A loop makes its calls from one place: only the arguments set them apart.
	e.SameCall = e.SameCall && e.Got.Nr == e.Let.Nr && e.Got.Args == e.Let.Args
	if n := min(int(w.Ncommand), len(w.Command)); n > 0 {
		e.Command = strings.Split(strings.TrimSuffix(string(w.Command[:n]), "\x00"), "\x00")
	}
	for _, g := range w.Group {
		if name := text(g[:]); name != "" {
			e.Groups = append(e.Groups, name)
		}
	}
	if n := int(w.Nstack); n > 0 && n <= len(raw)-headBytes {
		e.Regs = append(e.Regs, w.Regs[:userRegs]...)
		e.Stack = bytes.Clone(raw[headBytes : headBytes+n])
	}
	return e, nil
}

// text is a string of C.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// path puts names together that begin with the last.
func path(names [][48]uint8) string {
	var out string
	for i, n := range names {
		name := text(n[:])
		if name == "" {
			if i == 0 {
				return ""
			}
			return out
		}
		out = "/" + name + out
	}
	return "..." + out
}

func frames(f []uint64, n uint32) []uint64 {
	return append([]uint64(nil), f[:min(int(n), len(f))]...)
}

// userDev gives the number of a device as struct stat has it, from the kernel's own, which is
// 12 bits of major and 20 of minor number.
func userDev(dev uint32) uint64 {
	major, minor := uint64(dev>>20), uint64(dev&(1<<20-1))
	return minor&0xff | major&0xfff<<8 | minor&^0xff<<12
}

// kernelDev is the other way round.
func kernelDev(dev uint64) uint32 {
	major, minor := dev>>8&0xfff, dev&0xff|dev>>12&^0xff
	return uint32(major<<20 | minor&(1<<20-1))
}
