// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Written reports whether a program of this host wrote to the block device since it was opened, as far
// as the kernel tells. The times of its name do not; of other files ModTime does.
func (f *File) Written() bool {
	return f.stat.Block && writesOf(f.stat.Device) != f.writes
}

// writesOf counts the requests that have changed a block device: its fields 5 (writes) and 12 (discards)
// in Documentation/block/stat.rst. It is -1 where the kernel does not say.
func writesOf(dev uint64) int64 {
	const writes, discards = 4, 11
	name := fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(dev), unix.Minor(dev))
	text, err := os.ReadFile(name)
	if err != nil {
		return -1
	}
	sum := int64(0)
	for i, word := range strings.Fields(string(text)) {
		if i != writes && i != discards {
			continue
		}
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return -1
		}
		sum += n
	}
	return sum
}
