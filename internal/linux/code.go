// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxMapsBytes bounds what is read of our own memory map: a static program has some dozen entries.
	maxMapsBytes = 1 << 20
	// codePiece is how much of the program one touch may map.
	codePiece = 8 << 10
)

// TrimCode keeps the program itself small in memory. Where a page of it is touched, the kernel maps the
// 64 KiB around it (fault_around_bytes; Linux 6.12, mm/memory.c, do_fault_around), and the tables of
// the Go runtime and the code are touched a little everywhere: a command that needs 1 MiB of the
// program had 7 mapped. The kernel never maps beyond a mapping, so ours are cut into small ones; and
// what the start alone needed is unmapped. What is needed again comes back from the page cache. Where
// any of it cannot be done, nothing but the memory is different.
func TrimCode() {
	// The addresses are good for nothing but this process, so there is no root to look below.
	raw, err := readSome("/proc/self/smaps", maxMapsBytes)
	if err != nil {
		return
	}
	piece := uintptr(max(codePiece, os.Getpagesize()))
	for _, m := range codeIn(string(raw)) {
		// None of it is memory of Go's, and nothing was written to it.
		b := unsafe.Slice((*byte)(unsafe.Add(nil, m.from)), m.bytes)
		// A mapping ends where the advice changes, and this one changes nothing else: code is not part
		// of a core dump anyway (core(5), "Controlling which mappings are written to the core dump").
		for at := uintptr(0); at < m.bytes; at += 2 * piece {
			if unix.Madvise(b[at:min(at+piece, m.bytes)], unix.MADV_DONTDUMP) != nil {
				break
			}
		}
		if unix.Madvise(b, unix.MADV_DONTNEED) != nil {
			return
		}
	}
}

// mapping is a range of addresses.
type mapping struct{ from, bytes uintptr }

// codeIn gives the mappings of files that are private, cannot be written and hold no page of their own,
// as those have that were relocated first: their pages are those of the file (proc_pid_smaps(5)).
func codeIn(smaps string) []mapping {
	var list []mapping
	var m mapping
	for line := range strings.Lines(smaps) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 5 && !strings.HasSuffix(f[0], ":"):
			m = mapping{}
			if len(f) > 5 && f[4] != "0" && (f[1] == "r-xp" || f[1] == "r--p") {
				m = addresses(f[0])
			}
		case len(f) == 3 && f[0] == "Anonymous:" && f[1] == "0" && m.bytes > 0:
			list = append(list, m)
		}
	}
	return list
}

// addresses reads a range as the kernel writes it; what is none is empty.
func addresses(text string) mapping {
	a, b, _ := strings.Cut(text, "-")
	from, err := strconv.ParseUint(a, 16, 64)
	end, err2 := strconv.ParseUint(b, 16, 64)
	if err != nil || err2 != nil || end <= from {
		return mapping{}
	}
	return mapping{uintptr(from), uintptr(end - from)}
}
