// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// world is a pool in a directory of the test's own.
type world struct {
	t   *testing.T
	dir string
}

func newWorld(t *testing.T) *world {
	testenv.Need(t, "qemu-img")
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t, dir}
	w.mkdir("pool/_base")
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) mkdir(name string) {
	w.t.Helper()
	if err := os.MkdirAll(w.path(name), 0o755); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) write(name string, text []byte) {
	w.t.Helper()
	w.mkdir(filepath.Dir(name))
	if err := os.WriteFile(w.path(name), text, 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// base makes a base.
func (w *world) base(name string) string {
	w.write("pool/_base/"+name, make([]byte, 1<<16))
	return w.path("pool/_base/" + name)
}

// image makes an image that rests on backing by that name.
func (w *world) image(name, format, backing string, args ...string) {
	w.t.Helper()
	w.mkdir(filepath.Dir(name))
	args = append([]string{"create", "-q", "-f", format}, args...)
	if backing != "" {
		args = append(args, "-u", "-b", backing, "-F", "raw")
	}
	c := exec.Command("qemu-img", append(args, w.path(name), "64K")...)
	c.Dir = filepath.Dir(w.path(name))
	if out, err := c.CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %v: %s", c.Args, err, out)
	}
}

// look takes the census, of the pool alone.
func (w *world) look(o Options) *Census {
	w.t.Helper()
	if o.Pool == "" {
		o.Pool = w.path("pool")
	}
	c, err := Look(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// lines gives what a census says, a line for each base and each gap but that nobody asked the host.
func (w *world) lines(c *Census) []string {
	all := []string{}
	for _, b := range c.All {
		s := fmt.Sprintf("%s %s:", b.Name, b.State)
		for _, u := range b.Uses {
			s += fmt.Sprintf(" %s %s %d", u.How, strings.TrimPrefix(u.Holder, w.dir+"/"), u.Depth)
		}
		all = append(all, s)
	}
	for _, g := range c.Gaps {
		if g.Reason != "they were not asked for" {
			all = append(all, "gap "+strings.TrimPrefix(g.Object, w.dir+"/")+": "+g.Reason)
		}
	}
	return all
}

const machineA, machineB = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"

// TestLook has each way in which an image may name its base, as qemu-img writes it.
func TestLook(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(*world)
		want []string
	}{
		{"nobody", func(w *world) { w.base("b") }, []string{"b live:"}},
		{"absolute", func(w *world) { w.image("pool/i/disk", "qcow2", w.base("b")) }, []string{"b live: header pool/i/disk 1"}},
		{"relative", func(w *world) {
			w.base("b")
			w.image("pool/i/disk", "qcow2", "../_base/b")
		}, []string{"b live: header pool/i/disk 1"}},
		{"by a link", func(w *world) {
			w.base("b")
			w.link("_base/b", "pool/latest")
			w.image("pool/i/disk", "qcow2", "../latest")
		}, []string{"b live: header pool/i/disk 1"}},
		{"json", func(w *world) {
			w.image("pool/i/disk", "qcow2", `json:{"driver":"raw","file":{"driver":"file","filename":"`+w.base("b")+`"}}`)
		}, []string{"b live: header pool/i/disk 1"}},
		{"file: and relative", func(w *world) {
			w.base("b")
			w.image("pool/i/disk", "qcow2", "file:../_base/b")
		}, []string{"b live:", "gap pool/i/disk: it depends on the directory that the program is started in"}},
		{"file: and absolute", func(w *world) {
			w.image("pool/i/disk", "qcow2", "file:"+w.base("b"))
		}, []string{"b live: header pool/i/disk 1"}},
		{"json of a part of a file", func(w *world) {
			w.image("pool/i/disk", "qcow2", `json:{"driver":"raw","offset":512,"size":512,"file":{"driver":"file","filename":"`+w.base("b")+`"}}`)
		}, []string{"b live: header pool/i/disk 1"}},
		{"json of a part of a file with a header", func(w *world) {
			w.image("pool/i/disk", "qcow2", `json:{"file":{"driver":"raw","offset":512,"file":{"driver":"file","filename":"`+w.base("b")+`"}}}`)
		}, []string{"b live: header pool/i/disk 1", "gap pool/i/disk: it was not read: it is an image in a part of a file"}},
		{"json that is not understood", func(w *world) {
			w.image("pool/i/disk", "qcow2", `json:{"driver":"raw","offset":512,"file":{"driver":"file","x":1,"filename":"`+w.base("b")+`"}}`)
		}, []string{"b live:", `gap pool/i/disk: no usable name: json: option "file.x" is not understood`}},
		{"json with drivers before the file", func(w *world) {
			w.image("pool/i/disk", "qcow2", `json:{"driver":"raw","file":{"driver":"blkdebug","image":{"driver":"file","filename":"`+
				w.base("b")+`"}}}`)
		}, []string{"b live:", `gap pool/i/disk: is not a local file: protocol "blkdebug"`}},
		{"a driver before the file", func(w *world) {
			w.image("pool/i/disk", "qcow2", "blkdebug::"+w.base("b"))
		}, []string{"b live:", `gap pool/i/disk: is not a local file: protocol "blkdebug"`}},
		{"protocol", func(w *world) {
			w.base("b")
			w.image("pool/i/disk", "qcow2", "nbd://127.0.0.1/b")
		}, []string{"b live:"}},
		{"whatever it is called", func(w *world) {
			w.base("b")
			w.image("pool/i_del/deep/down/disk.rescue", "qcow2", w.path("pool/_base/b"))
			w.image("pool/.hidden", "qcow2", w.path("pool/_base/b"))
		}, []string{"b live: header pool/.hidden 1 header pool/i_del/deep/down/disk.rescue 1"}},
		{"vmdk and qed", func(w *world) {
			w.base("b")
			w.image("pool/q", "qed", w.path("pool/_base/b"))
			w.image("pool/_base/v", "vmdk", "")
			w.vmdk("pool/o.vmdk", w.path("pool/_base/v"))
		}, []string{"b live: header pool/q 1", "v live: header pool/o.vmdk 1"}},
		{"chain", func(w *world) {
			w.base("b")
			w.image("pool/_base/mid", "qcow2", w.path("pool/_base/b"))
			w.image("pool/i/disk", "qcow2", w.path("pool/_base/mid"))
			w.image("pool/j/disk", "qcow2", w.path("pool/i/disk"))
		}, []string{
			"b live: header pool/_base/mid 1 header pool/i/disk 2 header pool/j/disk 3",
			"mid live: header pool/i/disk 1 header pool/j/disk 2",
		}},
		{"chain through another place", func(w *world) {
			w.base("b")
			w.image("elsewhere/mid", "qcow2", w.path("pool/_base/b"))
			w.image("pool/i/disk", "qcow2", w.path("elsewhere/mid"))
		}, []string{"b live: header elsewhere/mid 1 header pool/i/disk 2"}},
		{"circle", func(w *world) {
			w.image("pool/_base/b", "qcow2", w.path("pool/i/disk"))
			w.image("pool/i/disk", "qcow2", w.path("pool/_base/b"))
		}, []string{"b live: header pool/i/disk 1 header pool/_base/b 2"}},
		{"missing", func(w *world) {
			w.image("pool/i/disk", "qcow2", w.path("pool/_base/b"))
		}, []string{"b missing: header pool/i/disk 1"}},
		{"another node's name for the pool", func(w *world) {
			w.base("b")
			w.image("pool/i/disk", "qcow2", "/srv/nova/_base/b")
			w.image("pool/j/disk", "qcow2", "/srv/nova/_base/c")
		}, []string{"b live: name pool/i/disk 1", "c missing: name pool/j/disk 1"}},
		{"broken header", func(w *world) {
			w.base("b")
			w.write("pool/i/disk", append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 1<<16)...))
		}, []string{"b live:", "gap pool/i/disk: broken header at 0x14: cluster size 2^0, must be 2^9 to 2^21"}},
		{"a link out of the pool", func(w *world) {
			w.base("b")
			w.mkdir("elsewhere")
			w.link("../elsewhere", "pool/i")
		}, []string{"b live:", "gap pool/i: a symbolic link leads out of what was looked at"}},
		{"a link to an image elsewhere", func(w *world) {
			w.base("b")
			w.image("elsewhere/disk", "qcow2", w.path("pool/_base/b"))
			w.mkdir("pool/i")
			w.link("../../elsewhere/disk", "pool/i/disk")
		}, []string{"b live: header pool/i/disk 1"}},
		{"a link to an image elsewhere that is relative to its directory", func(w *world) {
			w.base("b")
			w.image("elsewhere/disk", "qcow2", "../_base/b")
			w.mkdir("pool/i")
			w.link("../../elsewhere/disk", "pool/i/disk")
		}, []string{"b live: name elsewhere/disk 1 header pool/i/disk 1"}},
		{"a link to an image below the pool that is relative to its directory", func(w *world) {
			w.base("b")
			w.image("pool/store/deep/disk", "qcow2", "../_base/b")
			w.mkdir("pool/i")
			w.link("../store/deep/disk", "pool/i/disk")
		}, []string{"b live: header pool/i/disk 1 name pool/store/deep/disk 1"}},
		{"a link to an image below the pool", func(w *world) {
			w.image("pool/store/disk", "qcow2", w.base("b"))
			w.mkdir("pool/i")
			w.link("../store/disk", "pool/i/disk")
		}, []string{"b live: header pool/store/disk 1"}},
		{"by a directory that is a link, and up from there", func(w *world) {
			w.base("b")
			w.image("elsewhere/x/mid", "qcow2", "../../pool/_base/b")
			w.link("elsewhere/x", "short")
			w.image("pool/i/disk", "qcow2", w.path("short/mid"))
		}, []string{"b live: header elsewhere/x/mid 1 header pool/i/disk 2"}},
		{"two names of an image that is relative to its directory", func(w *world) {
			w.base("b")
			w.image("one/x/mid", "qcow2", "../_base/b")
			w.mkdir("pool/x")
			if err := os.Mkdir(w.path("pool/y"), 0o755); err != nil {
				w.t.Fatal(err)
			}
			w.link("../../one/x/mid", "pool/y/mid")
			w.image("pool/i/disk", "qcow2", w.path("pool/y/mid"))
		}, []string{"b live: name one/x/mid 1 header pool/y/mid 1 header pool/i/disk 2 name pool/i/disk 2"}},
		{"a link elsewhere to a base that is gone", func(w *world) {
			w.mkdir("elsewhere")
			w.link("../pool/_base/b", "elsewhere/latest")
			w.link("latest", "elsewhere/now")
			w.image("pool/i/disk", "qcow2", w.path("elsewhere/now"))
		}, []string{"b missing: header pool/i/disk 1"}},
		{"a link elsewhere that leads in a circle", func(w *world) {
			w.link("round", "round")
			w.image("pool/i/disk", "qcow2", w.path("round"))
		}, []string{"gap round: too many levels of symbolic links"}},
		{"links to what is no file", func(w *world) {
			w.base("b")
			w.fifo("pipe")
			w.link("../pipe", "pool/pipe")
			w.link("/dev/zero", "pool/zero")
		}, []string{"b live:"}},
		{"files of the kernel", func(w *world) {
			w.base("b")
			w.link("/proc/version", "pool/version")
			w.image("pool/i/disk", "qcow2", "/proc/uptime")
		}, []string{"b live:", "gap /proc/uptime: it is in a file system of the kernel, such as /proc",
			"gap pool/version: it is in a file system of the kernel, such as /proc"}},
		{"a link to nothing", func(w *world) {
			w.base("b")
			w.link("/nowhere/at/all", "pool/disk")
		}, []string{"b live:", "gap pool/disk: no such file or directory"}},
		{"a pipe", func(w *world) {
			w.base("b")
			if err := unix.Mkfifo(w.path("pool/pipe"), 0o644); err != nil {
				w.t.Fatal(err)
			}
		}, []string{"b live:"}},
		{"one base with two names", func(w *world) {
			w.base("b")
			if err := os.Link(w.path("pool/_base/b"), w.path("pool/_base/b_2")); err != nil {
				w.t.Fatal(err)
			}
			w.image("pool/i/disk", "qcow2", w.path("pool/_base/b_2"))
		}, []string{"b live: header pool/i/disk 1", "b_2 live: header pool/i/disk 1"}},
		{"one base with two names, of which one was removed", func(w *world) {
			w.base("b")
			if err := os.Link(w.path("pool/_base/b"), w.path("pool/_base/b_2")); err != nil {
				w.t.Fatal(err)
			}
			w.image("pool/1/disk", "qcow2", w.path("pool/_base/b_2"))
			w.image("pool/2/disk", "qcow2", w.path("pool/_base/b"))
			if err := os.Remove(w.path("pool/_base/b")); err != nil {
				w.t.Fatal(err)
			}
		}, []string{"b missing: header pool/2/disk 1", "b_2 live: header pool/1/disk 1"}},
		{"an external data file beside it", func(w *world) {
			w.base("b")
			w.image("pool/i/disk", "qcow2", "", "-o", "data_file="+w.path("pool/i/data")+",data_file_raw=on")
			w.rename("pool/i/disk", w.path("pool/i/data"), "data")
		}, []string{"b live:"}},
		{"an external data file somewhere", func(w *world) {
			w.base("b")
			w.image("pool/i/disk", "qcow2", "", "-o", "data_file="+w.path("pool/i/data")+",data_file_raw=on")
			w.rename("pool/i/disk", w.path("pool/i/data"), "none")
		}, []string{"b live:", "none missing: header pool/i/disk 1",
			"gap pool/i/disk: it depends on the directory that the program is started in"}},
		{"an external data file", func(w *world) {
			w.base("b")
			w.image("pool/i/disk", "qcow2", "", "-o", "data_file="+w.path("pool/_base/b")+",data_file_raw=on")
		}, []string{"b live: header pool/i/disk 1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.make(w)
			if d := cmp.Diff(c.want, w.lines(w.look(Options{}))); d != "" {
				t.Errorf("Look (-want +got):\n%s", d)
			}
		})
	}
}

func (w *world) link(text, name string) {
	w.t.Helper()
	if err := os.Symlink(text, w.path(name)); err != nil {
		w.t.Fatal(err)
	}
}

// rename gives a file that the header of an image names another name there, which is shorter.
func (w *world) rename(name, old, to string) {
	w.t.Helper()
	text, err := os.ReadFile(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	at := bytes.Index(text, []byte(old))
	if at < 8 || binary.BigEndian.Uint32(text[at-4:]) != uint32(len(old)) {
		w.t.Fatalf("%s does not name %s", name, old)
	}
	// The extension is its type, its length, and what it holds, in steps of eight bytes.
	room := (len(old) + 7) / 8 * 8
	binary.BigEndian.PutUint32(text[at-4:], uint32(len(to)))
	rest := append([]byte{}, text[at+room:at+room+512]...)
	short := (len(to) + 7) / 8 * 8
	copy(text[at:], append([]byte(to), make([]byte, room)...)[:room])
	copy(text[at+short:], rest)
	w.write(name, text)
}

// vmdk makes an overlay of a vmdk image, which has to be there.
func (w *world) vmdk(name, backing string) {
	w.t.Helper()
	c := exec.Command("qemu-img", "create", "-q", "-f", "vmdk", "-b", backing, "-F", "vmdk", w.path(name))
	if out, err := c.CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %v: %s", c.Args, err, out)
	}
}

// TestPlain: in a directory without one for bases, the bases are what others rest on.
func TestPlain(t *testing.T) {
	w := newWorld(t)
	w.write("images/golden.raw", make([]byte, 1<<16))
	w.write("images/alone.raw", make([]byte, 1<<16))
	w.image("images/a.qcow2", "qcow2", w.path("images/golden.raw"))
	got := w.lines(w.look(Options{Pool: w.path("images")}))
	if d := cmp.Diff([]string{"golden.raw live: header images/a.qcow2 1"}, got); d != "" {
		t.Errorf("Look (-want +got):\n%s", d)
	}
}

// TestRoots: images of further directories count, and a pool may be named by its directory of bases.
func TestRoots(t *testing.T) {
	w := newWorld(t)
	w.image("other/a.qcow2", "qcow2", w.base("b"))
	for _, pool := range []string{"pool", "pool/_base"} {
		got := w.lines(w.look(Options{Pool: w.path(pool), Roots: []string{w.path("other")}}))
		if d := cmp.Diff([]string{"b live: header other/a.qcow2 1"}, got); d != "" {
			t.Errorf("%s: Look (-want +got):\n%s", pool, d)
		}
	}
	if _, err := Look(t.Context(), Options{Pool: w.path("nowhere")}); err == nil {
		t.Error("Look of a pool that is not there gives no error")
	}
}

// TestLinkedBases: the directory of the bases may be a symbolic link, and is named by it or by where it is.
func TestLinkedBases(t *testing.T) {
	w := newWorld(t)
	w.mkdir("store")
	if err := errors.Join(os.Rename(w.path("pool/_base"), w.path("store/all")), os.Symlink("../store/all", w.path("pool/_base"))); err != nil {
		t.Fatal(err)
	}
	w.base("a")
	w.base("b")
	w.write("pool/_base/.shisa/q/"+heldID+".c", nil)
	w.image("pool/i/disk", "qcow2", w.path("pool/_base/a"))
	w.image("pool/i/real", "qcow2", w.path("store/all/a"))
	w.image("pool/i/gone", "qcow2", w.path("pool/_base/gone"))
	w.image("pool/i/other", "qcow2", "/another/nodes/_base/a")
	want := []string{"a live: header pool/i/disk 1 name pool/i/other 1 header pool/i/real 1", "b live:", "c quarantined:",
		"gone missing: header pool/i/gone 1"}
	for _, pool := range []string{"pool", "pool/_base"} {
		c := w.look(Options{Pool: w.path(pool)})
		if d := cmp.Diff(want, w.lines(c)); d != "" {
			t.Errorf("%s: Look (-want +got):\n%s", pool, d)
		}
		if c.Bases != w.path("store/all") || c.All[0].Path != w.path("store/all/a") {
			t.Errorf("%s: bases in %s, one is %s", pool, c.Bases, c.All[0].Path)
		}
	}
}

// TestHost: who has a base open, also one that was removed, and which machines of libvirt name one.
func TestHost(t *testing.T) {
	w := newWorld(t)
	w.base("open")
	w.base("gone")
	w.base("direct")
	w.image("pool/"+machineA+"/disk", "qcow2", w.base("saved"))
	w.image("elsewhere/snap.qcow2", "qcow2", w.base("snapped"))
	files := make([]*os.File, 0, 2)
	for _, n := range []string{"open", "gone"} {
		f, err := os.Open(w.path("pool/_base/" + n))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	// Our own descriptors are no use of a file.
	holder := exec.Command("sleep", "1000")
	holder.ExtraFiles = files
	testenv.Start(t, holder)
	defer func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	}()
	if err := os.Remove(files[1].Name()); err != nil {
		t.Fatal(err)
	}
	domain := func(disk string) string {
		return `<domain type="kvm"><name>m</name><devices><disk type="file" device="disk"><source file="` + disk +
			`"/><target dev="vda"/></disk></devices></domain>`
	}
	// The host's files lie in a directory; its disks have the names that they have there.
	root := w.path("root")
	pool := strings.TrimPrefix(w.dir, "/")
	w.write("root/etc/libvirt/qemu/m.xml", []byte(domain("/"+pool+"/pool/_base/direct")))
	w.write("root/var/lib/libvirt/qemu/save/s.save", savedMachine(domain("/"+pool+"/pool/"+machineA+"/disk")))
	w.write("root/var/lib/libvirt/qemu/save/cut.save", savedMachine(domain("x"))[:120])
	w.write("root/var/lib/libvirt/qemu/snapshot/t/one.xml",
		[]byte("<domainsnapshot><name>one</name>"+domain("/"+pool+"/elsewhere/snap.qcow2")+"</domainsnapshot>"))
	w.mkdir("root/" + filepath.Dir(pool))
	w.link(w.dir, "root/"+pool)
	tr, err := tree.OpenDirectory(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	c := w.look(Options{Host: &Host{Linux: linux.Open(""), Tree: tr, Root: root}})
	got := map[string][]string{}
	for _, b := range c.All {
		for _, u := range b.Uses {
			if u.PID != 0 && u.PID != holder.Process.Pid {
				t.Errorf("%s is used by process %d, want %d", b.Name, u.PID, holder.Process.Pid)
			}
			got[b.Name] = append(got[b.Name], fmt.Sprintf("%s %s %s %d", b.State, u.How, u.Machine, u.Depth))
		}
	}
	want := map[string][]string{
		"open":    {"live open  0"},
		"gone":    {"missing deleted  0"},
		"direct":  {"live domain m 0"},
		"saved":   {"live header s 1"},
		"snapped": {"live header t 1"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("uses (-want +got):\n%s", d)
	}
	if !slices.ContainsFunc(w.lines(c), func(s string) bool {
		return s == "gap /var/lib/libvirt/qemu/save/cut.save: is cut off"
	}) {
		t.Errorf("gaps = %v, want the saved machine that is cut off", w.lines(c))
	}
}

// TestLibvirtElsewhere: a libvirt in a container keeps its descriptions in other directories, and knows the bases by its own
// names. Where somebody said that it does, and nothing is there, that is a gap.
func TestLibvirtElsewhere(t *testing.T) {
	w := newWorld(t)
	for _, b := range []string{"defined", "saved", "snapped", "theirs", "nobody"} {
		w.base(b)
	}
	domain := func(name, disk string) string {
		return `<domain type="kvm"><name>` + name + `</name><devices><disk type="file" device="disk"><source file="` + disk +
			`"/><target dev="vda"/></disk></devices></domain>`
	}
	at := func(b string) string { return w.path("pool/_base/" + b) }
	w.write("etc/qemu/m.xml", []byte(domain("m", at("defined"))))
	w.write("etc/qemu/n.xml", []byte(domain("n", "/nowhere/instances/_base/theirs")))
	w.write("etc/qemu/networks/x.xml", []byte("<network/>"))
	w.write("lib/qemu/save/s.save", savedMachine(domain("s", at("saved"))))
	w.write("lib/qemu/snapshot/t/one.xml", []byte("<domainsnapshot><name>one</name>"+domain("t", at("snapped"))+"</domainsnapshot>"))
	w.mkdir("empty")
	w.write("torn/qemu/x.xml", []byte("<domain"))
	tr, err := tree.OpenDirectory(t.Context(), "/")
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	host := &Host{Linux: linux.Open(""), Tree: tr}
	uses := func(c *Census) map[string]string {
		got := map[string]string{}
		for _, b := range c.All {
			for _, u := range b.Uses {
				got[b.Name] += fmt.Sprintf("%s %s;", u.How, u.Machine)
			}
		}
		return got
	}
	want := map[string]string{"defined": "domain m;", "theirs": "name n;", "saved": "saved s;", "snapped": "snapshot t;"}
	if d := cmp.Diff(want, uses(w.look(Options{Host: host, Libvirt: []string{w.path("etc"), w.path("lib") + "/"}}))); d != "" {
		t.Errorf("uses (-want +got):\n%s", d)
	}
	want = map[string]string{"defined": "domain m;", "theirs": "name n;"}
	if d := cmp.Diff(want, uses(w.look(Options{Host: host, Libvirt: []string{w.path("etc/qemu")}}))); d != "" {
		t.Errorf("uses by the directory qemu (-want +got):\n%s", d)
	}
	for dir, want := range map[string]string{"empty": "empty: is its storage mounted?", "gone": "does not exist", "torn": "x.xml"} {
		c := w.look(Options{Host: host, Libvirt: []string{w.path(dir)}})
		if !slices.ContainsFunc(c.Gaps, func(g finding.Blind) bool {
			return strings.HasPrefix(g.Object, w.path(dir)) && strings.Contains(g.Object+" "+g.Reason, want)
		}) {
			t.Errorf("%s: the gaps are %+v, want one with %q", dir, c.Gaps, want)
		}
	}
}

// TestBlockDevice: a machine's disk may be a block device that holds an image.
func TestBlockDevice(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "losetup", "blockdev")
	w := newWorld(t)
	w.image("elsewhere/disk", "qcow2", w.base("b"))
	out, err := exec.Command("losetup", "--find", "--show", "--read-only", w.path("elsewhere/disk")).Output()
	if err != nil {
		t.Fatal(err)
	}
	dev := strings.TrimSpace(string(out))
	defer func() {
		if err := exec.Command("losetup", "--detach", dev).Run(); err != nil {
			t.Error(err)
		}
	}()
	w.link(dev, "pool/disk")
	if d := cmp.Diff([]string{"b live: header pool/disk 1"}, w.lines(w.look(Options{}))); d != "" {
		t.Errorf("by a link: Look (-want +got):\n%s", d)
	}
	if err := os.Remove(w.path("pool/disk")); err != nil {
		t.Fatal(err)
	}
	w.image("pool/top", "qcow2", dev)
	if d := cmp.Diff([]string{"b live: header " + dev + " 1 header pool/top 2"}, w.lines(w.look(Options{}))); d != "" {
		t.Errorf("as a backing file: Look (-want +got):\n%s", d)
	}
	// A name of its own for the device, and one that cannot be read any more.
	if err := os.Remove(w.path("pool/top")); err != nil {
		t.Fatal(err)
	}
	st, err := diskio.Look(dev)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(w.path("pool/device"), unix.S_IFBLK|0o600, int(st.Device)); err != nil {
		t.Fatal(err)
	}
	c := w.look(Options{})
	if d := cmp.Diff([]string{"b live: header pool/device 1"}, w.lines(c)); d != "" {
		t.Errorf("as a device: Look (-want +got):\n%s", d)
	}
	if u := c.All[0].Uses[0]; !u.Since.IsZero() {
		t.Errorf("on a device since %v, which nobody knows", u.Since)
	}
	if err := os.Truncate(w.path("elsewhere/disk"), 0); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("blockdev", "--flushbufs", dev).CombinedOutput(); err != nil {
		t.Fatalf("blockdev: %v: %s", err, out)
	}
	if got := w.lines(w.look(Options{})); len(got) != 2 || !strings.Contains(got[1], "gap pool/device: ") {
		t.Errorf("cannot be read: Look = %q, want a gap", got)
	}
}

func savedMachine(xml string) []byte {
	var b bytes.Buffer
	b.WriteString("LibvirtQemudSave")
	n := make([]byte, savedHeader-16)
	binary.NativeEndian.PutUint32(n, 2)
	binary.NativeEndian.PutUint32(n[4:], uint32(len(xml)+1))
	b.Write(n)
	b.WriteString(xml)
	b.WriteByte(0)
	b.WriteString("memory")
	return b.Bytes()
}

// TestTooFewDescriptors: what cannot be opened for want of descriptors is a gap, never a base without uses.
func TestTooFewDescriptors(t *testing.T) {
	w := newWorld(t)
	b := w.base("b")
	for i := range 20 {
		w.image(fmt.Sprintf("pool/%d/disk", i), "qcow2", b)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	for extra := range 12 {
		free := lowestFree(t)
		low := old
		low.Cur = uint64(free + extra)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
			t.Fatal(err)
		}
		c, err := Look(t.Context(), Options{Pool: w.path("pool"), Workers: 8})
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			continue
		}
		uses := 0
		for _, b := range c.All {
			uses += len(b.Uses)
		}
		gaps := slices.ContainsFunc(c.Gaps, func(g finding.Blind) bool { return g.Reason != "they were not asked for" })
		if uses != 20 && !gaps {
			t.Errorf("with %d descriptors: %d uses of 20, and no gap", extra, uses)
		}
	}
}

func lowestFree(t *testing.T) int {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return int(f.Fd())
}
