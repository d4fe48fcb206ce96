// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Fill says what Populate leaves out or makes larger.
type Fill struct {
	// BigDirectory is how many names one directory gets; 0 is 2000.
	BigDirectory int
	// NoXattrs: the file system has none.
	NoXattrs bool
	// ACLs: it takes POSIX ACLs.
	ACLs bool
	// Reflink: it shares extents.
	Reflink bool
	// SmallTimes: it holds whole seconds from 1901 to 2038 alone.
	SmallTimes bool
}

// Populate fills a mounted directory with what file systems find hard: long and odd names, large
// and deep directories, sparse, preallocated and fragmented files, links, devices, attributes.
func Populate(t testing.TB, dir string, fill Fill) {
	t.Helper()
	p := populate{TB: t, dir: dir, rng: rand.New(rand.NewPCG(20, 26))}
	p.names()
	p.sizes()
	p.directories(cmp.Or(fill.BigDirectory, 2000))
	p.shapes()
	p.links()
	if !fill.NoXattrs {
		p.xattrs(fill.ACLs)
	}
	if fill.Reflink {
		p.must(p.clone("shapes/fragmented", "shapes/clone"))
		p.write("shapes/clone", 10_000, p.bytes(20_000))
	}
	p.times(fill.SmallTimes)
	// What is removed again leaves old blocks behind.
	for i := range 300 {
		p.write(fmt.Sprintf("gone%d", i), 0, p.bytes(p.rng.IntN(20_000)))
	}
	for i := range 300 {
		p.must(os.Remove(p.at(fmt.Sprintf("gone%d", i))))
	}
	p.sync()
}

type populate struct {
	testing.TB
	dir string
	rng *rand.Rand
}

func (p *populate) at(name string) string { return p.dir + "/" + name }

func (p *populate) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func (p *populate) mkdir(name string) { p.must(os.MkdirAll(p.at(name), 0o755)) }

// sync has this file system write what it holds back, and no other: that can take long.
func (p *populate) sync() {
	p.Helper()
	f, err := os.Open(p.dir)
	p.must(err)
	p.must(errors.Join(unix.Syncfs(int(f.Fd())), f.Close()))
}

func (p *populate) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(p.rng.Uint32())
	}
	return b
}

// write writes content into a file from off on, and makes it if need be.
func (p *populate) write(name string, off int64, content []byte) {
	p.Helper()
	f, err := os.OpenFile(p.at(name), os.O_CREATE|os.O_WRONLY, 0o644)
	p.must(err)
	_, err = f.WriteAt(content, off)
	p.must(errors.Join(err, f.Close()))
}

// names makes names of any bytes and length.
func (p *populate) names() {
	p.mkdir("names")
	for _, name := range []string{"a", " ", "with space", "new\nline", "tab\t", "\x01\x7f", "\xff\xfe",
		"ünïcode", "日本語", "-rf", "quote\"'`$(x)", "back\\slash", ":colon:", "*?[", ".hidden", "...",
		strings.Repeat("n", 255), strings.Repeat("\xc3", 254)} {
		p.write("names/"+name, 0, []byte(name))
	}
	for n := range 255 {
		p.write("names/"+strings.Repeat("x", n+1), 0, nil)
	}
}

// sizes makes files of all lengths around the borders that file systems have.
func (p *populate) sizes() {
	p.mkdir("sizes")
	for _, base := range []int{0, 60, 156, 512, 1024, 4096, 8192, 12 * 1024, 48 * 1024, 65536, 300_000,
		1 << 20} {
		for _, more := range []int{-1, 0, 1} {
			if n := base + more; n >= 0 {
				p.write(fmt.Sprintf("sizes/%d", n), 0, p.bytes(n))
			}
		}
	}
}

// directories makes a large one, deep ones, and ones that shrank.
func (p *populate) directories(big int) {
	p.mkdir("big")
	for i := range big {
		p.write(fmt.Sprintf("big/entry number %d %s", i, strings.Repeat("y", i%40)), 0, nil)
	}
	p.mkdir("shrunk")
	for i := range 1500 {
		p.write(fmt.Sprintf("shrunk/%s%d", strings.Repeat("z", 30), i), 0, nil)
	}
	for i := range 1500 {
		if i%7 != 0 {
			p.must(os.Remove(p.at(fmt.Sprintf("shrunk/%s%d", strings.Repeat("z", 30), i))))
		}
	}
	deep := "deep"
	for i := range 60 {
		deep += fmt.Sprintf("/level%d", i)
	}
	p.mkdir(deep)
	p.write(deep+"/bottom", 0, []byte("bottom"))
	for i := range 100 {
		p.mkdir(fmt.Sprintf("wide/%d/%d", i%10, i))
	}
}

// shapes makes files that are not laid out in one piece.
func (p *populate) shapes() {
	p.mkdir("shapes")
	p.write("shapes/sparse", 4<<30+4096, []byte("far away"))
	for i := range 400 {
		p.write("shapes/fragmented", int64(i)*12_288, p.bytes(4096))
	}
	for i := range 200 { // two that grow in turns
		p.write("shapes/left", int64(i)*9000, p.bytes(9000))
		p.write("shapes/right", int64(i)*9000, p.bytes(9000))
		if i%10 == 0 {
			p.sync()
		}
	}
	p.write("shapes/holes only", 0, nil)
	p.must(os.Truncate(p.at("shapes/holes only"), 123_456_789))
	p.write("shapes/reserved", 0, p.bytes(5000))
	p.fallocate("shapes/reserved", 0, 0, 700_000)
	p.write("shapes/reserved", 300_000, p.bytes(5000))
	p.write("shapes/beyond", 0, p.bytes(5000))
	p.fallocate("shapes/beyond", unix.FALLOC_FL_KEEP_SIZE, 0, 900_000)
	p.write("shapes/punched", 0, p.bytes(400_000))
	p.fallocate("shapes/punched", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 50_000, 200_001)
	p.write("shapes/cut", 0, p.bytes(400_000))
	p.must(os.Truncate(p.at("shapes/cut"), 123_457))
	p.must(os.Truncate(p.at("shapes/cut"), 200_000))
}

// fallocate does what the file system can do of it.
func (p *populate) fallocate(name string, mode uint32, off, length int64) {
	f, err := os.OpenFile(p.at(name), os.O_WRONLY, 0)
	p.must(err)
	err = unix.Fallocate(int(f.Fd()), mode, off, length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil
	}
	p.must(errors.Join(err, f.Close()))
}

// links makes links of both kinds, and nodes that are not files.
func (p *populate) links() {
	p.mkdir("links")
	for _, n := range []int{1, 10, 59, 60, 61, 150, 255, 256, 500, 1000, 1023} {
		p.must(os.Symlink(strings.Repeat("t", n), p.at(fmt.Sprintf("links/to%d", n))))
	}
	p.must(os.Symlink("../../../../etc/passwd", p.at("links/out")))
	p.must(os.Symlink("\xff\n", p.at("links/odd")))
	p.write("links/many", 0, []byte("many names"))
	for i := range 50 {
		p.must(os.Link(p.at("links/many"), p.at(fmt.Sprintf("links/name%d", i))))
	}
	for name, dev := range map[string]struct {
		mode uint32
		dev  uint64
	}{
		"char": {syscall.S_IFCHR | 0o600, unix.Mkdev(1, 3)}, "block": {syscall.S_IFBLK | 0o660, unix.Mkdev(8, 1)},
		"large": {syscall.S_IFBLK | 0o660, unix.Mkdev(300, 70_000)}, "fifo": {syscall.S_IFIFO | 0o644, 0},
		"socket": {syscall.S_IFSOCK | 0o755, 0},
	} {
		p.must(unix.Mknod(p.at("links/"+name), dev.mode, int(dev.dev)))
	}
	for i, mode := range []uint32{0, 0o777, 0o4755, 0o2755, 0o1777} {
		name := fmt.Sprintf("links/mode%d", i)
		p.write(name, 0, nil)
		p.must(os.Lchown(p.at(name), i*30_000, 100_000*i))
		p.must(unix.Chmod(p.at(name), mode))
	}
}

// xattrs sets attributes of all lengths, in the inode and outside.
func (p *populate) xattrs(acls bool) {
	p.mkdir("attributes")
	for i, n := range []int{0, 1, 20, 60, 100, 255, 800} {
		name := p.at(fmt.Sprintf("attributes/%d", n))
		p.write(fmt.Sprintf("attributes/%d", n), 0, p.bytes(i*1000))
		p.must(unix.Setxattr(name, "user.value", p.bytes(n), 0))
		p.must(unix.Setxattr(name, "trusted.same", []byte("the same for all"), 0))
		p.must(unix.Setxattr(name, "security.seen", []byte{1, 2, 3}, 0))
	}
	many := p.at("attributes/many")
	p.write("attributes/many", 0, nil)
	for i := range 25 {
		err := unix.Setxattr(many, fmt.Sprintf("user.%d.%s", i, strings.Repeat("k", i)), p.bytes(10), 0)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		p.must(err)
	}
	p.must(unix.Setxattr(p.at("attributes"), "user.directory", []byte("yes"), 0))
	if !acls {
		return
	}
	p.acl("attributes", "attributes/20")
	p.write("attributes/inherited", 0, nil)
}

// acl sets access control lists, of a file and the one that a directory gives to what is made in it.
func (p *populate) acl(dir, file string) {
	// Version 2; a user, a named user, the group, the mask, others.
	acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0x39, 0x30, 0, 0,
		4, 0, 4, 0, 255, 255, 255, 255, 0x10, 0, 6, 0, 255, 255, 255, 255, 0x20, 0, 0, 0, 255, 255, 255, 255}
	p.must(unix.Setxattr(p.at(file), "system.posix_acl_access", acl, 0))
	p.must(unix.Setxattr(p.at(dir), "system.posix_acl_default", acl, 0))
}

// times sets times that are not of today.
func (p *populate) times(small bool) {
	p.mkdir("times")
	seconds := []int64{0, 1, 1_000_000_000, 0x7fffffff, -1, -0x80000000}
	if !small {
		seconds = append(seconds, 0x80000000, 0x100000000, 10_000_000_000)
	}
	for i, s := range seconds {
		name := fmt.Sprintf("times/%d", i)
		p.write(name, 0, nil)
		ts := unix.Timespec{Sec: s, Nsec: int64(i) * 111_111_111}
		p.must(unix.UtimesNanoAt(unix.AT_FDCWD, p.at(name), []unix.Timespec{ts, ts}, 0))
	}
}

// clone makes to share the bytes of from.
func (p *populate) clone(from, to string) error {
	src, err := os.Open(p.at(from))
	if err != nil {
		return err
	}
	dst, err := os.Create(p.at(to))
	if err != nil {
		return errors.Join(err, src.Close())
	}
	err = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	return errors.Join(err, src.Close(), dst.Close())
}
