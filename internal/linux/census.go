// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// How an open file is recognised. /proc/PID/fd/N is a link that leads to the open file itself, so
// looking through it touches the storage of that file, and hangs with it. Its text (a path as that
// process sees it) and /proc/PID/fdinfo/N are answered from the kernel's memory:
//
//	pos:	196616
//	flags:	02100002          octal, as of open(2)
//	mnt_id:	27
//	ino:	10086777          since Linux 5.14
//	lock:	1: OFDLCK ADVISORY  READ -1 fe:00:10086777 100 101
//
// An inode number alone does not say which file system it belongs to. Only where it is the one
// that is asked for, or the path is, we look through the link, and tell the kernel to answer from
// its cache (AT_STATX_DONT_SYNC) instead of asking a server.
const (
	// censusTimeout is how long a list is waited for that hangs somewhere.
	censusTimeout = 20 * time.Second
	// initPIDNamespace is the inode of the first PID namespace (include/linux/proc_ns.h).
	initPIDNamespace = "pid:[4026531836]"
)

// OpenFile is a file that a process has open.
type OpenFile struct {
	PID int // 0: the kernel itself, for Device
	FD  int
	// Path is the name as the process sees it, Deleted that it was removed since.
	Path    string
	Deleted bool
	// Writing: opened for writing.
	Writing bool
	Ino     uint64 // 0 if not known
	// Dev is the device of the file system, 0 if not known.
	Dev uint64
	// Mount is the number of the mount that it was opened on, 0 if not known.
	Mount uint64
	// Device is the name of a loop device that the kernel made from the file.
	Device string
}

// Census is all files that were open at one moment.
type Census struct {
	host  *Host
	files []OpenFile
	// Where in files to look: by inode, by path, and all nodes of /dev.
	byIno  map[uint64][]int
	byPath map[string][]int
	nodes  []int
	// machines are the processes that run a virtual machine by KVM, whatever they are called.
	machines map[int]bool
	gaps     []string
	hidden   []int // the processes that are protected
	// Processes is how many were looked at, or can have no disk open; Protected how many could not
	// be.
	Processes, Protected int
}

// Gaps says in sentences what could not be seen; none means that every process of this host was
// looked at.
func (c *Census) Gaps() []string { return c.withHidden(c.Protected) }

// MachineGaps is Gaps where only programs that run virtual machines matter: a process that is not
// called like one, on a host without KVM, is none although its files are not known.
func (c *Census) MachineGaps(ctx context.Context) []string {
	if len(c.hidden) == 0 || c.host.hasKVM() {
		return c.Gaps()
	}
	n := 0
	for _, pid := range c.hidden {
		p, err := c.host.Process(ctx, pid)
		if err != nil && !vanished(err) || p.Emulator() {
			n++
		}
	}
	return c.withHidden(n)
}

// withHidden are the gaps if so many processes are protected.
func (c *Census) withHidden(n int) []string {
	if n == 0 {
		return slices.Clone(c.gaps)
	}
	return append([]string{fmt.Sprintf("%d of %d processes are protected from this user",
		n, c.Protected+c.Processes)}, c.gaps...)
}

// hasKVM reports whether the kernel can run machines, or whether that is not known.
func (h *Host) hasKVM() bool {
	_, known := os.Stat(h.root + "/sys/module")
	_, err := os.Stat(h.root + "/sys/module/kvm")
	return known != nil || !errors.Is(err, fs.ErrNotExist)
}

// Census looks which files are open. The error is that of ctx, or says why nothing is known.
func (h *Host) Census(ctx context.Context) (*Census, error) {
	return diskio.WithinAt(ctx, h.root+"/proc", censusTimeout, func() (*Census, error) { return h.census(ctx) }, nil)
}

func (h *Host) census(ctx context.Context) (*Census, error) {
	// Whoever waits gave up then; this goroutine ends soon after, unless a look hangs.
	ctx, cancel := context.WithTimeout(ctx, censusTimeout)
	defer cancel()
	c := &Census{host: h, byIno: map[uint64][]int{}, byPath: map[string][]int{}, machines: map[int]bool{}}
	proc, err := openDirectory(unix.AT_FDCWD, h.root+"/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer unix.Close(proc)
	l := &lister{c: c, ctx: ctx, proc: proc, end: time.Now().Add(censusBudget), mute: map[uint64]bool{}}
	first := false // whether process 1 was seen
	err = eachName(proc, func(name string) error {
		pid, err := strconv.Atoi(name)
		if err != nil || pid <= 0 {
			return nil
		}
		first = first || pid == 1
		// Our own looking is no use of a file.
		if h.live && pid == os.Getpid() {
			return nil
		}
		return l.process(pid, name)
	})
	if err != nil && !errors.Is(err, errCut) {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	c.loops(ctx)
	c.explain(first || l.cut != "")
	if l.cut != "" {
		c.gaps = append(c.gaps, l.cut)
	}
	if len(l.mute) > 0 {
		c.gaps = append(c.gaps, "open files on storage that does not answer are known by their names only")
	}
	return c, nil
}

// Deleted gives the open files that no directory has any more, of processes and of loop devices.
func (c *Census) Deleted() (all []OpenFile) {
	for i := range c.files {
		if c.files[i].Deleted {
			all = append(all, c.files[i])
		}
	}
	return all
}

// explain fills in the gaps. first: process 1 was seen.
func (c *Census) explain(first bool) {
	if !c.host.live {
		return
	}
	if !first {
		c.gaps = append(c.gaps, "/proc is mounted so that it hides the processes of other users")
	}
	if ns, err := os.Readlink(c.host.root + "/proc/self/ns/pid"); err == nil && ns != initPIDNamespace {
		c.gaps = append(c.gaps, "processes outside this container cannot be seen")
	}
}

// wholeHost reports whether the processes that are seen are those of the host, not of a container.
func (h *Host) wholeHost() bool {
	ns, err := os.Readlink(h.root + "/proc/self/ns/pid")
	return h.live && err == nil && ns == initPIDNamespace
}

// boring are names below /dev, /proc and /sys that are no disks.
func boring(path string) bool {
	if strings.HasPrefix(path, "/memfd:") || strings.HasPrefix(path, "/proc/") ||
		strings.HasPrefix(path, "/sys/") {
		return true
	}
	dev, ok := strings.CutPrefix(path, "/dev/")
	if !ok {
		return false
	}
	for _, s := range []string{"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx",
		"kvm", "kmsg"} {
		if dev == s {
			return true
		}
	}
	for _, s := range []string{"pts/", "net/", "vhost", "tty", "input/", "dri/", "snd/"} {
		if strings.HasPrefix(dev, s) {
			return true
		}
	}
	return false
}

func (c *Census) add(f OpenFile) {
	i := len(c.files)
	c.files = append(c.files, f)
	c.byIno[f.Ino] = append(c.byIno[f.Ino], i)
	c.byPath[f.Path] = append(c.byPath[f.Path], i)
	if strings.HasPrefix(f.Path, "/dev/") {
		c.nodes = append(c.nodes, i)
	}
}

// fdinfo takes over what /proc/PID/fdinfo/N says. Lines that are not understood leave things
// unknown; flags that are missing count as writing.
func (f *OpenFile) fdinfo(info []byte) {
	f.Writing = true
	for line := range bytes.Lines(info) {
		key, value, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "flags":
			// Not understood, it may be open for writing.
			if n, err := strconv.ParseUint(value, 8, 64); err == nil {
				f.Writing = n&unix.O_ACCMODE != unix.O_RDONLY
			}
		case "ino":
			// Not understood, the name decides which file it is.
			if n, err := strconv.ParseUint(value, 10, 64); err == nil {
				f.Ino = n
			}
		case "mnt_id":
			// Not understood, each descriptor is looked at for itself.
			if n, err := strconv.ParseUint(value, 10, 64); err == nil {
				f.Mount = n
			}
		case "lock":
			f.lock(value)
		}
	}
}

// lock takes the device and inode out of "1: OFDLCK ADVISORY  READ -1 fe:00:10086777 100 101".
func (f *OpenFile) lock(text string) {
	words := strings.Fields(text)
	if len(words) < 6 {
		return
	}
	parts := strings.Split(words[5], ":")
	if len(parts) != 3 {
		return
	}
	major, err1 := strconv.ParseUint(parts[0], 16, 32)
	minor, err2 := strconv.ParseUint(parts[1], 16, 32)
	ino, err3 := strconv.ParseUint(parts[2], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || f.Ino != 0 && f.Ino != ino {
		return
	}
	f.Ino, f.Dev = ino, unix.Mkdev(uint32(major), uint32(minor))
}

// lookThrough looks at the open file behind a link of /proc/PID/fd, without asking a server.
func lookThrough(link string) (diskio.Stat, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT,
		unix.STATX_TYPE|unix.STATX_INO, &st)
	if err != nil {
		return diskio.Stat{}, &fs.PathError{Op: "look at", Path: link, Err: err}
	}
	return diskio.Stat{
		ID:     diskio.ID{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino},
		Block:  st.Mode&unix.S_IFMT == unix.S_IFBLK,
		Device: unix.Mkdev(st.Rdev_major, st.Rdev_minor),
	}, nil
}

// loops adds the files that the kernel made loop devices of: no process has those open.
func (c *Census) loops(ctx context.Context) {
	dir, err := os.Open(c.host.root + "/sys/block")
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			c.gaps = append(c.gaps, "loop devices could not be listed")
		}
		return
	}
	defer dir.Close()
	names, err := dir.Readdirnames(1 << 16)
	if err != nil && !errors.Is(err, io.EOF) {
		c.gaps = append(c.gaps, "loop devices could not be listed")
	}
	answers := c.host.live
	for _, name := range names {
		if !strings.HasPrefix(name, "loop") {
			continue
		}
		// Each name there is a link into /sys/devices, so it is followed; the files are not links.
		text, err := backing(func() ([]byte, error) { return readSome(dir.Name()+"/"+name+"/loop/backing_file", 1<<14) })
		if vanished(err) || err == nil && len(text) == 0 {
			continue // has no file, which is usual, or is just losing it
		} else if err != nil {
			c.gaps = append(c.gaps, "the file of loop device "+name+" could not be told")
			continue
		}
		ro, err := readSome(dir.Name()+"/"+name+"/ro", 16)
		f := OpenFile{FD: -1, Device: name, Writing: err != nil || strings.TrimSpace(string(ro)) != "1"}
		f.Path, f.Deleted = strings.CutSuffix(strings.TrimSuffix(string(text), "\n"), " (deleted)")
		if answers {
			answers = c.under(ctx, &f)
		} else if c.host.live {
			c.byNameOnly(name, "another one does not answer")
		}
		c.add(f)
	}
}

// under asks a loop device which file it has: the name is as seen from the mount that it was opened on, which may be another one,
// or one that this process does not see. Who may not ask knows it by its name, and sees as little of what processes have open,
// which is told. answers: it did not hang.
func (c *Census) under(ctx context.Context, f *OpenFile) (answers bool) {
	path := c.host.root + "/dev/" + f.Device
	id, err := diskio.WithinAt(ctx, path, processTimeout, func() (diskio.ID, error) {
		fd, err := openAgain(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK)
		if err != nil {
			return diskio.ID{}, err
		}
		defer unix.Close(fd)
		info, err := unix.IoctlLoopGetStatus64(fd) // which asks the file system
		if err != nil {
			return diskio.ID{}, err
		}
		return diskio.ID{Dev: info.Device, Ino: info.Inode}, nil
	}, nil)
	switch {
	case err == nil:
		f.Dev, f.Ino = id.Dev, id.Ino
	case vanished(err), errors.Is(err, unix.ENXIO), errors.Is(err, fs.ErrPermission): // without a node, or without its file by now
	default:
		c.byNameOnly(f.Device, err.Error())
	}
	return !errors.Is(err, diskio.ErrTimeout)
}

func (c *Census) byNameOnly(device, why string) {
	c.gaps = append(c.gaps, "the file of loop device "+device+" is known by its name only: "+why)
}

// backing reads which file a loop device has. What goes away while it is read is ENODEV (kernfs_fop_read_iter): the
// device lost its file in that moment, and may have another one by now.
func backing(read func() ([]byte, error)) (text []byte, err error) {
	for range 5 {
		if text, err = read(); !errors.Is(err, unix.ENODEV) {
			break
		}
	}
	return text, err
}
