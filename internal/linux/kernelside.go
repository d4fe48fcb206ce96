// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// What the kernel itself holds, for no process: swap, loop devices, probes, interpreters, sockets.
const (
	// listTimeout is how long one such list is waited for.
	listTimeout = 2 * time.Second
	// maxListBytes bounds one list, maxNames the names of one directory.
	maxListBytes, maxNames = 64 << 20, 1 << 16
)

// list reads a list of the kernel in time. One that is not there is fs.ErrNotExist.
func (h *Host) list(ctx context.Context, path string) ([]byte, error) {
	text, err := diskio.WithinAt(ctx, h.root+path, listTimeout, func() ([]byte, error) {
		return readSome(h.root+path, maxListBytes)
	}, nil)
	if err == nil && len(text) == maxListBytes {
		err = errors.New("it is too long")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return text, nil
}

// names lists a directory of the kernel. One that is not there is fs.ErrNotExist.
func (h *Host) names(ctx context.Context, path string) ([]string, error) {
	all, err := diskio.WithinAt(ctx, h.root+path, listTimeout, func() ([]string, error) {
		dir, err := openDirectory(unix.AT_FDCWD, h.root+path)
		if err != nil {
			return nil, err
		}
		defer unix.Close(dir)
		var all []string
		err = eachName(dir, func(name string) error {
			if len(all) == maxNames {
				return fmt.Errorf("more than %d names", maxNames)
			}
			all = append(all, name)
			return nil
		})
		return all, err
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", path, err)
	}
	return all, nil
}

// Swap is a file or device that the kernel swaps to.
type Swap struct {
	Path    string
	Deleted bool
	Device  bool
}

// Swaps reads /proc/swaps (mm/swapfile.c, swap_show):
//
//	Filename				Type		Size		Used		Priority
//	/mnt/swap\040file                       file		65532		0		-2
//
// A kernel without swap has none.
func (h *Host) Swaps(ctx context.Context) ([]Swap, error) {
	text, err := h.list(ctx, "/proc/swaps")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all []Swap
	for line := range bytes.Lines(text) {
		fields := strings.FieldsFunc(string(line), func(r rune) bool { return r == ' ' || r == '\t' })
		if len(fields) < 5 || !strings.HasPrefix(fields[0], "/") {
			continue // the heading
		}
		name := Decode(fields[0])
		s := Swap{Device: fields[1] == "partition"}
		s.Path, s.Deleted = strings.CutSuffix(name, " (deleted)")
		all = append(all, s)
	}
	return all, nil
}

// Loop is a loop device that has a file.
type Loop struct {
	Name    string // loop3
	Path    string // its file, as this process sees it
	Deleted bool
	// AutoClear: it lets go of its file when its last user ends (losetup -d has been said).
	AutoClear bool
	// ReadOnly: nothing is written to its file.
	ReadOnly bool
}

// Loops reads which files the kernel made loop devices of.
func (h *Host) Loops(ctx context.Context) ([]Loop, error) {
	names, err := h.names(ctx, "/sys/block")
	if err != nil {
		return nil, err
	}
	var all []Loop
	for _, name := range names {
		if !strings.HasPrefix(name, "loop") {
			continue
		}
		dir := "/sys/block/" + name + "/loop/"
		text, err := h.list(ctx, dir+"backing_file")
		if vanished(err) {
			continue // has no file, which is usual
		} else if err != nil {
			return nil, err
		}
		l := Loop{Name: name}
		l.Path, l.Deleted = strings.CutSuffix(strings.TrimSuffix(string(text), "\n"), " (deleted)")
		clear, err := h.list(ctx, dir+"autoclear")
		if err != nil && !vanished(err) {
			return nil, err
		}
		l.AutoClear = strings.TrimSpace(string(clear)) == "1"
		only, err := h.list(ctx, "/sys/block/"+name+"/ro")
		if err != nil && !vanished(err) {
			return nil, err
		}
		l.ReadOnly = strings.TrimSpace(string(only)) == "1"
		all = append(all, l)
	}
	return all, nil
}

// Interpreter is a program that binfmt_misc keeps open for good (the flag F).
type Interpreter struct{ Name, Path string }

// Interpreters reads the entries of binfmt_misc (admin-guide/binfmt-misc.rst), given the directory that it
// is mounted on: looking into one that is not mounted has systemd mount it.
func (h *Host) Interpreters(ctx context.Context, dir string) ([]Interpreter, error) {
	names, err := h.names(ctx, dir)
	if err != nil {
		return nil, err
	}
	var all []Interpreter
	for _, name := range names {
		if name == "." || name == ".." || name == "status" || name == "register" {
			continue
		}
		text, err := h.list(ctx, dir+"/"+name)
		if vanished(err) {
			continue // taken away just now
		} else if err != nil {
			return nil, err
		}
		// "enabled\ninterpreter /usr/bin/qemu-arm\nflags: OCF\n..."
		i := Interpreter{Name: name}
		fixed := false
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSuffix(line, "\n")
			if path, ok := strings.CutPrefix(line, "interpreter "); ok && i.Path == "" {
				i.Path = path
			}
			if flags, ok := strings.CutPrefix(line, "flags: "); ok {
				fixed = strings.Contains(flags, "F")
			}
		}
		if fixed && i.Path != "" {
			all = append(all, i)
		}
	}
	return all, nil
}

// Uprobe is a probe in a program that somebody defined in tracefs.
type Uprobe struct{ Event, Path string }

// Uprobes reads the probes that are defined, given the directory of tracefs:
//
//	p:uprobes/read /mnt/bin/prog:0x0000000000001130 arg1=%di
//
// A kernel without them has none.
func (h *Host) Uprobes(ctx context.Context, tracefs string) ([]Uprobe, error) {
	text, err := h.list(ctx, filepath.Join("/", tracefs, "uprobe_events"))
	if vanished(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all []Uprobe
	for line := range strings.Lines(string(text)) {
		event, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		_, name, ok := strings.Cut(event, ":")
		// The name may hold blanks and colons: the last ":0x" ends it.
		i := strings.LastIndex(rest, ":0x")
		if ok && i > 0 {
			all = append(all, Uprobe{name, rest[:i]})
		}
	}
	return all, nil
}

// UnixSocket is a socket that is bound to a name in a file system.
type UnixSocket struct {
	Inode uint64 // of the socket, as in the text of its descriptors
	// Path is as it was given to bind(2): it may be relative, and the name may be gone.
	Path string
}

// UnixSockets reads the sockets of the network namespace of a process, 0 being this one
// (net/unix/af_unix.c, unix_seq_show):
//
//	Num               RefCount Protocol Flags    Type St Inode Path
//	ffff9a8c41f8b400: 00000002 00000000 00010000 0001 01 23456 /run/x.sock
func (h *Host) UnixSockets(ctx context.Context, pid int) ([]UnixSocket, error) {
	who := "self"
	if pid > 0 {
		who = strconv.Itoa(pid)
	}
	text, err := h.list(ctx, "/proc/"+who+"/net/unix")
	if err != nil {
		return nil, err
	}
	var all []UnixSocket
	for line := range bytes.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), " ", -1)
		fields = compactFields(fields, 7)
		if len(fields) < 8 || fields[7] == "" || fields[7][0] == '@' {
			continue // without a name, or with one that is in no file system
		}
		inode, err := strconv.ParseUint(fields[6], 10, 64)
		if err != nil {
			continue // the heading
		}
		all = append(all, UnixSocket{inode, fields[7]})
	}
	return all, nil
}

// compactFields drops empty words among the first n and joins what follows those to one again.
func compactFields(words []string, n int) []string {
	var out []string
	for i, w := range words {
		if len(out) == n {
			return append(out, strings.Join(words[i:], " "))
		}
		if w != "" {
			out = append(out, w)
		}
	}
	return out
}

// Exports gives the directories that the NFS server exports (fs/nfsd/export.c, svc_export_show); where
// there is no server, none.
func (h *Host) Exports(ctx context.Context) ([]string, error) {
	text, err := h.list(ctx, "/proc/fs/nfsd/exports")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(string(text)) {
		if path, _, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); ok && strings.HasPrefix(path, "/") {
			all = append(all, Decode(path))
		}
	}
	return all, nil
}

// Text reads a file of /proc or /sys as it is, in time. One that is not there is fs.ErrNotExist.
func (h *Host) Text(ctx context.Context, path string) ([]byte, error) { return h.list(ctx, path) }
