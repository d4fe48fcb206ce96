// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shisa-vm/shisa/internal/image"
)

// zooCommands make the images of the zoo: "@" stands for qemu-img create -q -f qcow2, ">" for
// qemu-io -f qcow2 with one command for each argument behind the image, "=" for other programs.
var zooCommands = []string{
	// cluster sizes, versions, widths
	"@ -o compat=0.10 v2.qcow2 4M", "> v2.qcow2 write_0_100k write_-c_1M_64k write_2M_1",
	"@ -o cluster_size=512 c512.qcow2 3M", "> c512.qcow2 write_0_100k write_-c_1M_64k write_-z_2M_64k write_2900k_3k",
	"@ -o cluster_size=4k,refcount_bits=64 c4k.qcow2 9M", "> c4k.qcow2 write_0_1M write_-c_1M_8k write_-z_2M_64k write_8M_1M",
	"@ -o cluster_size=2M c2M.qcow2 9000M", "> c2M.qcow2 write_0_1M write_-c_4M_2M write_8000M_4M",
	"@ -o refcount_bits=1,cluster_size=8k rc1.qcow2 3M", "> rc1.qcow2 write_0_100k",
	"@ -o lazy_refcounts=on lazy.qcow2 3M", "> lazy.qcow2 write_100k_300k",
	"@ odd.qcow2 1000001", "> odd.qcow2 write_0_900k", "@ none.qcow2 0", "@ new.qcow2 1G", "@ huge.qcow2 300G",
	"> huge.qcow2 write_0_1 write_100G_1 write_-z_200G_10M",
	// compression, subclusters
	"@ -o compression_type=zstd zstd.qcow2 4M", "> zstd.qcow2 write_-c_0_64k write_-c_1M_64k write_64k_64k",
	"@ -o extended_l2=on,cluster_size=16k ext.qcow2 5M",
	"> ext.qcow2 write_0_512 write_4k_2k write_-z_9k_2k write_16k_16k write_-z_48k_16k write_-c_64k_16k write_100k_1M write_-z_2M_512",
	"@ -o extended_l2=on ext64.qcow2 5M", "> ext64.qcow2 write_0_64k write_66k_2k write_128k_1M write_-z_130k_64k discard_1M_64k",
	// preallocation
	"@ -o preallocation=metadata pmeta.qcow2 4M", "> pmeta.qcow2 write_1M_200k", "@ -o preallocation=falloc pfalloc.qcow2 2M",
	"@ -o preallocation=full pfull.qcow2 2M", "@ -o preallocation=metadata,extended_l2=on pext.qcow2 4M", "> pext.qcow2 write_1M_2k",
	// snapshots
	"@ snaps.qcow2 4M", "> snaps.qcow2 write_0_1M", "= qemu-img snapshot -c first snaps.qcow2", "> snaps.qcow2 write_-P_7_0_300k",
	"= qemu-img snapshot -c zwölf snaps.qcow2", "= qemu-img snapshot -c a-name-that-is-longer-than-its-column snaps.qcow2",
	"@ -o compat=0.10 snaps2.qcow2 4M", "> snaps2.qcow2 write_0_1M", "= qemu-img snapshot -c old snaps2.qcow2",
	// bitmaps
	"@ bitmaps.qcow2 64M", "= qemu-img bitmap --add bitmaps.qcow2 one", "= qemu-img bitmap --add -g 4k --disable bitmaps.qcow2 two",
	"> bitmaps.qcow2 write_0_1M write_5M_100k", "@ -o cluster_size=512 bm512.qcow2 64M", "= qemu-img bitmap --add -g 512 bm512.qcow2 b",
	"> bm512.qcow2 write_0_70k",
	// external data
	"@ -o data_file=ext.data data.qcow2 4M", "> data.qcow2 write_0_100k write_1M_64k write_-z_2M_64k",
	"@ -o data_file=extraw.data,data_file_raw=on dataraw.qcow2 4M", "> dataraw.qcow2 write_0_100k",
	"@ -o data_file=gone.data datagone.qcow2 1M",
	// encryption
	"= qemu-img create -q --object secret,id=s,data=abc -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 1M",
	// chains
	"@ base.qcow2 4M", "> base.qcow2 write_0_1M write_-c_2M_64k", "@ -b base.qcow2 -F qcow2 mid.qcow2", "> mid.qcow2 write_512k_1M write_-z_0_64k",
	"@ -b mid.qcow2 -F qcow2 top.qcow2 6M", "> top.qcow2 write_700k_64k write_5M_64k",
	"@ -b raw.img -F raw onraw.qcow2", "> onraw.qcow2 write_64k_64k", "@ -b odd.img -F raw onodd.qcow2 4M", "> onodd.qcow2 write_3M_1k",
	"= mkdir sub", "@ -u -b ../base.qcow2 -F qcow2 sub/over.qcow2 4M", "@ -u -b gone.qcow2 -F qcow2 orphan.qcow2 1M",
	"@ -u -b orphan.qcow2 -F qcow2 child.qcow2 1M", "@ -u -b self.qcow2 -F qcow2 self0.qcow2 1M", "= mv self0.qcow2 self.qcow2",
	"@ -u -b ./self2.qcow2 -F qcow2 self2.qcow2 1M",
	"@ -u -b b.qcow2 -F qcow2 a.qcow2 1M", "@ -u -b a.qcow2 -F qcow2 b.qcow2 1M", "@ -u -b sub -F qcow2 ondir.qcow2 1M",
	"@ -u -b base.qcow2 -F raw wrongfmt.qcow2 1M", "@ -u -b raw.img -F qcow2 wrongfmt2.qcow2 1M", "@ -u -b base.qcow2 -F vmdk vmdkfmt.qcow2 1M",
	`@ -u -b json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}} -F qcow2 json.qcow2 4M`,
	`@ -u -b json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"raw.img"}} -F raw jsonraw.qcow2 4M`,
	"@ -u -b foo:bar -F raw proto.qcow2 4M", "@ -u -b file:base.qcow2 -F qcow2 filepfx.qcow2 4M",
	"= cp top.qcow2 c:olon.qcow2", "= cp base.qcow2 with,comma.qcow2",
	// the same content in other clothes
	"= qemu-img convert -O raw base.qcow2 base.raw", "= qemu-img convert -c -O qcow2 base.qcow2 packed.qcow2",
	"= qemu-img convert -O qcow2 top.qcow2 flat.qcow2",
}

// makeZoo makes the zoo in dir.
func makeZoo(t testing.TB, dir string) {
	t.Helper()
	plainFiles(t, dir)
	runCommands(t, dir)
	makeLUKS(t, dir)
	for _, e := range edits {
		data, err := os.ReadFile(filepath.Join(dir, e.from))
		if err != nil {
			t.Fatal(err)
		}
		e.edit(data)
		writeFile(t, filepath.Join(dir, e.name), data)
	}
}

func runCommands(t testing.TB, dir string) {
	t.Helper()
	for _, line := range zooCommands {
		fields := strings.Fields(line)
		var argv []string
		switch fields[0] {
		case "@":
			argv = append([]string{"qemu-img", "create", "-q", "-f", "qcow2"}, fields[1:]...)
		case ">":
			argv = []string{"qemu-io", "-f", "qcow2", fields[1]}
			for _, c := range fields[2:] {
				argv = append(argv, "-c", strings.ReplaceAll(c, "_", " "))
			}
		default:
			argv = fields[1:]
		}
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", argv, err, out)
		}
	}
}

// luksBytes is a LUKS header with one key slot in use. Nothing can be decrypted with it, and it does
// not take the seconds that qemu-img needs to make one.
func luksBytes(cipher, mode, hash string, keyBytes uint32) []byte {
	p := make([]byte, luksHeaderBytes)
	be := binary.BigEndian
	copy(p, image.LUKSMagic+"\x00\x01")
	copy(p[8:], cipher)
	copy(p[40:], mode)
	copy(p[72:], hash)
	be.PutUint32(p[104:], 4040)
	be.PutUint32(p[108:], keyBytes)
	be.PutUint32(p[164:], 123456)
	copy(p[168:], "01234567-89ab-cdef-0123-456789abcdef")
	for i := range luksSlots {
		s := p[208+48*i:]
		be.PutUint32(s, image.LUKSSlotInactive)
		be.PutUint32(s[40:], uint32(8+504*i))
		be.PutUint32(s[44:], luksStripes)
	}
	be.PutUint32(p[208:], image.LUKSSlotActive)
	be.PutUint32(p[212:], 98765)
	return p
}

// makeLUKS makes encrypted images: plain LUKS, and qcow2 with a LUKS header at its end.
func makeLUKS(t testing.TB, dir string) {
	t.Helper()
	for _, c := range []struct {
		name, cipher, mode, hash string
		keyBytes                 uint32
		change                   func(p []byte)
	}{
		{"luks", "aes", "xts-plain64", "sha256", 64, nil},
		{"essiv", "serpent", "cbc-essiv:sha256", "sha512", 16, nil},
		{"essiv1", "aes", "cbc-essiv:sha1", "sha1", 16, nil},
		{"plainhash", "twofish", "ctr-plain:sha512", "ripemd160", 24, nil},
		{"cast", "cast5", "ecb-plain", "md5", 16, nil},
		{"badcipher", "rot13", "xts-plain64", "sha256", 64, nil},
		{"badkey", "aes", "xts-plain64", "sha256", 60, nil},
		{"badmode", "aes", "xtsplain64", "sha256", 64, nil},
		{"badmode2", "aes", "lrw-plain64", "sha256", 64, nil},
		{"badhash", "aes", "xts-plain64", "sha0", 64, nil},
		{"badiv", "aes", "xts-benbi", "sha256", 64, nil},
		{"noivhash", "aes", "cbc-essiv", "sha256", 32, nil},
		{"badmagic", "aes", "xts-plain64", "sha256", 64, func(p []byte) { p[0] = 'X' }},
		{"badversion", "aes", "xts-plain64", "sha256", 64, func(p []byte) { p[7] = 2 }},
		{"longname", strings.Repeat("a", 32), "xts-plain64", "sha256", 64, nil},
		{"badslot", "aes", "xts-plain64", "sha256", 64, func(p []byte) { p[258] = 9 }},
		{"badstate", "aes", "xts-plain64", "sha256", 64, func(p []byte) { p[256] = 9 }},
		{"overlap", "aes", "xts-plain64", "sha256", 64, put32(208+48+40, 100)},
		{"inheader", "aes", "xts-plain64", "sha256", 64, put32(208+40, 1)},
		{"inpayload", "aes", "xts-plain64", "sha256", 64, put32(208+7*48+40, 4000)},
		{"noiters", "aes", "xts-plain64", "sha256", 64, put32(212, 0)},
		{"nomaster", "aes", "xts-plain64", "sha256", 64, put32(164, 0)},
		{"nopayload", "aes", "xts-plain64", "sha256", 64, put32(104, 1)},
		{"farpayload", "aes", "xts-plain64", "sha256", 64, put32(104, 1<<31)},
	} {
		header := luksBytes(c.cipher, c.mode, c.hash, c.keyBytes)
		if c.change != nil {
			c.change(header)
		}
		writeFile(t, filepath.Join(dir, c.name+".luks"), append(header, make([]byte, 3<<20-len(header))...))
		p, err := os.ReadFile(filepath.Join(dir, "lazy.qcow2"))
		if err != nil {
			t.Fatal(err)
		}
		put32(32, 2)(p)
		copy(p[112+24:], p[112:1000])
		put32(112, 0x0537be77)(p)
		put32(116, 16)(p)
		// It gets a cluster of its own, which is counted.
		const cluster = 64 << 10
		p = append(p, make([]byte, roundUp(int64(len(p)), cluster)-int64(len(p)))...)
		put64(120, uint64(len(p)))(p)
		put64(128, cluster)(p)
		refblock := binary.BigEndian.Uint64(p[binary.BigEndian.Uint64(p[48:]):])
		p[int(refblock)+2*(len(p)/cluster)+1] = 1
		writeFile(t, filepath.Join(dir, c.name+".qcow2"), append(p, append(header, make([]byte, cluster-len(header))...)...))
	}
}

// plainFiles makes what is not made by qemu.
func plainFiles(t testing.TB, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	raw := make([]byte, 3<<20)
	copy(raw[64<<10:], "some data")
	copy(raw[2<<20:], "more data")
	writeFile(t, at("raw.img"), raw)
	writeFile(t, at("odd.img"), raw[:2<<20+1000])
	writeFile(t, at("tiny.img"), []byte("x"))
	writeFile(t, at("empty"), nil)
	garbage := make([]byte, 10000)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range garbage {
		garbage[i] = byte(rnd.Uint32())
	}
	writeFile(t, at("garbage"), garbage)
	writeFile(t, at("magic"), []byte("QFI\xfb"))
	writeFile(t, at("magic3"), []byte("QFI\xfb\x00\x00\x00\x03"))
	writeFile(t, at("secret"), raw[:4096])
	if err := os.Chmod(at("secret"), 0); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Mkdir(at("dir"), 0o755), os.Symlink("nowhere", at("dangling")), os.Symlink("base.qcow2", at("link")),
		os.Symlink("round", at("round")), syscall.Mkfifo(at("fifo"), 0o644), os.Truncate(at("raw.img"), 3<<20),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if l, err := net.Listen("unix", at("socket")); err == nil {
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
	}
}

// writeFile writes data with a hole where a block of it is zero.
func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(data))); err != nil {
		t.Fatal(err)
	}
	const block = 4096
	for off := 0; off < len(data); off += block {
		p := data[off:min(off+block, len(data))]
		if strings.Trim(string(p), "\x00") == "" {
			continue
		}
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
}

// edit is a change to a copy of an image.
type edit struct {
	name, from string
	edit       func(p []byte)
}

func put32(off int, v uint32) func([]byte) {
	return func(p []byte) { binary.BigEndian.PutUint32(p[off:], v) }
}

func put64(off int, v uint64) func([]byte) {
	return func(p []byte) { binary.BigEndian.PutUint64(p[off:], v) }
}

// l2 gives the place of the first L2 table of an image.
func l2(p []byte) uint64 {
	l1 := binary.BigEndian.Uint64(p[40:])
	return binary.BigEndian.Uint64(p[l1:]) & 0x00fffffffffffe00
}

// entryOf changes L2 entry i.
func entryOf(i int, change func(e uint64) uint64) func([]byte) {
	return func(p []byte) {
		off := l2(p) + uint64(8*i)
		binary.BigEndian.PutUint64(p[off:], change(binary.BigEndian.Uint64(p[off:])))
	}
}

// extension finds the data of a header extension.
func extension(p []byte, typ uint32) []byte {
	for off := binary.BigEndian.Uint32(p[100:]); ; {
		t, n := binary.BigEndian.Uint32(p[off:]), binary.BigEndian.Uint32(p[off+4:])
		if t == typ {
			return p[off+8 : off+8+n]
		}
		if t == 0 {
			panic(fmt.Sprintf("no extension %#x", typ))
		}
		off += 8 + (n+7)&^7
	}
}

var edits = []edit{
	{"dirty.qcow2", "lazy.qcow2", put64(72, 1)},
	{"corruptbit.qcow2", "lazy.qcow2", put64(72, 2)},
	{"incompat.qcow2", "lazy.qcow2", put64(72, 1<<20)},
	{"incompat2.qcow2", "lazy.qcow2", func(p []byte) {
		copy(extension(p, 0x6803f857), "\x00\x14strange feature\x00")
		put64(72, 1<<20|1<<21)(p)
	}},
	{"luksfar.qcow2", "luks.qcow2", put64(120, 1<<60)},
	{"luksneg.qcow2", "luks.qcow2", put64(120, 1<<63)},
	{"autoclear.qcow2", "lazy.qcow2", put64(88, 1<<30)},
	{"version4.qcow2", "lazy.qcow2", put32(4, 4)},
	{"bits40.qcow2", "lazy.qcow2", put32(20, 40)},
	{"bits8.qcow2", "lazy.qcow2", put32(20, 8)},
	{"order7.qcow2", "lazy.qcow2", put32(96, 7)},
	{"short.qcow2", "lazy.qcow2", put32(100, 80)},
	{"longheader.qcow2", "lazy.qcow2", put32(100, 1<<20)},
	{"crypt2.qcow2", "lazy.qcow2", put32(32, 2)},
	{"crypt3.qcow2", "lazy.qcow2", put32(32, 3)},
	{"l1big.qcow2", "lazy.qcow2", put32(36, 1<<28)},
	{"l1small.qcow2", "lazy.qcow2", put32(36, 0)},
	{"l1odd.qcow2", "lazy.qcow2", put64(40, 513)},
	{"l1past.qcow2", "lazy.qcow2", put64(40, 1<<40)},
	{"reftnone.qcow2", "lazy.qcow2", put32(56, 0)},
	{"reftbig.qcow2", "lazy.qcow2", put32(56, 1<<20)},
	{"reftodd.qcow2", "lazy.qcow2", put64(48, 513)},
	{"snapsmany.qcow2", "lazy.qcow2", put32(60, 1<<20)},
	{"snapsodd.qcow2", "lazy.qcow2", put64(64, 513)},
	{"snapsblank.qcow2", "lazy.qcow2", func(p []byte) { put32(60, 3)(p); put64(64, 1<<30)(p) }},
	{"sizebig.qcow2", "lazy.qcow2", put64(24, 1<<62)},
	{"sizeneg.qcow2", "lazy.qcow2", put64(24, 1<<63)},
	{"backoff.qcow2", "mid.qcow2", put64(8, 1<<20)},
	{"backlen.qcow2", "mid.qcow2", put32(16, 2000)},
	{"backempty.qcow2", "mid.qcow2", put32(16, 0)},
	{"l1entry.qcow2", "base.qcow2", func(p []byte) { put64(int(binary.BigEndian.Uint64(p[40:])), 0x8000000000050200)(p) }},
	{"l1reserved.qcow2", "base.qcow2", func(p []byte) { p[binary.BigEndian.Uint64(p[40:])] |= 0x10 }},
	{"l1wiped.qcow2", "base.qcow2", func(p []byte) { put64(int(binary.BigEndian.Uint64(p[40:])), 0)(p) }},
	{"l2odd.qcow2", "base.qcow2", entryOf(3, func(e uint64) uint64 { return e | 0x200 })},
	{"l2past.qcow2", "base.qcow2", entryOf(3, func(e uint64) uint64 { return e | 1<<45 })},
	{"l2reserved.qcow2", "base.qcow2", entryOf(3, func(e uint64) uint64 { return e | 1<<57 })},
	{"l2copied.qcow2", "base.qcow2", entryOf(3, func(e uint64) uint64 { return e &^ (1 << 63) })},
	{"l2shared.qcow2", "base.qcow2", entryOf(3, func(e uint64) uint64 { return e + 65536 })},
	{"l2gone.qcow2", "base.qcow2", entryOf(3, func(uint64) uint64 { return 0 })},
	{"l2zero2.qcow2", "v2.qcow2", entryOf(1, func(e uint64) uint64 { return e | 1 })},
	{"l2packed.qcow2", "base.qcow2", entryOf(32, func(e uint64) uint64 { return e ^ 0x1230000 })},
	{"datapacked.qcow2", "data.qcow2", entryOf(1, func(e uint64) uint64 { return e | 1<<62 })},
	{"datamoved.qcow2", "data.qcow2", entryOf(1, func(e uint64) uint64 { return e + 65536 })},
	{"extboth.qcow2", "ext.qcow2", func(p []byte) { put64(int(l2(p))+8, 1<<32|1)(p) }},
	{"refblockodd.qcow2", "base.qcow2", func(p []byte) { p[binary.BigEndian.Uint64(p[48:])+6] |= 2 }},
	{"refzero.qcow2", "base.qcow2", func(p []byte) {
		t := binary.BigEndian.Uint64(p[48:])
		clear(p[binary.BigEndian.Uint64(p[t:])+8:][:8])
	}},
	{"bmuntrusted.qcow2", "bitmaps.qcow2", put64(88, 0)},
	{"bminuse.qcow2", "bitmaps.qcow2", func(p []byte) {
		e := extension(p, 0x23852875)
		p[binary.BigEndian.Uint64(e[16:])+15] |= 1
	}},
	{"bmbad.qcow2", "bitmaps.qcow2", func(p []byte) {
		e := extension(p, 0x23852875)
		p[binary.BigEndian.Uint64(e[16:])+16] = 9
	}},
	{"bmtable.qcow2", "bitmaps.qcow2", func(p []byte) {
		e := extension(p, 0x23852875)
		d := binary.BigEndian.Uint64(e[16:])
		p[binary.BigEndian.Uint64(p[d:])] = 0xff
	}},
	{"bmcount.qcow2", "bitmaps.qcow2", func(p []byte) { extension(p, 0x23852875)[3] = 9 }},
	{"bmdir.qcow2", "bitmaps.qcow2", func(p []byte) { extension(p, 0x23852875)[8] = 9 }},
	{"snapextra.qcow2", "snaps.qcow2", func(p []byte) { put32(int(binary.BigEndian.Uint64(p[64:]))+36, 5000)(p) }},
	{"snapl1.qcow2", "snaps.qcow2", func(p []byte) { put64(int(binary.BigEndian.Uint64(p[64:])), 513)(p) }},
	{"snapicount.qcow2", "snaps.qcow2", func(p []byte) { put64(int(binary.BigEndian.Uint64(p[64:]))+56, 12345)(p) }},
	{"snapclock.qcow2", "snaps.qcow2", func(p []byte) {
		put64(int(binary.BigEndian.Uint64(p[64:]))+24, 123456789012345)(p)
		put64(int(binary.BigEndian.Uint64(p[64:]))+40, 5<<30)(p)
	}},
	{"extlong.qcow2", "base.qcow2", put32(116, 0x7fffffff)},
	{"backfmtlong.qcow2", "mid.qcow2", put32(116, 100)},
}
