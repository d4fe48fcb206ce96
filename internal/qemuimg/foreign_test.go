// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// foreignCommands make images of formats that only info knows: "@" stands for qemu-img create -q -f.
var foreignCommands = []string{
	"@ vdi small.vdi 10M", "@ vdi none.vdi 0", "@ vdi odd.vdi 1000001", "@ vdi -o static=on full.vdi 5M", "@ vdi huge.vdi 3T",
	"> vdi small.vdi write_0_3M",
	"@ vpc small.vpc 10M", "@ vpc big.vpc 200G", "@ vpc -o force_size=on forced.vpc 1000001", "@ vpc -o subformat=fixed fixed.vpc 3M",
	"> vpc small.vpc write_0_3M",
	"@ vhdx small.vhdx 10M", "@ vhdx -o block_size=1M blocks.vhdx 300M", "@ vhdx -o subformat=fixed fixed.vhdx 20M", "@ vhdx huge.vhdx 20T",
	"> vhdx blocks.vhdx write_0_30M",
	"@ qed small.qed 10M", "@ qed -o cluster_size=4k,table_size=2 tiny.qed 1M", "@ qed -b small.qed -F qed over.qed", "@ qed -b base.raw -F raw onraw.qed 5M",
	"> qed small.qed write_0_3M",
	"@ vmdk small.vmdk 10M", "@ vmdk huge.vmdk 1T", "@ vmdk -o subformat=streamOptimized stream.vmdk 3G", "@ vmdk -o compat6 six.vmdk 4G",
	"@ vmdk -o zeroed_grain=on zeroed.vmdk 10M", "@ vmdk -b small.vmdk -F vmdk over.vmdk", "> vmdk small.vmdk write_0_3M",
	"= qemu-img convert -f vmdk -O vmdk -o subformat=streamOptimized small.vmdk packed.vmdk",
	"@ vmdk -o subformat=monolithicFlat flat.vmdk 5M", "@ vmdk -o subformat=twoGbMaxExtentSparse parts.vmdk 3G",
	"@ qcow2 -u -b over.vmdk -F vmdk onvmdk.qcow2 10M",
}

// makeForeign makes the images in the current directory and gives the names of those that info knows.
func makeForeign(t *testing.T) []string {
	t.Helper()
	if err := os.WriteFile("base.raw", make([]byte, 5<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, line := range foreignCommands {
		argv := strings.Fields(line)
		switch argv[0] {
		case "@":
			argv = append([]string{"qemu-img", "create", "-q", "-f"}, argv[1:]...)
		case ">":
			argv = []string{"qemu-io", "-f", argv[1], "-c", strings.ReplaceAll(argv[3], "_", " "), argv[2]}
		default:
			argv = argv[1:]
		}
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", argv, err, out)
		}
	}
	derive(t, "small.qed", "dirty.qed", func(p []byte) { p[16] |= 2 })
	// A hosted image that was written in one go has its directory, and so its header, at the end.
	derive(t, "stream.vmdk", "footed.vmdk", footed)
	var names []string
	for _, format := range []string{"vdi", "vpc", "vhdx", "qed", "vmdk"} {
		entries, err := os.ReadDir(".")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := e.Name()
			if strings.HasSuffix(name, "."+format) && !strings.HasPrefix(name, "parts") && !strings.HasPrefix(name, "flat") {
				names = append(names, name)
			}
		}
	}
	return names
}

// derive writes a changed copy of a file.
func derive(t *testing.T, from, to string, change func([]byte)) {
	t.Helper()
	p, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	p = append(p, make([]byte, 3*sector)...)
	change(p)
	if err := os.WriteFile(to, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

// footed moves the place of the directory into a footer.
func footed(p []byte) {
	le := binary.LittleEndian
	marker := p[len(p)-3*sector:]
	le.PutUint32(marker[12:], 3)
	copy(marker[sector:], p[:sector])
	le.PutUint64(p[56:], vmdkAtEnd)
}

func TestForeignInfo(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	t.Chdir(testenv.DiskDir(t))
	names := makeForeign(t)
	if len(names) < 25 {
		t.Fatalf("%d images, want 25 or more: %q", len(names), names)
	}
	diskio.RequireUnchanged(t, names...)
	for _, name := range names {
		format := name[strings.LastIndexByte(name, '.')+1:]
		for _, args := range [][]string{
			{"info", name}, {"info", "--output=json", name}, {"info", "-U", "-f", format, name}, {"info", "--backing-chain", name},
			{"info", "--image-opts", "driver=" + format + ",file.filename=" + name},
		} {
			same(t, args...)
			if got := ours(t, args...); got.Code != codeOK {
				t.Errorf("qemu-img %q = %d, %q, want an answer", args, got.Code, got.Stderr)
			}
		}
		same(t, "info", "--image-opts", "driver="+format+",file.filename="+name+",bogus=1")
	}
	same(t, "info", "--backing-chain", "--output=json", "onvmdk.qcow2")
	same(t, "info", "-f", "vdi", "small.vpc")
	same(t, "info", "-f", "qed", "base.raw")
	// What is in several files, and what needs the data, stays refused.
	for _, args := range [][]string{
		{"info", "flat.vmdk"}, {"info", "parts.vmdk"}, {"map", "small.vdi"}, {"compare", "small.qed", "small.qed"}, {"map", "onvmdk.qcow2"},
		{"info", "--image-opts", "driver=vpc,file.filename=small.vpc,force_size_calc=chs"},
	} {
		if got := ours(t, args...); got.Code == codeOK || !strings.Contains(got.Stderr, "cannot be read by this program") {
			t.Errorf("qemu-img %q = %d, %q, want that the format cannot be read", args, got.Code, got.Stderr)
		}
	}
}

// Whoever writes to such an image has it for himself, unless -U is given.
func TestForeignLocks(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	t.Chdir(testenv.DiskDir(t))
	makeForeign(t)
	for _, name := range []string{"small.vdi", "small.vpc", "small.vhdx", "small.qed", "small.vmdk"} {
		hold(t, "-f", name[strings.LastIndexByte(name, '.')+1:], name)
		same(t, "info", name)
		same(t, "info", "-U", name)
	}
}

// Where a byte of the metadata is wrong, info says what qemu-img says, or refuses the image by its
// format; it never knows more.
func TestForeignFlips(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	t.Chdir(testenv.DiskDir(t))
	makeForeign(t)
	n := 300
	if testenv.Long() {
		n = 20000
	}
	// Where the metadata of each is, and a few bytes that count for much.
	places := map[string][][2]int64{
		"small.vdi": {{0x40, 0x188}}, "odd.vdi": {{0x140, 0x60}}, "small.vpc": {{0, 512}, {512, 64}, {1536, 32}}, "fixed.vpc": {{-512, 512}},
		"small.vhdx": {{64 << 10, 80}, {128 << 10, 80}, {192 << 10, 80}, {2 << 20, 200}, {2<<20 + 64<<10, 40}}, "blocks.vhdx": {{3 << 20, 512}},
		"small.qed": {{0, 64}}, "over.qed": {{0, 80}}, "small.vmdk": {{0, 80}, {512, 400}}, "footed.vmdk": {{0, 80}, {-1024, 80}, {512, 400}},
		"over.vmdk": {{512, 500}},
	}
	names := []string{}
	for _, line := range foreignCommands {
		for _, word := range strings.Fields(line) {
			if _, ok := places[word]; ok && strings.HasPrefix(line, "@") {
				names = append(names, word)
			}
		}
	}
	names = append(names, "footed.vmdk")
	rnd := rand.New(rand.NewPCG(7, 1))
	refused, answered := 0, 0
	for i := range n {
		name := names[i%len(names)]
		list := places[name]
		place := list[rnd.IntN(len(list))]
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		off := place[0] + rnd.Int64N(place[1])
		if off < 0 {
			off = int64(len(data)) + off
		}
		if off = min(max(off, 0), int64(len(data))-1); rnd.IntN(2) == 0 {
			data[off] ^= 1 << rnd.IntN(8)
		} else {
			data[off] = byte(rnd.Uint32())
		}
		if name == "small.vpc" || name == "fixed.vpc" {
			sumVPC(data, name == "fixed.vpc")
		}
		format := name[strings.LastIndexByte(name, '.')+1:]
		flip := "flip." + format
		if err := os.WriteFile(flip, data, 0o600); err != nil {
			t.Fatal(err)
		}
		args := []string{"info", "-f", format, flip}
		got := ours(t, args...)
		if got.Code == codeFailed && strings.Contains(got.Stderr, "cannot be read by this program") {
			refused++
			continue
		}
		answered++
		t.Run(fmt.Sprintf("%s at %#x to %#02x", name, off, data[off]), func(t *testing.T) {
			want := realQemu(t, ".", args...)
			if got != want {
				t.Errorf("info = %+v, want %+v", got, want)
			}
		})
	}
	t.Logf("%d answered, %d refused", answered, refused)
	if answered < n/5 || refused < n/10 {
		t.Errorf("%d answered, %d refused of %d, want many of both", answered, refused, n)
	}
}

// sumVPC makes the checksum of a footer right.
func sumVPC(p []byte, atEnd bool) {
	foot := p[:sector]
	if atEnd {
		foot = p[len(p)-sector:]
	}
	binary.BigEndian.PutUint32(foot[64:], vpcChecksum(foot))
}
