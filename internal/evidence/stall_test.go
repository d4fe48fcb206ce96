// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLimits(t *testing.T) {
	files := scsiDisk()
	maps.Copy(files, map[string]string{
		"proc/sys/kernel/osrelease":                              "6.1.0-56-amd64\n",
		"boot/config-6.1.0-56-amd64":                             "CONFIG_HZ_250=y\nCONFIG_HZ=250\n",
		"sys/class/scsi_disk/2:0:0:0/max_medium_access_timeouts": "7\n",
		"sys/class/scsi_host/host2/eh_deadline":                  "off\n",
		"sys/devices/pci0000:00/0000:03:00.0/driver":             "-> ../../../bus/pci/drivers/vmw_pvscsi",
	})
	e := gathered(t, files)
	want := DiskLimits{Path: "/sys/devices/pci0000:00/0000:03:00.0/host2/target2:0:0/2:0:0:0/block/sda",
		Adapter: "vmw_pvscsi", MaxMedium: 7}
	if d := cmp.Diff(map[string]DiskLimits{"sda": want}, e.Limits.Disks); d != "" {
		t.Errorf("disks (-want +got):\n%s", d)
	}
	if e.Limits.HZ != 250 {
		t.Errorf("HZ is %d, want 250", e.Limits.HZ)
	}
}

// TestStartedWith: of a machine that does not run, the boot loader tells what its kernel will be given.
func TestStartedWith(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"GRUB": {"boot/grub/grub.cfg": "menuentry 'a' {\n  linux /vmlinuz root=/dev/vda1 nvme-core.io_timeout=255 quiet\n}\n" +
			"menuentry 'b' {\n  linux /vmlinuz root=/dev/sda1\n}\n"},
		"entries": {"boot/loader/entries/a.conf": "title A\nlinux /vmlinuz\noptions root=/dev/vda1 nvme-core.io_timeout=255 quiet\n"},
		"source":  {"etc/kernel/cmdline": "root=/dev/vda1 nvme-core.io_timeout=255 quiet\n"},
	} {
		e := gathered(t, files)
		if want := "root=/dev/vda1 nvme-core.io_timeout=255 quiet"; e.Limits.CommandLine != want {
			t.Errorf("%s: %q, want %q", name, e.Limits.CommandLine, want)
		}
		if v := e.Config.Modules["nvme_core.io_timeout"].Value; v != "255" {
			t.Errorf("%s: io_timeout is %q, want 255", name, v)
		}
	}
	e := gathered(t, map[string]string{"proc/cmdline": "root=/dev/sda1\n", "etc/kernel/cmdline": "root=/dev/vda1\n"})
	if e.Limits.CommandLine != "" {
		t.Errorf("of a kernel that runs the boot loader was asked: %q", e.Limits.CommandLine)
	}
}

func TestSessionLimits(t *testing.T) {
	const dev = "sys/devices/platform/host3/session1/target3:0:0/3:0:0:1/"
	e := gathered(t, map[string]string{
		"sys/class/block/sdb":  "-> ../../devices/platform/host3/session1/target3:0:0/3:0:0:1/block/sdb",
		dev + "block/sdb/size": "2048\n", dev + "block/sdb/device": "-> ../../../3:0:0:1",
		dev + "driver":                                      "-> ../../../../../../bus/scsi/drivers/sd",
		"sys/class/scsi_host/host3/proc_name":               "iscsi_tcp\n",
		"sys/class/scsi_host/host3/eh_deadline":             "30\n",
		"sys/class/iscsi_session/session1/recovery_tmo":     "90\n",
		"sys/class/iscsi_connection/connection1:0/recv_tmo": "4\n",
		"etc/iscsi/iscsid.conf":                             "node.conn[0].timeo.noop_out_timeout = 7\n",
	})
	want := DiskLimits{Path: "/" + dev + "block/sdb", MaxMedium: -1, EHDeadline: 30 * time.Second,
		Session: &Session{90 * time.Second, 4 * time.Second, 7 * time.Second}}
	if d := cmp.Diff(want, e.Limits.Disks["sdb"]); d != "" {
		t.Errorf("limits (-want +got):\n%s", d)
	}
}

func TestLeases(t *testing.T) {
	e := gathered(t, map[string]string{
		"etc/corosync/corosync.conf": "totem {\n  token: 3000\n}\n",
		"var/lib/pacemaker/cib/cib.xml": `<nvpair name="stonith-enabled" value="false"/>` +
			`<op id="a" name="start" timeout="5s"/><op name="monitor" interval="10s" timeout="40s"/>` +
			`<op name="monitor" interval="15s" timeout="1min"/>`,
		"etc/default/etcd": "# ETCD_ELECTION_TIMEOUT=1\nETCD_ELECTION_TIMEOUT=\"5000\"\n",
		"etc/keepalived/keepalived.conf": "! advert_int 9\nvrrp_script up {\n  script \"/usr/bin/check secret\"\n  interval 2\n  timeout 1 # s\n" +
			"  fall 3\n  rise 2\n}\nvrrp_script plain {\n  script x\n}\nvrrp_instance a {\n  advert_int 2\n}\n",
		"etc/mysql/conf.d/gr.cnf":                              "[mysqld]\nloose-group_replication_group_name = a\nloose-group_replication_member_expel_timeout=20\n",
		"etc/patroni/main.yml":                                 "bootstrap:\n  dcs:\n    ttl: 60\n",
		"etc/consul.d/client.json":                             `{"bind_addr": "10.0.0.1"}`,
		"etc/sysconfig/sbd":                                    "SBD_DEVICE=\"/dev/sdc\"\nSBD_WATCHDOG_TIMEOUT=15\n",
		"etc/systemd/system.conf":                              "[Manager]\n#RuntimeWatchdogSec=1\nRuntimeWatchdogSec=30\n",
		"etc/systemd/system/a.service":                         "[Service]\nExecStart=/bin/true\nWatchdogSec=3min\n",
		"etc/systemd/system/b.service":                         "[Service]\nExecStart=/bin/true\nWatchdogSec=1min\n",
		"etc/systemd/system/multi-user.target":                 "[Unit]\n",
		"etc/systemd/system/sysinit.target":                    "[Unit]\n",
		"etc/systemd/system/basic.target":                      "[Unit]\n",
		"etc/systemd/system/default.target":                    "-> multi-user.target",
		"etc/systemd/system/multi-user.target.wants/a.service": "-> ../a.service",
	})
	s := time.Second
	wantLeases := map[string][2]time.Duration{"corosync token": {3 * s, 6 * s}, "pacemaker monitor": {40 * s, 50 * s},
		"etcd election": {5 * s, 10 * s}, "keepalived": {6 * s, 8 * s}, "keepalived check up": {5 * s, 8 * s},
		"keepalived check plain": {s, 2 * s}, "MySQL group membership": {25 * s, 45 * s}, "Patroni leader key": {39600 * time.Millisecond, 80400 * time.Millisecond}}
	got := map[string][2]time.Duration{}
	for _, l := range e.Limits.Leases {
		got[l.Name] = [2]time.Duration{l.Early, l.Late}
		if k := strings.HasPrefix(l.Name, "keepalived"); k != l.Address || strings.Contains(l.Name, "check") != l.Checked ||
			l.From.Path == "" {
			t.Errorf("%+v, want an address of keepalived alone, and a source", l)
		}
		if p := l.Name == "pacemaker monitor"; p && l.Fenced != "no" {
			t.Errorf("%s: fenced is %q, want no", l.Name, l.Fenced)
		}
	}
	if d := cmp.Diff(wantLeases, got); d != "" {
		t.Errorf("leases (-want +got):\n%s", d)
	}
	wantDogs := map[string]time.Duration{"sbd": 15 * s, "systemd (RuntimeWatchdogSec)": 30 * s, "a.service": 180 * s}
	dogs := map[string]time.Duration{}
	for _, w := range e.Limits.Watchdogs {
		dogs[w.Name] = w.Late
	}
	if d := cmp.Diff(wantDogs, dogs); d != "" {
		t.Errorf("watchdogs (-want +got):\n%s", d)
	}
}

// TestPatroniFences: whether a watchdog resets a Patroni that lost its key is told by its mode, and by whether there is a
// watchdog; of a bundle by the lines that are kept of its settings.
func TestPatroniFences(t *testing.T) {
	const none = "devices: 0"
	for _, c := range []struct{ text, device, want string }{
		{"ttl: 30\n", "", ""},
		{"ttl: 30\n", none, "no"},
		{"ttl: 30\n", "watchdog0", ""},
		{"ttl: 30\nwatchdog:\n  mode: required # or off\n  device: /dev/watchdog\n", "", "yes"},
		{"watchdog:\n  # mode: required\n  device: /dev/watchdog\n  mode: off\nlog:\n  mode: 0644\n", "watchdog0", "no"},
		{"watchdog:\n  mode: \"automatic\"\n", none, "no"},
		{"watchdog: {mode: required}\n", none, ""},
		{"watchdog:\n  mode: ${MODE}\n", none, ""},
		{"log:\n  mode: off\nwatchdog:\n  device: x\nother:\n  mode: off\n", "watchdog0", ""},
	} {
		less, _, kept := leaseLines("/etc/patroni.yml", []byte(c.text))
		if !kept {
			t.Fatal("/etc/patroni.yml is not known")
		}
		for _, text := range []string{c.text, string(less)} {
			files := map[string]string{"etc/patroni.yml": text}
			dir := filled(t, files)
			if c.device != "" {
				name := filepath.Join(dir, "sys/class/watchdog")
				if c.device != none {
					name = filepath.Join(name, c.device)
				}
				for _, name := range []string{name, filepath.Join(dir, "sys/class/block")} {
					if err := os.MkdirAll(name, 0o755); err != nil {
						t.Fatal(err)
					}
				}
			}
			l := gatheredFrom(t, dir).Limits.Leases
			if len(l) != 1 || l[0].Fenced != c.want {
				t.Errorf("%q with %q: %+v, want one fenced %q", text, c.device, l, c.want)
			}
		}
	}
}

// TestLeaseLines: of files with passwords in forms of their own a bundle has only what is asked for.
func TestLeaseLines(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"/etc/keepalived/keepalived.conf", "vrrp_instance a {\n  advert_int 2\n  auth_pass 1111\n}\n", "\n  advert_int 2\n\n\n"},
		{"/etc/keepalived/keepalived.conf", "vrrp_script a {\n  script \"x secret\"\n  interval 2\n fall 3\n timeout 1\n}\n",
			"vrrp_script a {\n\n  interval 2\n fall 3\n timeout 1\n\n"},
		{"/etc/consul.d/server.hcl", "server = true\nencrypt = \"c2VjcmV0\"\nraft_multiplier = 1\n", "server\n\nraft_multiplier = 1\n"},
		{"/etc/mysql/my.cnf", "[mysqld]\nwsrep_sst_auth=u:hunter2\n", "\nwsrep\n"},
		{"/etc/patroni/main.yml", "ttl: 60\nusername: u\npassword: hunter2\n", "ttl: 60\n\n\n"},
		{"/etc/patroni.yml", "watchdog:\n  mode: off\n  device: x\nlog:\n  se: cret\n  cret:\n", "watchdog:\n  mode: off\n\nlog:\n\n\n"},
		{"/var/lib/pacemaker/cib/cib.xml", `<nvpair id="a" name="passwd" value="hunter2"/><op name="monitor" timeout="20s"/>`,
			`<nvpair id="a" name="passwd" value="[left-out]"/><op name="monitor" timeout="20s"/>`},
		{"/etc/other.conf", "auth_pass 1111\n", "auth_pass 1111\n"},
	} {
		got, _ := Redact(c.name, []byte(c.text))
		if string(got) != c.want {
			t.Errorf("%s: kept %q, want %q", c.name, got, c.want)
		}
	}
}

// FuzzLeases: settings are any bytes.
func FuzzLeases(f *testing.F) {
	f.Add([]byte("ttl: 60\nadvert_int 2\n"), "1min 30s")
	f.Add([]byte("--election-timeout=5000\\\n\n; a\n"), "9e99h")
	f.Fuzz(func(t *testing.T, text []byte, word string) {
		settingIn(text, "ttl", "advert_int", "election-timeout")
		if d := span(word, time.Second); d < 0 {
			t.Errorf("span(%q) = %s", word, d)
		}
		for _, u := range ParseUdev("x", text) {
			u.Runs()
		}
		for _, l := range keepalivedChecks("x", text) {
			if l.Early <= 0 || l.Late < l.Early {
				t.Errorf("%+v", l)
			}
		}
		less, _, _ := leaseLines("/etc/keepalived/keepalived.conf", text)
		if len(less) > len(text) {
			t.Errorf("%d bytes became %d", len(text), len(less))
		}
	})
}

func TestSpan(t *testing.T) {
	for text, want := range map[string]time.Duration{"20": 20 * time.Second, "3min": 3 * time.Minute, "1min 30s": 90 * time.Second,
		"500ms": 500 * time.Millisecond, "infinity": 0, "": 0, "-5": 0, "9e99": 0, "99999999999999999999h": 0, "1.5 h": 90 * time.Minute} {
		if got := span(text, time.Second); got != want {
			t.Errorf("span(%q) = %s, want %s", text, got, want)
		}
	}
}
