// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stack

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMapBytes bounds the list of mappings of one process: with a hundred bytes a line, 300,000.
const maxMapBytes = 32 << 20

// Mapping is a range of a program's memory in which its code may run.
type Mapping struct {
	Start, End uint64 // addresses, End is the first one after
	Offset     uint64 // of Start in the file, in bytes
	Path       string // as the process sees it; "[vdso]" and the like are no files
	Dev, Inode uint64 // of the file, 0 if there is none
	BuildID    string // in hex, "" if not known
}

// find is the mapping that has an address. maps are sorted.
func find(maps []Mapping, addr uint64) (Mapping, bool) {
	i, exact := slices.BinarySearchFunc(maps, addr, func(m Mapping, a uint64) int { return cmp.Compare(m.Start, a) })
	if !exact {
		i--
	}
	if i < 0 || addr >= maps[i].End {
		return Mapping{}, false
	}
	return maps[i], true
}

// Maps reads the mappings with code of a process that lives, below root.
func Maps(root string, pid int) ([]Mapping, error) {
	f, err := os.Open(root + "/proc/" + strconv.Itoa(pid) + "/maps")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMapBytes))
	if err != nil {
		return nil, err
	}
	return parseMaps(b)
}

// parseMaps takes the lines of maps (proc(5)) that have code:
//
//	7f1c5a1c3000-7f1c5a318000 r-xp 00026000 fe:00 3152  /usr/lib/x86_64-linux-gnu/libc.so.6
func parseMaps(b []byte) ([]Mapping, error) {
	out := []Mapping{}
	for line := range bytes.Lines(b) {
		head, path, _ := cutFields(strings.TrimSuffix(string(line), "\n"), 5)
		if len(head) < 5 || len(head[1]) < 4 {
			return nil, fmt.Errorf("line %q of the list of mappings makes no sense", line)
		}
		if head[1][2] != 'x' {
			continue
		}
		from, to, _ := strings.Cut(head[0], "-")
		major, minor, _ := strings.Cut(head[3], ":")
		var m Mapping
		var dev [2]uint64
		for _, n := range []struct {
			text string
			base int
			to   *uint64
		}{
			{from, 16, &m.Start}, {to, 16, &m.End}, {head[2], 16, &m.Offset},
			{major, 16, &dev[0]}, {minor, 16, &dev[1]}, {head[4], 10, &m.Inode},
		} {
			v, err := strconv.ParseUint(n.text, n.base, 64)
			if err != nil {
				return nil, fmt.Errorf("line %q of the list of mappings: %w", line, err)
			}
			*n.to = v
		}
		m.Dev = unix.Mkdev(uint32(dev[0]), uint32(dev[1]))
		// Only a newline is encoded in it. What was removed ends so; a file may be called so, too:
		// then it is not found under the shorter name.
		m.Path = strings.TrimSuffix(strings.ReplaceAll(path, `\012`, "\n"), " (deleted)")
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Mapping) int { return cmp.Compare(a.Start, b.Start) })
	return out, nil
}

// cutFields takes n words off a line; rest is what follows the spaces after them.
func cutFields(line string, n int) (words []string, rest string, ok bool) {
	rest = line
	for range n {
		rest = strings.TrimLeft(rest, " ")
		word, after, _ := strings.Cut(rest, " ")
		if word == "" {
			return words, "", false
		}
		words, rest = append(words, word), after
	}
	return words, strings.TrimLeft(rest, " "), true
}
