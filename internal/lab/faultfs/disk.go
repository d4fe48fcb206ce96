// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux/loop"
)

// imageName is what the file of a disk is called, in the store and in the file system of faults.
const imageName = "disk.img"

// DiskOptions say what a disk is to be like.
type DiskOptions struct {
	Type    string   // ext4, xfs or btrfs
	Bytes   int64    // how large it is; 0 is small
	Mkfs    []string // more arguments of mkfs
	Options string   // of the mount
	// StoreBytes: the image is in a file system of this size, and nothing is between that and the
	// loop device: no faults but that one day it is full. 0 is a store with room, and faults.
	StoreBytes int64
	// AllocatedBytes: so much of the image, from its beginning, has its space in the store.
	AllocatedBytes int64
}

// Disk is a file system on a loop device on a file that has faults.
type Disk struct {
	Dir    string // what all of it is below: a file system in memory
	Store  string // the directory that the image is in
	Image  string // the file that keeps the bytes
	Loop   string // the file that the device is made of: of FS, or the image itself
	Device string // /dev/loopN
	Name   string // loopN
	Mount  string // where it is mounted
	Type   string
	FS     *FS // nil where StoreBytes was set

	loop int // the device, open: the kernel takes it away with the last who has it open
}

// NewDisk makes a disk at dir, an existing directory, and mounts it. It is ErrUnavailable outside a
// mount namespace of our own, and where the kernel does not have the file system.
func NewDisk(ctx context.Context, dir string, o DiskOptions) (*Disk, error) {
	d := &Disk{Dir: dir, Store: dir + "/store", Mount: dir + "/mnt", Type: o.Type, loop: -1}
	d.Image = d.Store + "/" + imageName
	if err := d.build(ctx, o); err != nil {
		err = fmt.Errorf("make a disk with %s at %s: %w", o.Type, dir, err)
		if lacking(err) && !errors.Is(err, ErrUnavailable) {
			err = fmt.Errorf("%w: %w", err, ErrUnavailable)
		}
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Disk) build(ctx context.Context, o DiskOptions) error {
	if err := apart(); err != nil {
		return err
	}
	if err := mountTmpfs(d.Dir, 0); err != nil {
		return err
	}
	for _, name := range []string{d.Store, d.Mount, d.Dir + "/fuse"} {
		if err := os.Mkdir(name, 0o755); err != nil {
			return err
		}
	}
	if o.StoreBytes != 0 {
		if err := mountTmpfs(d.Store, o.StoreBytes); err != nil {
			return err
		}
	}
	if err := makeFS(ctx, d.Image, o); err != nil {
		return err
	}
	if err := allocate(d.Image, o.AllocatedBytes); err != nil {
		return err
	}
	d.Loop = d.Image
	if o.StoreBytes == 0 {
		var err error
		d.FS, err = Mount(d.Dir+"/fuse", Stored{Name: imageName, Store: d.Image})
		if err != nil {
			return err
		}
		d.Loop = d.FS.Dir + "/" + imageName
	}
	if err := d.attach(); err != nil {
		return err
	}
	return unix.Mount(d.Device, d.Mount, d.Type, 0, o.Options)
}

func (d *Disk) attach() error {
	file, err := unix.Open(d.Loop, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", d.Loop, err)
	}
	defer unix.Close(file)
	fd, n, err := loop.Attach(file, loop.Options{Name: imageName})
	if err != nil {
		return err
	}
	d.loop, d.Device, d.Name = fd, loop.Path(n), "loop"+strconv.Itoa(n)
	return nil
}

// allocate gives the first bytes of a file their space.
func allocate(path string, bytes int64) error {
	if bytes == 0 {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, bytes), f.Close())
}

func mountTmpfs(at string, sizeBytes int64) error {
	var options string
	if sizeBytes != 0 {
		options = fmt.Sprintf("size=%d", sizeBytes)
	}
	if err := unix.Mount("faultfs", at, "tmpfs", 0, options); err != nil {
		return fmt.Errorf("mount a file system in memory on %s: %w", at, err)
	}
	return nil
}

// makeFS makes an image with a file system in it, in which nothing is left to be done later.
func makeFS(ctx context.Context, image string, o DiskOptions) error {
	bytes, args := int64(24<<20), []string{"-q", "-F", "-b", "4096", "-J", "size=4",
		"-E", "lazy_itable_init=0,lazy_journal_init=0"}
	switch o.Type {
	case "ext4":
	case "xfs":
		args = []string{"-q", "--unsupported"} // so small
	case "btrfs":
		bytes, args = 128<<20, []string{"-q"}
	default:
		return fmt.Errorf("no file system %q is known", o.Type)
	}
	if o.Bytes != 0 {
		bytes = o.Bytes
	}
	f, err := os.OpenFile(image, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(bytes), f.Close()); err != nil {
		return err
	}
	args = append(append(args, o.Mkfs...), image)
	out, err := exec.CommandContext(ctx, "mkfs."+o.Type, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: %w", err, ErrUnavailable)
	}
	if err != nil {
		return fmt.Errorf("mkfs.%s: %w: %s", o.Type, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Set sets a rule of the disk.
func (d *Disk) Set(text string) (*Fault, error) { return d.FS.Set(imageName, text) }

// Sync has the file system write what it has, and gives its error.
func (d *Disk) Sync() error {
	fd, err := unix.Open(d.Mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(fd), unix.Close(fd))
}

// CopyTo copies the disk as it stands to a new file, as if the power had been cut now: nothing is
// written meanwhile, and holes stay holes.
func (d *Disk) CopyTo(path string) (err error) {
	if d.FS != nil && !d.FS.frozen {
		if err := d.FS.Freeze(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.FS.Thaw()) }()
	}
	return copySparse(d.Image, path)
}

// copySparse copies a file to a new one, and leaves holes out.
func copySparse(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	err = eachData(src, st.Size(), func(off, n int64) error {
		_, err := io.Copy(io.NewOffsetWriter(dst, off), io.NewSectionReader(src, off, n))
		return err
	})
	return errors.Join(err, dst.Truncate(st.Size()))
}

// eachData calls fn for each part of a file that is no hole.
func eachData(f *os.File, size int64, fn func(off, n int64) error) error {
	for end := int64(0); end < size; {
		begin, err := f.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		if end, err = f.Seek(begin, unix.SEEK_HOLE); err != nil {
			return err
		}
		if err := fn(begin, end-begin); err != nil {
			return err
		}
	}
	return nil
}

// Close takes the disk away, whatever state it is in. What hangs goes on.
func (d *Disk) Close() (err error) {
	if d.FS != nil {
		defer d.FS.rescue().Stop()
		err = d.FS.relieve()
	}
	err = errors.Join(err, takeDown(d.Mount))
	if d.loop >= 0 {
		err = errors.Join(err, unix.Close(d.loop), d.detached())
		d.loop = -1
	}
	if d.FS != nil {
		err = errors.Join(err, d.FS.Close())
	}
	return errors.Join(err, takeDown(d.Store), takeDown(d.Dir))
}

// detached waits until the device is free of our file: it goes with the last who looks at it.
func (d *Disk) detached() error {
	err := until(func() (bool, error) {
		at, err := os.ReadFile("/sys/block/" + d.Name + "/loop/backing_file")
		if errors.Is(err, os.ErrNotExist) {
			return true, nil
		}
		return strings.TrimSpace(string(at)) != d.Loop, err
	})
	if err != nil {
		return fmt.Errorf("%s is still on %s: %w", d.Device, d.Loop, err)
	}
	return nil
}
