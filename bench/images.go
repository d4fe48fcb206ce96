// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/lab"
)

// disk is an image of the bench.
type disk struct {
	name string
	spec lab.Spec
}

func disks() map[string]*disk {
	all := []*disk{
		{"seq-1T", lab.Spec{VirtualBytes: 1 << 40}},
		{"snap-1T", lab.Spec{VirtualBytes: 1 << 40, Snapshots: 4}},
		{"runs-1T", lab.Spec{VirtualBytes: 1 << 40, Layout: lab.Runs(16)}},
		{"random-64G", lab.Spec{VirtualBytes: 64 << 30, Layout: lab.Random}},
		{"seq-8T", lab.Spec{VirtualBytes: 8 << 40}},
		{"bomb-400G", lab.Spec{VirtualBytes: 10 << 10, ClusterBits: 9, AppendHole: 400e9}},
		{"bomb-1100G", lab.Spec{VirtualBytes: 10 << 10, ClusterBits: 9, AppendHole: 1100e9}},
		&liveDisk,
		&wrongDisk,
		&writtenDisk,
	}
	m := make(map[string]*disk, len(all))
	for _, d := range all {
		m[d.name] = d
	}
	return m
}

// sized is the image as the flags want it. A bomb stays what it is: its size is its point.
func (d *disk) sized(quick bool) lab.Spec {
	s := d.spec
	if quick && s.AppendHole == 0 {
		s.VirtualBytes /= 16
	}
	return s
}

// bytesOnDisk is about what the metadata takes: 8 bytes for each L2 entry and 2 for each refcount.
func (d *disk) bytesOnDisk(quick bool) int64 {
	s := d.sized(quick)
	if s.ClusterBits == 0 {
		s.ClusterBits = 16
	}
	return s.VirtualBytes>>s.ClusterBits*10 + 1<<20
}

// makeCommand is the hidden first argument with which the bench calls itself to make an image: the
// program that measures has to stay small, since the kernel counts its memory as its children's.
const makeCommand = "--make-image"

func (b *bench) make(ctx context.Context, d *disk, dir string) (path string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, d.name+".qcow2")
	name := d.name
	if b.quick {
		name += "/quick"
	}
	cmd := exec.CommandContext(ctx, self, makeCommand, name, path)
	if out, err := cmd.CombinedOutput(); err != nil {
		os.Remove(path)
		return "", fmt.Errorf("make %s: %w: %s", d.name, err, out)
	}
	return path, nil
}

func makeImage(name, path string, log io.Writer) int {
	base, quick := name, false
	if dir, file := filepath.Split(name); file == "quick" {
		base, quick = filepath.Clean(dir), true
	}
	d := disks()[base]
	if d == nil {
		fmt.Fprintf(log, "no image is called %q\n", name)
		return 64
	}
	if err := lab.Write(path, d.sized(quick)); err != nil {
		fmt.Fprintln(log, err)
		return 1
	}
	return 0
}

// warm reads the data of the image once, so that both programs find it in the page cache.
func warm(ctx context.Context, path string) error {
	f, err := diskio.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 256<<10)
	return f.Data(ctx, 0, f.Size(), func(off, length int64) error {
		for end := off + length; off < end; {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), end-off)], off)
			if err != nil {
				return err
			}
			off += int64(n)
		}
		return ctx.Err()
	})
}

// cool writes the image out and drops it from the page cache.
func cool(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	return dropCache(f)
}
