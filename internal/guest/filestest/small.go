// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Small fills a mounted directory with a few of everything: directories of each form, files whose
// map has each form, attributes within and without the inode, links and nodes. So much of it is
// metadata that most damage hits something.
func Small(t testing.TB, dir string, fill Fill) {
	t.Helper()
	p := populate{TB: t, dir: dir, rng: rand.New(rand.NewPCG(20, 26))}
	p.smallDirectories(cmp.Or(fill.BigDirectory, 150))
	p.smallShapes()
	p.smallLinks()
	if !fill.NoXattrs {
		p.smallXattrs(fill.ACLs)
	}
	if fill.Reflink {
		p.must(p.clone("shapes/fragmented", "shapes/clone"))
		p.write("shapes/clone", 10_000, constant(20_000))
	}
	p.times(fill.SmallTimes)
	for i := range 60 {
		p.write(fmt.Sprintf("gone%d", i), 0, constant(i*100))
	}
	for i := range 60 {
		p.must(os.Remove(p.at(fmt.Sprintf("gone%d", i))))
	}
	p.sync()
}

// Later changes what Small made, and sees to it that a journal has it: what is copied or cut off
// then is a file system that was not unmounted.
func Later(t testing.TB, dir string) {
	t.Helper()
	p := populate{TB: t, dir: dir, rng: rand.New(rand.NewPCG(20, 27))}
	for turn := range 3 {
		at := fmt.Sprintf("later%d", turn)
		p.mkdir(at)
		for i := range 25 {
			p.write(fmt.Sprintf("%s/%s%d", at, strings.Repeat("l", i), i), 0, constant(i*150))
		}
		p.must(os.Rename(p.at(fmt.Sprintf("directories/few/%d", turn)), p.at(at+"/renamed")))
		p.must(os.RemoveAll(p.at(fmt.Sprintf("wide/%d", turn))))
		p.must(os.Link(p.at("links/many"), p.at(at+"/link")))
		p.must(unix.Setxattr(p.at(at), "user.turn", []byte{byte(turn)}, 0))
		f, err := os.Open(p.at(at))
		p.must(err)
		p.must(errors.Join(f.Sync(), f.Close()))
	}
}

// constant is content that takes no room when it is packed.
func constant(n int) []byte { return bytes.Repeat([]byte("c"), n) }

func (p *populate) smallDirectories(big int) {
	p.mkdir("directories/none")
	p.mkdir("directories/few")
	for i := range 4 {
		p.write(fmt.Sprintf("directories/few/%d", i), 0, constant(100*i))
	}
	for i, n := range []int{25, 60, big} {
		at := fmt.Sprintf("directories/%d", i)
		p.mkdir(at)
		name := func(k int) string {
			return fmt.Sprintf("%s/%s%d", at, strings.Repeat("n", k*7%41), k)
		}
		for k := range n {
			if k%10 == 0 { // an inode of its own
				p.write(name(k), 0, nil)
				continue
			}
			p.must(os.Link(p.at(name(k-k%10)), p.at(name(k))))
		}
	}
	for k := range big / 7 {
		p.must(os.Remove(p.at(fmt.Sprintf("directories/2/%s%d", strings.Repeat("n", k*7*7%41), k*7))))
	}
	p.mkdir("deep" + strings.Repeat("/level", 12))
	p.write("deep"+strings.Repeat("/level", 12)+"/bottom", 0, []byte("bottom"))
	for i := range 20 {
		p.mkdir(fmt.Sprintf("wide/%d/%d", i%5, i))
	}
	p.mkdir("names")
	for _, name := range []string{" ", "new\nline", "\xff\xfe", "日本語", ".hidden",
		strings.Repeat("n", 255)} {
		p.write("names/"+name, 0, []byte(name))
	}
}

func (p *populate) smallShapes() {
	p.mkdir("shapes")
	for _, n := range []int{0, 1, 60, 61, 150, 157, 1023, 1024, 4097, 50_000} {
		p.write(fmt.Sprintf("shapes/%d", n), 0, constant(n))
	}
	for i := range int64(90) {
		p.write("shapes/fragmented", i*12<<10, constant(4096))
	}
	for i := range int64(350) { // enough for two levels of extents in blocks of 1 KiB
		p.write("shapes/pieces", i*3<<10, constant(1024))
	}
	// Where the numbers of blocks of numbers of blocks are, in ext2 and ext3.
	p.write("shapes/sparse", 5<<20, constant(5000))
	p.write("shapes/sparse", 70<<20, constant(5000))
	p.write("shapes/sparse", 5<<30, constant(5000))
	p.write("shapes/holes only", 0, nil)
	p.must(os.Truncate(p.at("shapes/holes only"), 123_456))
	p.write("shapes/reserved", 0, constant(5000))
	p.fallocate("shapes/reserved", 0, 0, 100_000)
	p.write("shapes/beyond", 0, constant(5000))
	p.fallocate("shapes/beyond", unix.FALLOC_FL_KEEP_SIZE, 0, 100_000)
}

func (p *populate) smallLinks() {
	p.mkdir("links")
	for _, n := range []int{1, 59, 60, 61, 200, 900} {
		p.must(os.Symlink(strings.Repeat("t", n), p.at(fmt.Sprintf("links/to%d", n))))
	}
	p.write("links/many", 0, []byte("many names"))
	for i := range 12 {
		p.must(os.Link(p.at("links/many"), p.at(fmt.Sprintf("links/name%d", i))))
	}
	for i, mode := range []uint32{unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK} {
		dev := unix.Mkdev(uint32(i*100), uint32(i*3))
		p.must(unix.Mknod(p.at(fmt.Sprintf("links/node%d", i)), mode|0o644, int(dev)))
	}
}

func (p *populate) smallXattrs(acls bool) {
	p.mkdir("attributes")
	for _, n := range []int{1, 20, 200, 800, 2500, 6000} {
		name := p.at(fmt.Sprintf("attributes/%d", n))
		p.write(fmt.Sprintf("attributes/%d", n), 0, constant(n))
		err := unix.Setxattr(name, "user.value", constant(n), 0)
		if n > 800 && errors.Is(err, unix.ENOSPC) {
			err = nil // more than the file system takes
		}
		p.must(err)
		p.must(unix.Setxattr(name, "security.seen", []byte{1, 2, 3}, 0))
	}
	for i := range 12 {
		p.must(unix.Setxattr(p.at("attributes/1"), fmt.Sprintf("user.%d", i), constant(10), 0))
	}
	if acls {
		p.acl("attributes", "attributes/20")
	}
}
