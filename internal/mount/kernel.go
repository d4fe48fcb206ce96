// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux/apart"
)

// graceful is how long programs are given to end when the mount is to end.
const graceful = 5 * time.Second

// driver is how the kernel mounts a kind of file system.
type driver struct {
	name, data string
	write      string // more data, where it is mounted to write
}

// drivers are those that are let at a volume. What needs more than one device, or registers itself
// with the kernel by what is written on the disk (btrfs by its UUID), is not among them.
var drivers = map[string]driver{
	// What the superblock wants done on errors is not left to it: it may want the host to panic. Inode
	// tables that mkfs left to be cleared stay so: what is written is to be little.
	"ext2": {"ext4", "errors=remount-ro", ",noinit_itable"},
	"ext3": {"ext4", "errors=remount-ro", ",noinit_itable"},
	"ext4": {"ext4", "errors=remount-ro", ",noinit_itable"},
	// The host may have a file system of the same UUID: its own template.
	"xfs":  {"xfs", "nouuid", ""},
	"vfat": {"vfat", "errors=remount-ro", ""},
}

// KernelKinds are the kinds of file systems that Kernel mounts.
func KernelKinds() []string { return slices.Sorted(maps.Keys(drivers)) }

// Volume is what holds one file system, of one of KernelKinds.
type Volume struct {
	Reader    io.ReaderAt
	SizeBytes int64
	Kind      string
}

// KernelOptions are those of Kernel. StateDir and Command must be set.
type KernelOptions struct {
	StateDir string
	// Source is what is mounted, for the record.
	Source string
	// LayerBytes bounds what may be written, all of it in memory; 0 is 512 MiB.
	LayerBytes int64
	// Command is the program that sees the mount, with its arguments, and Env its environment.
	Command []string
	Env     []string
	// Stdin, Stdout and Stderr are those of the program. Files are handed on as they are.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Changed, if set, lets the program write to the mount. When nothing is left of it, and the program
	// ended with 0, it is given what was written and differs from the volume, as by Disk.Changed.
	Changed func(off int64, p []byte) error
	// Mounted, if set, is called before the program is run.
	Mounted func()
	// Interrupt gives the signals that a terminal sends to the program as well. They are the program's
	// as long as it runs, and end the waiting for others behind it.
	Interrupt <-chan os.Signal
	// Log is told what could not be read of the volume, and who is waited for at the end.
	Log func(text string)
}

// defaultLayerBytes holds what replaying the largest usual journal writes.
const defaultLayerBytes = 512 << 20

// ErrKind: the kernel's driver for this kind of file system is not used.
var ErrKind = errors.New("is not mounted with the kernel's driver")

// Kernel mounts a volume with the driver of the kernel, read-only unless KernelOptions.Changed is set, on an
// existing directory, and runs a program that sees it there: nobody else does, since the mount is in a namespace of its own. What
// the driver writes, as when it replays a journal, goes to a layer in memory and is forgotten; the
// volume is only read. It gives the exit status of the program, 128 and the number of a signal that
// killed it, and returns when nothing is left of the mount. When ctx ends the program is told to end.
//
// The driver is made for disks that one trusts: a volume that was made to do harm can take over the
// host. It needs root (ErrRoot). Other errors are ErrMounted and ErrKind.
func Kernel(ctx context.Context, v Volume, dir string, o KernelOptions) (status int, err error) {
	if os.Geteuid() != 0 {
		return 0, fmt.Errorf("mount %s with the kernel's driver: %w", o.Source, ErrRoot)
	}
	d, ok := drivers[v.Kind]
	if !ok {
		return 0, fmt.Errorf("%s: %q %w", o.Source, v.Kind, ErrKind)
	}
	if o.LayerBytes == 0 {
		o.LayerBytes = defaultLayerBytes
	}
	real, err := target(dir)
	if err != nil {
		return 0, err
	}
	k := &kernelMount{o: o, dir: real, driver: d, disk: &diskFile{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), layer: newLayer(v.Reader, v.SizeBytes,
			o.LayerBytes), notes: notes{log: o.Log}}}
	k.record, err = begin(o.StateDir, record{Kind: kindKernel, Dir: []byte(real),
		Source: []byte(o.Source)})
	if err != nil {
		return 0, err
	}
	k.disk.name = k.record.mark()
	onThread(func() { status, err = k.run(ctx) })
	if err == nil && status == 0 && o.Changed != nil {
		err = k.disk.layer.changed(o.Changed)
	}
	return status, err
}

// onThread runs fn on a thread that is not the first one of the process and ends with it, so that
// what fn does to the thread stays without consequences.
func onThread(fn func()) {
	done := make(chan struct{})
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			go run() // cannot get this thread, which is held until fn is done
			<-done
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: the runtime ends the thread with the goroutine.
		defer close(done)
		fn()
	}
	go run()
	<-done
}

// kernelMount is a mount by the kernel's driver, on a thread of its own.
type kernelMount struct {
	o      KernelOptions
	dir    string
	driver driver
	disk   *diskFile
	record *record
}

// run makes everything, runs the program, and takes everything away in the reverse order.
func (k *kernelMount) run(ctx context.Context) (status int, err error) {
	var undo []func() error
	defer func() {
		for _, fn := range slices.Backward(undo) {
			err = errors.Join(err, fn())
		}
	}()
	undo = append(undo, k.record.remove)
	if err := k.enter(ctx); err != nil {
		return 0, err
	}
	private := k.record.private()
	if err := os.Mkdir(private, 0o700); err != nil {
		return 0, fmt.Errorf("make a directory for the disk: %w", err)
	}
	undo = append(undo, func() error { return os.Remove(private) })
	server, err := serve(k.disk, private, k.o.Source, access{flags: quiet})
	if err != nil {
		return 0, fmt.Errorf("mount on %s: %w", private, err)
	}
	undo = append(undo, func() error {
		lazily, err := unmountAlone(private)
		if !lazily {
			server.Wait()
		}
		return err
	})
	if err := k.record.serves(private); err != nil {
		return 0, err
	}
	loop, err := k.loop(private)
	if err != nil {
		return 0, err
	}
	undo = append(undo, func() error {
		err := loop.close()
		if err == nil && !loop.gone(k.record.Marker) {
			err = fmt.Errorf("%s is still in use; it goes with who uses it", loop.path())
		}
		return err
	})
	if err := k.mount(loop); err != nil {
		return 0, err
	}
	undo = append(undo, func() error { return k.leave(ctx) })
	if k.o.Mounted != nil {
		k.o.Mounted()
	}
	return k.program(ctx)
}

// enter gives the thread a mount namespace of its own, in which nothing of others is kept busy.
func (k *kernelMount) enter(ctx context.Context) error {
	keep := []string{k.dir, k.o.StateDir}
	for _, word := range k.o.Command {
		keep = append(keep, pathsIn(word)...)
	}
	covered, err := apart.Mounts(ctx, keep...)
	if err != nil {
		return err
	}
	if len(covered) > 0 && k.o.Log != nil {
		k.o.Log("not seen by the command, so that it keeps nobody from unmounting them: " +
			strings.Join(covered, ", "))
	}
	k.record.Namespace, err = os.Readlink("/proc/thread-self/ns/mnt")
	k.record.Marker = k.record.mark()
	if err != nil {
		return err
	}
	return k.record.write()
}

// pathsIn gives all in a word of a command line that may be a path from the root: the word may be a
// script.
func pathsIn(word string) []string {
	var all []string
	for _, part := range strings.FieldsFunc(word, func(r rune) bool {
		return strings.ContainsRune(" \t\n\"'=:;,()<>|&", r)
	}) {
		if filepath.IsAbs(part) {
			all = append(all, filepath.Clean(part))
		}
	}
	return all
}

// loop makes a loop device on the disk's file.
func (k *kernelMount) loop(private string) (*loopDevice, error) {
	file, err := unix.Open(private+"/"+k.disk.name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the disk's file: %w", err)
	}
	l, err := makeLoop(file, k.record.Marker)
	if err = errors.Join(err, unix.Close(file)); err != nil {
		return nil, err
	}
	k.record.Loop = l.number
	if err := k.record.write(); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// mount lets the driver at the device. Read-only it replays the journal all the same, since the
// device can be written to.
func (k *kernelMount) mount(l *loopDevice) error {
	flags, data := uintptr(quiet|unix.MS_RDONLY), k.driver.data
	if k.o.Changed != nil {
		flags, data = quiet|unix.MS_NOATIME, data+k.driver.write
	}
	err := unix.Mount(l.path(), k.dir, k.driver.name, flags, data)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("mount %s as %s: %w", k.o.Source, k.driver.name, err)
	if k.disk.layer.full.Load() {
		return fmt.Errorf("%w: %w (%d bytes)", err, ErrFull, k.o.LayerBytes)
	}
	return err
}

// program runs the command in the thread's namespace.
func (k *kernelMount) program(ctx context.Context) (status int, err error) {
	// A program in what was mounted cannot be run. To find that out in the new process would hang: until
	// it runs it holds up this one, which has to serve the disk.
	if _, err := exec.LookPath(k.o.Command[0]); err != nil {
		return 0, fmt.Errorf("run %w", err)
	}
	c := exec.CommandContext(ctx, k.o.Command[0], k.o.Command[1:]...)
	c.Env = k.o.Env
	c.Stdin, c.Stdout, c.Stderr = k.o.Stdin, k.o.Stdout, k.o.Stderr
	// Without this process it could read nothing more.
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = graceful
	err = c.Run()
	if c.ProcessState == nil {
		return 0, fmt.Errorf("run %s: %w", k.o.Command[0], err)
	}
	// However it came to its end, what it says is its status.
	if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return c.ProcessState.ExitCode(), nil
}

// leave unmounts. It waits for programs that still use the mount, until ctx ends or the user does not
// want to wait: then they are killed.
func (k *kernelMount) leave(ctx context.Context) error {
	select {
	case <-k.o.Interrupt: // that was for the program
	default:
	}
	for told := false; ; {
		err := unix.Unmount(k.dir, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil, errors.Is(err, unix.EINVAL): // the program did
			return nil
		case !errors.Is(err, unix.EBUSY):
			return fmt.Errorf("unmount %s: %w", k.dir, err)
		}
		if all := inNamespace(k.record.Namespace); len(all) > 0 && !told && k.o.Log != nil {
			told = true
			k.o.Log("waiting for who still uses " + k.dir + ": " + strings.Join(all, ", "))
		}
		select {
		case <-ctx.Done():
			return k.leaveNow()
		case <-k.o.Interrupt:
			return k.leaveNow()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// leaveNow kills what is in the namespace: programs that the command started. One that cannot be
// killed gets errors.
func (k *kernelMount) leaveNow() error {
	for end := time.Now().Add(graceful); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for _, p := range namespaceOf(k.record.Namespace) {
			// It may have ended by itself, and only its number stayed: the namespace is asked again.
			if fd, err := unix.PidfdOpen(p, 0); err == nil {
				if namespace(p) == k.record.Namespace {
					_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
				}
				_ = unix.Close(fd)
			}
		}
		if err := unix.Unmount(k.dir, unix.UMOUNT_NOFOLLOW); !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return unix.Unmount(k.dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
}

// unmountAlone unmounts what nobody but the kernel used, which may need a moment to let go. lazily
// says that it did not: then it goes with this process.
func unmountAlone(dir string) (lazily bool, err error) {
	for deadline := time.Now().Add(answer); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			return false, nil
		case !errors.Is(err, unix.EBUSY):
			return true, fmt.Errorf("unmount %s: %w", dir, err)
		case time.Now().After(deadline):
			return true, unmount(dir, true)
		}
	}
}
