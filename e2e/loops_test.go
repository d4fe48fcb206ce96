// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/lab/nspawn"
	"github.com/shisa-vm/shisa/internal/lab/vhost"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

// diskLoop is a machine on a qcow2 image that restarts itself for ever.
type diskLoop struct {
	name  string
	world nspawn.World
	// fixed is a file that nobody may change, by its attribute.
	fixed string
	clock guestClock
	// before is what rules say of the image before it was ever booted; timer what is told of nightly.timer, "" where
	// there is none.
	before string
	timer  doctor.Danger
	// blame is who restarts it, arguments are those that stop it.
	blame     string
	arguments []string
	// unlink: the link that starts the unit by mistake can be taken away as well.
	unlink bool
}

const (
	nightlyService = "/etc/systemd/system/nightly.service"
	nightlyTimer   = "/etc/systemd/system/nightly.timer"
	nightlyStamp   = "/var/lib/systemd/timers/stamp-nightly.timer"

	reboots = "[Unit]\nDescription=Nightly restart\n[Service]\nType=oneshot\nExecStart=/bin/systemctl reboot\n"
	// stepFile is a file below /run that says by how many seconds the clock of a guest has to be put forward.
	stepFile = "step"
)

func atTimers(text string) string {
	return "[Timer]\nAccuracySec=1us\n" + text + "\n[Install]\nWantedBy=timers.target\n"
}

func masks(units ...string) (all []string) {
	for _, u := range units {
		all = append(all, "systemd.mask="+u)
	}
	return all
}

// soonLoop is the row that is played always: a timer that counts from the start.
func soonLoop() diskLoop {
	return diskLoop{name: "soon after each start", before: "TM02 loop", timer: doctor.TimerLoops, blame: "nightly.service",
		arguments: masks("nightly.service", "nightly.timer"), world: nspawn.World{Enable: []string{"nightly.timer"},
			Files: map[string]nspawn.File{nightlyService: {Text: reboots}, nightlyTimer: {Text: atTimers("OnBootSec=1s")}}}}
}

// diskLoops are others of the table of loops, each of another kind.
func diskLoops(now time.Time) []diskLoop {
	const wants = "/etc/systemd/system/multi-user.target.wants/"
	clock := clockLoop(now)
	return []diskLoop{
		{name: "a stamp that cannot be written", fixed: nightlyStamp, before: "TM03 lost-stamp", timer: doctor.TimerLoops,
			blame: "nightly.service", arguments: masks("nightly.service", "nightly.timer"), world: nspawn.World{
				Enable: []string{"nightly.timer"}, Files: map[string]nspawn.File{nightlyService: {Text: reboots},
					nightlyTimer: {Text: atTimers("OnCalendar=" + now.UTC().Add(6*time.Hour).Format("15:04:05") + "\nPersistent=true")},
					nightlyStamp: {Mtime: now.Add(-48 * time.Hour)}}}},
		{name: "a vendor's unit that runs a script", before: "TM01 loop", blame: "weekly.service", unlink: true,
			arguments: masks("weekly.service"), world: nspawn.World{Files: map[string]nspawn.File{
				"/usr/lib/systemd/system/weekly.service": {Text: "[Service]\nType=oneshot\nExecStart=/usr/local/bin/weekly --all\n"},
				wants + "weekly.service":                 {Link: "/usr/lib/systemd/system/weekly.service"},
				"/usr/local/bin/weekly":                  {Mode: 0o755, Text: "#!/bin/sh\nset -e\n. /usr/local/lib/weekly.sh\nfinish\n"},
				"/usr/local/lib/weekly.sh":               {Text: "finish() {\n\texec shutdown -r now\n}\n"}}}},
		{name: "reboots when it fails", before: "TM01 loop", blame: "probe.service", arguments: masks("probe.service"),
			world: nspawn.World{Enable: []string{"probe.service"}, Files: map[string]nspawn.File{
				"/etc/systemd/system/probe.service": {Text: "[Unit]\nFailureAction=reboot\n[Service]\nType=oneshot\nExecStart=/bin/false\n" +
					"[Install]\nWantedBy=multi-user.target\n"}}}},
		clock,
	}
}

// clockLoop is a machine whose hardware's clock shows UTC and is taken for local time: systemd puts its clock back by nine
// hours, until a daemon asks the network. A time of its timer that the clock is put over then elapses.
func clockLoop(now time.Time) diskLoop {
	return diskLoop{name: "a clock that is set right after the start", before: "TM06 slow-clock", timer: doctor.TimerMayLoop,
		blame: "nightly.service", arguments: masks("nightly.service", "nightly.timer"), clock: guestClock{step: tokyoAhead},
		world: tokyo(now, "LOCAL")}
}

// tokyoAhead is by how much local time is ahead there.
const tokyoAhead = 9 * time.Hour

// tokyo is a machine there with a daemon for its clock, whose timer was due three hours ago. adjtime says what the clock
// of the hardware shows, "UTC" or "LOCAL".
func tokyo(now time.Time, adjtime string) nspawn.World {
	due := now.In(time.FixedZone("JST", int(tokyoAhead/time.Second))).Add(-3 * time.Hour)
	return nspawn.World{Enable: []string{"nightly.timer", "chrony.service"}, Files: map[string]nspawn.File{
		nightlyService:   {Text: reboots},
		nightlyTimer:     {Text: atTimers("OnCalendar=" + due.Format("15:04:05"))},
		"/etc/adjtime":   {Text: "0.0 0 0.0\n0\n" + adjtime + "\n"},
		"/etc/localtime": {Text: string(zoneTokyo())},
		"/usr/lib/systemd/system/chrony.service": {
			Text: "[Service]\nExecStart=/usr/sbin/chronyd\n[Install]\nWantedBy=multi-user.target\n"},
		// It stands for one that asks the network what time it is, if there is any.
		"/usr/sbin/chronyd": {Mode: 0o755, Text: "#!/bin/sh\ntest -f /run/" + stepFile + " || exit 0\nsleep 3\n" +
			"date -s \"$(cat /run/" + stepFile + ") seconds\"\n"}}}
}

// zoneTokyo is that zone as tzdata has it; nil where that is not there.
func zoneTokyo() []byte {
	text, err := os.ReadFile("/usr/share/zoneinfo/Asia/Tokyo")
	if err != nil {
		return nil
	}
	return text
}

// TestLoopOnDisk plays one machine that restarts itself for ever, TestLoopsOnDisks plays others.
func TestLoopOnDisk(t *testing.T) {
	row := soonLoop()
	row.hold(t, newLoopLab(t))
}

func TestLoopsOnDisks(t *testing.T) {
	lab := newLoopLab(t)
	for _, row := range diskLoops(time.Now()) {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel() // they wait most of their time
			row.hold(t, lab)
		})
	}
}

// TestClockStepped has machines in Tokyo start with a clock that is right, slow or fast, and has it be set right while
// systemd waits for a timer, or never. What was played beforehand of each of these clocks is what systemd does.
func TestClockStepped(t *testing.T) {
	lab, now := newLoopLab(t), time.Now()
	for _, c := range []struct {
		adjtime string
		danger  doctor.Danger
		status  int
		clocks  map[string]guestClock
	}{
		{"LOCAL", doctor.TimerMayLoop, 3, map[string]guestClock{
			"the clock is 9h slow at the start, and set right 5s later": {step: tokyoAhead},
			"the clock is 9h slow at the start, and never set right":    {},
			"the clock is right": {ahead: tokyoAhead}}},
		{"UTC", doctor.TimerActs, 0, map[string]guestClock{
			"the clock is 9h fast at the start, and set right 5s later": {ahead: tokyoAhead, step: -tokyoAhead},
			"the clock is 9h fast at the start, and never set right":    {ahead: tokyoAhead},
			"the clock is right": {}}},
	} {
		t.Run(c.adjtime, func(t *testing.T) {
			t.Parallel()
			row := diskLoop{world: tokyo(now, c.adjtime)}
			dir := testenv.DiskDir(t)
			image := lab.image(t, &row, dir)
			x := toldTimer(t, program{filepath.Join(lab.programs, "shisa"), filepath.Join(dir, "state")}, image, c.status)
			if x.Danger != c.danger {
				t.Errorf("nightly.timer is told to be %s (%v), want %s", x.Danger, x.Says, c.danger)
			}
			loops := 0
			for name, clock := range c.clocks {
				i := slices.IndexFunc(x.Runs, func(r doctor.TimerRun) bool { return r.Clock == name })
				if i < 0 {
					t.Fatalf("it was not played that %s: %+v", name, x.Runs)
				}
				foretold := x.Runs[i].Loop
				if foretold {
					loops++
				}
				if stays := lab.trial(t, image, clock); stays == foretold {
					t.Errorf("%s: it is said to loop: %v; it stays up: %v", name, foretold, stays)
				}
			}
			if c.danger == doctor.TimerMayLoop != (loops == 1) {
				t.Errorf("%d clocks were said to make a loop", loops)
			}
		})
	}
}

// loopLab is what all machines are made of.
type loopLab struct {
	root     *nspawn.Root
	programs string
}

func newLoopLab(t *testing.T) *loopLab {
	t.Helper()
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	testenv.Need(t, uml.Program, vhost.Program, "mkfs.ext4", "debugfs", "qemu-img", "systemd-nspawn", "systemctl")
	if zoneTokyo() == nil {
		testenv.Lacks(t, "the zones of tzdata")
	}
	t.Parallel()
	root, err := nspawn.NewRoot(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &loopLab{root, umlPrograms(t)}
}

// image makes the disk of a machine.
func (l *loopLab) image(t *testing.T, row *diskLoop, dir string) string {
	t.Helper()
	tree, raw, image := filepath.Join(dir, "tree"), filepath.Join(dir, "raw"), filepath.Join(dir, "vm.qcow2")
	if err := l.root.Write(t.Context(), row.world, tree); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "mkfs.ext4", "-q", "-F", "-d", tree, raw, "400M")
	if row.fixed != "" { // EXT4_EXTENTS_FL and EXT4_IMMUTABLE_FL
		mustRun(t, "debugfs", "-w", "-R", "set_inode_field "+row.fixed+" flags 0x80010", raw)
	}
	mustRun(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
	if err := os.Remove(raw); err != nil {
		t.Fatal(err)
	}
	return image
}

// trial boots a machine over a layer of its own, so that its image stays as it is.
func (l *loopLab) trial(t *testing.T, image string, clock guestClock, arguments ...string) bool {
	t.Helper()
	over := filepath.Join(t.TempDir(), "over.qcow2")
	mustRun(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", over)
	defer os.Remove(over)
	return served(t, l.programs, over, clock, arguments...)
}

// hold holds what is said of a machine's image before it was ever booted, against what its systemd then does on that
// image; and that it stays up with the arguments that are named, and once it is mended, until that is undone.
func (row *diskLoop) hold(t *testing.T, l *loopLab) {
	dir := testenv.DiskDir(t)
	image := l.image(t, row, dir)
	shisa := program{filepath.Join(l.programs, "shisa"), filepath.Join(dir, "state")}
	row.foretold(t, shisa, image)
	for range 5 { // three in a row are told to be a loop, and of a short one the journal may not be on the disk
		if served(t, l.programs, image, row.clock) {
			t.Fatal("it does not loop")
		}
	}
	mustRun(t, "qemu-img", "check", "-q", image)
	var r doctor.BootsReport
	said := shisa.says(t, 3, "doctor", "boots", "--json", "--disk", image)
	if err := json.Unmarshal([]byte(said), &r); err != nil || len(r.Machines) != 1 || r.Machines[0].Blame == nil || r.Machines[0].Stop == nil {
		t.Fatalf("%v: %s", err, said)
	}
	b := r.Machines[0]
	if b.Course != doctor.Loop || b.Blame.Unit != row.blame || !b.Blame.Certain || !slices.Equal(b.Stop.Arguments, row.arguments) {
		t.Errorf("of a loop it is said: %s, %+v, %q; want %s, and %q", b.Course, b.Blame, b.Stop.Arguments, row.blame, row.arguments)
	}
	if !l.trial(t, image, row.clock, b.Stop.Arguments...) {
		t.Errorf("it loops with %q all the same", b.Stop.Arguments)
	}
	was := digest(t, image)
	fixes := [][]string{{"doctor", "boots", "--fix"}}
	if row.unlink {
		fixes = append(fixes, []string{"doctor", "timers", "--fix=unlink"})
	}
	for i, fix := range fixes {
		plan := filepath.Join(dir, fmt.Sprintf("plan%d.json", i))
		shisa.says(t, 3, append(fix, "--disk", image, "--out", plan)...)
		shisa.says(t, 0, "apply", plan)
		mustRun(t, "qemu-img", "check", "-q", image)
		if digest(t, image) == was || !l.trial(t, image, row.clock) {
			t.Errorf("after %q it loops all the same", fix)
		}
		shisa.says(t, 0, "undo", image)
		if digest(t, image) != was {
			t.Fatalf("after %q and undo the image has other bytes", fix)
		}
	}
	if l.trial(t, image, row.clock) {
		t.Error("after the undo it does not loop")
	}
}

// foretold holds what is said of the image before it was ever booted.
func (row *diskLoop) foretold(t *testing.T, shisa program, image string) {
	t.Helper()
	var all doctor.Report
	said := shisa.says(t, 3, "doctor", "--json", "--disk", image)
	if err := json.Unmarshal([]byte(said), &all); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	var rules []string
	for _, f := range all.Findings {
		if strings.HasPrefix(f.Code, "TM") {
			rules = append(rules, f.Code+" "+f.Kind)
		}
	}
	if got := strings.Join(rules, ", "); got != row.before {
		t.Errorf("before it was ever booted rules say %q, want %q", got, row.before)
	}
	if row.timer == "" {
		return
	}
	if x := toldTimer(t, shisa, image, 3); x.Danger != row.timer {
		t.Errorf("before it was ever booted nightly.timer is told to be %s (%v), want %s", x.Danger, x.Says, row.timer)
	}
}

// toldTimer is what is told of nightly.timer, from an image.
func toldTimer(t *testing.T, shisa program, image string, status int) *doctor.TimerInfo {
	t.Helper()
	var r doctor.TimersReport
	said := shisa.says(t, status, "doctor", "timers", "--json", "--disk", image)
	if err := json.Unmarshal([]byte(said), &r); err != nil || len(r.Machines) != 1 {
		t.Fatalf("%v: %s", err, said)
	}
	for i := range r.Machines[0].Timers {
		if x := &r.Machines[0].Timers[i]; x.Unit == "nightly.timer" {
			return x
		}
	}
	t.Fatalf("there is no nightly.timer: %s", said)
	return nil
}
