// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/lab/vhost"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// What a guest asks of its host, and what it has of it: a directory, by hostfs.
const (
	hostDir = "SHISA_HOST_DIR"

	askRoom, askStop, askContinue = "room", "stop", "continue"
)

// TestStoreUnderImage has the store of two images fail, as a guest sees it that has them by QEMU's block layer: the one
// store is full, the other one stops answering. The images are well, and the doctor in the guest tells the one from the
// other.
func TestStoreUnderImage(t *testing.T) {
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	testenv.Need(t, vhost.Program, "qemu-img", "mkfs.ext4")
	t.Parallel()
	store, host := t.TempDir(), t.TempDir()
	const room, more = "size=24m", "size=200m"
	if err := unix.Mount("store", store, "tmpfs", 0, room); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(store, 0); err != nil {
			t.Error(err)
		}
	})
	m := umlMachine{programs: umlPrograms(t), memoryMiB: 384, modules: []string{vhost.Module}}
	images := []string{filepath.Join(store, "full.qcow2"), filepath.Join(testenv.DiskDir(t), "stopped.qcow2")}
	var disks []*vhost.Disk
	for _, image := range images {
		mustRun(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "128M")
		d, err := vhost.Serve(image, "qcow2")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		disks = append(disks, d)
		m.more = append(m.more, d.Argument())
	}
	end := grants(t, host, map[string]func() error{
		askRoom: func() error { return unix.Mount("store", store, "tmpfs", unix.MS_REMOUNT, more) },
		askStop: disks[1].Stop, askContinue: disks[1].Continue})
	m.run(t, "TestStoreUnderImageInside", hostDir+"="+host)
	end()
	for i, image := range images {
		if err := disks[i].Close(); err != nil {
			t.Error(err)
		}
		mustRun(t, "qemu-img", "check", "-q", image)
		program{filepath.Join(m.programs, "shisa"), t.TempDir()}.says(t, 0, "check", image)
	}
}

// grants does what a guest asks for, once each, until it is ended.
func grants(t *testing.T, dir string, all map[string]func() error) (end func()) {
	t.Helper()
	done := make(chan struct{})
	var working sync.WaitGroup
	working.Go(func() {
		for len(all) > 0 {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
			for name, do := range all {
				if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, fs.ErrNotExist) {
					continue
				}
				delete(all, name)
				if err := errors.Join(do(), os.WriteFile(filepath.Join(dir, name+".done"), nil, 0o644)); err != nil {
					t.Error(err)
				}
			}
		}
	})
	return sync.OnceFunc(func() {
		close(done)
		working.Wait()
	})
}

// askHost has the host do something, in the guest.
func askHost(t *testing.T, dir, what string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, what), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, what+".done")); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the host was asked for %s, and did not do it", what)
		}
	}
}

func TestStoreUnderImageInside(t *testing.T) {
	testenv.NeedGuest(t)
	host := t.TempDir()
	if err := unix.Mount("host", host, "hostfs", 0, os.Getenv(hostDir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(host, unix.MNT_DETACH) })
	t.Run("full", func(t *testing.T) { storeFull(t, host) })
	t.Run("stopped", func(t *testing.T) { storeStopped(t, host) })
}

func storeFull(t *testing.T, host string) {
	const dev = "/dev/vda"
	at := newFilesystem(t, dev)
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	old := bytes.Repeat([]byte("old"), 100_000)
	if err := os.WriteFile(filepath.Join(at, "old"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "sync", "-f", at)
	var failed error
	for i := 0; failed == nil && i < 64; i++ {
		failed = writeMiB(filepath.Join(at, fmt.Sprint("new", i)))
	}
	if !errors.Is(failed, unix.EIO) && !errors.Is(failed, unix.EROFS) {
		t.Fatalf("a full store gives %v, want an error of input and output", failed)
	}
	// Data that was lost does not make ext4 give up: what it keeps for itself does.
	if err := syncAll(at); err == nil {
		t.Error("a file system was written to a store that is full")
	}
	r := examined(t)
	f := findingOf(r, "FS01")
	if f == nil || f.Object != (doctor.Object{Kind: doctor.FileSystem, On: "guest", Name: "vda"}) || r.Causes[0].Finding != f.ID ||
		len(r.Causes[0].Explains) == 0 || findingOf(r, "FS04") == nil {
		t.Errorf("of a store that is full the guest says %+v with %+v, want that ext4 gave up, and what was lost", r.Causes, f)
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	askHost(t, host, askRoom)
	if err := unix.Mount(dev, at, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(at, "old")); err != nil || !bytes.Equal(got, old) {
		t.Errorf("what was written before is gone: %d bytes, %v", len(got), err)
	}
	run(t, "umount", at)
	run(t, "e2fsck", "-fn", dev)
}

// writeMiB writes a file, and waits until it is on the disk.
func writeMiB(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(bytes.Repeat([]byte{1}, 1<<20))
	return errors.Join(err, f.Sync(), f.Close())
}

func storeStopped(t *testing.T, host string) {
	at := newFilesystem(t, "/dev/vdb")
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	name := filepath.Join(at, "file")
	if err := writeMiB(name); err != nil {
		t.Fatal(err)
	}
	askHost(t, host, askStop)
	writer := hangs(t, "dd", "if=/dev/zero", "of="+name, "conv=fsync,notrunc", "count=64")
	waitState(t, writer.Process.Pid, "D")
	// It ends, though it looks at the disk as well: nobody who waits for that could be ended.
	r := examined(t)
	f := findingOf(r, "NF01")
	if f == nil || f.Object.Name != at || f.Kind != "device" || !strings.Contains(f.Summary, "/dev/vdb") || r.Causes[0].Finding != f.ID ||
		waiting(r) != 1 {
		t.Errorf("of a store that does not answer the guest says %+v with %+v, want the disk, and who waits for it", r.Causes, f)
	}
	askHost(t, host, askContinue)
	if err := writer.Wait(); err != nil {
		t.Errorf("the writer was given %v, want that it goes on", err)
	}
	if r := examined(t); findingOf(r, "NF01") != nil || findingOf(r, "FS01") != nil || waiting(r) > 0 {
		t.Errorf("the store answers again, and it is said: %+v", r.Causes)
	}
	run(t, "umount", at)
}
