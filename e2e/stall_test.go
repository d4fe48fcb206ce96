// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	testenv.Need(t, uml.Program)
	dir := t.TempDir()
	builtInto(t, dir, map[string]string{"shisa": built(t, module+"/cmd/shisa", false),
		"stalls": built(t, module+"/internal/lab/stalls", false)})
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

// stallRun is a scenario with the size of its disk in MiB and the memory of its guest, and what came of it.
type stallRun struct {
	stallScenario
	size      string
	memoryMiB int

	got       stallResult
	predicted stallDisk
	err       error
}

// stallGuests runs scenarios in guests whose root is this machine's, several at a time: they wait nearly all of it.
func stallGuests(t *testing.T, dir string, all []stallRun) {
	t.Helper()
	const atATime = 6
	free := make(chan struct{}, atATime)
	var wait sync.WaitGroup
	for i := range all {
		scenario := filepath.Join(t.TempDir(), "scenario.json")
		wait.Go(func() {
			free <- struct{}{}
			all[i].err = all[i].run(t.Context(), dir, scenario)
			<-free
		})
	}
	wait.Wait()
}

// stallGuest runs one.
func stallGuest(t *testing.T, dir string, s stallScenario) (stallResult, stallDisk) {
	t.Helper()
	all := []stallRun{{stallScenario: s}}
	stallGuests(t, dir, all)
	if all[0].err != nil {
		t.Fatal(all[0].err)
	}
	return all[0].got, all[0].predicted
}

func (r *stallRun) run(ctx context.Context, dir, scenario string) error {
	names := []string{"sd_mod", "scsi_debug"}
	if r.FS != "" {
		names = append(names, r.FS)
	}
	files, err := uml.Modules(uml.ModulesDir, names...)
	if err != nil {
		return err
	}
	for i, f := range files {
		if strings.HasSuffix(f, "/scsi_debug.ko") {
			files[i] += ` delay=0 dev_size_mb=` + cmp.Or(r.size, "32") + ` inq_vendor=VMware inq_product="Virtual disk" num_tgts=` +
				strconv.Itoa(max(r.Disks, 1))
		}
	}
	r.Modules = files
	r.Program = []string{filepath.Join(dir, "shisa"), "doctor", "stall", "--json", "--for", "1h", "--device", "sda"}
	text, err := json.Marshal(&r.stallScenario)
	if err == nil {
		err = os.WriteFile(scenario, text, 0o600)
	}
	if err != nil {
		return err
	}
	said, err := uml.RunUnconfined(ctx, uml.Options{Root: "/", Init: filepath.Join(dir, "stalls"), Args: []string{scenario},
		MemoryMiB: r.memoryMiB, Timeout: time.Duration(r.For+r.After)*time.Second + guestMay})
	if err != nil || len(said.Lines) != 1 {
		return fmt.Errorf("the guest said %d lines, want one: %v\n%s", len(said.Lines), err, said.Console)
	}
	if err := json.Unmarshal(said.Lines[0], &r.got); err != nil {
		return err
	}
	if r.got.Failed != "" {
		return fmt.Errorf("in the guest: %s\n%s", r.got.Failed, said.Console)
	}
	var doc stallDocument
	if err := json.Unmarshal(r.got.Predicted, &doc); err != nil || len(doc.Machines) != 1 || len(doc.Machines[0].Disks) != 1 {
		return fmt.Errorf("%v in %s", err, r.got.Predicted)
	}
	r.predicted = doc.Machines[0].Disks[0]
	return nil
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

// TestStallPredicted stops a SCSI disk in a real kernel and holds the time until the request that is under way fails
// against what shisa says in the same guest beforehand: it is never before the interval, and once in five times in it, and
// for a single request within 15 % of what is told as usual.
func TestStallPredicted(t *testing.T) { stallsPredicted(t, false) }

// TestStallPredictedLong is the same with what takes longer than ten seconds.
func TestStallPredictedLong(t *testing.T) {
	testenv.NeedVM(t)
	stallsPredicted(t, true)
}

func stallsPredicted(t *testing.T, long bool) {
	t.Helper()
	const medium, dead = "0x80", "0x4" // of scsi_debug's opts
	dir := stallPrograms(t)
	type stallCase struct {
		name, stop, do, kind, state string
		set                         [][2]string
		long                        bool // more than 10 s
	}
	cases := []stallCase{
		{"T=1", medium, "read", "medium_offline", "offline", [][2]string{onDisk("timeout", "1")}, false},
		{"T=2, one retry", medium, "read", "retries_used", "running", [][2]string{onDisk("timeout", "2"), onDisk("max_retries", "1")}, false},
		{"T=2, no retry", medium, "read", "retries_used", "running", [][2]string{onDisk("timeout", "2"), onDisk("max_retries", "0")}, false},
		{"T=2, one timeout is enough", medium, "read", "medium_offline", "offline",
			[][2]string{onDisk("timeout", "2"), onDisk("max_medium_access_timeouts", "1")}, false},
		{"T=3", medium, "read", "medium_offline", "offline", [][2]string{onDisk("timeout", "3")}, true},
		{"T=6", medium, "read", "medium_offline", "offline", [][2]string{onDisk("timeout", "6")}, true},
		{"T=3, many timeouts", medium, "read", "retries_used", "running",
			[][2]string{onDisk("timeout", "3"), onDisk("max_medium_access_timeouts", "1000")}, true},
		// Others come one after the other, and the error handler waits for all of them.
		{"T=2, many requests", medium, "many", "medium_offline", "offline", [][2]string{onDisk("timeout", "2")}, true},
		{"T=3, many requests", medium, "many", "medium_offline", "offline", [][2]string{onDisk("timeout", "3")}, true},
		{"flush, T=1", medium, "flush", "flush_fails", "offline", [][2]string{onDisk("timeout", "1")}, true},
		{"dead, T=1", dead, "read", "dead_offline", "offline", [][2]string{onDisk("timeout", "1")}, true},
		{"dead, T=2, short tests", dead, "read", "dead_offline", "offline",
			[][2]string{onDisk("timeout", "2"), onDisk("eh_timeout", "1")}, true},
		{"dead, T=2, short tests and a deadline", dead, "read", "dead_offline", "offline",
			[][2]string{onDisk("timeout", "2"), onDisk("eh_timeout", "1"), onDisk("eh_deadline", "3")}, true},
		{"dead, T=2, a deadline", dead, "read", "dead_offline", "offline",
			[][2]string{onDisk("timeout", "2"), onDisk("eh_deadline", "15")}, true},
	}
	cases = slices.DeleteFunc(cases, func(c stallCase) bool { return c.long != long })
	all := make([]stallRun, len(cases))
	for i, c := range cases {
		all[i].stallScenario = stallScenario{Set: c.set, Stop: c.stop, Do: c.do, For: 120}
	}
	stallGuests(t, dir, all)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := &all[i]
			for range 5 {
				if r.err != nil {
					t.Fatal(r.err)
				}
				got := &r.got
				e := r.predicted.event(t, c.kind, map[string]string{medium: "answers_tests", dead: "answers_nothing"}[c.stop])
				t.Logf("measured %.2f s, predicted %.2f to %.2f s, usually %.2f s", float64(got.Took)/1000,
					float64(e.Earliest)/1000, float64(e.Latest)/1000, float64(e.Usual)/1000)
				if got.Took < e.Earliest {
					t.Errorf("the request failed after %d ms, predicted between %d and %d", got.Took, e.Earliest, e.Latest)
				}
				if got.Errno != int(unix.EIO) || got.State != c.state {
					t.Errorf("error %d, the disk is %s; want EIO, and %s", got.Errno, got.State, c.state)
				}
				off := float64(e.Usual-got.Took) / float64(got.Took)
				if got.Took <= e.Latest && (c.do == "many" || off <= 0.15 && off >= -0.15) {
					return
				}
				// A guest that got no turn for a moment is later, and not as usual. It is never earlier.
				again := []stallRun{{stallScenario: r.stallScenario}}
				stallGuests(t, dir, again)
				*r = again[0]
			}
			t.Error("five times it took longer than what was predicted, or other than what is usual")
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
		onDisk("max_medium_access_timeouts", "1000000")}, Stop: "0x80", Do: "read", For: 40})
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
	testenv.NeedVM(t)
	testenv.Need(t, "mkfs.xfs", "mkfs.btrfs", "apt-get", "dpkg-deb")
	t.Parallel()
	dir := stallPrograms(t)
	gfs2 := []string{unpackedTool(t, "gfs2-utils", "usr/sbin/mkfs.gfs2"), "-q", "-O", "-p", "lock_nolock", "-j", "1", "-J", "8"}
	cases := []struct {
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
	}
	all := make([]stallRun, len(cases))
	for i, c := range cases {
		all[i] = stallRun{size: c.size, memoryMiB: c.memory, stallScenario: stallScenario{Set: [][2]string{onDisk("timeout", "2")},
			FS: c.fs, Mkfs: c.mkfs, Opts: c.opts, Stop: "0x80", Do: "write", For: 120, After: 40}}
	}
	stallGuests(t, dir, all)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, d := all[i].got, &all[i].predicted
			if all[i].err != nil {
				t.Fatal(all[i].err)
			}
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
				Commands: [][]string{{"/bin/sh", script, filepath.Join(dir, "shisa"), rules}}})
			said := got.Outputs[0]
			t.Log(said)
			other, place := "30", "77 30"
			if rules != "" {
				other, place = "180", "180 180" // it runs after all that is assigned
			}
			for _, want := range []string{"before 30 30\n", "applied 300 30\n", "at an event 300 " + other + "\n", "undone 30 ", "rules left 0\n",
				"by place " + place + "\n"} {
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
if [ -n "$2" ]; then
	"$shisa" doctor stall --device sda --set 300 --apply --state /run/state
else
	"$shisa" doctor stall --device sda --set 300 --out /run/plan.json
	say planned
	"$shisa" apply --state /run/state /run/plan.json
fi
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
# A disk without a WWID is named by where it is attached: the same form as doctor.TimeoutPlan has it.
place=$(readlink -f /sys/block/sda | sed 's#^/sys##; s#/host[0-9]*/#/host*/#; s#/target[0-9]*:#/target*:#; s#/[0-9]*:0:0:0/#/*:0:0:0/#; s#/sda$#/*#')
echo 'ACTION=="add|change", SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", DEVPATH=="'$place'", ATTR{device/vendor}=="VMware", '\
'ATTR{device/model}=="Virtual disk", ATTR{device/timeout}="77"' > /etc/udev/rules.d/99-zz-place.rules
cat /etc/udev/rules.d/99-zz-place.rules
udevadm control --reload
udevadm trigger --action=add --subsystem-match=block --sysname-match='sd?'
udevadm settle --timeout=60
say "by place"
`
