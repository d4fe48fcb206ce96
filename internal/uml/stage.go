// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package uml

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A guest that is confined is started by a stage: this program once more, in new namespaces, which makes
// the root that the guest's kernel is to see, and then starts that kernel as nobody.
//
//	/            tmpfs, with room for these files and the guest's memory
//	/kernel      linux.uml and what it is to load first; beside it what the dynamic linker needs, under
//	             its own name
//	/memory      where the guest's memory is
//	/root        the guest's root, by hostfs: Options.Files and empty directories
//	/diskN       the disks, and /dev/null: each a bind mount of one file

// stageName is what a stage is called.
const stageName = "shisa-uml-stage"

// newRoot is where a stage mounts the new root before it goes there: a directory that every host has, and below
// which it needs nothing.
const newRoot = "/sys"

// nobody is the user and group that the kernel of a confined guest has, where root runs it.
const nobody = 65534

// exitConfine is what a stage ends with that could not confine the guest, and says so on stderr.
const exitConfine = 97

// exitAborted is what a stage ends with whose kernel ended by SIGABRT.
const exitAborted = 96

// settingFD is where a stage reads what it is to do.
const settingFD = reportFD + 1

// setting is what a stage is told.
type setting struct {
	Program   string   `json:"program"`
	Args      []string `json:"args"`
	Files     []File   `json:"files"`
	Disks     []Disk   `json:"disks"`
	RoomBytes int64    `json:"room_bytes"`
	// Root: it has the rights of root, and the guest becomes nobody.
	Root bool `json:"root"`
}

// IsStage reports whether this process was started by Run, and has to call Stage at once.
func IsStage(argv []string) bool { return len(argv) > 0 && filepath.Base(argv[0]) == stageName }

// runStage starts a stage, and so a guest.
func runStage(ctx context.Context, o *Options, program string) (r *Result, err error) {
	s := setting{Program: program, Files: o.Files, Disks: slices.Clone(o.Disks), Root: powerful()}
	var disks []string
	for i := range s.Disks {
		disks = append(disks, "/disk"+strconv.Itoa(i))
		if s.Disks[i].Path, err = filepath.Abs(s.Disks[i].Path); err != nil {
			return &Result{}, err
		}
	}
	s.Args = o.arguments("/root", disks)
	if s.RoomBytes, err = o.room(program); err != nil {
		return &Result{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return &Result{}, err
	}
	told, from, err := os.Pipe()
	if err != nil {
		return &Result{}, err
	}
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(json.NewEncoder(from).Encode(&s), from.Close()) }()
	c := exec.Command(self)
	c.Args = []string{stageName}
	c.Env = environ("/memory", "/memory")
	c.ExtraFiles = []*os.File{told}
	c.SysProcAttr = apartFrom(s.Root)
	r, err = guest(ctx, o, c)
	// The stage may have ended before it read all of it.
	if gone := errors.Join(told.Close(), <-sent); gone != nil && err == nil {
		err = gone
	}
	return r, err
}

// powerful reports whether this process may make namespaces and become another user.
func powerful() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&head, &have[0]); err != nil {
		return false
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	return os.Geteuid() == 0 && have[0].Effective&need == need
}

// apartFrom gives a stage namespaces of its own. Who has not the rights of root gets one of users as well,
// to be allowed the others.
func apartFrom(root bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: unix.CLONE_NEWNS |
		unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	if !root {
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return a
}

// room is how much the new root has to hold.
func (o *Options) room(program string) (int64, error) {
	const slack = 16 << 20
	n := int64(o.memory())<<20 + slack
	names := []string{program}
	for _, f := range o.Files {
		n += int64(len(f.Content))
		if f.Path != "" {
			names = append(names, f.Path)
		}
	}
	for _, name := range names {
		fi, err := os.Stat(name)
		if err != nil {
			return 0, err
		}
		n += fi.Size()
	}
	return n, nil
}

// Stage is what a stage does. It gives the exit status.
func Stage() int {
	status, err := stage()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return status
}

func stage() (int, error) {
	var s setting
	in := os.NewFile(settingFD, "setting")
	if err := json.NewDecoder(in).Decode(&s); err != nil {
		return 1, err
	}
	report := os.NewFile(reportFD, "report")
	if err := errors.Join(in.Close(), s.build()); err != nil {
		return exitConfine, err
	}
	// The thread that starts the kernel has what it is to have: no rights, and none to gain.
	runtime.LockOSThread()
	c := exec.Command("/kernel/linux", s.Args...)
	c.Env, c.Dir = append(os.Environ(), preloads("/kernel")), "/"
	c.Stdin, c.Stdout, c.Stderr, c.ExtraFiles = os.Stdin, os.Stdout, os.Stderr, []*os.File{report}
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.drop(c.SysProcAttr); err != nil {
		return exitConfine, err
	}
	if err := c.Start(); err != nil {
		return exitConfine, err
	}
	err := c.Wait()
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		status := 1
		if aborted(e) {
			status = exitAborted
		}
		return status, fmt.Errorf("its kernel ended with %s", e)
	}
	return 0, err
}

// drop gives up what the guest's kernel does not need.
func (s *setting) drop(a *syscall.SysProcAttr) error {
	var zero unix.Rlimit
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &zero); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	if s.Root {
		// With the user the capabilities go.
		a.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		return nil
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&head, &none[0]); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	return nil
}

// build makes the new root and goes there, so that nothing of the host's is left.
func (s *setting) build() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("a mount namespace of its own: %w", err)
	}
	disks := make([]int, len(s.Disks)) // before the new root may lie over them
	for i, d := range s.Disks {
		fd, err := unix.Open(d.Path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: d.Path, Err: err}
		}
		defer unix.Close(fd)
		disks[i] = fd
	}
	options := fmt.Sprintf("mode=0755,size=%d", s.RoomBytes)
	if err := unix.Mount("shisa", newRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("a file system for its root: %w", err)
	}
	if err := s.fill(disks); err != nil {
		return err
	}
	return pivot(newRoot)
}

// pivot makes dir the root and lets go of the old one.
func pivot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	return unix.Chdir("/")
}

// fill puts the files into the new root.
func (s *setting) fill(disks []int) error {
	for _, name := range []string{"kernel", "memory", "root/dev", "root/mnt", "root/proc", "root/run",
		"root/sys", "root/tmp"} {
		if err := os.MkdirAll(filepath.Join(newRoot, name), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(newRoot, "memory"), 0o1777); err != nil {
		return err
	}
	files := []File{{Name: "../kernel/linux", Path: s.Program}, {Name: "../kernel/" + xstateName, Content: xstate}}
	libraries, err := linked(s.Program)
	if err != nil {
		return err
	}
	for _, l := range libraries {
		files = append(files, File{Name: "../" + l, Path: l})
	}
	for _, f := range append(files, s.Files...) {
		if err := f.put(filepath.Join(newRoot, "root", f.Name)); err != nil {
			return err
		}
	}
	// What a line of the kernel's does not read from, it reads from here.
	if err := s.show("/dev/null", "dev/null"); err != nil {
		return err
	}
	for i, fd := range disks {
		if err := s.show("/proc/self/fd/"+strconv.Itoa(fd), "disk"+strconv.Itoa(i)); err != nil {
			return fmt.Errorf("%s: %w", s.Disks[i].Path, err)
		}
	}
	return nil
}

// show shows a file of the host in the new root.
func (s *setting) show(from, name string) error {
	name = filepath.Join(newRoot, name)
	if err := (&File{}).put(name); err != nil {
		return err
	}
	if err := unix.Mount(from, name, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show it %s: %w", from, err)
	}
	return nil
}

// put makes a file.
func (f *File) put(name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	to, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if f.Path == "" {
		_, err = to.Write(f.Content)
		return errors.Join(err, to.Close())
	}
	from, err := os.Open(f.Path)
	if err == nil {
		_, err = io.Copy(to, from)
		err = errors.Join(err, from.Close())
	}
	return errors.Join(err, to.Close())
}

// libraryDirs is where the dynamic linker looks, on the systems that have User Mode Linux.
var libraryDirs = [...]string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64",
	"/lib", "/usr/lib"}

// linked gives the dynamic linker of a program and its libraries, with theirs.
func linked(program string) ([]string, error) {
	var all []string
	todo := []string{program}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		linker, needed, err := needs(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, n := range append(linker, needed...) {
			full, err := library(n)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if !slices.Contains(all, full) {
				all, todo = append(all, full), append(todo, full)
			}
		}
		if len(all) > maxFiles {
			return nil, fmt.Errorf("%s needs more than %d libraries", program, maxFiles)
		}
	}
	return all, nil
}

// needs gives the dynamic linker that a program names, and the libraries.
func needs(name string) (linker, libraries []string, err error) {
	f, err := elf.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			raw := make([]byte, min(p.Filesz, unix.PathMax))
			if _, err := p.ReadAt(raw, 0); err != nil {
				return nil, nil, err
			}
			linker = append(linker, strings.TrimRight(string(raw), "\x00"))
		}
	}
	libraries, err = f.ImportedLibraries()
	return linker, libraries, err
}

// library finds a library of the host.
func library(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, dir := range libraryDirs {
		full := filepath.Join(dir, name)
		if fi, err := os.Stat(full); err == nil && fi.Mode().IsRegular() {
			return full, nil
		}
	}
	return "", fmt.Errorf("its library %s is not there", name)
}
