// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package nspawn

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/vm"
)

// begin is what each child of ours does first: mounts that nobody else sees, and which are gone with it. systemd-nspawn
// wants a /proc of its own PID namespace, and a /run that it may write to.
const begin = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
for g in $GROUPS_OF; do echo 0 > "$g/cgroup.procs"; done
mount -t overlay overlay -o "$LAYERS" "$MERGED"
`

// child gives the command that runs a script above the layers, as the first process of a session and of namespaces of its
// own: when it is killed, the kernel kills all others of them.
func (l *layers) child(ctx context.Context, script string, env ...string) (*exec.Cmd, error) {
	o, err := l.options()
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, "/bin/sh", "-c", begin+script)
	c.Env = append(os.Environ(), append(env, "LAYERS="+o, "MERGED="+l.merged, "LC_ALL=C")...)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 10 * time.Second
	return c, nil
}

// apart runs a script above the layers to its end.
func (l *layers) apart(ctx context.Context, script string, env ...string) error {
	c, err := l.child(ctx, script, env...)
	if err != nil {
		return err
	}
	words := vm.Tail{Max: maxConsole}
	c.Stdout, c.Stderr = &words, &words
	started, ended := start(c)
	if err := <-started; err != nil {
		return err
	}
	if err := <-ended; err != nil {
		return fmt.Errorf("%w: %s", errors.Join(ctx.Err(), err), strings.TrimSpace(string(words.Bytes())))
	}
	return nil
}

// start starts a command and has it waited for. The kernel ends it with the thread that started it, so that thread has to
// stay.
func start(c *exec.Cmd) (started, ended <-chan error) {
	s, e := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.Start()
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		s <- err
		if err == nil {
			e <- c.Wait()
		}
	}()
	return s, e
}

// groups are cgroups of our own, one in each hierarchy. Guests in one would take each other's processes for theirs.
type groups []string

// Where control groups are: all of them (version 2), or that of systemd beside others (version 1), of which the one that
// counts CPU time is used too: systemd.exec(5), cgroups(7).
func hierarchies() []string {
	return []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/cpuacct"}
}

// newGroups makes cgroups of a name, and takes away those of processes like this one that were killed.
func newGroups(name string) (groups, error) {
	sweep()
	var g groups
	for _, h := range hierarchies() {
		if _, err := os.Stat(filepath.Join(h, "cgroup.procs")); err != nil {
			continue
		}
		dir := filepath.Join(h, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return g, errors.Join(fmt.Errorf("%w: %w", ErrUnavailable, err), g.remove())
		}
		g = append(g, dir)
	}
	if len(g) == 0 {
		return nil, fmt.Errorf("%w: no control groups are mounted at /sys/fs/cgroup", ErrUnavailable)
	}
	return g, nil
}

// prefix is that of all names of cgroups; the number of the process follows.
const prefix = "shisa-lab-"

// sweep takes away cgroups whose process is gone. What ran in them was killed with it.
func sweep() {
	for _, h := range hierarchies() {
		left, _ := filepath.Glob(filepath.Join(h, prefix+"*"))
		for _, dir := range left {
			pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
			if _, err := os.Stat("/proc/" + pid); pid != "" && errors.Is(err, fs.ErrNotExist) {
				removeGroup(dir) // another one may be at it, too
			}
		}
	}
}

// cpu is the time that the processes of the groups used.
func (g groups) cpu() time.Duration {
	for _, dir := range g {
		var n int64
		if b, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage")); err == nil {
			if _, err := fmt.Sscan(string(b), &n); err == nil {
				return time.Duration(n)
			}
		}
		b, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
		if _, scan := fmt.Sscanf(string(b), "usage_usec %d", &n); err == nil && scan == nil && n > 0 {
			return time.Duration(n) * time.Microsecond
		}
	}
	return 0
}

// busy tells whether a process of the groups has something to do: it runs, waits for a processor or for a disk.
func (g groups) busy() (found bool) {
	for _, dir := range g {
		// What goes meanwhile is not busy.
		_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.Name() != "cgroup.procs" {
				return nil
			}
			b, _ := os.ReadFile(path)
			for pid := range strings.FieldsSeq(string(b)) {
				stat, _ := os.ReadFile("/proc/" + pid + "/stat")
				_, after, _ := strings.Cut(string(stat), ") ")
				found = found || strings.HasPrefix(after, "R") || strings.HasPrefix(after, "D")
			}
			return nil
		})
	}
	return found
}

// patience is how long the kernel may take to be done with processes that were killed, and a guest that is
// never idle to end.
const patience = 5 * time.Minute

// remove takes the groups away, with those that a guest made below.
func (g groups) remove() error {
	var last error
	for _, dir := range g {
		for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			if last = removeGroup(dir); last == nil || time.Now().After(end) {
				break
			}
		}
	}
	return last
}

func removeGroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		if err = syscall.Rmdir(dirs[i]); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return err
}
