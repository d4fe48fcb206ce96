// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// TestDescribed: what the description of a machine names and nobody can look at is a gap, whether it runs, is defined, or is
// that of a snapshot.
func TestDescribed(t *testing.T) {
	for _, c := range []struct{ name, source, use, gap string }{
		{"a volume of a pool that is known", `<source pool="vms" volume="b"/>`, "domain", ""},
		{"a volume of a pool that nobody knows", `<source pool="gone" volume="b"/>`, "",
			"it is a volume of a storage pool of which nobody can tell where it lies"},
		{"a volume out of its pool", `<source pool="vms" volume="../b"/>`, "",
			"it is a volume of a storage pool of which nobody can tell where it lies"},
		{"a volume of a pool without files", `<source pool="ceph" volume="b"/>`, "", ""},
		{"a name that is not absolute", `<source file="b"/>`, "", "it is no absolute path"},
		{"a server's file of such a directory", `<source protocol="gluster" name="vol/_base/b"><host name="g1"/></source>`, "name", ""},
		{"a server's file of another one", `<source protocol="gluster" name="vol/images/b"><host name="g1"/></source>`, "", ""},
		{"a server's file with odd letters", `<source protocol="nfs" name="/srv/%zz/_base/b"><host name="g1"/></source>`, "name", ""},
		{"no file", `<source protocol="rbd" name="pool/_base/b"/>`, "", ""},
	} {
		w := newWorld(t)
		w.base("b")
		w.link(w.path("pool"), "inst")
		root := w.path("root")
		w.write("root/etc/libvirt/storage/vms.xml", []byte("<pool type='dir'><name>vms</name><target><path>/inst/_base</path></target></pool>"))
		w.write("root/etc/libvirt/storage/ceph.xml", []byte("<pool type='rbd'><name>ceph</name></pool>"))
		w.link("../inst", "root/inst")
		text := `<domain type="kvm"><name>m</name><devices><disk>` + c.source + `<target dev="vda"/></disk></devices></domain>`
		w.write("root/etc/libvirt/qemu/m.xml", []byte(text))
		tr, err := tree.OpenDirectory(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		census := w.look(Options{Host: &Host{Tree: tr, Root: root}})
		if err := tr.Close(); err != nil {
			t.Error(err)
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
