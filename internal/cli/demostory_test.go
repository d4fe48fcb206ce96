// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/lab/demo"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestDemoAtAnyTime holds that the stories that rest on the clock say the same whenever they are told: what loops is
// the service, and not its timer; when the disk is set offline; and that no write is taken.
func TestDemoAtAnyTime(t *testing.T) {
	day := time.Date(2026, 3, 29, 0, 0, 0, 0, time.UTC)
	step := 24 * time.Hour / time.Duration(testenv.Rounds(12, 48, 288))
	times := []time.Time{day.Add(3*time.Hour + 29*time.Minute + 50*time.Second), day.Add(3*time.Hour + 30*time.Minute),
		day.Add(3*time.Hour + 30*time.Minute + 30*time.Second)}
	for after := time.Duration(0); after < 24*time.Hour; after += step {
		times = append(times, day.Add(after+17*time.Second))
	}
	dir := t.TempDir()
	for i, now := range times {
		loop, stalled := filepath.Join(dir, "loop"+strconv.Itoa(i)), filepath.Join(dir, "stall"+strconv.Itoa(i))
		if err := demo.Loop(loop, now); err != nil {
			t.Fatal(err)
		}
		if err := demo.Stall(stalled, now); err != nil {
			t.Fatal(err)
		}
		e := gatherAt(t, loop, now)
		all := []*evidence.Evidence{e}
		line, next, err := render.DemoBlame(&doctor.ExamineBoots(all).Machines[0])
		if err != nil || !strings.HasPrefix(line.Text, "daily_reboot.service, in 5 of 5 boots") ||
			!strings.Contains(next, "systemd.mask=daily_reboot.service") {
			t.Errorf("%s: to blame: %+v, %q, %v", now, line, next, err)
		}
		if line, err := render.DemoTimer(&doctor.ExamineTimers(all).Machines[0]); err != nil ||
			!strings.HasPrefix(line.Text, "daily_reboot.timer") {
			t.Errorf("%s: not to blame: %+v, %v", now, line, err)
		}
		e = gatherAt(t, stalled, now)
		d := render.NewStall([]*doctor.Stall{doctor.StallOf(e, demoStall, "")}, demoStall)
		if line, err := render.DemoStall(d, e); err != nil || !strings.Contains(line.Text, "usually at 15m28s, not at 300 s x 6, which is 30m0s") {
			t.Errorf("%s: offline: %+v, %v", now, line, err)
		}
		line, _, err = render.DemoReadOnly(doctor.Examine([]*evidence.Evidence{e}, nil), e)
		if err != nil || !strings.HasSuffix(line.Text, "rw,relatime rw,errors=remount-ro") {
			t.Errorf("%s: read-only: %+v, %v", now, line, err)
		}
	}
}

// gatherAt gathers the evidence of the files in dir, at a time.
func gatherAt(t *testing.T, dir string, now time.Time) *evidence.Evidence {
	t.Helper()
	d, err := tree.OpenDirectory(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	e, err := evidence.Gather(t.Context(), d, evidence.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestDemoPicksFromReports holds that what is shown comes from the reports: where the evidence for it is taken away,
// there is no such line.
func TestDemoPicksFromReports(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	loop, stalled := filepath.Join(dir, "loop"), filepath.Join(dir, "stall")
	names, err := demo.Server(t.Context(), dir)
	if err := errors.Join(err, demo.Loop(loop, now), demo.Stall(stalled, now)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{loop + "/etc/systemd/system/multi-user.target.wants", loop + "/etc/systemd/system/daily_reboot.timer",
		stalled + "/var/log", stalled + "/sys/fs", stalled + "/sys/class/scsi_disk"} {
		if err := os.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
	}
	e := gatherAt(t, loop, now)
	if line, _, err := render.DemoBlame(&doctor.ExamineBoots([]*evidence.Evidence{e}).Machines[0]); err == nil {
		t.Errorf("nothing starts the service, and it is to blame: %+v", line)
	}
	if line, err := render.DemoTimer(&doctor.ExamineTimers([]*evidence.Evidence{e}).Machines[0]); err == nil {
		t.Errorf("there is no timer, and it is not to blame: %+v", line)
	}
	e = gatherAt(t, stalled, now)
	d := render.NewStall([]*doctor.Stall{doctor.StallOf(e, time.Second, "")}, time.Second)
	if line, err := render.DemoStall(d, e); err == nil {
		t.Errorf("a stall of a second sets no disk offline: %+v", line)
	}
	if line, _, err := render.DemoReadOnly(doctor.Examine([]*evidence.Evidence{e}, nil), e); err == nil {
		t.Errorf("nothing says that no write is taken: %+v", line)
	}
	// g3 alone, which is well; then the two guests that hang without anything else.
	healthy, err := (&doctorOptions{bundles: names[2:3]}).gather(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if lines, _, err := render.DemoCause(doctor.Examine(healthy, nil)); err == nil {
		t.Errorf("of a machine that is well: %+v", lines)
	}
	hung, err := (&doctorOptions{bundles: names[:2]}).gather(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if lines, _, err := render.DemoCause(doctor.Examine(hung, nil)); err == nil {
		t.Errorf("of guests whose images and server were not looked at: %+v", lines)
	}
}

// TestDemoRestored holds that a base that is there again is only called the same file if it is.
func TestDemoRestored(t *testing.T) {
	c := &refs.Census{All: []refs.Base{{Name: "a", State: refs.Live}, {Name: "b", State: refs.Missing}}}
	for _, x := range []struct {
		name string
		same bool
		want bool
	}{{"a", true, true}, {"a", false, false}, {"b", true, false}, {"c", true, false}} {
		if line, err := render.DemoRestored(c, x.name, x.same); (err == nil) != x.want {
			t.Errorf("DemoRestored(%s, same %t) = %+v, %v", x.name, x.same, line, err)
		}
	}
	if line, err := render.DemoMissing(c); err != nil || !strings.HasPrefix(line.Text, "b: MISSING") {
		t.Errorf("DemoMissing = %+v, %v, want b", line, err)
	}
	if line, err := render.DemoMissing(&refs.Census{All: c.All[:1]}); err == nil {
		t.Errorf("DemoMissing of a pool that lacks nothing = %+v", line)
	}
}

// TestDemoHolder holds that who held a mount is only named where that was seen, and how sure it is.
func TestDemoHolder(t *testing.T) {
	var d render.TraceDocument
	d.Failure.Umount.Errno = "EBUSY"
	if lines, err := render.DemoHolder(&d, 1); err == nil {
		t.Errorf("of a failure without holders: %+v", lines)
	}
	d.Failure.Holders = []holders.Holder{{Certainty: holders.Static, Process: holders.Process{PID: 1, Comm: "a"}}}
	if lines, err := render.DemoHolder(&d, 1); err == nil {
		t.Errorf("of one that holds for good: %+v", lines)
	}
	for certainty, want := range map[holders.Certainty]string{holders.HeldAtCheck: "held it", holders.Overlap: "may have held it"} {
		d.Failure.Holders = []holders.Holder{{Certainty: certainty, Syscall: "statfs", Args: []string{`"/mnt"`},
			Process: holders.Process{PID: 7, TID: 7, Comm: "agent"}}}
		lines, err := render.DemoHolder(&d, 3)
		if err != nil || len(lines) != 2 || lines[1] != (render.DemoLine{What: want, Text: `agent (7): statfs("/mnt")`}) {
			t.Errorf("DemoHolder = %+v, %v, want %s by statfs", lines, err, want)
		}
	}
}
