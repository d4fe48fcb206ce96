// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package demo

import (
	"fmt"
	"strings"
	"time"
)

// Stall writes what a machine showed whose storage did not answer, half an hour before now. Somebody had raised
// the timeout of its disk to 300 seconds, by a rule of udev. The kernel is one whose mount options do not say
// that a file system takes no writes any more.
func Stall(dir string, now time.Time) error {
	const disk = "sys/devices/pci0000:00/0000:03:00.0/host2/target2:0:0/2:0:0:0/"
	mounts := "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw,errors=remount-ro\n"
	failed := fmt.Sprintln(now.Add(-30 * time.Minute).Unix())
	return plant(dir, map[string]string{
		"etc/hostname":                                           "db1\n",
		"etc/udev/rules.d/99-scsi-timeout.rules":                 udevRule,
		"proc/1/mountinfo":                                       mounts,
		"proc/self/mountinfo":                                    mounts,
		"proc/meminfo":                                           "MemTotal: 8000000 kB\nMemAvailable: 5000000 kB\nSUnreclaim: 100000 kB\n",
		"proc/sys/kernel/hostname":                               "db1\n",
		"proc/sys/kernel/osrelease":                              "6.1.0-56-amd64\n",
		"proc/sys/kernel/hung_task_timeout_secs":                 "120\n",
		"sys/fs/ext4/sda1/errors_count":                          "5\n",
		"sys/fs/ext4/sda1/first_error_time":                      failed,
		"sys/fs/ext4/sda1/last_error_time":                       failed,
		"sys/fs/ext4/sda1/first_error_func":                      "ext4_journal_check_start\n",
		"sys/fs/ext4/sda1/last_error_func":                       "ext4_journal_check_start\n",
		"sys/class/scsi_host/host2/proc_name":                    "vmw_pvscsi\n",
		"sys/class/scsi_host/host2/eh_deadline":                  "off\n",
		"sys/class/scsi_disk/2:0:0:0/max_retries":                "5\n",
		"sys/class/scsi_disk/2:0:0:0/max_medium_access_timeouts": "2\n",
		disk + "vendor":                                          "VMware  \n",
		disk + "model":                                           "Virtual disk    \n",
		disk + "state":                                           "offline\n",
		disk + "timeout":                                         "300\n",
		disk + "eh_timeout":                                      "10\n",
		disk + "block/sda/dev":                                   "8:0\n",
		disk + "block/sda/size":                                  "20971520\n",
		disk + "block/sda/sda1/dev":                              "8:1\n",
		disk + "block/sda/sda1/size":                             "20969472\n",
		disk + "block/sda/sda1/partition":                        "1\n",
		"var/log/kern.log":                                       stallLog(now),
	}, map[string]string{
		"sys/class/block/sda":     "../../" + strings.TrimPrefix(disk, "sys/") + "block/sda",
		"sys/class/block/sda1":    "../../" + strings.TrimPrefix(disk, "sys/") + "block/sda/sda1",
		disk + "block/sda/device": "../../../2:0:0:0",
		disk + "driver":           "../../../../../../../bus/scsi/drivers/sd",
	})
}

// udevRule is the one that is passed around, for all disks of VMware.
const udevRule = "ACTION==\"add\", SUBSYSTEMS==\"scsi\", ATTRS{vendor}==\"VMware*\", ATTRS{model}==\"Virtual disk*\", " +
	"ENV{DEVTYPE}==\"disk\", RUN+=\"/bin/sh -c 'echo 300 >/sys$env{DEVPATH}/device/timeout'\"\n"

// stallLog is what the kernel said of it.
func stallLog(now time.Time) string {
	const before = 30 * time.Minute
	var b strings.Builder
	for i, text := range []string{
		"sd 2:0:0:0: Device offlined - not ready after error recovery",
		"Aborting journal on device sda1-8.",
		"EXT4-fs error (device sda1): ext4_journal_check_start:83: comm postgres: Detected aborted journal",
		"EXT4-fs (sda1): Remounting filesystem read-only",
	} {
		at := now.UTC().Add(time.Duration(i)*time.Second - before)
		fmt.Fprintf(&b, "%s db1 kernel: [%d.000000] %s\n", at.Format("2006-01-02T15:04:05.000000-07:00"), 41480+i, text)
	}
	return b.String()
}
