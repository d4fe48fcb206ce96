// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// header is a qcow2 header of version 3 and nothing else.
func header(clusterBits uint32, size uint64, l1Entries uint32) []byte {
	p := make([]byte, 512)
	be := binary.BigEndian
	copy(p, "QFI\xfb")
	be.PutUint32(p[4:], 3)
	be.PutUint32(p[20:], clusterBits)
	be.PutUint64(p[24:], size)
	be.PutUint32(p[36:], l1Entries)
	be.PutUint64(p[40:], 1<<clusterBits)
	be.PutUint64(p[48:], 2<<clusterBits)
	be.PutUint32(p[56:], 1)
	be.PutUint32(p[96:], 4)
	be.PutUint32(p[100:], 104)
	return p
}

// printed counts what is written.
type printed struct{ bytes int64 }

func (p *printed) Write(b []byte) (int, error) {
	p.bytes += int64(len(b))
	return len(b), nil
}

// A file of 512 bytes must cost little, whatever it claims: in reads, in memory and in words.
func TestTinyFileHugeClaims(t *testing.T) {
	path := filepath.Join(t.TempDir(), "huge.qcow2")
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"2 EiB in clusters of 2 MiB", header(21, 1<<61, 1<<22)},
		{"128 GiB in clusters of 512 bytes", header(9, 128<<30, 1<<22)},
		{"65536 snapshots", func() []byte {
			p := header(16, 1<<30, 4)
			put32(60, 65536)(p)
			put64(64, 1<<40)(p)
			return p
		}()},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(path, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			diskio.RequireUnchanged(t, path)
			for _, args := range [][]string{{"info", path}, {"check", path}, {"map", "--output=json", path}, {"compare", path, path}} {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				var words printed
				read := testenv.Read(t, func() {
					Run(t.Context(), Env{Stdout: &words, Stderr: &words}, append([]string{"qemu-img"}, args...))
				})
				runtime.ReadMemStats(&after)
				if read > 64<<10 {
					t.Errorf("qemu-img %s reads %d bytes, want 65536 at most", args[0], read)
				}
				if words.bytes > 8<<20 { // 65536 lines about snapshots
					t.Errorf("qemu-img %s prints %d bytes, want 8388608 at most", args[0], words.bytes)
				}
				if mib := (after.TotalAlloc - before.TotalAlloc) >> 20; mib > 64 {
					t.Errorf("qemu-img %s allocates %d MiB, want 64 at most", args[0], mib)
				}
			}
		})
	}
}

func TestBlockDevice(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "qemu-img", "losetup")
	dir := testenv.DiskDir(t)
	t.Chdir(dir)
	if err := lab.Write("q.qcow2", lab.Spec{VirtualBytes: 2 << 20}); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", "q.qcow2").Output()
	if err != nil {
		testenv.Lacks(t, "a loop device")
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", dev, err, out)
		}
	})
	for _, line := range []string{
		"info DEV", "info --output=json DEV", "check DEV", "map DEV", "map --output=json DEV", "map -f raw --output=json DEV",
		"info -f host_device DEV", "info host_device:DEV", "info file:DEV", "compare -f raw -F raw DEV q.qcow2", "compare -T none DEV q.qcow2",
		"check -T none DEV", "map -f host_device DEV", "info -f file DEV",
	} {
		same(t, split(strings.ReplaceAll(line, "DEV", dev))...)
	}
}

// FuzzImage runs all that looks at an image over any bytes.
func FuzzImage(f *testing.F) {
	dir := f.TempDir()
	for i, spec := range []lab.Spec{
		{VirtualBytes: 16 << 10, ClusterBits: 9, Snapshots: 1, Compressed: 0.2, ZeroAlloc: 0.1},
		{VirtualBytes: 64 << 10, ClusterBits: 14, ExtendedL2: true, Partial: 0.5, Bitmaps: 2, Fill: 0.3},
		{VirtualBytes: 16 << 10, ClusterBits: 9, Version: 2, Backing: "gone", BackingFormat: "raw"},
	} {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := lab.Write(path, spec); err != nil {
			f.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data[:min(len(data), 20<<10)])
	}
	f.Add(luksBytes("aes", "xts-plain64", "sha256", 64))
	f.Add(header(21, 1<<61, 1<<22))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		// A map may be much longer than its image, as it is for qemu-img. So the work is cut short;
		// how long it took is held against nothing.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for _, args := range [][]string{{"info"}, {"info", "--output=json"}, {"check"}, {"map", "--output=json"}, {"map"}, {"compare", path}} {
			Run(ctx, Env{Stdout: io.Discard, Stderr: io.Discard}, append(append([]string{"qemu-img"}, args...), path))
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, data) {
			t.Errorf("the image was changed (%v)", err)
		}
	})
}

// A chain that is longer than any machine's is refused by its length, as long as the limit of open
// files does not end it before.
func TestLongChain(t *testing.T) {
	t.Chdir(t.TempDir())
	for i := range maxChain + 1 {
		spec := lab.Spec{VirtualBytes: 1 << 16, ClusterBits: 9, Fill: -1}
		if i > 0 {
			spec.Backing, spec.BackingFormat = fmt.Sprintf("%d.qcow2", i-1), "qcow2"
		}
		if err := lab.Write(fmt.Sprintf("%d.qcow2", i), spec); err != nil {
			t.Fatal(err)
		}
	}
	got := ours(t, "map", fmt.Sprintf("%d.qcow2", maxChain))
	if strings.Contains(got.Stderr, "Too many open files") {
		testenv.Lacks(t, "a thousand open files")
	}
	want := fmt.Sprintf("the chain has more than %d images\n", maxChain)
	if got.Code != codeFailed || !strings.HasSuffix(got.Stderr, want) {
		t.Errorf("map of a chain of %d = %d, %q, want 1, %q", maxChain+1, got.Code, got.Stderr, want)
	}
	if got := ours(t, "map", fmt.Sprintf("%d.qcow2", maxChain-1)); got.Code != codeOK {
		t.Errorf("map of a chain of %d = %d, %q, want 0", maxChain, got.Code, got.Stderr)
	}
}
