// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stack

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

const (
	// maxKernelSymbols and maxKernelBytes bound what is read: a kernel with many modules has 300,000
	// symbols in 15 MB.
	maxKernelSymbols = 4 << 20
	maxKernelBytes   = 512 << 20
)

// ErrHidden: the kernel does not tell its addresses to this user (kernel.kptr_restrict).
var ErrHidden = errors.New("the kernel hides its addresses from this user")

// Kernel knows the functions of the running kernel.
type Kernel struct {
	addrs []uint64
	// names has all names one after another, each with its module and zeros between; at is where
	// that of addrs[i] begins. As strings they would take three times as much.
	names []byte
	at    []uint32
	// begin and end of the kernel's own code, 0 if they are not told: _stext and _etext.
	begin, end uint64
}

// OpenKernel reads /proc/kallsyms below root.
func OpenKernel(root string) (*Kernel, error) {
	f, err := os.Open(root + "/proc/kallsyms")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readKernel(f)
}

// readKernel takes lines such as "ffffffffc0a2d020 t xfs_buf_find	[xfs]" (proc(5)).
func readKernel(from io.Reader) (*Kernel, error) {
	type place struct {
		addr uint64
		at   uint32
	}
	k, places, hidden := &Kernel{}, []place{}, true
	lines := bufio.NewScanner(io.LimitReader(from, maxKernelBytes))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 3 || !strings.Contains("tTwW", words[1]) {
			continue // data
		}
		addr, err := strconv.ParseUint(words[0], 16, 64)
		if err != nil {
			return nil, fmt.Errorf("line %q of the kernel's symbols: %w", lines.Text(), err)
		}
		if len(places) == maxKernelSymbols {
			return nil, fmt.Errorf("the kernel has more than %d functions", maxKernelSymbols)
		}
		hidden = hidden && addr == 0
		switch words[2] {
		case "_stext":
			k.begin = addr
		case "_etext":
			k.end = addr
		}
		places = append(places, place{addr, uint32(len(k.names))})
		module := "kernel"
		if len(words) > 3 {
			module = strings.Trim(words[3], "[]")
		}
		k.names = fmt.Appendf(k.names, "%s\x00%s\x00", words[2], module)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the kernel's symbols: %w", err)
	}
	if hidden {
		return nil, ErrHidden
	}
	slices.SortStableFunc(places, func(a, b place) int { return cmp.Compare(a.addr, b.addr) })
	for _, p := range places {
		k.addrs, k.at = append(k.addrs, p.addr), append(k.at, p.at)
	}
	return k, nil
}

// Inner gives a stack from the kernel's own code on: what watches a function of the kernel by a BPF
// program of ours is called by it, and is no part of what happened. Such programs are not among the
// symbols either, which were read before they were loaded.
func (k *Kernel) Inner(addrs []uint64) []uint64 {
	if k == nil || k.begin == 0 || k.end == 0 {
		return addrs
	}
	at := slices.IndexFunc(addrs, func(a uint64) bool { return a >= k.begin && a < k.end })
	return addrs[max(at, 0):]
}

// Frames names addresses of the kernel, the innermost first as they are. A nil Kernel names none.
func (k *Kernel) Frames(addrs []uint64) []Frame {
	out := make([]Frame, len(addrs))
	for i, a := range addrs {
		out[i] = k.frame(a, i > 0)
	}
	return out
}

func (k *Kernel) frame(addr uint64, called bool) Frame {
	pc := addr
	if called {
		pc-- // as in User: what called is before
	}
	if k == nil {
		return Frame{Module: "kernel", Offset: addr}
	}
	i, exact := slices.BinarySearch(k.addrs, pc)
	if !exact {
		i--
	}
	if i < 0 {
		return Frame{Module: "kernel", Offset: addr}
	}
	// Of several names at one address the first one listed.
	for i > 0 && k.addrs[i-1] == k.addrs[i] {
		i--
	}
	r := reader{b: k.names[k.at[i]:]}
	name, module := r.text(), r.text()
	return Frame{Module: module, Symbol: name, Offset: addr - k.addrs[i]}
}
