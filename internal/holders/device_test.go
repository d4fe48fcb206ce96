// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// stacked is a disk with everything on it that this machine cannot make: a partition, in an array, in
// a logical volume that is swap; a btrfs on two devices; a network block device.
var stacked = map[string]string{
	// sysfs has links there, which tell the disk of a partition.
	"sys/class/block/sdb":                   "->../../devices/x/sdb",
	"sys/class/block/sdb1":                  "->../../devices/x/sdb/sdb1",
	"sys/devices/x/sdb/dev":                 "8:16\n",
	"sys/devices/x/sdb/sdb1/dev":            "8:17\n",
	"sys/devices/x/sdb/sdb1/partition":      "1\n",
	"sys/devices/x/sdb/sdb1/holders/md0/x":  "",
	"sys/class/block/md0/dev":               "9:0\n",
	"sys/class/block/md0/holders/dm-0/x":    "",
	"sys/class/block/dm-0/dev":              "254:0\n",
	"sys/class/block/dm-0/dm/name":          "vg-swap\n",
	"sys/class/block/nbd0/dev":              "43:0\n",
	"sys/class/block/nbd0/pid":              "10\n",
	"sys/class/block/sdc/dev":               "8:32\n",
	"sys/class/block/sdd/dev":               "8:48\n",
	"sys/fs/btrfs/1-2/devices/sdc/x":        "",
	"sys/fs/btrfs/1-2/devices/sdd/x":        "",
	"sys/block/loop5/loop/backing_file":     "/dev/sdd\n",
	"proc/swaps":                            "/dev/dm-0 partition 1 1 1\n",
	"proc/self/mountinfo":                   "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n41 20 0:44 / /b rw - btrfs /dev/sdd rw\n",
	"sys/class/block/nvme0n1/dev":           "259:0\n",
	"sys/class/block/nvme0n1/holders/md1/x": "",
}

func TestDevices(t *testing.T) {
	for _, tc := range []struct {
		device string
		want   []string
	}{
		{"nbd0", []string{"nbd 10 nbd0 /dev/nbd0 device"}},
		{"md0", []string{"swap 0 dm-0 /dev/dm-0 device", "device_holder 0 dm-0 /dev/mapper/vg-swap on /dev/md0 device"}},
		{"sdb", []string{"swap 0 dm-0 /dev/dm-0 device", "device_holder 0 dm-0 /dev/mapper/vg-swap on /dev/md0 device",
			"md 0 md0 /dev/sdb1 device"}},
		{"sdc", []string{"mounted 0  /b device"}},
		{"sdd", []string{"mounted 0  /b device", "loop 0 loop5 /dev/sdd device"}},
		{"nvme0n1", nil}, // its array is gone meanwhile
	} {
		t.Run(tc.device, func(t *testing.T) {
			h := Host{Linux: world(t, stacked), Self: 99, NoKernel: errors.New("not asked")}
			r, err := Scan(t.Context(), h, Target{Kind: TargetDevice, Device: tc.device, Path: "/dev/" + tc.device}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, o := range r.Holders {
				got = append(got, fmt.Sprintf("%s %d %s %s %s", o.Kind, o.Process.PID, o.Device, o.Path, o.Blocks))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("Scan (-want +got):\n%s", diff)
			}
			verdict := Busy
			if tc.want == nil {
				verdict = Unknown
			}
			if r.Verdict != verdict {
				t.Errorf("verdict %s, want %s", r.Verdict, verdict)
			}
		})
	}
}

// The device of a mounted file system, and the image that it is on.
func TestDeviceAndImage(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4", "sleep")
	for name, h := range hosts(t) {
		t.Run(name, func(t *testing.T) {
			d, err := hold.NewDisk(t.Context(), t.TempDir())
			if errors.Is(err, hold.ErrUnavailable) {
				testenv.Lacks(t, err.Error())
			} else if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}()
			loop := strings.TrimPrefix(d.Device, "/dev/")
			for _, tc := range []struct {
				about string
				want  []string
			}{
				{d.Device, []string{"mounted " + d.Mount}},
				{d.Image, []string{"loop " + loop + " " + d.Image, "mounted " + d.Mount}},
			} {
				var r *Report
				var got []string
				// What a call left on its stack that is over may look as if the next one worked on the file: for
				// a moment, and it is said to be likely, not certain.
				for range 100 {
					if _, r, err = ask(t.Context(), h, tc.about); err != nil {
						t.Fatal(err)
					}
					if got = heldBy(r, d.Mount); slices.Equal(got, tc.want) {
						break
					}
					t.Logf("held by %q", got)
					time.Sleep(10 * time.Millisecond)
				}
				if diff := cmp.Diff(tc.want, got); diff != "" || r.Verdict != Busy {
					t.Errorf("Scan(%s) = %s (-want +got):\n%s", tc.about, r.Verdict, diff)
				}
			}
		})
	}
}

// An image that a program has open, with a lock as QEMU takes it.
func TestImage(t *testing.T) {
	testenv.Need(t, "sleep")
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "vm.raw")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, h := range hosts(t) {
		t.Run(name, func(t *testing.T) {
			c := exec.Command("sleep", "1000")
			c.ExtraFiles = []*os.File{f}
			testenv.Start(t, c)
			defer func() { c.Process.Kill(); c.Wait() }()
			_, r, err := ask(t.Context(), h, path)
			if err != nil {
				t.Fatal(err)
			}
			if r.Verdict != Busy || len(r.Holders) != 1 || r.Holders[0].Process.PID != c.Process.Pid {
				t.Errorf("Scan = %s %+v, want process %d", r.Verdict, r.Holders, c.Process.Pid)
			}
		})
	}
	// Nobody has it open but this process, which is no answer; the lock is somebody's.
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 101, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	for name, h := range hosts(t) {
		_, r, err := ask(t.Context(), h, path)
		if err != nil {
			t.Fatal(err)
		}
		if r.Verdict != Busy || len(r.Holders) != 1 || r.Holders[0].Kind != ImageLock {
			t.Errorf("%s: Scan of a locked image = %s %+v, want the lock", name, r.Verdict, r.Holders)
		}
	}
}

// heldBy says what holds a device or an image, without mounts in the namespaces of others, for a moment.
func heldBy(r *Report, mount string) (all []string) {
	for _, o := range r.Holders {
		if o.Kind == Mounted && o.Path != mount {
			continue
		}
		all = append(all, strings.Join(strings.Fields(fmt.Sprintln(o.Kind, o.Device, o.Path)), " "))
	}
	slices.Sort(all)
	return all
}
