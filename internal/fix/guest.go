// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package fix

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/uml"
)

// What stands in this file runs where the guest's volume is mounted: as the first process in User Mode
// Linux, or as a program that alone sees a mount of this host's kernel.

const (
	// firstArg is the argument of the first process, changeArg that of the program.
	firstArg, changeArg = "shisa-fix-first", "shisa-fix-change"
	requestPath         = "/request.json"
	mountPoint          = "/mnt"
	maxRequest          = 1 << 20
)

// request is what is to be done.
type request struct {
	// Kind is the kind of the file system, Data more options of its mount.
	Kind    string   `json:"kind"`
	Data    string   `json:"data"`
	Changes []Change `json:"changes"`
}

// answer is what came of it.
type answer struct {
	// Done are the changes that were made, Already those that there was nothing to do for.
	Done    []int `json:"done"`
	Already []int `json:"already"`
	// Kept are files that a mask took the place of, by their new names.
	Kept []string `json:"kept"`
	// Mounted are the options of the mount, where they tell which part of the volume it was.
	Mounted string `json:"mounted"`
	// Kernel is the version of the kernel, Refused why nothing was changed, Failed what went wrong.
	Kernel  string `json:"kernel"`
	Refused string `json:"refused"`
	Failed  string `json:"failed"`
	// Ended: the volume was unmounted, so that all is on it.
	Ended bool `json:"ended"`
}

// IsChild reports whether this process was started by Image, and has to call Serve at once.
func IsChild(argv []string) bool {
	return len(argv) > 1 && (argv[1] == firstArg && os.Getpid() == 1 || argv[1] == changeArg && len(argv) == 3)
}

// Serve is what such a process does. It gives the exit status.
func Serve(argv []string, in io.Reader, out io.Writer) int {
	if argv[1] == firstArg {
		return first()
	}
	a := answer{}
	var q request
	err := json.NewDecoder(io.LimitReader(in, maxRequest)).Decode(&q)
	if err == nil {
		err = a.change(argv[2], q.Changes)
	}
	a.said(err)
	a.Ended = true // who mounted it unmounts it
	if err := json.NewEncoder(out).Encode(&a); err != nil {
		return 1
	}
	return 0
}

// errKeep: nothing is changed, for a reason that is told.
var errKeep = errors.New("nothing is changed")

// errNoSystem is errKeep for a volume that has no units.
var errNoSystem = fmt.Errorf("%w: there is no %s on this volume: it is not the root of a system with systemd, or "+
	"its /etc lies on another volume", errKeep, UnitDir)

// said notes an error.
func (a *answer) said(err error) {
	switch {
	case err == nil:
	case errors.Is(err, errKeep):
		a.Refused = strings.TrimPrefix(err.Error(), errKeep.Error()+": ")
	default:
		a.Failed = err.Error()
	}
}

// first is the first process of a guest.
func first() int {
	a := answer{}
	err := uml.Prepare()
	var r *uml.Reporter
	if err == nil {
		r, err = uml.NewReporter()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "first process:", err)
	} else {
		a.said(a.inGuest())
		if err := r.Say(&a); err != nil {
			fmt.Fprintln(os.Stderr, "first process:", err)
		}
	}
	fmt.Fprintln(os.Stderr, "power off:", uml.PowerOff())
	return 1
}

// inGuest mounts the volume, makes the changes, and unmounts it.
func (a *answer) inGuest() error {
	raw, err := os.ReadFile(requestPath)
	if err != nil {
		return err
	}
	var q request
	if err := json.Unmarshal(raw, &q); err != nil {
		return err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		a.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	for _, data := range options(q) {
		again := answer{Kernel: a.Kernel, Mounted: strings.TrimPrefix(strings.TrimPrefix(data, q.Data), ",")}
		err = again.on(q, data)
		*a = again
		if !errors.Is(err, errNoSystem) {
			return err
		}
	}
	return err
}

// options gives the options with which a volume is mounted, one after the other until a system is found. Of
// Btrfs the default subvolume comes first, then those that installers put the root in.
func options(q request) []string {
	all := []string{q.Data}
	if q.Kind == "btrfs" {
		for _, name := range []string{"@", "root", "@rootfs"} {
			all = append(all, q.Data+",subvol="+name)
		}
	}
	return all
}

// on mounts the volume with some options, makes the changes and unmounts it.
func (a *answer) on(q request, data string) error {
	const flags = unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NOATIME
	err := unix.Mount(uml.DiskPath(0), mountPoint, q.Kind, flags, data)
	switch {
	case errors.Is(err, unix.ENOENT) && data != q.Data: // there is no such subvolume
		return errNoSystem
	case err != nil:
		return fmt.Errorf("mount it as %s: %w", q.Kind, err)
	}
	err = a.change(mountPoint, q.Changes)
	if gone := unix.Unmount(mountPoint, 0); gone != nil {
		return errors.Join(err, fmt.Errorf("unmount it: %w", gone))
	}
	a.Ended = true
	return err
}

// change makes the changes below root, where a volume is mounted, and has them written.
func (a *answer) change(root string, changes []Change) error {
	d, err := os.Open(root)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := extFaults(d); err != nil {
		return err
	}
	if err := a.makeAll(d, changes); err != nil {
		return err
	}
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("write it: %w", err)
	}
	return extFaults(d)
}

// extFaults refuses an ext4 whose superblock counts errors: what the driver writes then rests on what it
// knows to be damaged. Documentation/ABI/testing/sysfs-fs-ext4 of Linux.
func extFaults(d *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return err
	}
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if errors.Is(err, os.ErrNotExist) {
		return nil // Btrfs has no device of its own
	}
	if err != nil {
		return err
	}
	raw, err := os.ReadFile("/sys/fs/ext4/" + path.Base(link) + "/errors_count")
	if errors.Is(err, os.ErrNotExist) {
		return nil // another kind
	}
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(raw))); err != nil || n > 0 {
		return fmt.Errorf("%w: the file system remembers %s errors: it is to be checked first (e2fsck)", errKeep,
			strings.TrimSpace(string(raw)))
	}
	return nil
}

// step is one change, found possible.
type step struct {
	Change
	dir  *os.File // its directory
	name string
	// aside: a file is there, which is kept under another name.
	aside bool
}

// makeAll makes all changes below top, or none: all are looked at before the first one is made.
func (a *answer) makeAll(top *os.File, changes []Change) error {
	if err := Check(changes); err != nil {
		return fmt.Errorf("%w: %w", errKeep, err)
	}
	if err := isSystem(top, within|unix.RESOLVE_NO_XDEV); err != nil {
		return err
	}
	var steps []*step
	defer func() {
		for _, s := range steps {
			_ = s.dir.Close() // it was only looked at
		}
	}()
	for i, c := range changes {
		s, err := find(top, c, within|unix.RESOLVE_NO_XDEV)
		if err != nil {
			return err
		}
		if s == nil {
			a.Already = append(a.Already, i)
			continue
		}
		steps = append(steps, s)
		a.Done = append(a.Done, i)
	}
	for _, s := range steps {
		kept, err := s.carryOut()
		if err != nil {
			return fmt.Errorf("%s: %w", s.Change, err)
		}
		if kept != "" {
			a.Kept = append(a.Kept, kept)
		}
	}
	return nil
}

// within is how far a path may lead below a root: in a volume not to another mount, which none of its own has.
const within = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// isSystem refuses what is no root of a system with systemd, and systems whose units are not the administrator's.
func isSystem(top *os.File, resolve uint64) error {
	d, err := openIn(top, UnitDir, resolve)
	if err == nil {
		err = errors.Join(ownUnits(top, d), d.Close())
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return errNoSystem
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return fmt.Errorf("%w: %s leads elsewhere: %w", errKeep, UnitDir, err)
	}
	return err
}

// ownUnits refuses a directory of units that a link has put among those of packages, as NixOS and Guix do: what
// is there is made anew, or shared by several systems.
func ownUnits(top, d *os.File) error {
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", d.Fd()))
	if err != nil {
		return err
	}
	root, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", top.Fd()))
	if err != nil {
		return err
	}
	at := "/" + strings.TrimPrefix(strings.TrimPrefix(real, root), "/")
	for _, dir := range []string{"/usr/", "/nix/", "/gnu/", "/lib/"} {
		if strings.HasPrefix(at, dir) {
			return fmt.Errorf("%w: %s leads to %s, which is not the administrator's to change", errKeep, UnitDir, at)
		}
	}
	return nil
}

// openIn opens a directory below root. Symbolic links lead to where they do in the guest, and nothing leads
// out of it.
func openIn(root *os.File, name string, resolve uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: resolve})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// find looks whether a change can be made, nil if there is nothing to do.
func find(top *os.File, c Change, resolve uint64) (s *step, err error) {
	d, err := openIn(top, path.Dir(c.Path), resolve)
	if errors.Is(err, unix.ENOENT) && c.Kind == Unlink {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errKeep, err)
	}
	s = &step{Change: c, dir: d, name: path.Base(c.Path)}
	defer func() {
		if err != nil || s == nil {
			err = errors.Join(err, d.Close())
		}
	}()
	var st unix.Stat_t
	err = unix.Fstatat(int(d.Fd()), s.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT) && c.Kind == Unlink:
		return nil, nil
	case errors.Is(err, unix.ENOENT):
		return s, nil
	case err != nil:
		return nil, fmt.Errorf("look at %s: %w", c.Path, err)
	}
	link := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		if link, err = readlink(d, s.name); err != nil {
			return nil, err
		}
	case unix.S_IFREG:
		s.aside = true
	default:
		return nil, fmt.Errorf("%w: %s is neither a file nor a link", errKeep, c.Path)
	}
	switch {
	case c.Kind == Mask && (link == masked || s.aside && st.Size == 0):
		return nil, nil // an empty file masks too
	case c.Kind == Unlink && s.aside:
		return nil, fmt.Errorf("%w: %s is a file and not a link: it is not known what it is for", errKeep, c.Path)
	case c.Kind == Unlink && c.Link != "" && c.Link != link:
		return nil, fmt.Errorf("%w: %s leads to %q, and not to %q", errKeep, c.Path, link, c.Link)
	}
	return s, nil
}

func readlink(d *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(d.Fd()), name, buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}

// carryOut makes the change, and gives the new name of a file that is kept.
func (s *step) carryOut() (kept string, err error) {
	fd := int(s.dir.Fd())
	if s.Kind == Unlink {
		return "", errors.Join(unix.Unlinkat(fd, s.name, 0), s.dir.Sync())
	}
	if s.aside {
		err := unix.Renameat2(fd, s.name, fd, s.name+Aside, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			return "", fmt.Errorf("%w: there is %s%s already", errKeep, s.Path, Aside)
		}
		if err != nil {
			return "", err
		}
		kept = s.Path + Aside
	} else if err := unix.Unlinkat(fd, s.name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return "", err
	}
	if err := unix.Symlinkat(masked, fd, s.name); err != nil {
		return kept, err
	}
	return kept, errors.Join(s.label(), s.dir.Sync())
}

// label gives the new link the label of its directory, as SELinux would: without one a system that enforces
// could not read it. Smack, whose labels are in another attribute, reads links without one.
func (s *step) label() error {
	const attr = "security.selinux"
	buf := make([]byte, 4096)
	n, err := unix.Fgetxattr(int(s.dir.Fd()), attr, buf)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("its directory's %s: %w", attr, err)
	}
	// The directory is open, so nobody can put another one in its place.
	return unix.Lsetxattr("/proc/self/fd/"+strconv.Itoa(int(s.dir.Fd()))+"/"+s.name, attr, buf[:n], 0)
}
