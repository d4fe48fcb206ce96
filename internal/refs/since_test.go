// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// TestSinceOfDescriptions: what names a base in words says since when at the latest, by the best that it tells.
func TestSinceOfDescriptions(t *testing.T) {
	w := newWorld(t)
	b := w.base("b")
	root := w.path("root")
	day := func(n int) time.Time { return time.Date(2026, 3, n, 4, 5, 6, 0, time.UTC) }
	// The host's files lie in a directory; the pool has the same name there.
	w.mkdir("root/" + strings.TrimPrefix(w.dir, "/"))
	if err := os.Remove(root + w.dir); err != nil {
		t.Fatal(err)
	}
	w.link(w.dir, "root"+w.dir)
	put := func(name string, text string, changed time.Time) {
		w.write("root/"+name, []byte(text))
		if err := os.Chtimes(w.path("root/"+name), changed, changed); err != nil {
			t.Fatal(err)
		}
	}
	domain := func(name string) string {
		return `<domain type="kvm"><name>` + name + `</name><devices><disk type="file" device="disk"><source file="` + b +
			`"/><target dev="vda"/></disk></devices></domain>`
	}
	put("etc/libvirt/qemu/m.xml", domain("m"), day(2))
	put("run/libvirt/qemu/m.xml", "<domstatus state='running'>"+domain("m")+"</domstatus>", day(9))
	put("run/libvirt/qemu/n.xml", "<domstatus state='running'>"+domain("n")+"</domstatus>", day(3))
	put("var/lib/libvirt/qemu/save/s.save", string(savedMachine(domain("s"))), day(4))
	snapshot := func(kind, created string) string {
		return "<" + kind + "><name>one</name><creationTime>" + created + "</creationTime>" + domain("x") + "</" + kind + ">"
	}
	put("var/lib/libvirt/qemu/snapshot/t/one.xml", snapshot("domainsnapshot", fmt.Sprint(day(5).Unix())), day(20))
	put("var/lib/libvirt/qemu/snapshot/t/two.xml", snapshot("domainsnapshot", "99999999999999"), day(6))
	put("var/lib/libvirt/qemu/snapshot/t/three.xml", "<domainsnapshot>"+domain("x")+"</domainsnapshot>", day(7))
	put("var/lib/libvirt/qemu/checkpoint/u/one.xml", snapshot("domaincheckpoint", fmt.Sprint(day(8).Unix())), day(20))
	// That of a disk is none of the snapshot.
	put("var/lib/libvirt/qemu/snapshot/t/four.xml",
		"<domainsnapshot><disks><creationTime>5</creationTime></disks>"+domain("x")+"</domainsnapshot>", day(9))

	w.report("n2", pool.Use{Name: "b", How: "open", Holder: "qemu", Since: day(1)}, pool.Use{Name: "b", How: "loop", Holder: "z"})

	tr, err := tree.OpenDirectory(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	var got []string
	for _, u := range w.look(Options{Host: &Host{Tree: tr, Root: root}}).All[0].Uses {
		at := "not known"
		if !u.Since.IsZero() {
			at = u.Since.UTC().Format(time.DateTime)
		}
		if u.How == LastReport {
			at += fmt.Sprintf(" said in %d", u.Said.Year())
		}
		got = append(got, fmt.Sprintf("%s %s %s: %s", u.How, u.Machine, u.Holder[strings.LastIndexByte(u.Holder, '/')+1:], at))
	}
	slices.Sort(got)
	want := []string{
		`domain m disk vda of machine "m" of libvirt: 2026-03-02 04:05:06`,
		`domain n disk vda of machine "n" of libvirt: 2026-03-03 04:05:06`,
		"last_report  qemu: 2026-03-01 04:05:06 said in 1970",
		"last_report  z: not known said in 1970",
		"saved s s.save: 2026-03-04 04:05:06",
		"snapshot t four.xml: 2026-03-09 04:05:06",
		"snapshot t one.xml: 2026-03-05 04:05:06",
		"snapshot t three.xml: 2026-03-07 04:05:06",
		"snapshot t two.xml: 2026-03-06 04:05:06",
		"snapshot u one.xml: 2026-03-08 04:05:06",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("since (-want +got):\n%s", d)
	}
}
