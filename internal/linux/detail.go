// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Detail is what people need to know of a process to find it: who started it, for whom, and what it
// belongs to.
type Detail struct {
	Process
	// Parent started it, as far as that one still lives; 0 if there is none or it is not known.
	Parent     int
	ParentComm string
	// UID is the effective user, -1 if not known.
	UID int
	// Exe is the program's file as a text, "" if it may not be read.
	Exe string
	// Zombie: the first thread has ended. Its other threads may run on.
	Zombie bool
	Place
	// MountNamespace is the inode of its mount namespace, 0 if it may not be read.
	MountNamespace uint64
}

// Detail reads all that is known of a process. As with Process, one that ended is fs.ErrNotExist, and
// one whose command line does not let itself be read in time is diskio.ErrTimeout; what was read is
// given all the same.
func (h *Host) Detail(ctx context.Context, pid int) (Detail, error) {
	d := Detail{UID: -1}
	var err error
	if d.Process, err = h.Process(ctx, pid); d.Comm == "" && err != nil {
		return d, err
	}
	dir := h.root + "/proc/" + strconv.Itoa(pid)
	stat, statErr := readSome(dir+"/stat", maxStatBytes)
	if statErr == nil {
		d.Parent, d.Zombie = parentOf(stat)
	} else if err == nil {
		err = statErr
	}
	// What is missing of these is not known: a process may hide them from other users.
	read := func(path string, limit int64) []byte {
		text, _ := readSome(path, limit) // nothing, where it is hidden
		return text
	}
	link := func(path string) string {
		text, _ := os.Readlink(path) // "", where it is hidden
		return text
	}
	d.UID = effectiveUser(read(dir+"/status", maxStatBytes))
	d.Exe = link(dir + "/exe")
	d.Place = ParseCgroup(string(read(dir+"/cgroup", maxCgroupBytes)))
	d.MountNamespace, _ = namespaceID(link(dir+"/ns/mnt"), "mnt")
	if d.Parent > 0 {
		comm := read(fmt.Sprintf("%s/proc/%d/comm", h.root, d.Parent), 64)
		d.ParentComm = strings.TrimSuffix(string(comm), "\n")
	}
	return d, err
}

// maxStatBytes bounds /proc/PID/stat and status.
const maxStatBytes = 16 << 10

// parentOf reads /proc/PID/stat; fileless has the drawing.
func parentOf(stat []byte) (parent int, zombie bool) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0, false
	}
	parent, err := strconv.Atoi(string(fields[1]))
	if err != nil || parent < 0 {
		parent = 0
	}
	return parent, string(fields[0]) == "Z"
}

// effectiveUser takes the second number of the line "Uid:\t0\t0\t0\t0" of /proc/PID/status.
func effectiveUser(status []byte) int {
	for line := range bytes.Lines(status) {
		ids, ok := strings.CutPrefix(string(line), "Uid:")
		if fields := strings.Fields(ids); ok && len(fields) > 1 {
			if uid, err := strconv.Atoi(fields[1]); err == nil && uid >= 0 {
				return uid
			}
		}
	}
	return -1
}

// namespaceID takes the inode out of the text of a link such as "mnt:[4026531841]".
func namespaceID(text, kind string) (uint64, bool) {
	rest, ok1 := strings.CutPrefix(text, kind+":[")
	number, ok2 := strings.CutSuffix(rest, "]")
	if !ok1 || !ok2 {
		return 0, false
	}
	n, err := strconv.ParseUint(number, 10, 64)
	return n, err == nil
}

// RootOf gives the root directory of a process or thread as a text.
func (h *Host) RootOf(pid int) (string, error) {
	return os.Readlink(h.root + "/proc/" + strconv.Itoa(pid) + "/root")
}
