// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// TestDescribed: what the description of a machine names and nobody can look at is a gap, whether it runs, is defined, or is
// that of a snapshot.
func TestDescribed(t *testing.T) {
	given := func(argument string) string {
		return `</disk></devices><commandline><arg value='` + argument + `'/></commandline><devices><disk>`
	}
	for _, c := range []struct{ name, source, use, gap string }{
		{"a volume of a pool that is known", `<source pool="vms" volume="b"/>`, "domain", ""},
		{"a volume of a pool that nobody knows", `<source pool="gone" volume="b"/>`, "",
			"it is a volume of a storage pool of which nobody can tell where it lies"},
		{"a volume out of its pool", `<source pool="vms" volume="../b"/>`, "",
			"it is a volume of a storage pool of which nobody can tell where it lies"},
		{"a volume of a pool without files", `<source pool="ceph" volume="b"/>`, "", ""},
		{"a volume of a pool that is known, in a snapshot", `<source pool="vms" volume="b"/>`, "snapshot", ""},
		{"a volume of a pool that nobody knows, in a snapshot", `<source pool="gone" volume="b"/>`, "",
			`names volume "b" of pool "gone", of which nobody can tell where it lies`},
		{"a volume of a pool without files, in a snapshot", `<source pool="ceph" volume="b"/>`, "", ""},
		{"a volume with a header of a pool without files, in a snapshot", `<driver type="qcow2"/><source pool="ceph" volume="b"/>`, "",
			"its header was not read: it is no file of this host, and its format is qcow2"},
		{"a name that is not absolute", `<source file="b"/>`, "", "it is no absolute path"},
		{"a server's file of such a directory", `<source protocol="gluster" name="vol/_base/b"><host name="g1"/></source>`, "name", ""},
		{"a server's file of another one", `<source protocol="gluster" name="vol/images/b"><host name="g1"/></source>`, "", ""},
		{"a server's file with odd letters", `<source protocol="nfs" name="/srv/%zz/_base/b"><host name="g1"/></source>`, "name", ""},
		{"no file", `<source protocol="rbd" name="pool/_base/b"/>`, "", ""},
		{"a raw disk of another machine", `<driver type="raw"/><source protocol="rbd" name="pool/b"/>`, "", ""},
		{"a disk of another machine with a header", `<source protocol="nbd" name="x"/><driver type="qcow2"/>`, "",
			"its header was not read: it is no file of this host, and its format is qcow2"},
		{"a volume with a header of a pool without files", `<driver type="qcow2"/><source pool="ceph" volume="b"/>`, "",
			"its header was not read: it is no file of this host, and its format is qcow2"},
		{"a file that rests on one of another machine with a header", `<driver type="qcow2"/><source file="/inst/d"/><backingStore>` +
			`<format type="qcow2"/><source protocol="nbd"/></backingStore>`, "",
			"its header was not read: it is no file of this host, and its format is qcow2"},
		{"one of another machine with a header is a base", `<driver type="qcow2"/><source protocol="nfs" name="/_base/b"/>`, "name", ""},
		{"a kernel", `</disk></devices><os><kernel> /inst/_base/b </kernel></os><devices><disk>`, "domain", ""},
		{"a kernel by a symbolic link", `</disk></devices><os><kernel>/link</kernel></os><devices><disk>`, "domain", ""},
		{"a first file system", `</disk></devices><os><initrd>/inst/_base/b</initrd></os><devices><disk>`, "domain", ""},
		{"a table", `</disk></devices><os><acpi><table type="slic">/inst/_base/b</table></acpi></os><devices><disk>`, "domain", ""},
		{"a file system", `</disk><filesystem type="file"><source file="/inst/_base/b"/></filesystem><disk>`, "domain", ""},
		{"the file system of a container", `</disk><filesystem type="file"><source file="/inst/_base/b"/></filesystem><disk>`, "domain", ""},
		{"the ROM of a card", `</disk><interface><rom file="/inst/_base/b"/></interface><disk>`, "domain", ""},
		{"what QEMU is given", `</disk></devices><commandline><arg value="-drive"/><arg value="file=/inst/_base/b,if=none"/></commandline>` +
			`<devices><disk>`, "domain", ""},
		{"what QEMU is given, with a space", `</disk></devices><commandline><arg value="-drive"/>` +
			`<arg value="if=none,file=/a link/_base/b"/></commandline><devices><disk>`, "domain", ""},
		{"what QEMU is given as JSON", `</disk></devices><commandline><arg value='{"driver":"file","filename":"/inst/_base/b"}'/></commandline>` +
			`<devices><disk>`, "domain", ""},
		{"what QEMU is given with a comma, as an option", given("file=/inst/_base/b,,c,if=none"), "domain", ""},
		{"what QEMU is given with a comma, as a path", given("/inst/_base/b,c"), "domain", ""},
		{"what QEMU is given with a comma, as JSON", given(`{"file":{"filename":"/inst/_base/b\u002cc"}}`), "domain", ""},
		{"what QEMU is given with a comma, as JSON in an option", given(`file=json:{"driver":"raw",,"file":{"filename":"/inst\/_base\/b,,c"}}`), "domain", ""},
		{"what QEMU is given as JSON for a drive", given(`json:{"driver":"raw","file":{"filename":"/inst\/_base\/b"}}`), "domain", ""},
		{"what QEMU is given with two paths", given("file=blkverify:/inst/_base/b:/inst/d"), "domain", ""},
		{"a directory as a disk", `<source dir="/inst/_base"/>`, "", ""},
		{"a directory where a disk should be", `<source file="/inst/_base"/>`, "", "is a directory"},
		{"what is no file", `</disk><serial><source path="/pipe"/></serial><filesystem><source dir="/inst"/></filesystem>` +
			`<emulator>/nowhere</emulator><disk>`, "", ""},
	} {
		w := newWorld(t)
		base := "b"
		if strings.Contains(c.name, "comma") {
			base = "b,c"
		}
		w.base(base)
		w.link(w.path("pool"), "inst")
		root := w.path("root")
		w.write("root/etc/libvirt/storage/vms.xml", []byte("<pool type='dir'><name>vms</name><target><path>/inst/_base</path></target></pool>"))
		w.write("root/etc/libvirt/storage/ceph.xml", []byte("<pool type='rbd'><name>ceph</name></pool>"))
		w.link("../inst", "root/inst")
		w.link("inst/_base/b", "root/link")
		w.link("../inst", "root/a link")
		if err := syscall.Mkfifo(w.path("root/pipe"), 0o600); err != nil {
			t.Fatal(err)
		}
		text := `<domain type="kvm"><name>m</name><devices><disk>` + c.source + `<target dev="vda"/></disk></devices></domain>`
		file := "root/etc/libvirt/qemu/m.xml"
		if strings.Contains(c.name, "container") {
			file = "root/etc/libvirt/lxc/m.xml"
		}
		if strings.Contains(c.name, "in a snapshot") {
			file = "root/var/lib/libvirt/qemu/snapshot/m/s.xml"
		}
		w.write(file, []byte(text))
		tr, err := tree.OpenDirectory(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		census := w.look(Options{Host: &Host{Tree: tr, Root: root}})
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
		if len(census.All) != 1 || census.All[0].Name != base {
			t.Errorf("%s: %q, want %s alone", c.name, w.lines(census), base)
			continue
		}
		use, gap := "", ""
		for _, u := range census.All[0].Uses {
			use += string(u.How)
		}
		for _, g := range census.Gaps {
			if g.Object != "/proc" {
				gap += g.Reason
			}
		}
		if d := cmp.Diff([]string{c.use, c.gap}, []string{use, gap}); d != "" {
			t.Errorf("%s: uses and gaps (-want +got):\n%s", c.name, d)
		}
	}
}
