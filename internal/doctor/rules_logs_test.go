// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/journal/journaltest"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// source is a log that ends so long before noon.
func source(path string, persistent bool, before time.Duration) evidence.LogSource {
	return evidence.LogSource{Path: path, From: noon.Add(-1000 * time.Hour), To: noon.Add(-before), Persistent: persistent}
}

func TestFS07(t *testing.T) {
	const journal = "/var/log/journal/0/system.journal"
	written := func(before time.Duration) []evidence.FS {
		return []evidence.FS{{Device: "vda1", Super: &evidence.Super{Written: noon.Add(-before)}}}
	}
	tests := []struct {
		name string
		e    evidence.Evidence
		want []says
	}{
		{"no log on disk", evidence.Evidence{Log: evidence.Log{Sources: []evidence.LogSource{source("/dev/kmsg", false, 0)}}}, nil},
		{"both go on", evidence.Evidence{Log: evidence.Log{Sources: []evidence.LogSource{
			source("/dev/kmsg", false, 0), source(journal, true, time.Hour)}}}, []says{{"host:h:h", Pass, "", ""}}},
		{"the kernel goes on alone", evidence.Evidence{Log: evidence.Log{Sources: []evidence.LogSource{
			source("/dev/kmsg", false, 0), source(journal, true, 3*time.Hour), source("/var/log/syslog", true, 9*time.Hour)}}},
			[]says{{"host:h:h", Fail, "stopped", finding.Warning}}},
		{"on the file system that has it", evidence.Evidence{
			Mounts: []evidence.Mount{{Own: true}}, FSs: []evidence.FS{{Device: "vda1"}},
			Log: evidence.Log{Sources: []evidence.LogSource{source("/dev/kmsg", false, 0), source(journal, true, 3*time.Hour)}}},
			[]says{{"filesystem:h:vda1", Fail, "stopped", finding.Warning}}},
		{"dead, written on", evidence.Evidence{Kind: tree.Disk, FSs: written(0), Log: evidence.Log{
			Sources: []evidence.LogSource{source(journal, true, 5*time.Hour)}}}, []says{{"host:h:h", Fail, "stopped", finding.Warning}}},
		{"dead, shut down in order", evidence.Evidence{Kind: tree.Disk, FSs: written(0), Boots: []evidence.Boot{{End: "shutdown"}},
			Log: evidence.Log{Sources: []evidence.LogSource{source(journal, true, 5*time.Hour)}}}, []says{{"host:h:h", Pass, "", ""}}},
		{"dead, both end", evidence.Evidence{Kind: tree.Disk, FSs: written(5 * time.Hour), DisksChanged: noon.Add(-5 * time.Hour),
			Log: evidence.Log{Sources: []evidence.LogSource{source(journal, true, 5*time.Hour)}}}, []says{{"host:h:h", Pass, "", ""}}},
		{"dead, only the image is newer", evidence.Evidence{Kind: tree.Disk, FSs: written(5 * time.Hour), DisksChanged: noon,
			Log: evidence.Log{Sources: []evidence.LogSource{source(journal, true, 5*time.Hour)}}},
			[]says{{"host:h:h", Fail, "stopped", finding.Note}}},
		{"a copy without more", evidence.Evidence{Kind: tree.Directory, Log: evidence.Log{
			Sources: []evidence.LogSource{source(journal, true, 5*time.Hour)}}}, []says{{"host:h:h", Unknown, "", ""}}},
		{"no log could be read", evidence.Evidence{Gaps: []evidence.Gap{{Part: evidence.PartLog, Reason: "no"}}},
			[]says{{"host:h:h", Unknown, "", ""}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := tt.e
			for i := range e.Mounts {
				e.Mounts[i].Point = "/"
			}
			ask(t, ruleFS07(), &e, tt.want...)
		})
	}
}

// course makes boots one after the other, a minute apart: "10s shutdown a.service".
func course(list ...string) []evidence.Boot {
	var out []evidence.Boot
	at := noon.Add(-48 * time.Hour)
	for i, s := range list {
		f := strings.Fields(s)
		d, _ := time.ParseDuration(f[0])
		b := evidence.Boot{ID: string(rune('a' + i)), Began: at, Last: at.Add(d), End: f[1]}
		if len(f) > 2 {
			b.LastUnit = f[2]
		}
		out = append(out, b)
		at = b.Last.Add(time.Minute)
	}
	return out
}

func TestTM08(t *testing.T) {
	again := "20s shutdown daily_reboot.service"
	host := "host:h:h"
	tests := []struct {
		name  string
		boots []evidence.Boot
		want  says
		unit  string
	}{
		{"one long", course("30h running"), says{host, Pass, "", ""}, ""},
		{"two short", course("30h shutdown", again, again), says{host, Pass, "", ""}, ""},
		{"three short", course("30h shutdown", again, again, again), says{host, Fail, "restarts", finding.Danger}, "daily_reboot.service"},
		{"and runs since", course(again, again, again, "1h running"), says{host, Fail, "restarts", finding.Note}, "daily_reboot.service"},
		{"different units", course("20s shutdown a", "20s shutdown b", "20s shutdown c"),
			says{host, Fail, "restarts", finding.Danger}, ""},
		{"panics", course("20s panic", "20s panic", "20s panic"), says{host, Fail, "panics", finding.Danger}, ""},
		{"cuts", course("20s cut x", "20s cut x", "20s cut x"), says{host, Fail, "cuts", finding.Danger}, ""},
		{"a day apart", daysBetween(course(again, again, again)), says{host, Pass, "", ""}, ""},
		{"started just now", course("20s running"), says{host, Unknown, "", ""}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := &evidence.Evidence{Boots: tt.boots}
			ask(t, ruleTM08(), e, tt.want)
			for _, r := range ruleTM08().Judge(e) {
				if r.Finding == nil {
					continue
				}
				unit := ""
				if len(r.Finding.Affects) > 0 {
					unit = r.Finding.Affects[0].Name
				}
				if unit != tt.unit || (unit != "") != strings.Contains(r.Finding.Remedies[0].Text, "systemd.mask="+unit) {
					t.Errorf("affects %q, remedy %q, want the unit %q", unit, r.Finding.Remedies[0].Text, tt.unit)
				}
			}
		})
	}
	ask(t, ruleTM08(), &evidence.Evidence{Gaps: []evidence.Gap{{Part: evidence.PartBoots, Reason: "no"}}}, says{host, Unknown, "", ""})
	e := &evidence.Evidence{Boots: course("20s running"), Log: evidence.Log{From: noon.Add(-1000 * time.Hour)}}
	ask(t, ruleTM08(), e, says{host, Pass, "", ""})
}

// daysBetween moves boots a day from each other.
func daysBetween(boots []evidence.Boot) []evidence.Boot {
	for i := range boots {
		d := time.Duration(i) * 24 * time.Hour
		boots[i].Began, boots[i].Last = boots[i].Began.Add(d), boots[i].Last.Add(d)
	}
	return boots
}

func TestTM09(t *testing.T) {
	boot := func(jumps ...evidence.Jump) []evidence.Boot {
		return []evidence.Boot{{ID: "a", Began: noon.Add(-time.Hour), Last: noon, Jumps: jumps}}
	}
	jump := func(after, by time.Duration) evidence.Jump {
		return evidence.Jump{At: noon.Add(-time.Hour + after + by), By: by}
	}
	asleep := jump(30*time.Minute, 8*time.Hour)
	asleep.Asleep = true
	chrony := event("clock.step", time.Minute, map[string]string{"seconds": "-32400.5"})
	foreign := chrony
	foreign.Host = "other"
	small := event("clock.step", time.Minute, map[string]string{"seconds": "0.5"})
	tests := []struct {
		name   string
		boots  []evidence.Boot
		events []evidence.Event
		want   []says
	}{
		{"none", boot(), nil, []says{{"host:h:h", Pass, "", ""}}},
		{"small", boot(jump(30*time.Minute, 30*time.Second)), []evidence.Event{small}, []says{{"host:h:h", Pass, "", ""}}},
		{"back", boot(jump(30*time.Minute, -2*time.Minute)), nil, []says{{"host:h:h", Fail, "step", finding.Warning}}},
		{"forward", boot(jump(30*time.Minute, 2*time.Minute)), nil, []says{{"host:h:h", Fail, "step", finding.Warning}}},
		{"learns the time", boot(jump(time.Minute, 2*time.Minute)), nil, []says{{"host:h:h", Fail, "step", finding.Note}}},
		{"nine hours at the start", boot(jump(time.Minute, 9*time.Hour)), nil, []says{{"host:h:h", Fail, "step", finding.Warning}}},
		{"asleep", boot(asleep), nil, []says{{"host:h:h", Pass, "", ""}}},
		{"chrony says so", nil, []evidence.Event{chrony}, []says{{"host:h:h", Fail, "step", finding.Warning}}},
		{"another machine says so", boot(), []evidence.Event{foreign}, []says{{"host:h:h", Pass, "", ""}}},
		{"no journal", nil, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ask(t, ruleTM09(), &evidence.Evidence{Boots: tt.boots, Log: evidence.Log{Events: tt.events}}, tt.want...)
		})
	}
}

// gathered is the evidence of a copy of a machine with that journal.
func gathered(t *testing.T, c *journaltest.Course, files map[string]string) *evidence.Evidence {
	t.Helper()
	testenv.Need(t, journaltest.Remote)
	root := t.TempDir()
	if _, err := c.Keep(t.Context(), filepath.Join(root, "var/log/journal")); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := tree.OpenDirectory(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	e, err := evidence.Gather(t.Context(), dir, evidence.Options{Now: c.At, Label: "h"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func newCourse() *journaltest.Course { return &journaltest.Course{At: noon.Add(-72 * time.Hour)} }

func TestChurnIsSeen(t *testing.T) {
	c := newCourse()
	c.Start()
	c.Say(30*time.Hour, "cron", "x")
	c.Churn(5)
	e := gathered(t, c, nil)
	got := ruleTM08().Judge(e)
	if len(got) != 1 || got[0].Finding == nil || got[0].Finding.Kind != "restarts" || len(got[0].Finding.Evidence) != 5 ||
		got[0].Finding.Affects[0].Name != "daily_reboot.service" {
		t.Errorf("TM08 says %+v, want five restarts by daily_reboot.service", got)
	}
	c = newCourse()
	c.Churn(2)
	if got := ruleTM08().Judge(gathered(t, c, nil)); len(got) != 1 || got[0].Outcome != Pass {
		t.Errorf("TM08 says %+v of two restarts, want a pass", got)
	}
}

// TestChurnWithAWrongClockIsSeen: the clock is nine hours slow at each start and put right then, and a
// timer restarts the machine for that.
func TestChurnWithAWrongClockIsSeen(t *testing.T) {
	c := newCourse()
	for range 4 {
		c.Start()
		c.Say(3*time.Second, "systemd", "Started cron.service - Cron.", "UNIT=cron.service", "_PID=1")
		c.At, c.Skew = c.At.Add(9*time.Hour), 9*time.Hour
		c.Say(time.Second, "systemd", "Starting daily_reboot.service - Reboot...", "UNIT=daily_reboot.service", "_PID=1")
		c.Say(0, "systemd-logind", "System is rebooting.")
		c.Say(0, "systemd-journald", "Journal stopped")
		c.At = c.At.Add(-9*time.Hour + 5*time.Second)
	}
	e := gathered(t, c, nil)
	if got := ruleTM08().Judge(e); len(got) != 1 || got[0].Finding == nil || got[0].Finding.Kind != "restarts" {
		t.Errorf("TM08 says %+v of %+v", got, e.Boots)
	}
	if got := ruleTM09().Judge(e); len(got) != 1 || got[0].Finding == nil || got[0].Finding.Severity != finding.Warning {
		t.Errorf("TM09 says %+v", got)
	}
}

func TestJumpsAreSeen(t *testing.T) {
	c := newCourse()
	c.Start()
	c.Say(time.Hour, "cron", "x")
	c.At, c.Skew = c.At.Add(-9*time.Hour), -9*time.Hour
	c.Say(time.Minute, "cron", "y")
	got := ruleTM09().Judge(gathered(t, c, nil))
	if len(got) != 1 || got[0].Finding == nil || !strings.Contains(got[0].Finding.Summary, "9 hours back") {
		t.Errorf("TM09 says %+v, want nine hours back", got)
	}
	c = newCourse()
	c.Start()
	c.Say(time.Hour, "kernel", "PM: suspend entry (deep)")
	c.At, c.Skew = c.At.Add(9*time.Hour), 9*time.Hour
	c.Say(time.Second, "kernel", "PM: suspend exit")
	if got := ruleTM09().Judge(gathered(t, c, nil)); len(got) != 1 || got[0].Outcome != Pass {
		t.Errorf("TM09 says %+v of a machine that slept, want a pass", got)
	}
}

func TestLogThatStoppedIsSeen(t *testing.T) {
	c := newCourse()
	c.Start()
	began := c.At
	c.Say(time.Hour, "cron", "x")
	files := map[string]string{
		"proc/stat": fmt.Sprintf("btime %d\n", began.Unix()),
		"dev/kmsg":  "3,9,86400000000,-;EXT4-fs (vda1): Remounting filesystem read-only\n",
	}
	e := gathered(t, c, files)
	e.Kind = tree.Bundle // of a machine that ran
	got := ruleFS07().Judge(e)
	if len(got) != 1 || got[0].Finding == nil || !strings.Contains(got[0].Finding.Summary, "ends 23 hours before") {
		t.Errorf("FS07 says %+v, want a log that ends 23 hours before", got)
	}
}
