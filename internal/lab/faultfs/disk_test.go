// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/ext4"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/xfs"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// newDisk is a disk at a new directory.
func newDisk(t *testing.T, o DiskOptions) (*Disk, string) {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs."+o.Type)
	dir := t.TempDir()
	d, err := NewDisk(t.Context(), dir, o)
	available(t, err)
	return d, dir
}

// TestDiskCloses holds that a disk goes without a trace in whatever state it is, and somebody waits
// for it.
func TestDiskCloses(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		for _, c := range []struct {
			name string
			hurt func(*testing.T, *Disk)
		}{
			{"hung", func(t *testing.T, d *Disk) {
				_, err := d.Set("any hang")
				must(t, err)
			}},
			{"frozen", func(t *testing.T, d *Disk) { must(t, d.FS.Freeze()) }},
			{"killed", func(t *testing.T, d *Disk) { must(t, d.FS.Kill()) }},
			{"failing", func(t *testing.T, d *Disk) {
				_, err := d.Set("any eio")
				must(t, err)
			}},
		} {
			t.Run(kind+" "+c.name, func(t *testing.T) {
				d, dir := newDisk(t, DiskOptions{Type: kind})
				f, err := os.Create(d.Mount + "/file")
				must(t, err)
				_, err = f.Write(make([]byte, 1<<16))
				must(t, err)
				c.hurt(t, d)
				synced := make(chan error)
				go func() { synced <- errors.Join(f.Sync(), f.Close()) }()
				if d.FS.frozen || c.name == "hung" {
					select {
					case err := <-synced:
						t.Errorf("Sync() = %v, want it to wait", err)
					default:
					}
					must(t, d.FS.relieve()) // who has a file open is in the way of every umount
				}
				<-synced
				if err := d.Close(); err != nil {
					t.Errorf("Close() = %v", err)
				}
				for _, left := range leftBelow(t, dir) {
					t.Errorf("left behind: %s", left)
				}
			})
		}
	}
}

// TestUnmountedBefore holds that a disk goes that somebody unmounted.
func TestUnmountedBefore(t *testing.T) {
	d, dir := newDisk(t, DiskOptions{Type: "ext4"})
	must(t, unix.Unmount(d.Mount, 0))
	must(t, d.Close())
	if left := leftBelow(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestNoDisk holds that what cannot be made leaves nothing.
func TestNoDisk(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4")
	available(t, apart())
	for _, c := range []struct {
		name string
		o    DiskOptions
		want string
	}{
		{"unknown", DiskOptions{Type: "zfs"}, `"zfs"`},
		{"no mkfs", DiskOptions{Type: "ext4", Mkfs: []string{"--no-such"}}, "mkfs.ext4"},
		{"no mount", DiskOptions{Type: "ext4", Options: "no_such_option"}, "invalid"},
		{"too small", DiskOptions{Type: "ext4", Bytes: 4096}, "mkfs.ext4"},
	} {
		dir := t.TempDir()
		d, err := NewDisk(t.Context(), dir, c.o)
		if err == nil || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: NewDisk() = %v, %v, want an error with %q", c.name, d, err, c.want)
		}
		if left := leftBelow(t, dir); len(left) > 0 {
			t.Errorf("%s: left behind: %q", c.name, left)
		}
	}
}

// TestCopy holds that a copy has what was synced, also of a disk that hangs, and that our own
// readers see it there.
func TestCopy(t *testing.T) {
	text := bytes.Repeat([]byte("what was synced "), 1000)
	for _, kind := range []string{"ext4", "xfs"} {
		for _, hangs := range []bool{false, true} {
			d, dir := newDisk(t, DiskOptions{Type: kind})
			t.Cleanup(func() {
				if left := leftBelow(t, dir); len(left) > 0 {
					t.Errorf("left behind: %q", left)
				}
			})
			must(t, os.WriteFile(d.Mount+"/file", text, 0o600))
			must(t, d.Sync())
			if hangs {
				_, err := d.Set("any hang")
				must(t, err)
			}
			name := filepath.Join(t.TempDir(), "copy")
			must(t, d.CopyTo(name))
			image, err := os.Stat(d.Image)
			must(t, err)
			if copied, err := os.Stat(name); err != nil || copied.Size() != image.Size() {
				t.Errorf("the copy is %v, %v, want it to have %d bytes", copied, err, image.Size())
			}
			must(t, d.Close())
			if got := inCopy(t, name, kind); !bytes.Equal(got, text) {
				t.Errorf("the file has %d bytes in the copy of the %s, want %d as they were written", len(got),
					kind, len(text))
			}
		}
	}
}

// inCopy is the file called file in a copy of a disk.
func inCopy(t *testing.T, name, kind string) []byte {
	t.Helper()
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	st, err := f.Stat()
	must(t, err)
	var fs files.FS
	if kind == "xfs" {
		fs, err = xfs.Open(t.Context(), f, st.Size())
	} else {
		fs, err = ext4.Open(t.Context(), f, st.Size())
	}
	must(t, err)
	var text []byte
	must(t, files.Walk(t.Context(), fs, fs.Info().Root, "/", func(found *files.Found) error {
		if found.Path != "/file" || found.Err != nil {
			return found.Err
		}
		text = make([]byte, found.File.Stat().Size)
		_, err = found.File.ReadAt(text, 0)
		return err
	}))
	return text
}

// TestCopyAtOnce holds that a copy is of one moment: what is written first is never older in it than
// what is written after it, though it lies where a copy comes first.
func TestCopyAtOnce(t *testing.T) {
	const copies, last = 20, fileBytes - 8
	fs, f := mounted(t, false)
	d := &Disk{FS: fs, Image: filepath.Dir(fs.Dir) + "/store"}
	number := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	_, err := f.WriteAt(number(0), 0)
	must(t, err)
	_, err = f.WriteAt(number(0), last)
	must(t, err)
	stop, ended := make(chan struct{}), make(chan error)
	go func() {
		for n := uint64(1); ; n++ {
			_, err := f.WriteAt(number(n), 0)
			if err == nil {
				_, err = f.WriteAt(number(n), last)
			}
			select {
			case <-stop:
				ended <- err
				return
			default:
			}
		}
	}()
	for i := range copies {
		name := filepath.Join(t.TempDir(), "copy")
		must(t, d.CopyTo(name))
		p, err := os.ReadFile(name)
		must(t, err)
		a, b := binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[last:])
		if a != b && a != b+1 {
			t.Errorf("copy %d has %d, and %d after it, want the same or one less", i, a, b)
		}
	}
	close(stop)
	must(t, <-ended)
}
