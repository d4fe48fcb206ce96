// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// bzImage is a kernel's file with a payload and nothing else.
func bzImage(payload []byte) []byte {
	b := make([]byte, 3*sectorBytes, 3*sectorBytes+len(payload))
	b[setupSectsAt] = 1
	copy(b[bootMagicAt:], "HdrS")
	binary.LittleEndian.PutUint16(b[bootVersionAt:], 0x020f)
	binary.LittleEndian.PutUint32(b[payloadOffsetAt:], sectorBytes)
	binary.LittleEndian.PutUint32(b[payloadLengthAt:], uint32(len(payload)))
	return append(b, payload...)
}

// TestUnpackImage has kernels unpacked in each way that they are packed in.
func TestUnpackImage(t *testing.T) {
	want := bytes.Repeat([]byte("\x7fELF and so on "), 1000)
	for tool, pack := range map[string][]string{
		"xz": {"--check=crc32"}, "zstd": {"-q"}, "lz4": {"-l"}, "gzip": {"-n"},
	} {
		t.Run(tool, func(t *testing.T) {
			testenv.Need(t, tool)
			c := exec.Command(tool, append(pack, "-c")...)
			c.Stdin = bytes.NewReader(want)
			packed, err := c.Output()
			if err != nil {
				t.Fatal(err)
			}
			if tool != "gzip" { // which ends with the size itself
				packed = binary.LittleEndian.AppendUint32(packed, uint32(len(want)))
			}
			dir := t.TempDir()
			image, to := filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "vmlinux")
			if err := os.WriteFile(image, bzImage(packed), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := unpackImage(t.Context(), image, to); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes (%v), want %d", len(got), err, len(want))
			}
		})
	}
}

func FuzzPayload(f *testing.F) {
	f.Add(bzImage([]byte("\xfd7zXZ\x00 1234")))
	f.Add(bzImage([]byte("\x1f\x8b")))
	f.Add(bzImage(nil))
	f.Add([]byte("HdrS"))
	f.Fuzz(func(t *testing.T, image []byte) {
		packed, command, err := payload(image)
		if err == nil && (len(packed) > len(image) || len(command) == 0) {
			t.Errorf("%d bytes of %d, to be unpacked by %q", len(packed), len(image), command)
		}
	})
}

// moduleFile is an ELF file with a section .modinfo and nothing else.
func moduleFile(info ...string) []byte {
	names := "\x00.modinfo\x00.shstrtab\x00"
	data := strings.Join(info, "\x00") + "\x00"
	h := elf.Header64{Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64,
		Shentsize: 64, Shnum: 3, Shstrndx: 2, Shoff: uint64(64 + len(data) + len(names))}
	copy(h.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, h)
	b.WriteString(data + names)
	binary.Write(&b, binary.LittleEndian, []elf.Section64{{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: 64, Size: uint64(len(data))},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(64 + len(data)), Size: uint64(len(names))}})
	return b.Bytes()
}

// TestModules holds that modules come after those that they need, once each, and that what is built in
// or has the name of what a module does is left out.
func TestModules(t *testing.T) {
	dir := t.TempDir()
	for path, data := range map[string][]byte{
		"kernel/fs/ext4/ext4.ko":        moduleFile("depends=jbd2,crc16", "softdep=pre: crypto-crc32c crc32c-x"),
		"kernel/fs/jbd2/jbd2.ko":        moduleFile("depends="),
		"kernel/lib/crc32c-x.ko":        moduleFile("depends=jbd2"),
		"kernel/drivers/nothing.ko":     []byte("not an ELF"),
		"kernel/drivers/readme.txt":     nil,
		"modules.builtin":               []byte("kernel/lib/crc16.ko\n"),
		"kernel/fs/packed/packed.ko.xz": packed(t, moduleFile("depends=jbd2")),
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, err := readModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ ask, want string }{
		{"ext4", "jbd2 crc32c_x ext4"}, {"crc16", ""}, {"packed ext4 jbd2", "jbd2 packed crc32c_x ext4"},
	} {
		all, err := m.closure(t.Context(), strings.Fields(c.ask))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, x := range all {
			got = append(got, x.name)
		}
		if want := strings.Fields(c.want); !slices.Equal(got, want) {
			t.Errorf("%s loads %q, want %q", c.ask, got, want)
		}
	}
	for _, bad := range []string{"nothing", "absent"} {
		if _, err := m.closure(t.Context(), []string{bad}); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}

func packed(t *testing.T, data []byte) []byte {
	t.Helper()
	testenv.Need(t, "xz")
	c := exec.Command("xz", "-c")
	c.Stdin = bytes.NewReader(data)
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func FuzzModuleInfo(f *testing.F) {
	f.Add(moduleFile("depends=a,b", "softdep=pre: c post: d"))
	f.Add(moduleFile())
	f.Fuzz(func(t *testing.T, data []byte) {
		needs, before, err := moduleInfo(data)
		if err != nil && len(needs)+len(before) > 0 {
			t.Errorf("%q and %q with %v", needs, before, err)
		}
	})
}

// TestFetchNothing holds that a package that apt does not know is a lack of this machine.
func TestFetchNothing(t *testing.T) {
	testenv.Need(t, "apt-cache")
	_, err := Fetch(context.Background(), t.TempDir(), "linux-image-of-no-kernel")
	if err == nil || !strings.Contains(err.Error(), ErrUnavailable.Error()) {
		t.Errorf("Fetch = %v, want %v", err, ErrUnavailable)
	}
}
