// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

// What stalls is told by package internal/lab/stalls, which is a program: these are its documents.
type (
	stallScenario struct {
		Modules  []string    `json:"modules"`
		Disks    int         `json:"disks"`
		Set      [][2]string `json:"set"`
		FS       string      `json:"fs"`
		Mkfs     []string    `json:"mkfs"`
		Opts     string      `json:"opts"`
		Stop     string      `json:"stop"`
		Do       string      `json:"do"`
		Burst    int64       `json:"burst"`
		For      int         `json:"for"`
		After    int         `json:"after"`
		Program  []string    `json:"program"`
		Commands [][]string  `json:"commands"`
	}
	stallResult struct {
		Failed     string            `json:"failed"`
		Predicted  json.RawMessage   `json:"predicted"`
		Outputs    []string          `json:"outputs"`
		Took       int64             `json:"took"`
		Errno      int               `json:"errno"`
		State      string            `json:"state"`
		Write      int               `json:"write"`
		Read       int               `json:"read"`
		List       int               `json:"list"`
		Options    string            `json:"options"`
		Attributes map[string]string `json:"attributes"`
	}
	stallEvent struct {
		Kind     string `json:"kind"`
		Case     string `json:"case"`
		Earliest int64  `json:"earliest_ms"`
		Latest   int64  `json:"latest_ms"`
		Usual    int64  `json:"usual_ms"`
	}
	stallDisk struct {
		Name      string       `json:"name"`
		Adapter   string       `json:"adapter"`
		Effective bool         `json:"effective"`
		Timeout   int64        `json:"timeout_seconds"`
		AtBoot    int64        `json:"at_boot_seconds"`
		Events    []stallEvent `json:"events"`
		Outcomes  []struct {
			Word string `json:"word"`
		} `json:"outcomes"`
		Assumed []string `json:"assumed"`
	}
	stallDocument struct {
		Machines []struct {
			Disks []stallDisk `json:"disks"`
		} `json:"machines"`
	}
)

// stallPrograms builds the program and the first process of its guests into a directory that lasts as long as t.
func stallPrograms(t *testing.T) string {
	t.Helper()
	testenv.Need(t, uml.Program, "go")
	dir := t.TempDir()
	for _, pkg := range []string{"cmd/shisa", "internal/lab/stalls"} {
		c := exec.Command("go", "build", "-o", filepath.Join(dir, filepath.Base(pkg)), module+"/"+pkg)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v: %s", pkg, err, out)
		}
	}
	return dir
}

// onDisk is a value of one file of the disk of a guest.
func onDisk(file, value string) [2]string {
	at := map[string]string{"timeout": "/sys/block/DISK/device/timeout", "eh_timeout": "/sys/block/DISK/device/eh_timeout",
		"eh_deadline":                "/sys/class/scsi_host/HOST/eh_deadline",
		"max_retries":                "/sys/class/scsi_disk/ADDRESS/max_retries",
		"max_medium_access_timeouts": "/sys/class/scsi_disk/ADDRESS/max_medium_access_timeouts"}
	return [2]string{at[file], value}
}

// stallGuest runs a scenario in a guest whose root is this machine's, and gives what came of it, with what
// shisa had predicted of its disk.
func stallGuest(t *testing.T, dir string, s stallScenario, sizeMiB string, memoryMiB int) (stallResult, stallDisk) {
	t.Helper()
	names := []string{"sd_mod", "scsi_debug"}
	if s.FS != "" {
		names = append(names, s.FS)
	}
	files, err := uml.Modules(uml.ModulesDir, names...)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		if strings.HasSuffix(f, "/scsi_debug.ko") {
			files[i] += ` delay=0 dev_size_mb=` + sizeMiB + ` inq_vendor=VMware inq_product="Virtual disk" num_tgts=` +
				strconv.Itoa(max(s.Disks, 1))
		}
	}
	s.Modules = files
	if s.Program == nil {
		s.Program = []string{filepath.Join(dir, "shisa"), "doctor", "stall", "--json", "--for", "1h", "--device", "sda"}
	}
	text, err := json.Marshal(&s)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "scenario.json")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := uml.RunUnconfined(t.Context(), uml.Options{Root: "/", Init: filepath.Join(dir, "stalls"), Args: []string{name},
		MemoryMiB: memoryMiB, Timeout: time.Duration(s.For+s.After+120) * time.Second})
	if err != nil || len(r.Lines) != 1 {
		t.Fatalf("the guest said %d lines, want one: %v\n%s", len(r.Lines), err, r.Console)
	}
	var got stallResult
	if err := json.Unmarshal(r.Lines[0], &got); err != nil {
		t.Fatal(err)
	}
	if got.Failed != "" {
		t.Fatalf("in the guest: %s\n%s", got.Failed, r.Console)
	}
	var doc stallDocument
	if err := json.Unmarshal(got.Predicted, &doc); err != nil || len(doc.Machines) != 1 || len(doc.Machines[0].Disks) != 1 {
		t.Fatalf("%v in %s", err, got.Predicted)
	}
	return got, doc.Machines[0].Disks[0]
}

// event gives what was predicted of a kind in a case.
func (d *stallDisk) event(t *testing.T, kind, in string) stallEvent {
	t.Helper()
	i := slices.IndexFunc(d.Events, func(e stallEvent) bool { return e.Kind == kind && (e.Case == in || e.Case == "") })
	if i < 0 {
		t.Fatalf("no event %s was predicted: %+v", kind, d.Events)
	}
	return d.Events[i]
}

// TestStallPredicted stops a SCSI disk in a real kernel, with one request under way, and holds the time until that fails
// against what shisa says in the same guest beforehand: it has to be in the interval, and within 15 % of what
// is told as usual.
func TestStallPredicted(t *testing.T) {
	const medium, dead = "0x80", "0x4"
	dir := stallPrograms(t)
	for _, c := range []struct {
		name, stop, do, kind, state string
		set                         [][2]string
		long                        bool // more than 15 s
	}{
		{"T=1", medium, "read", "medium_offline", "offline", [][2]string{onDisk("timeout", "1")}, false},
		{"T=2, one retry", medium, "read", "retries_used", "running", [][2]string{onDisk("timeout", "2"), onDisk("max_retries", "1")}, false},
		{"T=2, no retry", medium, "read", "retries_used", "running", [][2]string{onDisk("timeout", "2"), onDisk("max_retries", "0")}, false},
		{"T=2, one timeout is enough", medium, "read", "medium_offline", "offline",
			[][2]string{onDisk("timeout", "2"), onDisk("max_medium_access_timeouts", "1")}, false},
		{"T=3", medium, "read", "medium_offline", "offline", [][2]string{onDisk("timeout", "3")}, true},
		{"T=6", medium, "read", "medium_offline", "offline", [][2]string{onDisk("timeout", "6")}, true},
		{"T=3, many timeouts", medium, "read", "retries_used", "running",
			[][2]string{onDisk("timeout", "3"), onDisk("max_medium_access_timeouts", "1000")}, true},
		{"flush, T=1", medium, "flush", "flush_fails", "offline", [][2]string{onDisk("timeout", "1")}, true},
		{"dead, T=1", dead, "read", "dead_offline", "offline", [][2]string{onDisk("timeout", "1")}, true},
		{"dead, T=2, short tests", dead, "read", "dead_offline", "offline",
			[][2]string{onDisk("timeout", "2"), onDisk("eh_timeout", "1")}, true},
		{"dead, T=2, short tests and a deadline", dead, "read", "dead_offline", "offline",
			[][2]string{onDisk("timeout", "2"), onDisk("eh_timeout", "1"), onDisk("eh_deadline", "3")}, true},
		{"dead, T=2, a deadline", dead, "read", "dead_offline", "offline",
			[][2]string{onDisk("timeout", "2"), onDisk("eh_deadline", "15")}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.long {
				testenv.NeedVM(t)
			}
			t.Parallel()
			got, d := stallGuest(t, dir, stallScenario{Set: c.set, Stop: c.stop, Do: c.do, For: 120}, "32", 0)
			in := map[string]string{medium: "answers_tests", dead: "answers_nothing"}[c.stop]
			e := d.event(t, c.kind, in)
			t.Logf("measured %.2f s, predicted %.2f to %.2f s, usually %.2f s", float64(got.Took)/1000, float64(e.Earliest)/1000,
				float64(e.Latest)/1000, float64(e.Usual)/1000)
			if got.Took < e.Earliest || got.Took > e.Latest {
				t.Errorf("the request failed after %d ms, predicted between %d and %d", got.Took, e.Earliest, e.Latest)
			}
			if off := float64(e.Usual-got.Took) / float64(got.Took); off > 0.15 || off < -0.15 {
				t.Errorf("the request failed after %d ms, predicted %d: %.0f %% off", got.Took, e.Usual, 100*off)
			}
			if got.Errno != int(unix.EIO) || got.State != c.state {
				t.Errorf("error %d, the disk is %s; want EIO, and %s", got.Errno, got.State, c.state)
			}
		})
	}
}

// TestStallNever: a disk that is tried for ever gives no error, however often its timer fires, and goes on when it
// answers again.
func TestStallNever(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	dir := stallPrograms(t)
	got, d := stallGuest(t, dir, stallScenario{Set: [][2]string{onDisk("timeout", "1"), onDisk("max_retries", "-1"),
		onDisk("max_medium_access_timeouts", "1000000")}, Stop: "0x80", Do: "read", For: 40}, "32", 0)
	if got.Took != -1 || got.Errno != 0 || got.State != "running" {
		t.Errorf("after 40 s: took %d ms, error %d, the disk is %s; want that it waits and goes on", got.Took, got.Errno, got.State)
	}
	if w := d.Outcomes[0].Word; w == "offline" {
		t.Errorf("an hour is predicted to end as %s", w)
	}
}

// TestStallFileSystems holds what file systems do after a stall against what is predicted: the time of the first error,
// and what is shown of them.
func TestStallFileSystems(t *testing.T) {
	lazy := []string{"/usr/sbin/mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"}
	gfs2 := []string{"mkfs.gfs2"} // unpacked below
	testenv.NeedVM(t)
	dir := stallPrograms(t)
	for _, c := range []struct {
		name, fs, size string
		memory         int
		mkfs           []string
		opts, kind     string
		// write, read and list are errors afterwards; shown is how its mount begins; attribute has a value other
		// than 0.
		write, read, list unix.Errno
		shown, attribute  string
	}{
		// It says rw, and takes no writes.
		{"ext4", "ext4", "64", 256, lazy, "errors=remount-ro", "ext4_journal_abort", unix.EROFS, 0, 0, "rw", "errors_count"},
		// errors=continue does not count where the journal is lost.
		{"ext4 that goes on", "ext4", "64", 256, lazy, "errors=continue", "ext4_journal_abort", unix.EROFS, 0, 0, "rw", "errors_count"},
		{"xfs", "xfs", "320", 768, []string{"/usr/sbin/mkfs.xfs", "-q", "-f"}, "", "xfs_shutdown", unix.EIO, unix.EIO, unix.EIO, "rw", ""},
		{"btrfs", "btrfs", "200", 512, []string{"/usr/sbin/mkfs.btrfs", "-q", "-f"}, "", "btrfs_forced_ro", unix.EIO, 0, unix.EIO, "ro", ""},
		{"gfs2", "gfs2", "200", 640, gfs2, "lockproto=lock_nolock", "gfs2_withdraw", unix.EIO, unix.EIO, unix.EIO, "ro", "withdraw"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			testenv.Need(t, "mkfs.xfs", "mkfs.btrfs", "apt-get", "dpkg-deb")
			if c.fs == "gfs2" {
				c.mkfs = []string{unpackedTool(t, "gfs2-utils", "usr/sbin/mkfs.gfs2"), "-q", "-O", "-p", "lock_nolock", "-j", "1", "-J", "8"}
			}
			got, d := stallGuest(t, dir, stallScenario{Set: [][2]string{onDisk("timeout", "2")}, FS: c.fs, Mkfs: c.mkfs, Opts: c.opts,
				Stop: "0x80", Do: "write", For: 120, After: 40}, c.size, c.memory)
			e := d.event(t, c.kind, "answers_tests")
			t.Logf("measured %.2f s, predicted %.2f to %.2f s", float64(got.Took)/1000, float64(e.Earliest)/1000,
				float64(e.Latest)/1000)
			if got.Took < e.Earliest*85/100 || got.Took > e.Latest*115/100 || got.Errno == 0 {
				t.Errorf("the write failed after %d ms with %d, predicted between %d and %d", got.Took, got.Errno, e.Earliest, e.Latest)
			}
			if got.Write != int(c.write) || got.Read != int(c.read) || got.List != int(c.list) {
				t.Errorf("afterwards a write gives %d, a read %d, a list %d; want %d, %d and %d", got.Write, got.Read, got.List,
					c.write, c.read, c.list)
			}
			if !strings.HasPrefix(got.Options, c.shown+",") {
				t.Errorf("its mount shows %s, want %s", got.Options, c.shown)
			}
			if a := got.Attributes[c.attribute]; c.attribute != "" && (a == "" || a == "0") {
				t.Errorf("%s is %q, want it to tell", c.attribute, a)
			}
		})
	}
}

// unpackedTool gives a program of a Debian package, which is unpacked and not installed.
func unpackedTool(t *testing.T, pkg, program string) string {
	t.Helper()
	dir := t.TempDir()
	for _, argv := range [][]string{{"apt-get", "-q", "download", pkg}, {"sh", "-c", "dpkg-deb -x " + pkg + "_*.deb ."}} {
		c := exec.Command(argv[0], argv[1:]...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	return filepath.Join(dir, program)
}

// TestStallSet plans a timeout in a guest with two disks that differ in nothing but their names for good, carries it
// out, and has udev of this machine itself run the rule: it sets the one disk that is meant, and that alone, also where a
// rule of a vendor runs a program that sets another value. Undo takes the rule and the value back.
func TestStallSet(t *testing.T) {
	testenv.NeedVM(t)
	testenv.Need(t, "udevadm", "sh")
	t.Parallel()
	dir := stallPrograms(t)
	const vendor = `ACTION=="add", SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", ATTRS{vendor}=="VMware*", ATTRS{model}=="Virtual disk*", ` +
		`RUN+="/bin/sh -c 'echo 180 >/sys$env{DEVPATH}/device/timeout'"`
	for name, rules := range map[string]string{"no other rule": "", "a vendor's rule that runs": vendor} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			script := filepath.Join(t.TempDir(), "script")
			if err := os.WriteFile(script, []byte(setScript), 0o700); err != nil {
				t.Fatal(err)
			}
			got, _ := stallGuest(t, dir, stallScenario{Disks: 2,
				Commands: [][]string{{"/bin/sh", script, filepath.Join(dir, "shisa"), rules}}}, "32", 0)
			said := got.Outputs[0]
			t.Log(said)
			other := "30"
			if rules != "" {
				other = "180"
			}
			for _, want := range []string{"before 30 30\n", "applied 300 30\n", "at an event 300 " + other + "\n", "undone 30 ", "rules left 0\n"} {
				if !strings.Contains(said, want) {
					t.Errorf("the guest did not say %q", want)
				}
			}
		})
	}
}

// setScript takes the program and the rules of a vendor. It says the timeouts of both disks at each step.
const setScript = `
set -e
shisa="$1"
say() { echo "$1 $(cat /sys/block/sda/device/timeout) $(cat /sys/block/sdb/device/timeout)"; }
mount -t tmpfs tmpfs /etc/udev/rules.d
if [ -n "$2" ]; then echo "$2" > /etc/udev/rules.d/99-vmware-scsi-udev.rules; fi
say before
"$shisa" doctor stall --device sda --set 300 --apply --state /run/state
say applied
cat /etc/udev/rules.d/99-zz-shisa-*
echo 30 > /sys/block/sda/device/timeout
mkdir -p /run/udev
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add --subsystem-match=block --sysname-match='sd?'
udevadm settle --timeout=60
say "at an event"
echo 300 > /sys/block/sda/device/timeout
"$shisa" undo --state /run/state /etc/udev/rules.d/99-zz-shisa-*
say undone
echo "rules left $(ls /etc/udev/rules.d | grep shisa | wc -l)"
`
