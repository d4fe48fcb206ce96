// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package image_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// head is 600 bytes of zeros with texts at some places.
func head(at map[int]string) []byte {
	p := make([]byte, 600)
	for off, s := range at {
		copy(p[off:], s)
	}
	return p
}

var probes = []struct {
	name string
	data []byte
	file string
	want image.Format
}{
	{"empty", nil, "", image.Raw},
	{"empty dmg", nil, "a.dmg", image.Raw},
	{"zeros", head(nil), "", image.Raw},
	{"one byte", []byte{'Q'}, "", image.Raw},
	{"magic alone", []byte("QFI\xfb"), "", image.Raw},
	{"qcow", head(map[int]string{0: "QFI\xfb\x00\x00\x00\x01"}), "", image.Qcow},
	{"qcow2 version 2", head(map[int]string{0: "QFI\xfb\x00\x00\x00\x02"}), "", image.Qcow2},
	{"qcow2 cut off", []byte("QFI\xfb\x00\x00\x00\x03"), "", image.Qcow2},
	{"qcow2 of the future", head(map[int]string{0: "QFI\xfb\x00\x00\x00\x09"}), "", image.Qcow2},
	{"qcow version 0", head(map[int]string{0: "QFI\xfb"}), "", image.Raw},
	{"vmdk", head(map[int]string{0: "KDMV"}), "", image.VMDK},
	{"vmdk 3", head(map[int]string{0: "COWD"}), "", image.VMDK},
	{"descriptor", head(map[int]string{0: "# Disk\nversion=1\n"}), "", image.VMDK},
	{"descriptor of windows", head(map[int]string{0: "# Disk\r\n  \r\n#\r\nversion=3\r\n"}), "",
		image.VMDK},
	{"descriptor without comment", head(map[int]string{0: "version=2\n"}), "", image.VMDK},
	{"descriptor with an empty line", head(map[int]string{0: "# Disk\n\nversion=1\n"}), "",
		image.Raw},
	{"descriptor of version 4", head(map[int]string{0: "# Disk\nversion=4\n"}), "", image.Raw},
	{"descriptor with a long line", head(map[int]string{0: "version=1 \n"}), "", image.Raw},
	{"comment only", bytes.Repeat([]byte("#"), 600), "", image.Raw},
	{"spaces only", bytes.Repeat([]byte(" "), 600), "", image.Raw},
	{"vhdx", head(map[int]string{0: "vhdxfile"}), "", image.VHDX},
	{"vpc", head(map[int]string{0: "conectix"}), "", image.VPC},
	{"vdi", head(map[int]string{64: "\x7f\x10\xda\xbe"}), "", image.VDI},
	{"qed", head(map[int]string{0: "QED\x00"}), "", image.QED},
	{"luks", head(map[int]string{0: "LUKS\xba\xbe\x00\x01"}), "", image.LUKS},
	{"luks 2", head(map[int]string{0: "LUKS\xba\xbe\x00\x02"}), "", image.Raw},
	{"parallels", head(map[int]string{0: "WithoutFreeSpace\x02"}), "", image.Parallels},
	{"parallels extended", head(map[int]string{0: "WithouFreSpacExt\x02"}), "", image.Parallels},
	{"parallels version 3", head(map[int]string{0: "WithoutFreeSpace\x03"}), "", image.Raw},
	{"bochs", head(map[int]string{0: "Bochs Virtual HD Image", 32: "Redolog", 48: "Growing",
		66: "\x02"}), "", image.Bochs},
	{"bochs 1", head(map[int]string{0: "Bochs Virtual HD Image", 32: "Redolog", 48: "Growing",
		66: "\x01"}), "", image.Bochs},
	{"bochs undo log", head(map[int]string{0: "Bochs Virtual HD Image", 32: "Redolog",
		48: "Undoable", 66: "\x02"}), "", image.Raw},
	{"cloop", head(map[int]string{0: "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"}), "", image.Cloop},
	{"dmg", head(nil), "disk.dmg", image.DMG},
	{"name of dmg alone", head(nil), ".dmg", image.Raw},
	{"qcow2 named dmg", head(map[int]string{0: "QFI\xfb\x00\x00\x00\x02"}), "other.dmg",
		image.Qcow2},
}

func TestProbe(t *testing.T) {
	for _, c := range probes {
		t.Run(c.name, func(t *testing.T) {
			got, err := image.Probe(bytes.NewReader(c.data), int64(len(c.data)), c.file)
			if err != nil || got != c.want {
				t.Errorf("Probe(%q...) = %q, %v, want %q", c.data[:min(8, len(c.data))], got, err,
					c.want)
			}
		})
	}
}

type info struct {
	Size   int64  `json:"virtual-size"`
	Format string `json:"format"`
}

// qemuInfo is what qemu-img info says, and "" where it cannot open the image.
func qemuInfo(t *testing.T, path string, args ...string) (info, string) {
	t.Helper()
	var stderr strings.Builder
	cmd := exec.CommandContext(t.Context(), "qemu-img",
		append(append([]string{"info", "--output=json"}, args...), path)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return info{}, stderr.String()
	}
	var i info
	if err := json.Unmarshal(out, &i); err != nil {
		t.Fatal(err)
	}
	return i, ""
}

// qemu must see the same format: it opens the image by it, or complains in the name of its driver.
func TestProbeAgainstQemu(t *testing.T) {
	testenv.Need(t, "qemu-img")
	dir := t.TempDir()
	for i, c := range probes {
		name := c.file
		switch name {
		case "":
			name = fmt.Sprintf("disk%d", i)
		case ".dmg":
			continue // qemu sees the directory in front of it
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, c.data, 0o644); err != nil {
			t.Fatal(err)
		}
		diskio.RequireUnchanged(t, path)
		got, complaint := qemuInfo(t, path)
		if complaint == "" && got.Format != string(c.want) {
			t.Errorf("qemu-img says that %q is %q, Probe %q", c.name, got.Format, c.want)
		}
		if complaint != "" && c.want == image.Raw {
			t.Errorf("qemu-img does not take %q for raw, Probe does: %s", c.name, complaint)
		}
	}
}

func TestVirtualSizeAgainstQemu(t *testing.T) {
	testenv.Need(t, "qemu-img")
	dir := t.TempDir()
	for i, c := range []struct {
		format  string
		options string
		probed  image.Format
	}{
		{"raw", "", image.Raw},
		{"qcow2", "", image.Qcow2},
		{"qcow", "", image.Qcow},
		{"vmdk", "subformat=monolithicSparse", image.VMDK},
		{"vmdk", "subformat=streamOptimized", image.VMDK},
		{"vmdk", "subformat=monolithicFlat", image.VMDK},
		{"vmdk", "subformat=twoGbMaxExtentSparse", image.VMDK},
		{"vdi", "", image.VDI},
		{"vhdx", "", image.VHDX},
		{"vhdx", "block_size=1M", image.VHDX},
		{"vpc", "", image.VPC},
		{"vpc", "force_size=on", image.VPC},
		{"vpc", "subformat=fixed", image.Raw},
		{"qed", "", image.QED},
		{"parallels", "", image.Parallels},
	} {
		for _, size := range []string{"12345678", "5000000000"} {
			t.Run(fmt.Sprintf("%s %s %s", c.format, c.options, size), func(t *testing.T) {
				path := filepath.Join(dir, fmt.Sprintf("disk%d-%s", i, size))
				args := []string{"create", "-q", "-f", c.format, path, size}
				if c.options != "" {
					args = append(args, "-o", c.options)
				}
				if out, err := exec.CommandContext(t.Context(), "qemu-img",
					args...).CombinedOutput(); err != nil {
					t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
				}
				want, complaint := qemuInfo(t, path, "-f", c.format)
				if complaint != "" {
					t.Fatal(complaint)
				}
				f, err := diskio.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				format, err := image.Probe(f, f.Size(), path)
				if err != nil || format != c.probed {
					t.Errorf("Probe = %q, %v, want %q", format, err, c.probed)
				}
				if c.format == "vpc" && c.probed == image.Raw {
					if format, err = image.Hint(f, f.Size()); err != nil || format != image.VPC {
						t.Errorf("Hint = %q, %v, want %q", format, err, image.VPC)
					}
				}
				got, err := image.VirtualSize(f, f.Size(), format)
				if err != nil || got != want.Size {
					t.Errorf("VirtualSize = %d, %v, want %d", got, err, want.Size)
				}
			})
		}
	}
}

func TestVirtualSizeOfLUKS(t *testing.T) {
	testenv.Need(t, "qemu-img")
	path := filepath.Join(t.TempDir(), "disk.luks")
	// A short derivation of the key: the size is what counts here. qemu measures its own time for
	// it, and gives up where the kernel counts time too coarsely, so that it needs some luck.
	args := []string{"create", "-q", "-f", "luks", "--object", "secret,id=s,data=abc",
		"-o", "key-secret=s,iter-time=10", path, "3000000"}
	for try := 1; ; try++ {
		out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
		if err == nil {
			break
		}
		if try == 30 {
			t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
		}
	}
	diskio.RequireUnchanged(t, path)
	want, complaint := qemuInfo(t, path)
	f, err := diskio.Open(path)
	if err != nil || complaint != "" {
		t.Fatal(err, complaint)
	}
	defer f.Close()
	if got, err := image.VirtualSize(f, f.Size(), image.LUKS); err != nil || got != want.Size {
		t.Errorf("VirtualSize = %d, %v, want %d", got, err, want.Size)
	}
}

// What a header claims must not be believed where it cannot be, and must not cost anything.
func TestVirtualSizeOfNonsense(t *testing.T) {
	ones := strings.Repeat("\xff", 600)
	for _, c := range []struct {
		name   string
		format image.Format
		data   []byte
		want   int64
	}{
		{"negative raw", image.Raw, nil, 0},
		{"odd raw", image.Raw, []byte("x"), 512},
		{"qcow2", image.Qcow2, head(map[int]string{24: ones[:8]}), -1},
		{"vmdk", image.VMDK, head(map[int]string{0: "KDMV", 12: ones[:8]}), -1},
		{"vmdk with a descriptor inside", image.VMDK, head(map[int]string{0: "KDMV"}), -1},
		{"descriptor without extents", image.VMDK, []byte("version=1\n"), -1},
		{"descriptor of too many sectors", image.VMDK,
			[]byte("version=1\nRW 18014398509481983 FLAT a\nRW 1 FLAT b\n"), -1},
		{"descriptor with a bad number", image.VMDK, []byte("version=1\nRW -5 FLAT a\n"), -1},
		{"descriptor that is too long", image.VMDK,
			[]byte("version=1\nRW 5 FLAT a\n" + strings.Repeat(ones, 200)), -1},
		{"vhdx without tables", image.VHDX, head(map[int]string{0: "vhdxfile"}), -1},
		{"vdi", image.VDI, head(map[int]string{0x170: ones[:8]}), -1},
		{"luks", image.LUKS, head(map[int]string{0: "LUKS\xba\xbe\x00\x01", 104: ones[:4]}), -1},
		{"luks 2", image.LUKS, head(map[int]string{0: "LUKS\xba\xbe\x00\x02"}), -1},
		{"parallels", image.Parallels, head(map[int]string{36: ones[:8]}), -1},
		{"vpc without footer", image.VPC, head(nil), -1},
		{"dmg", image.DMG, head(nil), -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := image.VirtualSize(bytes.NewReader(c.data), int64(len(c.data)), c.format)
			if err != nil || got != c.want {
				t.Errorf("VirtualSize = %d, %v, want %d", got, err, c.want)
			}
		})
	}
}

var errBroken = errors.New("bad sector")

type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errBroken }

func TestProbeErrors(t *testing.T) {
	if f, err := image.Probe(broken{}, 4096, ""); !errors.Is(err, errBroken) {
		t.Errorf("Probe of what cannot be read = %q, %v, want %v", f, err, errBroken)
	}
	if f, err := image.Hint(broken{}, 4096); !errors.Is(err, errBroken) {
		t.Errorf("Hint of what cannot be read = %q, %v, want %v", f, err, errBroken)
	}
	if n, err := image.VirtualSize(broken{}, 4096, image.VMDK); n != -1 ||
		!errors.Is(err, errBroken) {
		t.Errorf("VirtualSize of what cannot be read = %d, %v, want -1, %v", n, err, errBroken)
	}
}

func FuzzProbe(f *testing.F) {
	for _, c := range probes {
		f.Add(c.data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		r := bytes.NewReader(data)
		format, err := image.Probe(r, r.Size(), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := image.Hint(r, r.Size()); err != nil {
			t.Fatal(err)
		}
		n, err := image.VirtualSize(r, r.Size(), format)
		if err != nil || n < -1 || n > 0 && n%512 != 0 {
			t.Fatalf("VirtualSize(%q) = %d, %v", format, n, err)
		}
		if !bytes.Equal(data, before) {
			t.Fatal("the input was changed")
		}
	})
}
