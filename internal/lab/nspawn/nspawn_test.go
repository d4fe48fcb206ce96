// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package nspawn

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// unit is a service that does something at each start.
func unit(lines ...string) File {
	return File{Text: "[Unit]\nDescription=Nightly\n[Service]\nType=oneshot\nExecStart=" +
		strings.Join(lines, "\n") + "\n[Install]\nWantedBy=multi-user.target\n"}
}

func newRoot(t *testing.T) *Root {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.Need(t, "systemd-nspawn", "systemctl", "journalctl", "dbus-daemon")
	r, err := NewRoot(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const nightly = "/etc/systemd/system/nightly.service"

// TestBoot holds that each way in which a world may go is told from the others.
func TestBoot(t *testing.T) {
	r := newRoot(t)
	for _, c := range []struct {
		name   string
		world  World
		limits Limits
		ends   string
	}{
		{"nothing", World{}, Limits{Boots: 3}, "stayed"},
		{"loop", World{Files: map[string]File{nightly: unit("/bin/systemctl reboot")},
			Enable: []string{"nightly.service"}}, Limits{Boots: 3}, "reboot reboot reboot"},
		{"masked", World{Files: map[string]File{nightly: unit("/bin/systemctl reboot")},
			Enable: []string{"nightly.service"}, Arguments: []string{"systemd.mask=nightly.service"}},
			Limits{Boots: 3}, "stayed"},
		{"off", World{Files: map[string]File{nightly: unit("/sbin/poweroff")},
			Enable: []string{"nightly.service"}}, Limits{Boots: 3}, "poweroff"},
		{"once", World{Files: map[string]File{nightly: unit("/bin/sh -c 'test -e /var/lib/done || " +
			"{ touch /var/lib/done; systemctl reboot; }'")}, Enable: []string{"nightly.service"}},
			Limits{Boots: 4}, "reboot stayed"},
		{"forgets", World{Files: map[string]File{nightly: unit("/bin/sh -c 'test -e /var/lib/done || " +
			"{ touch /var/lib/done; systemctl reboot; }'")}, Enable: []string{"nightly.service"}, Forgets: true},
			Limits{Boots: 2}, "reboot reboot"},
		{"read-only", World{Files: map[string]File{nightly: unit("/bin/sh -c 'touch /var/lib/systemd/timers/x || " +
			"systemctl reboot'")}, Enable: []string{"nightly.service"}, ReadOnly: []string{"/var/lib/systemd/timers"}},
			Limits{Boots: 2}, "reboot reboot"},
		{"one bin", World{Files: map[string]File{nightly: unit("/sbin/systemctl reboot")},
			Enable: []string{"nightly.service"}, OneBin: true}, Limits{Boots: 1}, "reboot"},
		{"two bins", World{Files: map[string]File{nightly: unit("/sbin/systemctl reboot")},
			Enable: []string{"nightly.service"}}, Limits{Boots: 2}, "stayed"},
		{"first boot", World{Files: map[string]File{nightly: unit("/bin/systemctl reboot")},
			MachineID: "uninitialized"}, Limits{Boots: 2}, "reboot reboot"},
		{"power cut", World{}, Limits{Boots: 2, Cut: map[int]time.Duration{0: time.Millisecond}}, "cut stayed"},
		{"in order", World{}, Limits{Boots: 1, Shutdown: true}, "stayed"},
		{"logind", World{Files: map[string]File{nightly: unit("/bin/systemctl reboot")},
			Enable: []string{"nightly.service"}, Logind: true}, Limits{Boots: 1}, "reboot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.limits.Hold, c.limits.Wall = 200*time.Millisecond, 20*time.Minute
			o, err := r.Boot(t.Context(), c.world, c.limits)
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			var ends []string
			for _, b := range o.Boots {
				ends = append(ends, b.End)
				t.Logf("%s after %v", b.End, b.Ended.Sub(b.Began))
			}
			t.Logf("%v of CPU time", o.CPU)
			if got := strings.Join(ends, " "); got != c.ends {
				t.Errorf("Boot(%s) = %s, want %s\n%s", c.name, got, c.ends, o.Boots[0].Console)
			}
			if files, _ := filepath.Glob(o.Journal() + "/*/*.journal"); len(files) == 0 {
				t.Errorf("Boot(%s) left no journal", c.name)
			}
			noGroups(t)
		})
	}
}

// noGroups holds that no cgroup of a guest is left.
func noGroups(t *testing.T) {
	t.Helper()
	for _, h := range hierarchies() {
		if left, _ := filepath.Glob(h + "/" + prefix + strconv.Itoa(os.Getpid()) + "-*"); len(left) > 0 {
			t.Errorf("cgroups are left: %v", left)
		}
	}
}

// TestWrite holds that the files of a world are written as they are, before it ran and after.
func TestWrite(t *testing.T) {
	r := newRoot(t)
	then := time.Now().Add(-48 * time.Hour).Truncate(time.Second)
	stamp := "/var/lib/systemd/timers/stamp-nightly.timer"
	w := World{Files: map[string]File{nightly: unit("/bin/touch /var/lib/been"), stamp: {Mtime: then}},
		Enable: []string{"nightly.service"}}
	before, after := filepath.Join(t.TempDir(), "before"), filepath.Join(t.TempDir(), "after")
	if err := r.Write(t.Context(), w, before); err != nil {
		t.Fatal(err)
	}
	o, err := r.Boot(t.Context(), w, Limits{Boots: 1, Hold: time.Millisecond, Wall: 20 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := o.Write(t.Context(), after); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{before, after} {
		link := filepath.Join(dir, "etc/systemd/system/multi-user.target.wants/nightly.service")
		if to, err := os.Readlink(link); err != nil || to != nightly {
			t.Errorf("Write: the link of the enabled unit leads to %q, %v", to, err)
		}
		if st, err := os.Stat(filepath.Join(dir, stamp)); err != nil || !st.ModTime().Equal(then) {
			t.Errorf("Write: the stamp: %v, %v, want %v", st, err, then)
		}
		if _, err := os.Stat(filepath.Join(dir, unitDir, "reboot.target")); err != nil {
			t.Errorf("Write: %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(before, "var/lib/been")); err == nil {
		t.Error("Write before the boot: what the guest wrote is there")
	}
	if _, err := os.Stat(filepath.Join(after, "var/lib/been")); err != nil {
		t.Errorf("Write after the boot: %v", err)
	}
}

// TestNotUp holds that a boot which does not come up in time is an error, and nothing is left of it.
func TestNotUp(t *testing.T) {
	r := newRoot(t)
	o, err := r.Boot(t.Context(), World{Files: map[string]File{nightly: unit("/bin/sleep 600")},
		Enable: []string{"nightly.service"}}, Limits{Boots: 1, Hold: time.Second, Wall: 3 * time.Second})
	if err == nil {
		t.Fatalf("Boot = %+v, want an error", o.Boots)
	}
	noGroups(t)
}

// TestSweep holds that cgroups of a process that was killed are taken away by the next one.
func TestSweep(t *testing.T) {
	testenv.NeedRoot(t)
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	left, err := newGroups(prefix + strconv.Itoa(gone.Process.Pid) + "-left")
	if err != nil {
		t.Fatal(err)
	}
	g, err := newGroups(prefix + strconv.Itoa(os.Getpid()) + "-mine")
	if err != nil {
		t.Fatal(err)
	}
	sweep() // its own are not touched
	for _, dir := range g {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range left {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
	if err := g.remove(); err != nil {
		t.Error(err)
	}
}
