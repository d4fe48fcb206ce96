// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package code keeps the program itself small in memory. Where a page of it is touched, the kernel maps
// the 64 KiB around it (fault_around_bytes; Linux 6.12, mm/memory.c, do_fault_around), and the tables of
// the Go runtime, the initialisers of packages and the code are touched a little everywhere: a command
// that needs 1 MiB of the program had 8 mapped. The kernel never maps beyond a mapping, so ours are cut
// into small ones.
//
// That is worth most before the other packages are initialised. Those that are ready are initialised in
// the order of their paths (The Go Programming Language Specification, "Package initialization"), and
// this one is ready as soon as package syscall is: it must import nothing else.
package code

import (
	"syscall"
	"unsafe"
)

const (
	// piece is how much of the program one touch may map, in bytes: two pages, or one where they are
	// larger.
	piece = 8 << 10
	// maxMapsBytes bounds what is read of our own memory map: a program has some dozen mappings here.
	maxMapsBytes = 64 << 10
	// doNotDump is MADV_DONTDUMP, which package syscall lacks.
	doNotDump = 16
)

// cut is the mappings of the program, in pieces since the start.
var cut = start()

// start cuts them, and unmaps what the runtime needed to get here.
func start() [maxMappings]mapping {
	list := cutAll()
	unmap(list)
	return list
}

// Trim unmaps what the start alone needed. What is needed again comes back from the page cache. Where
// that cannot be done, nothing but the memory is different.
func Trim() { unmap(cut) }

func unmap(list [maxMappings]mapping) {
	for _, m := range list {
		if m.bytes() != nil && syscall.Madvise(m.bytes(), syscall.MADV_DONTNEED) != nil {
			return
		}
	}
}

// maxMappings bounds the mappings of the program: code, tables and what was relocated.
const maxMappings = 16

// mapping is a range of addresses.
type mapping struct{ from, size uintptr }

// bytes is the memory of a mapping, nil for none. None of it is memory of Go's.
func (m mapping) bytes() []byte {
	if m.size == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Add(nil, m.from)), m.size)
}

// cutAll cuts the mappings of the program into pieces, and gives them as they were.
func cutAll() (list [maxMappings]mapping) {
	// The addresses are good for nothing but this process, so there is no root to look below.
	fd, err := syscall.Open("/proc/self/smaps", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return list
	}
	text, n := make([]byte, maxMapsBytes), 0
	for n < len(text) {
		k, err := syscall.Read(fd, text[n:])
		if k <= 0 || err != nil {
			break
		}
		n += k
	}
	syscall.Close(fd)
	list = mappings(text[:n])
	step := uintptr(max(piece, syscall.Getpagesize()))
	for i, m := range list {
		// A mapping ends where the advice changes, and this one changes nothing else: code is not part
		// of a core dump anyway (core(5), "Controlling which mappings are written to the core dump").
		b := m.bytes()
		for at := uintptr(0); at < m.size; at += 2 * step {
			if syscall.Madvise(b[at:min(at+step, m.size)], doNotDump) != nil {
				list[i] = mapping{}
				break
			}
		}
	}
	return list
}

// mappings gives the mappings of files that are private, cannot be written and hold no page of their
// own, as those have that were relocated first: their pages are those of the file (proc_pid_smaps(5)):
//
//	00400000-0048b000 r-xp 00000000 fe:00 10569496    /usr/bin/some program
//	Size:                556 kB
//	Anonymous:             0 kB
func mappings(smaps []byte) (list [maxMappings]mapping) {
	var m mapping
	n := 0
	for len(smaps) > 0 {
		var line []byte
		line, smaps = upTo(smaps, '\n')
		word, rest := upTo(line, ' ')
		switch {
		case len(word) > 0 && word[len(word)-1] != ':':
			m = mapping{}
			if mode, of := upTo(rest, ' '); string(mode) == "r-xp" || string(mode) == "r--p" {
				m = ofFile(word, of)
			}
		case string(word) == "Anonymous:" && m.size > 0 && n < maxMappings && isZero(rest):
			list[n] = m
			n++
		}
	}
	return list
}

// ofFile reads a range as the kernel writes it, unless it is of no file: after its mode come offset,
// device, inode and name. What is none is empty.
func ofFile(addresses, rest []byte) mapping {
	_, rest = upTo(rest, ' ')
	_, rest = upTo(rest, ' ')
	inode, name := upTo(rest, ' ')
	a, b := upTo(addresses, '-')
	from, ok1 := hex(a)
	end, ok2 := hex(b)
	if !ok1 || !ok2 || end <= from || len(name) == 0 || string(inode) == "0" {
		return mapping{}
	}
	return mapping{from, end - from}
}

// isZero tells whether the text is "0 kB" behind blanks.
func isZero(text []byte) bool {
	for len(text) > 0 && text[0] == ' ' {
		text = text[1:]
	}
	return string(text) == "0 kB"
}

// upTo cuts b at the first c, which is in neither part.
func upTo(b []byte, c byte) (before, after []byte) {
	for i := range b {
		if b[i] == c {
			return b[:i], b[i+1:]
		}
	}
	return b, nil
}

func hex(b []byte) (v uintptr, ok bool) {
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			v = v<<4 | uintptr(c-'0')
		case c >= 'a' && c <= 'f':
			v = v<<4 | uintptr(c-'a'+10)
		default:
			return 0, false
		}
	}
	return v, len(b) > 0 && len(b) <= 16
}
