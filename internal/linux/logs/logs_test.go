// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/logs"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// put writes a file of a machine, with the time of its last change.
func put(t testing.TB, root, name, text string, changed time.Time) {
	t.Helper()
	p := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(p, changed, changed); err != nil {
		t.Fatal(err)
	}
}

// read reads the logs of a directory.
func read(t testing.TB, root string, o logs.Options) *logs.Log {
	t.Helper()
	dir, err := tree.OpenDirectory(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	l, err := logs.Read(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// times gives the messages as "form time".
func times(l *logs.Log) string {
	var out []string
	for _, m := range l.Messages {
		mark := ""
		if !m.Exact {
			mark = "?"
		}
		if m.Count > 1 {
			mark += fmt.Sprintf(" x%d", m.Count)
		}
		out = append(out, m.Form.Name+" "+m.Time.Format("2006-01-02T15:04:05")+mark)
	}
	return strings.Join(out, "\n")
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

func utc(y int, m time.Month, d, h, min int) time.Time {
	return time.Date(y, m, d, h, min, 0, 0, time.UTC)
}

const abort = "kernel: [12345.678901] Aborting journal on device sda1-8.\n"

func TestYearsComeFromWhatStandsAround(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		mtime map[string]time.Time
		back  time.Duration
		want  string
	}{
		{"of the last change", map[string]string{"syslog": "Nov 22 09:00:00 h " + abort},
			map[string]time.Time{"syslog": utc(2026, 11, 22, 9, 0)}, 0, "ext4.abort 2026-11-22T09:00:00?"},
		{"over new year", map[string]string{"syslog": "Dec 31 23:59:59 h " + abort + "Jan  1 00:10:00 h cron[1]: x\n"},
			map[string]time.Time{"syslog": utc(2026, 1, 1, 0, 10)}, 0, "ext4.abort 2025-12-31T23:59:59?"},
		{"the clock was set back", map[string]string{"syslog": "Nov 22 09:00:00 h " + abort + "Nov 22 08:00:00 h " +
			strings.ReplaceAll(abort, "sda1", "sdb1")},
			map[string]time.Time{"syslog": utc(2026, 11, 22, 9, 0)}, 0,
			"ext4.abort 2026-11-22T08:00:00?\next4.abort 2026-11-22T09:00:00?"},
		{"a machine without a clock", map[string]string{"syslog": "Nov 21 09:00:00 h " + abort + "Jan  1 00:00:09 h cron: x\n" +
			"Nov 22 09:00:00 h " + abort},
			map[string]time.Time{"syslog": utc(2026, 11, 22, 9, 0)}, 0,
			"ext4.abort 2026-11-21T09:00:00?\next4.abort 2026-11-22T09:00:00?"},
		{"leap day", map[string]string{"messages": "Feb 29 10:00:00 h " + abort + "Mar  1 00:00:00 h cron: x\n"},
			map[string]time.Time{"messages": utc(2026, 3, 2, 0, 0)}, 40 * 365 * 24 * time.Hour, "ext4.abort 2024-02-29T10:00:00?"},
		{"no later than the file that followed", map[string]string{
			"syslog": "Mar  2 00:00:00 h cron: x\n", "syslog.1": "Mar 20 10:00:00 h " + abort},
			map[string]time.Time{"syslog": utc(2026, 3, 22, 0, 0), "syslog.1": utc(2026, 3, 22, 0, 0)},
			40 * 365 * 24 * time.Hour, "ext4.abort 2025-03-20T10:00:00?"},
		{"a day that is none", map[string]string{"syslog": "Feb 30 10:00:00 h " + abort},
			map[string]time.Time{"syslog": utc(2026, 3, 22, 0, 0)}, 0, ""},
		{"with year and zone", map[string]string{"syslog": "2026-11-22T18:00:00.5+09:00 h " + abort},
			map[string]time.Time{"syslog": utc(2026, 11, 22, 9, 0)}, 0, "ext4.abort 2026-11-22T09:00:00"},
		{"over the network", map[string]string{"remote/h2/syslog": "<2>1 2026-11-22T09:00:00Z h2 kernel - - - " +
			"Aborting journal on device sda1-8.\n<2>Nov 22 09:30:00 h3 kernel: Aborting journal on device sda1-8.\n"},
			map[string]time.Time{"remote/h2/syslog": utc(2026, 11, 22, 9, 0)}, 0,
			"ext4.abort 2026-11-22T09:00:00\next4.abort 2026-11-22T09:30:00?"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range tt.files {
				put(t, root, "var/log/"+name, text, tt.mtime[name])
			}
			l := read(t, root, logs.Options{Now: utc(2027, 1, 1, 0, 0), Back: tt.back})
			same(t, "messages", times(l), tt.want)
		})
	}
}

func TestZoneIsTheMachines(t *testing.T) {
	zone, err := os.ReadFile("testdata/Tokyo")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	put(t, root, "etc/localtime", string(zone), utc(2026, 1, 1, 0, 0))
	put(t, root, "var/log/syslog", "Nov 22 18:00:00 h "+abort, utc(2026, 11, 22, 9, 0))
	same(t, "messages", times(read(t, root, logs.Options{Now: utc(2026, 12, 1, 0, 0)})), "ext4.abort 2026-11-22T09:00:00?")
}

// TestEndOfALogInAnotherZone: a log goes on whose lines seem hours old.
func TestEndOfALogInAnotherZone(t *testing.T) {
	root, at := t.TempDir(), utc(2026, 11, 22, 9, 0)
	put(t, root, "var/log/syslog", "Nov 22 04:00:00 h "+abort, at)
	put(t, root, "var/log/messages", "2026-11-22T04:00:00Z h "+abort, at)
	for _, s := range read(t, root, logs.Options{Now: at}).Sources {
		if want := map[string]int{"/var/log/syslog": 9, "/var/log/messages": 4}[s.Path]; s.To.Hour() != want {
			t.Errorf("%s ends at %s, want %d o'clock", s.Path, s.To, want)
		}
	}
}

func TestRotatedAndPackedLogsAreRead(t *testing.T) {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	fmt.Fprint(w, "Nov 20 09:00:00 h "+abort)
	w.Close()
	root := t.TempDir()
	put(t, root, "var/log/kern.log", "Nov 22 09:00:00 h "+abort, utc(2026, 11, 22, 9, 0))
	put(t, root, "var/log/kern.log.1", "Nov 21 09:00:00 h "+abort, utc(2026, 11, 21, 9, 0))
	put(t, root, "var/log/kern.log.2.gz", z.String(), utc(2026, 11, 20, 9, 0))
	put(t, root, "var/log/messages-20261119", "Nov 19 09:00:00 h "+abort, utc(2026, 11, 19, 9, 0))
	put(t, root, "var/log/messages-20261118.xz", "\xfd7zXZ\x00...", utc(2026, 11, 18, 9, 0))
	testenv.Need(t, "xz", "zstd", "bzip2")
	for i, tool := range []string{"xz", "zstd", "bzip2"} {
		cmd := exec.CommandContext(t.Context(), tool, "-c")
		cmd.Stdin = strings.NewReader(fmt.Sprintf("Nov %d 09:00:00 h ", 14+i) + abort)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		suffix := map[string]string{"xz": "xz", "zstd": "zst", "bzip2": "bz2"}[tool]
		put(t, root, "var/log/daemon.log.3."+suffix, string(packed), utc(2026, 11, 14+i, 9, 0))
	}
	put(t, root, "var/log/messages-20261117.gz", z.String()[:z.Len()-9], utc(2026, 11, 17, 9, 0))
	put(t, root, "var/log/kern.log.9.gz", "\x1f\x8bnot", utc(2026, 11, 10, 9, 0))
	put(t, root, "var/log/kern.log.99", "Sep  1 09:00:00 h "+abort, utc(2026, 9, 1, 9, 0))
	l := read(t, root, logs.Options{Now: utc(2026, 12, 1, 0, 0)})
	same(t, "messages", times(l), `
ext4.abort 2026-11-14T09:00:00?
ext4.abort 2026-11-15T09:00:00?
ext4.abort 2026-11-16T09:00:00?
ext4.abort 2026-11-19T09:00:00?
ext4.abort 2026-11-20T09:00:00?
ext4.abort 2026-11-21T09:00:00?
ext4.abort 2026-11-22T09:00:00?`)
	gaps := fmt.Sprint(l.Gaps)
	for _, want := range []string{"messages-20261118.xz", "kern.log.9.gz"} {
		if !strings.Contains(gaps, want) {
			t.Errorf("gaps %s: nothing about %s", gaps, want)
		}
	}
	for _, s := range l.Sources {
		if cut := strings.HasSuffix(s.Path, "17.gz"); cut != (s.Damage != "") {
			t.Errorf("%s: damage %q", s.Path, s.Damage)
		}
	}
}

func TestOneMessageInSeveralLogsIsOne(t *testing.T) {
	root := t.TempDir()
	at := utc(2026, 11, 22, 9, 0)
	put(t, root, "var/log/kern.log", "Nov 22 09:00:00 h "+abort+"Nov 22 09:00:01 h "+abort, at)
	put(t, root, "var/log/syslog", "Nov 22 09:00:01 h "+abort+"Nov 22 09:00:01 h "+abort, at)
	l := read(t, root, logs.Options{Now: at})
	same(t, "messages", times(l), "ext4.abort 2026-11-22T09:00:00? x2")
}

// TestMountsDivideWhatIsSaid: an error before a mount is not one with the same error after it.
func TestHostsThatSayTheSameAreTwo(t *testing.T) {
	root, at := t.TempDir(), utc(2026, 11, 22, 9, 0)
	line := "Nov 22 08:00:00 %s kernel: nfs: server nas not responding, still trying\n"
	for _, host := range []string{"h1", "h2"} {
		put(t, root, "var/log/remote/"+host+"/messages", fmt.Sprintf(line, host), at)
	}
	put(t, root, "var/log/messages", fmt.Sprintf(line, "h1"), at)
	l := read(t, root, logs.Options{Now: at, Host: "h1.example"})
	if len(l.Messages) != 2 || l.Messages[0].Host == l.Messages[1].Host {
		t.Errorf("messages = %+v, want one of each host", l.Messages)
	}
}

func TestDisksAreNamedByTheirAddress(t *testing.T) {
	root, at := t.TempDir(), utc(2026, 11, 22, 9, 0)
	put(t, root, "var/log/syslog", "Nov 22 08:00:00 h kernel: sd 0:0:0:0: Device offlined - not ready after error recovery\n"+
		"Nov 22 08:00:01 h kernel: sd 0:0:0:0: [sda] tag#1 FAILED Result: hostbyte=DID_TIME_OUT driverbyte=DRIVER_OK\n"+
		"Nov 22 08:00:02 h kernel: sd 0:0:1:0: [sdb] Attached SCSI disk\n"+
		"Nov 22 08:00:02 h kernel: sd 0:0:1:0: rejecting I/O to offline device\n"+
		"Nov 22 08:00:02 h kernel: sd 0:0:3:0: rejecting I/O to offline device\n"+
		"Nov 22 08:00:02 h kernel: sd 0:0:2:0: [sdc] device offline or changed\n"+
		"Nov 22 08:00:02 h kernel: sd 0:0:2:0: [sdd] device offline or changed\n"+
		"Nov 22 08:00:02 h kernel: sd 0:0:2:0: rejecting I/O to dead device\n", at)
	var got []string
	for _, m := range read(t, root, logs.Options{Now: at}).Messages {
		got = append(got, m.Field("address")+"="+m.Field("device"))
	}
	same(t, "disks", strings.Join(got, " "), "0:0:0:0=sda 0:0:0:0=sda 0:0:1:0=sdb 0:0:3:0= 0:0:2:0=sdc 0:0:2:0=sdd 0:0:2:0=")
}

func TestMountsDivideWhatIsSaid(t *testing.T) {
	root, at := t.TempDir(), utc(2026, 11, 22, 9, 0)
	other := strings.ReplaceAll(abort, "sda1", "sdb1")
	put(t, root, "var/log/syslog", "Nov 22 08:00:00 h "+abort+"Nov 22 08:00:00 h "+other+"Nov 22 08:00:05 h "+abort+
		"Nov 22 08:00:10 h kernel: EXT4-fs (sda1): mounted filesystem with ordered data mode. Opts: (null)\n"+
		"Nov 22 08:00:20 h "+abort+"Nov 22 08:00:20 h "+other, at)
	same(t, "messages", times(read(t, root, logs.Options{Now: at})), `
ext4.abort 2026-11-22T08:00:00? x2
ext4.abort 2026-11-22T08:00:00? x2
ext4.mounted 2026-11-22T08:00:10?
ext4.abort 2026-11-22T08:00:20?`)
}

func TestBytesAreBoundedFromTheEnd(t *testing.T) {
	root := t.TempDir()
	at := utc(2026, 11, 22, 9, 0)
	put(t, root, "var/log/kern.log", strings.Repeat("Nov 22 09:00:00 h cron: x\n", 1000)+"Nov 22 09:00:00 h "+abort, at)
	put(t, root, "var/log/kern.log.1", "Nov 21 09:00:00 h "+abort, at.Add(-time.Hour))
	l := read(t, root, logs.Options{Now: at, Bytes: 1000})
	same(t, "messages", times(l), "ext4.abort 2026-11-22T09:00:00?")
	if len(l.Gaps) != 2 {
		t.Errorf("gaps = %v, want two", l.Gaps)
	}
}

func TestProgramsAreCleanedOfWhatTheyPutBefore(t *testing.T) {
	root := t.TempDir()
	at := utc(2026, 11, 22, 9, 30)
	put(t, root, "var/log/syslog", `Nov 22 09:00:00 h 2026-11-22 09:00:00.123 456 INFO nova.virt.libvirt.imagecache [-] Removing base file: /s/_base/a
Nov 22 09:00:02 h nova-compute[12]: 2026-11-22 09:00:02.123 456 INFO nova.virt.libvirt.imagecache [req-1 - - - - -] Removing base or swap file: /s/_base/b
Nov 22 09:00:03 h pacemaker-fenced[9]:  notice: Operation 'reboot' targeting n2 by n1 for pacemaker-controld.1@n1: OK
Nov 22 09:00:04 h systemd[4711]: Failed to start user thing.
Nov 22 09:00:05 h systemd[1]: Failed to start thing.
Nov 22 09:00:06 h rsync: write failed on "/srv/x": No space left on device (28)
`, at)
	put(t, root, "var/log/pacemaker.log", `Nov 22 09:10:00 [123] h crmd:   notice: Node n2 state is now lost
Nov 22 09:10:01 h pacemaker-fenced [123] (finalize_op)  error: Operation 'reboot' targeting n2 by n1 for x.1@n1: Error occurred
`, at)
	put(t, root, "var/log/cluster/corosync.log", "Nov 22 09:11:00 [1] h corosync notice  [TOTEM ] A processor failed, forming new configuration.\n", at)
	put(t, root, "var/log/nova/nova-compute.log", "2026-11-22 09:12:00.123 456 INFO nova.virt.libvirt.imagecache [req-1 - -] Removing base, swap or ephemeral file: /s/_base/c\n", at)
	put(t, root, "var/log/libvirt/qemu/vm 1.log", `2026-11-22 09:13:00.123+0000: starting up libvirt version: 9
block I/O error in device 'drive-virtio-disk0': No space left on device (28)
2026-11-22 09:14:00.123+0000: shutting down, reason=crashed
`, at)
	put(t, root, "var/log/libvirt/libvirtd.log", "2026-11-22 09:15:00.123+0000: 99: error : virStorageFileReportBrokenChain:1 : Cannot access storage file '/s/a' (as uid:0, gid:0): No such file or directory\n", at)
	l := read(t, root, logs.Options{Now: at})
	same(t, "messages", times(l), `
nova.removed 2026-11-22T09:00:00?
nova.removed 2026-11-22T09:00:02?
fence.done 2026-11-22T09:00:03?
unit.failed 2026-11-22T09:00:05?
errno.enospc 2026-11-22T09:00:06?
node.state 2026-11-22T09:10:00?
fence.failed 2026-11-22T09:10:01?
corosync.token 2026-11-22T09:11:00?
nova.removed 2026-11-22T09:12:00?
qemu.start 2026-11-22T09:13:00
qemu.ioerror 2026-11-22T09:13:00?
qemu.stop 2026-11-22T09:14:00
libvirt.storage 2026-11-22T09:15:00`)
	for _, m := range l.Messages {
		if m.Form.Name == "qemu.ioerror" && m.Field("machine") != "vm 1" {
			t.Errorf("the machine is %q", m.Field("machine"))
		}
	}
}

func TestBootsFromSyslog(t *testing.T) {
	root := t.TempDir()
	at := utc(2026, 11, 22, 12, 0)
	const linux = "kernel: [    0.000000] Linux version 6.1.0 (x) y\n"
	put(t, root, "var/log/syslog", "Nov 22 09:00:00 h "+linux+
		"Nov 22 09:00:10 h systemd[1]: Started Cron.\n"+
		"Nov 22 09:00:11 h systemd[1]: Starting Nightly reboot...\n"+
		"Nov 22 09:00:12 h systemd[1]: Stopped target Multi-User System.\n"+
		"Nov 22 09:00:13 h systemd[1]: Starting Shutting plymouth down...\n"+
		"Nov 22 09:00:14 h systemd[1]: Reached target Shutdown.\n"+
		"Nov 22 09:01:00 h "+linux+
		"Nov 22 09:01:10 h systemd[1]: Started Cron.\n"+
		"Nov 22 09:02:00 h "+linux+
		"Nov 22 09:02:10 h kernel: [   10.000000] Kernel panic - not syncing: hung_task: blocked tasks\n", at)
	put(t, root, "var/log/kern.log", "Nov 22 09:00:00 h "+linux+"Nov 22 09:01:00 h "+linux+"Nov 22 09:02:00 h "+linux, at)
	var got []string
	for _, b := range read(t, root, logs.Options{Now: at}).Boots {
		got = append(got, fmt.Sprintf("%s-%s %s %s", b.Began.Format("15:04:05"), b.Last.Format("15:04:05"), b.End, b.LastUnit))
	}
	same(t, "boots", strings.Join(got, "\n"), `
09:00:00-09:00:14 shutdown Nightly reboot
09:01:00-09:01:10 cut Cron
09:02:00-09:02:10 panic `)
}

// login makes a record of wtmp.
func login(kind int16, user string, at time.Time) string {
	b := make([]byte, 384)
	binary.LittleEndian.PutUint16(b, uint16(kind))
	copy(b[44:], user)
	binary.LittleEndian.PutUint32(b[340:], uint32(at.Unix()))
	return string(b)
}

func TestBootsFromWtmp(t *testing.T) {
	root := t.TempDir()
	at := utc(2026, 11, 22, 9, 0)
	put(t, root, "var/log/wtmp", login(2, "reboot", at)+login(7, "root", at.Add(time.Minute))+
		login(1, "shutdown", at.Add(2*time.Minute))+login(2, "reboot", at.Add(3*time.Minute))+
		login(7, "root", at.Add(4*time.Minute))+login(2, "reboot", at.Add(5*time.Minute))+"cut", at.Add(time.Hour))
	var got []string
	for _, b := range read(t, root, logs.Options{Now: at.Add(time.Hour)}).Boots {
		got = append(got, fmt.Sprintf("%s-%s %s", b.Began.Format("15:04"), b.Last.Format("15:04"), b.End))
	}
	same(t, "boots", strings.Join(got, "\n"), "09:00-09:02 shutdown\n09:03-09:04 cut\n09:05-09:05 cut")
}

func TestSameHost(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{{"h", "h", true}, {"h.example", "h", true}, {"H", "h.x", true}, {"h1", "h", false}, {"", "h", false}, {"", "", true}} {
		if logs.SameHost(tt.a, tt.b) != tt.want {
			t.Errorf("SameHost(%q, %q) = %v", tt.a, tt.b, !tt.want)
		}
	}
}
