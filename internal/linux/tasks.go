// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// What keeps a file system busy is looked for by texts alone: the links of /proc/PID/task/TID (cwd,
// root, exe, fd/N, ns/mnt) are read and never followed, and maps, fdinfo and stat are answered from the
// kernel's memory. So a server that does not answer holds nobody up.
const (
	// tasksTimeout is how long the whole list is waited for, tasksBudget when it is ended by itself.
	tasksTimeout, tasksBudget = 20 * time.Second, 5 * time.Second
	// maxUses bounds the list.
	maxUses = 1 << 20
	// maxTaskMapsBytes bounds the map of one process; one with 65530 mappings has some 8 MiB.
	maxTaskMapsBytes = 32 << 20
	// maxRingBytes bounds the fdinfo of a descriptor that lists what it holds.
	maxRingBytes = 1 << 20
)

// UseKind is a way in which a thread holds something.
type UseKind string

// The ways.
const (
	UseFD        UseKind = "fd"
	UseCwd       UseKind = "cwd"
	UseRoot      UseKind = "root"
	UseExe       UseKind = "exe"
	UseMapping   UseKind = "mapping"
	UseSocket    UseKind = "socket"    // a descriptor of a socket: Inode is its number
	UseRing      UseKind = "io_uring"  // a descriptor of an io_uring that holds files: Info lists them
	UseFanotify  UseKind = "fanotify"  // a descriptor of a fanotify group: Info has its marks
	UseNamespace UseKind = "namespace" // a descriptor of a mount namespace: Inode is its number
)

// Use is one thing that a thread holds.
type Use struct {
	PID int
	// TID is the thread: PID unless only that thread holds it.
	TID  int
	Kind UseKind
	FD   int // -1 where it is no descriptor
	// Path is the text of the link, Deleted that the kernel wrote " (deleted)" behind it, which a name
	// may end with as well.
	Path    string
	Deleted bool
	// Inode is the number of a socket, a namespace, or a mapped file; Dev the device of a mapped file
	// (include/linux/fs.h, s_dev of its superblock).
	Inode, Dev uint64
	// Shared: it is mapped, somewhere at least, so that what is written goes to the file; Write: and it
	// may be written to there now.
	Shared, Write bool
	Info          Fdinfo
}

// Tasks is what threads held while the list was made.
type Tasks struct {
	Uses []Use
	// Namespaces are the processes in each mount namespace, in the order of their numbers. Threads that
	// are in another one than the first of their process stand there too.
	Namespaces map[uint64][]Thread
	// Net has one process of each network namespace.
	Net map[uint64]int
	// Protected are the processes that do not let themselves be looked at.
	Protected []int
	Looked    int
	// Gaps says in sentences what else was not seen.
	Gaps []string
}

// Thread is a thread of a process.
type Thread struct{ PID, TID int }

// TasksOptions say what is looked for.
type TasksOptions struct {
	// Files: each descriptor, directory and mapping of a file as well, not only what the kernel's own
	// lists do not tell.
	Files bool
	// Wants limits what is listed for Files to names that it wants; nil wants all.
	Wants func(path string) bool
}

// Tasks looks what the threads of this host hold. The error is that of ctx, or says why nothing is
// known.
func (h *Host) Tasks(ctx context.Context, o TasksOptions) (*Tasks, error) {
	return diskio.Within(ctx, tasksTimeout, func() (*Tasks, error) { return h.tasks(ctx, o) }, nil)
}

func (h *Host) tasks(ctx context.Context, o TasksOptions) (*Tasks, error) {
	ctx, cancel := context.WithTimeout(ctx, tasksTimeout)
	defer cancel()
	proc, err := openDirectory(unix.AT_FDCWD, h.root+"/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer unix.Close(proc)
	w := &walker{h: h, ctx: ctx, o: o, proc: proc, end: time.Now().Add(tasksBudget),
		out: &Tasks{Namespaces: map[uint64][]Thread{}, Net: map[uint64]int{}}}
	first := false // whether process 1 was seen
	err = eachName(proc, func(name string) error {
		pid, err := strconv.Atoi(name)
		if err != nil || pid <= 0 {
			return nil // no process
		}
		first = first || pid == 1
		return w.process(pid)
	})
	switch {
	case errors.Is(err, errCut):
		w.out.Gaps = append(w.out.Gaps, w.cut)
	case err != nil:
		return nil, fmt.Errorf("list processes: %w", err)
	case !first && h.live:
		w.out.Gaps = append(w.out.Gaps, "/proc is mounted so that it hides the processes of other users")
	}
	ns, err := os.Readlink(h.root + "/proc/self/ns/pid")
	if h.live && (err != nil || ns != initPIDNamespace) {
		w.out.Gaps = append(w.out.Gaps, "processes outside this container cannot be seen")
	}
	return w.out, nil
}

// walker fills Tasks.
type walker struct {
	h    *Host
	ctx  context.Context
	o    TasksOptions
	proc int
	end  time.Time
	cut  string
	out  *Tasks
	text [unix.PathMax + 1]byte
	info [maxFdinfoBytes]byte
}

// process looks at one process and its threads. The error is errCut or that of ctx.
func (w *walker) process(pid int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if time.Now().After(w.end) {
		w.cut = fmt.Sprintf("listing processes took longer than %v, the others were left out", tasksBudget)
		return errCut
	}
	dir := strconv.Itoa(pid) + "/task"
	threads, err := openDirectory(w.proc, dir)
	if err != nil {
		return w.refused(pid, err)
	}
	defer unix.Close(threads)
	seen := &held{}
	err = eachName(threads, func(name string) error {
		tid, err := strconv.Atoi(name)
		if err != nil {
			return nil // no thread
		}
		return w.thread(pid, tid, dir+"/"+name, seen)
	})
	if err == nil && w.o.Files {
		err = w.mappings(pid)
	}
	if err == nil {
		w.out.Looked++
	}
	return w.refused(pid, err)
}

// refused notes a process that does not let itself be looked at; one that ended meanwhile is none.
func (w *walker) refused(pid int, err error) error {
	switch {
	case err == nil, vanished(err):
		return nil
	case errors.Is(err, errCut):
		return err
	case w.ctx.Err() != nil:
		return w.ctx.Err()
	}
	stat, statErr := readSome(w.h.root+"/proc/"+strconv.Itoa(pid)+"/stat", maxStatBytes)
	if statErr == nil && fileless(stat) {
		w.out.Looked++ // a thread of the kernel has no files
		return nil
	}
	w.out.Protected = append(w.out.Protected, pid)
	return nil
}

// held is what the threads of a process that were looked at so far hold: mostly all the same.
type held struct {
	namespaces []uint64
	// places are the directories and the program, by their kind; fds the texts of the descriptors.
	places []Use
	fds    map[int]string
}

// thread adds what a thread holds that no thread before it does.
func (w *walker) thread(pid, tid int, dir string, seen *held) error {
	links, err := openDirectory(w.proc, dir)
	if err != nil {
		return endedThread(err)
	}
	defer unix.Close(links)
	ns, err := w.readlink(links, "ns/mnt")
	if err != nil {
		return endedThread(err)
	}
	if id, ok := namespaceID(ns, "mnt"); ok && !slices.Contains(seen.namespaces, id) {
		w.out.Namespaces[id] = append(w.out.Namespaces[id], Thread{pid, tid})
		seen.namespaces = append(seen.namespaces, id)
	}
	if seen.fds == nil {
		if net, err := w.readlink(links, "ns/net"); err == nil {
			if id, ok := namespaceID(net, "net"); ok && w.out.Net[id] == 0 {
				w.out.Net[id] = tid
			}
		} else if !vanished(err) {
			return err
		}
	}
	if w.o.Files {
		if err := w.places(pid, tid, links, seen); err != nil {
			return err
		}
	}
	return w.descriptors(pid, tid, links, seen)
}

// endedThread makes nothing of a thread that ended, as the first one of a process may long before the
// others: its links are gone then.
func endedThread(err error) error {
	if vanished(err) {
		return nil
	}
	return err
}

// places adds the working directory, the root and the program of a thread.
func (w *walker) places(pid, tid, links int, seen *held) error {
	for _, kind := range []UseKind{UseCwd, UseRoot, UseExe} {
		if kind == UseExe && seen.fds != nil {
			continue // all threads run one program
		}
		text, err := w.readlink(links, string(kind))
		if vanished(err) {
			continue // a thread of the kernel runs no program, one that ended is nowhere
		} else if err != nil {
			return err
		}
		u := Use{Kind: kind, FD: -1, Path: text}
		if slices.ContainsFunc(seen.places, func(o Use) bool { return o.Kind == kind && o.Path == text }) {
			continue
		}
		seen.places = append(seen.places, u)
		u.PID, u.TID = pid, tid
		if err := w.add(u); err != nil {
			return err
		}
	}
	return nil
}

// readlink reads the text of a link; one that is too long for the kernel to tell is "".
func (w *walker) readlink(at int, name string) (string, error) {
	n, err := unix.Readlinkat(at, name, w.text[:])
	if errors.Is(err, unix.ENAMETOOLONG) {
		return "", nil
	}
	return string(w.text[:max(n, 0)]), err
}

// add takes one use into the list.
func (w *walker) add(u Use) error {
	if strings.HasPrefix(u.Path, "/") {
		u.Path, u.Deleted = strings.CutSuffix(u.Path, " (deleted)")
		if w.o.Wants != nil && !w.o.Wants(u.Path) {
			return nil
		}
	}
	if len(w.out.Uses) >= maxUses {
		w.cut = fmt.Sprintf("processes hold more than %d things, the others were left out", maxUses)
		return errCut
	}
	w.out.Uses = append(w.out.Uses, u)
	return nil
}

// mappings adds the files that a process has mapped, each once.
func (w *walker) mappings(pid int) error {
	path := w.h.root + "/proc/" + strconv.Itoa(pid) + "/maps"
	// The map may be held by a thread that waits for storage.
	maps, err := diskio.WithinAt(w.ctx, path, processTimeout, func() ([]byte, error) {
		return readSome(path, maxTaskMapsBytes)
	}, nil)
	if errors.Is(err, diskio.ErrTimeout) {
		w.out.Gaps = append(w.out.Gaps, fmt.Sprintf("what process %d has mapped cannot be read: it hangs", pid))
		return nil
	} else if err != nil {
		return err
	}
	for _, m := range ParseMaps(maps) {
		m.PID, m.TID = pid, pid
		if err := w.add(m); err != nil {
			return err
		}
	}
	return nil
}

// ParseMaps gives the files in a map of /proc/PID/maps, each once:
//
//	7f5c-7f5d r-xp 00001000 fe:00 1048602                  /usr/lib/libc.so.6
func ParseMaps(maps []byte) []Use {
	type file struct {
		dev, ino uint64
		name     string
	}
	seen, out := map[file]int{}, []Use{}
	for line := range bytes.Lines(maps) {
		fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), " ", 6)
		if len(fields) < 6 {
			continue // without a file
		}
		dev, ok := parseDevice(fields[3], 16)
		ino, err := strconv.ParseUint(fields[4], 10, 64)
		name := strings.TrimLeft(fields[5], " ")
		if !ok || err != nil || ino == 0 || !strings.HasPrefix(name, "/") {
			continue // memory without a file, or of the kernel
		}
		f := file{dev, ino, name}
		i, had := seen[f]
		if !had && len(out) < maxUses {
			i, had = len(out), true
			seen[f] = i
			out = append(out, Use{Kind: UseMapping, FD: -1, Path: strings.ReplaceAll(name, `\012`, "\n"),
				Dev: dev, Inode: ino})
		}
		if had && strings.HasSuffix(fields[1], "s") {
			out[i].Shared, out[i].Write = true, out[i].Write || strings.Contains(fields[1], "w")
		}
	}
	return out
}
