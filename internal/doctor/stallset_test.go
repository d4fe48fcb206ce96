// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/plan"
)

const sdaPath = "/sys/devices/pci0000:00/0000:03:00.0/host2/target2:0:1/2:0:1:0/block/sda"

// settableWorld is a machine with a disk of VMware, and where it is attached.
func settableWorld(adapter, wwid string) *evidence.Evidence {
	d := behind(adapter, 30)
	d.WWID = wwid
	e := &evidence.Evidence{Label: "h", Devices: []evidence.Device{d}}
	e.Limits.Disks = map[string]evidence.DiskLimits{"sda": {Path: sdaPath, MaxMedium: 2}}
	return e
}

// drafted makes a plan and fills in what a draft would.
func drafted(t *testing.T, e *evidence.Evidence, device string, seconds int) *plan.Texts {
	t.Helper()
	p, err := TimeoutPlan(e, device, seconds)
	if err != nil {
		t.Fatal(err)
	}
	for i := range p.Live {
		p.Live[i].Before = "30"
	}
	p.Schema, p.ID = plan.TextsSchema, strings.Repeat("0", 32)
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	return p
}

func TestTimeoutPlan(t *testing.T) {
	for _, c := range []struct {
		name, wwid, file string
		has              []string
	}{
		{"a WWID", "naa.6000c29f", "/etc/udev/rules.d/99-zz-shisa-timeout-naa.6000c29f.rules",
			[]string{`ATTR{device/wwid}=="naa.6000c29f"`, `ATTR{device/timeout}="300"`}},
		{"no WWID", "", "/etc/udev/rules.d/99-zz-shisa-timeout-0000-03-00.0-0-1-0.rules", []string{
			`DEVPATH=="/devices/pci0000:00/0000:03:00.0/host*/target*:0:1/*:0:1:0/block/*"`,
			`ATTR{device/vendor}=="VMware", ATTR{device/model}=="Virtual disk"`}},
		{"a WWID that a rule cannot hold", `t10.A*B"`, "/etc/udev/rules.d/99-zz-shisa-timeout-0000-03-00.0-0-1-0.rules",
			[]string{`DEVPATH==`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := settableWorld("vmw_pvscsi", c.wwid)
			p := drafted(t, e, "/dev/sda", 300)
			if len(p.Files) != 1 || p.Files[0].Path != c.file {
				t.Fatalf("files %+v, want %s", p.Files, c.file)
			}
			for _, want := range append(c.has, `ACTION=="add|change", SUBSYSTEM=="block", ENV{DEVTYPE}=="disk"`) {
				if !strings.Contains(p.Files[0].Content, want) {
					t.Errorf("the rule lacks %s:\n%s", want, p.Files[0].Content)
				}
			}
			want := plan.Live{Path: "/sys/devices/pci0000:00/0000:03:00.0/host2/target2:0:1/2:0:1:0/timeout",
				What: "the timeout of sda (in seconds)", Before: "30", Value: "300"}
			if len(p.Live) != 1 || p.Live[0] != want {
				t.Errorf("settings %+v, want %+v", p.Live, want)
			}
			// The doctor itself has to understand the rule, and take it for one of this disk.
			e.Config.Udev = evidence.ParseUdev(p.Files[0].Path, []byte(p.Files[0].Content))
			s := StallOf(e, time.Minute, "sda")
			if len(s.Disks[0].Rules) != 1 || s.Disks[0].AtBoot != 300*time.Second || s.Disks[0].Rules[0].Broken != "" {
				t.Errorf("of its own rule the doctor says %+v, %s", s.Disks[0].Rules, s.Disks[0].AtBoot)
			}
			// And not for one of another disk.
			e.Devices[0].WWID = "naa.other"
			l := e.Limits.Disks["sda"]
			l.Path = strings.Replace(sdaPath, "0:1", "0:2", 2)
			e.Limits.Disks["sda"] = l
			if s := StallOf(e, time.Minute, "sda"); len(s.Disks[0].Rules) != 0 {
				t.Errorf("the rule is taken for one of another disk: %+v", s.Disks[0].Rules)
			}
		})
	}
}

// TestTimeoutPlanOutruns: what a rule of a vendor runs comes after all that rules assign.
func TestTimeoutPlanOutruns(t *testing.T) {
	e := settableWorld("vmw_pvscsi", "naa.1")
	e.Config.Udev = evidence.ParseUdev("/usr/lib/udev/rules.d/99-vmware-scsi-udev.rules", []byte(
		`ACTION=="add", SUBSYSTEMS=="scsi", ATTRS{vendor}=="VMware*", ATTRS{model}=="Virtual disk*", ENV{DEVTYPE}=="disk", `+
			`RUN+="/bin/sh -c 'echo 180 >/sys$env{DEVPATH}/device/timeout'"`))
	p := drafted(t, e, "sda", 300)
	if !strings.Contains(p.Files[0].Content, `RUN+="/bin/sh -c 'echo 300 > /sys%p/device/timeout'"`) {
		t.Errorf("the vendor's rule comes after this one:\n%s", p.Files[0].Content)
	}
	e.Config.Udev = append(e.Config.Udev, evidence.ParseUdev(p.Files[0].Path, []byte(p.Files[0].Content))...)
	if s := StallOf(e, time.Minute, "sda"); s.Disks[0].AtBoot != 300*time.Second {
		t.Errorf("with both rules the disk has %s after the next start, want 300 s", s.Disks[0].AtBoot)
	}
}

func TestTimeoutPlanRefused(t *testing.T) {
	virtio := evidence.Device{Block: linux.Block{Name: "vda", Disk: "vda"}, Driver: "virtio_blk"}
	for _, c := range []struct {
		name, device string
		e            *evidence.Evidence
		want         error
	}{
		{"virtio-scsi", "sda", settableWorld("virtio_scsi", "naa.1"), ErrInert},
		{"Hyper-V", "sda", settableWorld("storvsc", "naa.1"), ErrInert},
		{"virtio-blk", "vda", &evidence.Evidence{Devices: []evidence.Device{virtio}}, ErrInert},
		{"all, and none has one", "", &evidence.Evidence{Devices: []evidence.Device{virtio}}, ErrInert},
		{"an adapter that is not known", "sda", settableWorld("", "naa.1"), ErrInert},
		{"no such disk", "sdz", settableWorld("vmw_pvscsi", "naa.1"), ErrNoDevice},
	} {
		if p, err := TimeoutPlan(c.e, c.device, 300); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v, want %v", c.name, p, err, c.want)
		}
	}
	odd := settableWorld("vmw_pvscsi", "")
	odd.Limits.Disks = nil
	if _, err := TimeoutPlan(odd, "sda", 300); err == nil {
		t.Error("a disk of which no place is known gets a rule")
	}
}

// TestTimeoutCosts: the plan says what the longer timeout costs on this machine.
func TestTimeoutCosts(t *testing.T) {
	e := settableWorld("vmw_pvscsi", "naa.1")
	e.Memory.Available = 10 << 30
	e.Config.Sysctl = map[string]evidence.Setting{"vm.dirty_ratio": {Value: "20"}, "kernel.hung_task_timeout_secs": {Value: "120"},
		"kernel.hung_task_panic": {Value: "1"}}
	e.Limits.Leases = []evidence.Lease{{Name: "pacemaker monitor", Early: 20 * time.Second, Needs: "it looks at the disk", Fenced: "no"}}
	e.Limits.Watchdogs = []evidence.Watchdog{{Name: "sbd", Early: 5 * time.Second, Late: 5 * time.Second, Resets: true}}
	text := strings.Join(drafted(t, e, "sda", 300).Costs, "\n")
	for _, want := range []string{"sda gives up after 10m0s to ", "with 30 s that was 1m0s to ", "up to about 2047 MiB", "OOM",
		"panics over tasks that hang after 2m0s", "pacemaker monitor is lost after 20s", "is written when storage is back",
		"sbd resets the machine after 5s"} {
		if !strings.Contains(text, want) {
			t.Errorf("the costs lack %q:\n%s", want, text)
		}
	}
}

// TestTimeoutPlanNVMe: the queue's timeout is in milliseconds.
func TestTimeoutPlanNVMe(t *testing.T) {
	d := evidence.Device{Block: linux.Block{Name: "nvme0n1", Disk: "nvme0n1"}, Driver: "nvme", WWID: "eui.0025", Timeout: 30 * time.Second}
	e := &evidence.Evidence{Devices: []evidence.Device{d}}
	e.Limits.Disks = map[string]evidence.DiskLimits{"nvme0n1": {Path: "/sys/devices/pci0000:00/0000:00:05.0/nvme/nvme0/nvme0n1"}}
	p := drafted(t, e, "", 300)
	if p.Live[0].Value != "300000" || !strings.HasSuffix(p.Live[0].Path, "/nvme0n1/queue/io_timeout") ||
		!strings.Contains(p.Files[0].Content, `ATTR{wwid}=="eui.0025", ATTR{queue/io_timeout}="300000"`) {
		t.Errorf("%+v\n%s", p.Live, p.Files[0].Content)
	}
}
