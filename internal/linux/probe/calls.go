// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"fmt"
	"strconv"
	"strings"
)

// call is what the engines know of a system call. Arguments are counted from 0.
type call struct {
	nr    int
	name  string
	class uint32
}

// Classes of system calls, as in engine.h: which argument is a path, a descriptor, the result.
const (
	classUmount = 0x40
	classStat   = 0x80
	classStatx  = 0x100
	classOpen   = 0x1000
	classClose  = 0x2000
	classChdir  = 0x4000
	classExit   = 0x8000
	classStatfs = 0x10000
	classFork   = 0x20000
	classRemove = 0x40000 // removers.c
)

func pathAt(arg uint32) uint32 { return arg + 1 }
func fdAt(arg uint32) uint32   { return (arg + 1) << 3 }
func bufAt(arg uint32) uint32  { return arg << 9 }

// maxCalls bounds the numbers of system calls: CALLS in engine.h.
const maxCalls = 512

// CallName gives the name of a system call.
func CallName(nr int64) string {
	for _, c := range calls() {
		if int64(c.nr) == nr {
			return c.name
		}
	}
	if nr < 0 {
		return ""
	}
	return "syscall " + strconv.FormatInt(nr, 10)
}

// String writes the call with its path, or with the descriptor that it is about, as strace does.
func (c Call) String() string {
	if c.Nr < 0 {
		return ""
	}
	return CallName(c.Nr) + "(" + strings.Join(c.Arguments(), ", ") + ")"
}

// Arguments gives the arguments that are known to mean something: paths and descriptors.
func (c Call) Arguments() []string {
	for _, k := range calls() {
		if int64(k.nr) != c.Nr {
			continue
		}
		var out []string
		if n := k.class >> 3 & 7; n > 0 {
			out = append(out, descriptor(c.Args[n-1]))
		}
		if k.class&7 > 0 {
			out = append(out, strconv.Quote(c.Text))
		}
		if k.class&classUmount != 0 {
			out = append(out, fmt.Sprintf("%#x", uint32(c.Args[1])))
		}
		return out
	}
	return nil
}

func descriptor(arg uint64) string {
	if int32(arg) == -100 {
		return "AT_FDCWD"
	}
	return strconv.Itoa(int(int32(arg)))
}
