// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/stall"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// behind is a disk of VMware behind an adapter, with a timeout in seconds.
func behind(adapter string, seconds int) evidence.Device {
	d := disk("sda", "running")
	d.HostDriver, d.Timeout, d.MaxRetries = adapter, time.Duration(seconds)*time.Second, 5
	return d
}

func TestStallRules(t *testing.T) {
	on := func(d ...evidence.Device) evidence.Evidence { return evidence.Evidence{Devices: d} }
	hyperv := behind("", 300)
	hyperv.Vendor, hyperv.Model = "Msft    ", "Virtual Disk    "
	storvsc := on(hyperv)
	storvsc.Limits.Disks = map[string]evidence.DiskLimits{"sda": {Adapter: "hv_storvsc"}}
	ebs := evidence.Device{Block: linux.Block{Name: "nvme0n1", Disk: "nvme0n1"}, Driver: "nvme",
		Model: "Amazon Elastic Block Store", Timeout: 30 * time.Second}
	ruled := on(behind("virtio_scsi", 30))
	ruled.Config.Udev = []evidence.UdevRule{{Match: []string{"SUBSYSTEM==scsi", "ATTRS{vendor}==VMware*"}, Seconds: 180,
		Sets: []string{"ATTR{timeout}=180"}}}
	qemu := behind("virtio_scsi", 30)
	qemu.Vendor = "QEMU    "
	for _, c := range []struct {
		name string
		r    Rule
		e    evidence.Evidence
		want says
	}{
		{"virtio-scsi, set", ruleBL02(), on(behind("virtio_scsi", 300)), says{"device:h:sda", Fail, "inert", finding.Note}},
		{"virtio-scsi, a rule", ruleBL02(), ruled, says{"device:h:sda", Fail, "inert", finding.Note}},
		{"Hyper-V, set", ruleBL02(), storvsc, says{"device:h:sda", Fail, "inert", finding.Note}},
		{"virtio-scsi, as it was", ruleBL02(), on(qemu), says{"device:h:sda", Pass, "", ""}},
		{"pvscsi, set", ruleBL02(), on(behind("vmw_pvscsi", 300)), says{"device:h:sda", Pass, "", ""}},
		{"not known, set", ruleBL02(), on(behind("", 300)), says{"device:h:sda", Unknown, "", ""}},
		{"pvscsi, 30 s", ruleBL03(), on(behind("vmw_pvscsi", 30)), says{"device:h:sda", Fail, "short", finding.Warning}},
		{"pvscsi, 180 s", ruleBL03(), on(behind("vmw_pvscsi", 180)), says{"device:h:sda", Pass, "", ""}},
		{"adapter not known, 30 s", ruleBL03(), on(behind("", 30)), says{"device:h:sda", Unknown, "", ""}},
		{"pvscsi, not read", ruleBL03(), on(behind("vmw_pvscsi", 0)), says{"device:h:sda", Unknown, "", ""}},
		{"AWS, 30 s", ruleBL03(), on(ebs), says{"device:h:nvme0n1", Fail, "short", finding.Warning}},
	} {
		t.Run(c.name, func(t *testing.T) { ask(t, c.r, &c.e, c.want) })
	}
	ask(t, ruleBL03(), &evidence.Evidence{Devices: []evidence.Device{qemu}}) // no platform asks for anything
}

func TestStallOrder(t *testing.T) {
	world := func(adapter, fenced string, early time.Duration) *evidence.Evidence {
		return &evidence.Evidence{Devices: []evidence.Device{behind(adapter, 180)}, Mounts: []evidence.Mount{{
			Mount: linux.Mount{Point: "/", Type: "ext4", Super: "rw"}, Own: true}},
			FSs:    []evidence.FS{{Type: "ext4", Device: "sda", Mounts: []int{0}}},
			Limits: evidence.Limits{Leases: []evidence.Lease{{Name: "pacemaker monitor", Early: early, Late: early, Fenced: fenced}}}}
	}
	const s = time.Second
	fails := says{"cluster:h:pacemaker monitor", Fail, "unfenced", finding.Danger}
	passes := says{"cluster:h:pacemaker monitor", Pass, "", ""}
	ask(t, ruleBL04(), world("vmw_pvscsi", "no", 20*s), fails)
	ask(t, ruleBL04(), world("virtio_scsi", "no", 3600*s), fails)
	ask(t, ruleBL04(), world("vmw_pvscsi", "no", 3600*s), passes)
	ask(t, ruleBL04(), world("vmw_pvscsi", "yes", 20*s), passes)
	ask(t, ruleBL04(), world("vmw_pvscsi", "", 20*s), says{"cluster:h:pacemaker monitor", Unknown, "", ""})
	dead := world("vmw_pvscsi", "no", 20*s)
	dead.Devices = nil
	ask(t, ruleBL04(), dead, says{"cluster:h:pacemaker monitor", Unknown, "", ""})
	ask(t, ruleBL04(), &evidence.Evidence{Devices: []evidence.Device{behind("vmw_pvscsi", 180)}}) // no cluster: silent
	moves := func(adapter string, checked bool, early time.Duration) *evidence.Evidence {
		e := world(adapter, "no", early)
		l := &e.Limits.Leases[0]
		l.Name, l.Address, l.Checked = "keepalived check a", true, checked
		return e
	}
	warned := says{"cluster:h:keepalived check a", Fail, "address", finding.Warning}
	ask(t, ruleBL04(), moves("vmw_pvscsi", true, 5*s), warned)
	ask(t, ruleBL04(), moves("virtio_scsi", true, 5*s), warned)
	ask(t, ruleBL04(), moves("vmw_pvscsi", true, 3600*s), says{"cluster:h:keepalived check a", Pass, "", ""})
	ask(t, ruleBL04(), moves("vmw_pvscsi", false, 5*s), says{"cluster:h:keepalived check a", Fail, "address", finding.Note})
	for checked, want := range map[bool]Outcome{true: Unknown, false: Pass} {
		dead := moves("vmw_pvscsi", checked, 5*s)
		dead.Devices = nil
		ask(t, ruleBL04(), dead, says{"cluster:h:keepalived check a", want, "", ""})
	}
}

// TestStallOf holds the way from evidence to what is predicted.
func TestStallOf(t *testing.T) {
	part := evidence.Device{Block: linux.Block{Name: "sda1", Disk: "sda", Partition: 1}}
	raid := evidence.Device{Block: linux.Block{Name: "md0", Disk: "md0"}, On: []string{"sdb", "sdc"},
		Array: &evidence.Array{Level: "raid1"}}
	two, three := behind("vmw_pvscsi", 30), behind("virtio_scsi", 30)
	two.Name, two.Disk, three.Name, three.Disk = "sdb", "sdb", "sdc", "sdc"
	e := &evidence.Evidence{Kind: tree.Live, Label: "h", Devices: []evidence.Device{behind("vmw_pvscsi", 180), part, two, three, raid},
		Mounts: []evidence.Mount{{Mount: linux.Mount{Point: "/", Super: "rw,errors=panic"}, Own: true},
			{Mount: linux.Mount{Point: "/srv", Super: "rw"}, Own: true}, {Mount: linux.Mount{Point: "/nfs", Super: "rw,proto=tcp"}, Own: true,
				NFS: &evidence.NFS{Server: "s", Export: "/x", Vers: "3", Soft: true, Timeo: 600, Retrans: 2}}},
		FSs: []evidence.FS{{Type: "ext4", Device: "sda1", Mounts: []int{0}, Super: &evidence.Super{OnError: "panic"}},
			{Type: "xfs", Device: "md0", Mounts: []int{1}}}}
	s := StallOf(e, 10*time.Minute, "")
	if len(s.Disks) != 4 {
		t.Fatalf("%d disks, want sda, sdb, sdc and /nfs", len(s.Disks))
	}
	sda, sdb, sdc, nfs := s.Disks[0], s.Disks[1], s.Disks[2], s.Disks[3]
	if sda.Outcomes[0].Word != stall.Reboots || sda.Policy != 180*time.Second {
		t.Errorf("sda: %s, policy %s; want that errors=panic resets it, and 180 s", sda.Outcomes[0].Word, sda.Policy)
	}
	if len(sdb.Disk.FSs) != 0 || len(sdb.Disk.Arrays) != 1 || sdb.Outcomes[0].Word != stall.GoesOff {
		t.Errorf("sdb: %+v, want that its array goes on without it", sdb.Disk)
	}
	if sdc.Effective || sdc.Outcomes[1].Word != stall.Recovers {
		t.Errorf("sdc: %t, %s; want a timeout without effect", sdc.Effective, sdc.Outcomes[1].Word)
	}
	if nfs.Outcomes[0].Word != stall.Fails {
		t.Errorf("/nfs: %s, want that requests fail", nfs.Outcomes[0].Word)
	}
	if got := StallOf(e, time.Minute, "/dev/sdb").Disks; len(got) != 1 || got[0].Disk.Name != "sdb" {
		t.Errorf("--device /dev/sdb gives %d disks", len(got))
	}
}

// TestStallOfTheDead: of a disk that nobody runs the rules and the file systems tell something, and what was
// taken without being known is named.
func TestStallOfTheDead(t *testing.T) {
	e := &evidence.Evidence{Kind: tree.Disk, Label: "h", FSs: []evidence.FS{{Type: "ext4", Device: "p1"}}}
	e.Config.Udev = []evidence.UdevRule{{Match: []string{"ATTRS{vendor}==VMware*"}, Sets: []string{"ATTR{timeout}=180"}, Seconds: 180,
		From: evidence.Source{Path: "/usr/lib/udev/rules.d/99-vmware.rules"}}}
	s := StallOf(e, 10*time.Minute, "")
	if len(s.Disks) != 1 || s.Disks[0].Disk.Timeout != 180*time.Second || len(s.Disks[0].Assumed) < 4 {
		t.Fatalf("%+v, want one disk with 180 s and what was assumed", s.Disks)
	}
	e.Config.Fstab = []evidence.FstabEntry{{Source: "/dev/vda1"}}
	if s := StallOf(e, 10*time.Minute, ""); s.Disks[0].Effective || s.Disks[0].Outcomes[0].Word != stall.Recovers {
		t.Errorf("/dev/vda1: %+v, want that it waits for ever", s.Disks[0].Outcomes)
	}
}

// TestStallOfDeadNetworks: what fstab has wait for the network is on a disk of iSCSI, with the timers of iscsid.conf; multipath
// queues as multipath.conf says.
func TestStallOfDeadNetworks(t *testing.T) {
	e := &evidence.Evidence{Kind: tree.Disk, Label: "h", FSs: []evidence.FS{{Type: "xfs", Device: "p1"}}}
	e.Config.Fstab = []evidence.FstabEntry{{Source: "/dev/mapper/mpatha1", Point: "/", Type: "xfs"},
		{Source: "UUID=1", Point: "/srv", Type: "ext4", Options: []string{"_netdev"}},
		{Source: "nfs1:/x", Point: "/x", Type: "nfs4", Options: []string{"_netdev"}}}
	e.Config.Multipath = map[string]evidence.Setting{"no_path_retry": {Value: "queue"}}
	e.Config.ISCSI = map[string]evidence.Setting{"node.session.timeo.replacement_timeout": {Value: "60"}}
	s := StallOf(e, 10*time.Minute, "")
	if len(s.Disks) != 2 {
		t.Fatalf("%d disks, want two", len(s.Disks))
	}
	for _, x := range s.Disks[0].Events {
		if x.Harm == stall.ReadOnly {
			t.Errorf("with no_path_retry queue %s happens", x.Kind)
		}
	}
	found := false
	for _, x := range s.Disks[1].Events {
		if x.Kind == "replacement_timeout" {
			found = true
			if x.At.Low != 65*time.Second {
				t.Errorf("requests fail after %s at the earliest, want 65 s", x.At.Low)
			}
		}
	}
	if !found {
		t.Errorf("no session times out: %+v", s.Disks[1].Events)
	}
}
