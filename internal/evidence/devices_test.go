// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// gathered gathers what a directory with these files shows; a value that begins with "-> " is a link.
func gathered(t *testing.T, files map[string]string) *Evidence {
	t.Helper()
	return gatheredFrom(t, filled(t, files))
}

// filled gives a directory with some files.
func filled(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := cutLink(text); link {
			err = os.Symlink(target, at)
		} else {
			err = os.WriteFile(at, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// gatheredFrom gathers what is below a directory.
func gatheredFrom(t *testing.T, dir string) *Evidence {
	t.Helper()
	d, err := tree.OpenDirectory(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	e, err := Gather(context.Background(), d, Options{Now: time.Unix(1_700_000_000, 0), Label: "host1"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func cutLink(text string) (string, bool) {
	if len(text) > 3 && text[:3] == "-> " {
		return text[3:], true
	}
	return "", false
}

// scsiDisk are the files of a disk behind an adapter, as sysfs has them.
func scsiDisk() map[string]string {
	const dev = "sys/devices/pci0000:00/0000:03:00.0/host2/target2:0:0/2:0:0:0/"
	return map[string]string{
		"proc/meminfo":        "MemTotal: 1000 kB\nMemAvailable: 500 kB\nSUnreclaim: 100 kB\n",
		"sys/class/block/sda": "-> ../../devices/pci0000:00/0000:03:00.0/host2/target2:0:0/2:0:0:0/block/sda",
		"sys/class/block/sda1": "-> ../../devices/pci0000:00/0000:03:00.0/host2/target2:0:0/2:0:0:0/" +
			"block/sda/sda1",
		"sys/class/block/loop0/size": "0\n", "sys/class/block/loop0/dev": "7:0\n",
		dev + "block/sda/size": "2048\n", dev + "block/sda/dev": "8:0\n", dev + "block/sda/ro": "0\n",
		dev + "block/sda/inflight": "       3        4\n", dev + "block/sda/device": "-> ../../../2:0:0:0",
		dev + "block/sda/queue/rotational": "1\n",
		dev + "block/sda/sda1/size":        "1024\n", dev + "block/sda/sda1/partition": "1\n",
		dev + "block/sda/sda1/dev": "8:1\n",
		dev + "vendor":             "VMware  \n", dev + "model": "Virtual disk    \n", dev + "state": "offline\n",
		dev + "timeout": "180\n", dev + "eh_timeout": "10\n", dev + "iotmo_cnt": "0x1f\n",
		dev + "driver":                            "-> ../../../../../../../bus/scsi/drivers/sd",
		"sys/class/scsi_host/host2/proc_name":     "vmw_pvscsi\n",
		"sys/class/scsi_disk/2:0:0:0/max_retries": "5\n",
	}
}

func TestDevices(t *testing.T) {
	e := gathered(t, scsiDisk())
	if len(e.Devices) != 2 {
		t.Fatalf("devices are %+v, want sda and sda1", e.Devices)
	}
	got := e.Devices[0]
	got.From = Source{}
	want := Device{Driver: "sd", HostDriver: "vmw_pvscsi", Vendor: "VMware", Model: "Virtual disk",
		SizeBytes: 1 << 20, Rotational: true, State: "offline", Timeout: 180 * time.Second,
		EHTimeout: 10 * time.Second, MaxRetries: 5, Timeouts: 31, Errors: -1, InFlight: 7}
	want.Name, want.Disk, want.Dev, want.Parts = "sda", "sda", 0x800, []string{"sda1"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("sda (-want +got):\n%s", d)
	}
	if p := e.Devices[1]; p.Disk != "sda" || p.Partition != 1 {
		t.Errorf("sda1 = %+v", p)
	}
	if why, whole := e.Whole(PartDevices); !whole {
		t.Errorf("devices are not whole: %s", why)
	}
}

func TestArray(t *testing.T) {
	e := gathered(t, map[string]string{
		"sys/class/block/md0/size": "2048\n", "sys/class/block/md0/dev": "9:0\n",
		"sys/class/block/md0/md/level": "raid1\n", "sys/class/block/md0/md/array_state": "clean\n",
		"sys/class/block/md0/md/raid_disks": "2\n", "sys/class/block/md0/md/sync_action": "idle\n",
		"sys/class/block/md0/md/dev-sda1/state": "in_sync\n", "sys/class/block/md0/md/dev-sdb1/state": "faulty\n",
		"sys/class/block/md0/slaves/sda1/x": "", "sys/class/block/md0/slaves/sdb1/x": "",
	})
	want := &Array{Level: "raid1", State: "clean", Wanted: 2, Active: 1, Failed: []string{"sdb1"}, Action: "idle"}
	if d := cmp.Diff(want, e.Devices[0].Array); d != "" {
		t.Errorf("md0 (-want +got):\n%s", d)
	}
	if on := e.Devices[0].On; len(on) != 2 {
		t.Errorf("md0 rests on %v", on)
	}
}

// TestWithoutSys holds that a copy without /sys has no devices that are unknown, not none.
func TestWithoutSys(t *testing.T) {
	e := gathered(t, map[string]string{"etc/hostname": "host1\n"})
	for _, p := range []Part{PartDevices, PartMemory} {
		if _, known := e.Known(p); known {
			t.Errorf("%s are known of a copy without /proc and /sys", p)
		}
	}
}

// TestThisMachine holds that the disk of this machine is found.
func TestThisMachine(t *testing.T) {
	l, err := tree.OpenLive(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e, err := Gather(context.Background(), l, Options{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Devices) == 0 || e.Memory.Total == 0 {
		t.Errorf("this machine has %d devices and %d bytes of memory", len(e.Devices), e.Memory.Total)
	}
	for _, g := range e.Gaps {
		t.Logf("%s %s: %s", g.Part, g.Object, g.Reason)
	}
}

// TestSerial: the number of a virtio disk is what udev noted: asking sysfs for it asks the disk, which may not answer.
func TestSerial(t *testing.T) {
	e := gathered(t, map[string]string{
		"sys/class/block/vda/size": "8\n", "sys/class/block/vda/dev": "254:16\n", "sys/class/block/vda/serial": "asked\n",
		"sys/class/block/vda/device/driver": "-> ../../../bus/virtio/drivers/virtio_blk",
		"run/udev/data/b254:16":             "S:disk/by-id/virtio-root\nE:ID_SERIAL=root\nE:ID_SERIAL_SHORT=r\n",
		"sys/class/block/vdb/size":          "8\n", "sys/class/block/vdb/dev": "254:32\n", "sys/class/block/vdb/serial": "asked\n",
		"sys/class/block/vdb/device/driver": "-> ../../../bus/virtio/drivers/virtio_blk",
		"sys/class/block/sda/size":          "8\n", "sys/class/block/sda/dev": "8:0\n", "sys/class/block/sda/serial": "own\n",
	})
	var got []string
	for _, d := range e.Devices {
		got = append(got, d.Name+"="+d.Serial)
	}
	if strings.Join(got, " ") != "sda=own vda=root vdb=" {
		t.Errorf("the numbers are %q", got)
	}
}
