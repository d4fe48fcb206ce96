// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
)

const (
	// patience is how long is waited for what ends by itself: a process that has nothing more to
	// serve, a device that nobody uses any more.
	patience = 10 * time.Second
	// answer is how long a file system that may be dead is waited for.
	answer = 2 * time.Second
	// maxLogBytes is how much of a log is read.
	maxLogBytes = 1 << 20
)

// Gone is what was taken away.
type Gone struct {
	// Dir is the directory that it was mounted on.
	Dir string
	// Killed: its process had ended without doing so.
	Killed bool
	// Log is what a process in the background could not read, and what else it has to tell.
	Log []Line
}

// Unmount takes away what this or another process mounted on a directory with Files or Kernel, and
// waits until nothing is left of it. It gives ErrNotOurs, and ErrBusy while programs use it.
func Unmount(ctx context.Context, stateDir, dir string) (*Gone, error) {
	real, err := mountPoint(dir)
	if err != nil {
		return nil, fmt.Errorf("unmount %s: %w", dir, err)
	}
	r, err := readRecord(recordPath(stateDir, real))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotOurs
	}
	if err != nil {
		return nil, fmt.Errorf("unmount %s: %w", dir, err)
	}
	log := r.openLog()
	g := &Gone{Dir: real}
	g.Killed, err = r.end(ctx)
	g.Log = lines(log)
	if err != nil {
		return nil, fmt.Errorf("unmount %s: %w", dir, err)
	}
	return g, nil
}

// Point is a directory that something is mounted on, by a record, and what that is. PID is the process
// that serves it, or did.
type Point struct {
	Dir, Source string
	PID         int
}

// Points gives what records there are of mounts, also of those whose process was killed, and an error
// for each that cannot be read.
func Points(stateDir string) ([]Point, error) {
	all, errs := records(stateDir)
	var points []Point
	for _, r := range all {
		if len(r.Dir) > 0 { // else it was killed before it made anything
			points = append(points, Point{string(r.Dir), string(r.Source), r.PID})
		}
	}
	return points, errors.Join(errs...)
}

// Recover takes away what processes left that were killed. An error is given for each that could
// not be taken away whole; its record stays.
func Recover(stateDir string) ([]Gone, error) {
	all, errs := records(stateDir)
	var done []Gone
	for _, r := range all {
		alive, err := r.alive()
		if err == nil && !alive {
			g := Gone{Dir: string(r.Dir), Killed: true, Log: lines(r.openLog())}
			if err = r.cleanAlone(); err == nil {
				done = append(done, g)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("what is left of the mount on %s: %w", r.Dir, err))
		}
	}
	return done, errors.Join(errs...)
}

// mountPoint is the one true name of a directory that a dead file system may be mounted on, so that
// its last part is only looked at as a symbolic link.
func mountPoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if to, err := os.Readlink(abs); err == nil {
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(abs), to)
		}
		abs = to
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	return filepath.Join(parent, filepath.Base(abs)), err
}

// end ends what the record is of, whether its process is alive or was killed.
func (r *record) end(ctx context.Context) (killed bool, err error) {
	if r.PID > 0 {
		// From here on the number stands for this process and no later one.
		fd, err := unix.PidfdOpen(r.PID, 0)
		if err == nil {
			defer unix.Close(fd)
			alive, err := r.alive()
			if err != nil {
				return false, err
			}
			if alive {
				return false, r.stop(ctx, fd)
			}
		} else if !errors.Is(err, unix.ESRCH) {
			return false, err
		}
	}
	return true, r.cleanAlone()
}

// stop makes the process of the record end, and waits for it.
func (r *record) stop(ctx context.Context, pidfd int) error {
	var err error
	if r.Kind == kindKernel {
		// What is mounted is in its own namespace. It ends the programs there, and takes all away.
		err = unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0)
	} else if err = r.isTop(string(r.Dir)); err == nil {
		err = unmount(string(r.Dir), false)
	}
	switch {
	case err != nil && notMounted(err): // it is just ending
	case errors.Is(err, unix.EBUSY):
		if all := usersOf(string(r.Dir)); len(all) > 0 {
			return fmt.Errorf("%w by %s", ErrBusy, strings.Join(all, ", "))
		}
		return ErrBusy
	case err != nil:
		return err
	}
	deadline := time.Now().Add(patience)
	if r.Kind == kindKernel {
		deadline = deadline.Add(2 * graceful)
	}
	for time.Now().Before(deadline) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 50)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case n > 0:
			if _, err := os.Lstat(r.path); err == nil {
				return r.cleanAlone() // it was killed before its end
			}
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", r.PID)
}

// cleanAlone cleans up while no other process writes a record or cleans up.
func (r *record) cleanAlone() error {
	unlock, err := lock(filepath.Dir(r.path))
	if err != nil {
		return err
	}
	now, err := readRecord(r.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = nil // another process was faster
	case err == nil && now.PID == r.PID && now.Start == r.Start && now.Boot == r.Boot:
		err = now.clean()
	}
	return errors.Join(err, unlock())
}

// lock keeps other processes from changing the records.
func lock(dir string) (unlock func() error, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), d.Close())
	}
	return d.Close, nil
}

// clean takes away what a process left that is gone, and strikes its record off.
func (r *record) clean() error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	if r.Boot == boot { // no mount or device outlives the boot
		switch r.Kind {
		case kindFiles, kindDisk:
			err = r.cleanMount(string(r.Dir))
		case kindKernel:
			if err = r.cleanLoop(); err == nil {
				err = r.cleanMount(r.private())
			}
		}
	}
	if own := r.ownDir(); err == nil && own != "" {
		err = os.Remove(own)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	return r.remove()
}

// ownDir is the directory that was made for the mount, "" if there was none.
func (r *record) ownDir() string {
	switch {
	case r.Kind == kindKernel:
		return r.private()
	case r.Kind == kindDisk && filepath.Dir(string(r.Dir)) == filepath.Dir(r.path) &&
		strings.HasPrefix(filepath.Base(string(r.Dir)), diskPrefix):
		return string(r.Dir)
	}
	return ""
}

// isTop tells whether our FUSE file system is what was mounted last on a directory. The error is
// EINVAL, as of umount(2), if it is not there at all.
func (r *record) isTop(dir string) error {
	all, err := mounts()
	if err != nil {
		return err
	}
	var last, ours *entry
	for i, e := range all {
		if e.dir != dir {
			continue
		}
		last = &all[i]
		if e.kind == "fuse."+fuseName && (r.Device == "" || r.Device == e.device) {
			ours = last
		}
	}
	switch {
	case ours == nil:
		return unix.EINVAL
	case ours != last:
		return fmt.Errorf("a %s is mounted over it: unmount that first", last.kind)
	}
	return nil
}

// cleanMount takes away our FUSE file system on a directory if nobody serves it any more.
func (r *record) cleanMount(dir string) error {
	err := r.isTop(dir)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return err
	}
	// Somebody may have unmounted ours and mounted another, with the same number. That one answers;
	// what stat(2) gives the kernel may still remember of ours.
	_, err = diskio.Within(context.Background(), answer, func() (struct{}, error) {
		var st unix.Statfs_t
		return struct{}{}, unix.Statfs(dir, &st)
	}, nil)
	if !errors.Is(err, unix.ENOTCONN) {
		return nil
	}
	return unmount(dir, true)
}

// cleanLoop takes away loop devices that bear the record's mark.
func (r *record) cleanLoop() error {
	left, err := r.loops()
	if err != nil || len(left) == 0 {
		return err
	}
	for _, n := range left {
		if err := clearLoop(n); err != nil {
			return err
		}
	}
	for deadline := time.Now().Add(answer); time.Now().Before(deadline); {
		if left, err = r.loops(); err != nil || len(left) == 0 {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	who := "nobody that can be seen"
	if all := inNamespace(r.Namespace); len(all) > 0 {
		who = strings.Join(all, ", ")
	}
	return fmt.Errorf("/dev/loop%d: %w by %s; it goes with them", left[0], ErrBusy, who)
}

// inNamespace names the processes of a mount namespace.
func inNamespace(name string) []string {
	var all []string
	for _, pid := range namespaceOf(name) {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // "" if it ended
		all = append(all, fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(comm)), pid))
	}
	return all
}

// usersOf names the processes that can be seen to use what is mounted on a directory.
func usersOf(dir string) []string {
	var all []string
	seen := map[string]bool{}
	for _, what := range []string{"cwd", "root", "exe", "fd/*"} {
		links, err := filepath.Glob("/proc/[0-9]*/" + what)
		if err != nil {
			return nil
		}
		for _, link := range links {
			to, err := os.Readlink(link)
			pid := strings.Split(link, "/")[2]
			if err != nil || seen[pid] || to != dir && !strings.HasPrefix(to, dir+"/") {
				continue // others it has, or it is another's
			}
			seen[pid] = true
			comm, _ := os.ReadFile("/proc/" + pid + "/comm") // "" if it ended
			all = append(all, fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(comm)), pid))
		}
	}
	return all
}

// namespaceOf lists the processes of a mount namespace.
func namespaceOf(name string) []int {
	names, err := os.ReadDir("/proc")
	if err != nil || name == "" {
		return nil
	}
	var all []int
	for _, n := range names {
		// This process has a thread in it at most.
		pid, err := strconv.Atoi(n.Name())
		if err == nil && pid != os.Getpid() && namespace(pid) == name {
			all = append(all, pid)
		}
	}
	return all
}

// namespace is the mount namespace of a process, "" if it ended.
func namespace(pid int) string {
	name, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	return name
}
