// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestParseDF holds what is read of df against statfs(2) of this machine.
func TestParseDF(t *testing.T) {
	testenv.Need(t, "df")
	for _, args := range []string{"-al", "-ali"} {
		c := exec.Command("df", args, "-x", "autofs")
		c.Env = []string{"LC_ALL=C"}
		out, _ := c.Output() // 1 where it may not look somewhere
		by, unit := parseDF(string(out))
		var st unix.Statfs_t
		if err := unix.Statfs("/", &st); err != nil {
			t.Fatal(err)
		}
		want, wantUnit := st.Blocks*uint64(st.Bsize)/1024, uint64(1024)
		if args == "-ali" {
			want, wantUnit = st.Files, 1
		}
		if root, known := by["/"]; unit != wantUnit || (!known || root.all != want) && want > 0 {
			t.Errorf("df %s: / has %+v in units of %d, want %d of %d\n%s", args, root, unit, want, wantUnit, out)
		}
	}
	by, _ := parseDF("Filesystem     1K-blocks    Used Available Use% Mounted on\n" +
		"/dev/sdb1 100 40 60 40% /mnt/a b\nserver:/x y 7 7 0 100% /z\n/dev/sdc - - - - /none\n/dev/sdd 5 9 1 9% /odd\n" +
		"df: /gone: Input/output error\n/dev/sde 100 40 60 40% /twice\nproc 0 0 0 - /twice\n")
	want := map[string]dfEntry{"/mnt/a b": {100, 40, 60}, "/z": {7, 7, 0}, "/twice": {}}
	for point, e := range want {
		if got, known := by[point]; !known || got != e {
			t.Errorf("%s has %+v, %t, want %+v", point, got, known, e)
		}
	}
	if len(by) != len(want) {
		t.Errorf("of df was read %+v, want %+v", by, want)
	}
}

// TestReportWithDF holds that a report of sos tells how full a file system is.
func TestReportWithDF(t *testing.T) {
	files := map[string]string{
		"sos_commands/filesys/df_-al_-x_autofs":  "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/sda1 1000 900 50 95% /\n",
		"sos_commands/filesys/df_-ali_-x_autofs": "Filesystem Inodes IUsed IFree IUse% Mounted on\n/dev/sda1 500 500 0 100% /\n",
		"proc/1/mountinfo":                       "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 8:2 / /srv rw - xfs /dev/sda2 rw\n",
		"etc/hostname":                           "web\n",
	}
	e := gathered(t, files)
	if len(e.Mounts) != 2 || e.Mounts[0].Probe == nil || e.Mounts[1].Probe != nil {
		t.Fatalf("mounts: %+v", e.Mounts)
	}
	if a := e.Mounts[0].Probe; a.Blocks != 1000 || a.Free != 100 || a.Avail != 50 || a.BlockSize != 1024 || a.Inodes != 500 ||
		a.InodesFree != 0 || a.Errno != -1 || a.Hung {
		t.Errorf("/: %+v", a)
	}
	files["sos_commands/filesys/df_-al_-x_autofs"] = strings.Replace(files["sos_commands/filesys/df_-al_-x_autofs"], "1K-blocks", "Blocs", 1)
	if e = gathered(t, files); e.Mounts[0].Probe != nil {
		t.Errorf("with a unit that is not known: %+v", e.Mounts[0].Probe)
	}
}

// TestLockspaces holds that what the kernel says of lockspaces and of GFS2 counts more than logs.
func TestLockspaces(t *testing.T) {
	line := func(space string) string {
		return "2023-11-14T22:00:00+00:00 n1 dlm_controld[901]: 40261 " + space + " wait for fencing\n"
	}
	files := map[string]string{"etc/hostname": "n1\n", "var/log/syslog": line("store") + line("clvmd"),
		"sys/kernel/dlm/store/recover_status": "ff\n", "sys/kernel/dlm/clvmd/recover_status": "0\n",
		"sys/kernel/dlm/other/recover_status": "3\n", "sys/kernel/dlm/new/recover_status": "0\n", "sys/kernel/dlm/odd/recover_status": "x\n",
		"proc/1/mountinfo": "22 1 253:0 / /store rw - gfs2 /dev/dm-0 rw\n", "sys/fs/gfs2/c1:store/id": "253:0\n",
		"sys/fs/gfs2/c1:store/withdraw": "0\n", "sys/fs/gfs2/c1:store/freeze": "1\n", "sys/fs/gfs2/c1:store/lock_module/block": "1\n"}
	e := gathered(t, files)
	for space, want := range map[string]string{"clvmd": "fencing or quorum", "other": "being recovered", "new": "stopped", "store": ""} {
		if got := e.Cluster.Waiting[space]; want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s waits for %q, want %q", space, got, want)
		}
	}
	if why, whole := e.Whole(PartCluster); whole || !strings.Contains(why, strconv.Quote("x")) {
		t.Errorf("what is no status is not told: %q", why)
	}
	if len(e.FSs) != 1 || e.FSs[0].Super == nil || !e.FSs[0].Super.Frozen || !e.FSs[0].Super.Blocked || e.FSs[0].Label != "c1:store" {
		t.Errorf("the GFS2 is %+v", e.FSs)
	}
}

// TestNVMeState holds that a namespace of several controllers is live as long as one of them is.
func TestNVMeState(t *testing.T) {
	for name, c := range map[string]struct{ one, two, want string }{
		"both": {"live", "live", "live"}, "one": {"connecting", "live", "live"}, "none": {"connecting", "dead", "connecting"},
	} {
		e := gathered(t, map[string]string{"sys/class/block/nvme0n1/size": "8192", "sys/class/block/nvme0n1/device/nvme0/state": c.one,
			"sys/class/block/nvme0n1/device/nvme1/state": c.two, "sys/class/block/nvme0n1/device/subsysnqn": "nqn"})
		if len(e.Devices) != 1 || e.Devices[0].State != c.want {
			t.Errorf("%s: %+v, want %s", name, e.Devices, c.want)
		}
	}
}
