// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stories

import (
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// twoHosts are two nodes of a cluster with one GFS2, which they mount elsewhere, and a volume of LVM that both see.
const twoHosts = `
machine kvm1
mount 22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw,errors=remount-ro
mount 50 22 253:0 / /srv/store1 rw,relatime - gfs2 /dev/dm-0 rw
disk sda sd running
part sda1 sda
disk dm-0 -
disk dm-1 -
/sys/class/block/dm-1/dm/name = vg-vol
/sys/class/block/dm-1/dm/uuid = LVM-abcdef
/sys/fs/ext4/sda1/errors_count = 0
/sys/dev/block/253:0 -> ../../block/dm-0
/sys/fs/gfs2/c1:store/id = 253:0
/sys/fs/gfs2/c1:store/withdraw = 0
image /srv/store1/base.qcow2 qcow2
image /srv/store1/m1.qcow2 qcow2 backing /srv/store1/base.qcow2
image /dev/vg/vol raw
ONE

machine kvm2
mount 22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw,errors=remount-ro
mount 50 22 253:0 / /srv/store2 rw,relatime - gfs2 /dev/dm-0 rw
disk sda sd running
part sda1 sda
disk dm-0 -
disk dm-4 -
/sys/class/block/dm-4/dm/name = vg-vol
/sys/class/block/dm-4/dm/uuid = LVM-abcdef
/sys/fs/ext4/sda1/errors_count = 0
/sys/dev/block/253:0 -> ../../block/dm-0
/sys/fs/gfs2/c1:store/id = 253:0
/sys/fs/gfs2/c1:store/withdraw = 0
image /srv/store2/base.qcow2 qcow2
image /srv/store2/m1.qcow2 qcow2 backing /srv/store2/base.qcow2
image /srv/store2/m2.qcow2 qcow2 backing /srv/store2/base.qcow2
image /dev/mapper/vg-vol raw
TWO
`

// TestTwoHosts holds that of bundles of two hosts those images are found to which both write, and no others.
func TestTwoHosts(t *testing.T) {
	const u1, u2 = "00000000-0000-0000-0000-000000000041", "00000000-0000-0000-0000-000000000042"
	shared := func(pid string) string {
		return "/run/libvirt/qemu/m" + pid + ".xml = <domstatus state='running' pid='" + pid + "'><domain><name>m" + pid +
			"</name><devices><disk type='block' device='disk'><source dev='/dev/mapper/vg-vol'/><target dev='vda'/>" +
			"<shareable/></disk></devices></domain></domstatus>"
	}
	for _, c := range []struct {
		name, one, two string
		want           []string
	}{
		{"each its own, on one base", "vm m1 " + u1 + " running /srv/store1/m1.qcow2",
			"vm m2 " + u2 + " running /srv/store2/m2.qcow2", nil},
		{"two machines with one disk", "vm m1 " + u1 + " running /srv/store1/m1.qcow2",
			"vm m2 " + u2 + " running /srv/store2/m1.qcow2", []string{"IM04 lost image::gfs2:c1:store:/m1.qcow2"}},
		{"one machine on both", "vm m1 " + u1 + " running /srv/store1/m1.qcow2",
			"vm m1 " + u1 + " running /srv/store2/m1.qcow2", []string{"IM04 lost image::gfs2:c1:store:/m1.qcow2"}},
		{"one machine that runs on one and is off on the other", "vm m1 " + u1 + " running /srv/store1/m1.qcow2",
			"vm m1 " + u1 + " shutoff /srv/store2/m1.qcow2", nil},
		{"a base that another host writes to", "vm m1 " + u1 + " running /srv/store1/m1.qcow2",
			"vm m2 " + u2 + " running /srv/store2/base.qcow2", []string{"IM02 lost image::gfs2:c1:store:/base.qcow2"}},
		{"a volume that is one machine's", "vm m1 " + u1 + " running /dev/vg/vol", "vm m2 " + u2 + " running /srv/store2/m2.qcow2", nil},
		{"a volume that both write to, by two names", "vm m1 " + u1 + " running /dev/vg/vol",
			"vm m2 " + u2 + " running /dev/mapper/vg-vol",
			[]string{"IM04 lost image:kvm1:/dev/vg/vol", "IM04 lost image:kvm2:/dev/mapper/vg-vol"}},
		{"a volume that both are to share", strings.ReplaceAll(shared("11"), "/dev/mapper/vg-vol", "/dev/vg/vol"), shared("12"), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := Parse(c.name, strings.NewReplacer("ONE", c.one, "TWO", c.two).Replace(twoHosts))
			if err != nil {
				t.Fatal(err)
			}
			var all []*evidence.Evidence
			for _, m := range s.Machines {
				all = append(all, bundled(t, m))
			}
			got := []string{}
			r := doctor.Examine(all, nil)
			for i := range r.Findings {
				if f := &r.Findings[i]; f.Severity != finding.Note {
					got = append(got, f.Code+" "+string(f.Severity)+" "+f.Object.String())
				}
			}
			if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
				t.Errorf("found %q, want %q\n%s", got, c.want, sums(r))
			}
		})
	}
}

// TestOneServerByTwoNames holds that hosts which call one server by its name and by its address have its images in
// common.
func TestOneServerByTwoNames(t *testing.T) {
	const host = `
machine NAME
mount 22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw,errors=remount-ro
mount 40 22 0:45 / /store rw,relatime - nfs4 SERVER:/store rw,vers=4.2,hard,timeo=600,retrans=2,addr=10.0.0.9
disk sda sd running
part sda1 sda
/sys/fs/ext4/sda1/errors_count = 0
image /store/web.qcow2 qcow2
vm NAME-web 00000000-0000-0000-0000-0000000000NUMBER running /store/web.qcow2
`
	text := strings.NewReplacer("NAME", "kvm1", "SERVER", "nfs01.example", "NUMBER", "51").Replace(host) +
		strings.NewReplacer("NAME", "kvm2", "SERVER", "10.0.0.9", "NUMBER", "52").Replace(host)
	s, err := Parse("names", text)
	if err != nil {
		t.Fatal(err)
	}
	var all []*evidence.Evidence
	for _, m := range s.Machines {
		all = append(all, bundled(t, m))
	}
	r := doctor.Examine(all, nil)
	for _, want := range []string{"image::nfs01.example:/store/web.qcow2", "image::10.0.0.9:/store/web.qcow2"} {
		if !slices.ContainsFunc(r.Findings, func(f doctor.Finding) bool { return f.Code == "IM04" && f.Object.String() == want }) {
			t.Errorf("two who write to %s are not found\n%s", want, sums(r))
		}
	}
}
