// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/lab/nspawn"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// foretoldTimers is what is told of a world's timers before it was ever booted.
func foretoldTimers(t *testing.T, root *nspawn.Root, w nspawn.World) *Timers {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "before")
	if err := root.Write(t.Context(), w, dir); err != nil {
		t.Fatal(err)
	}
	return &ExamineTimers([]*evidence.Evidence{gatherAt(t, dir)}).Machines[0]
}

// randomTimer makes a machine with a timer that restarts it. Nothing of it comes within an hour of now but what is
// caught up or counts from the start, so that the verdict does not depend on how busy the test machine is.
func randomTimer(r *rand.Rand, now time.Time) (w nspawn.World, text string) {
	pick := func(all ...string) string { return all[r.IntN(len(all))] }
	in := time.Duration(1+r.IntN(22)) * time.Hour
	day := now.UTC().Add(in)
	hour, short := day.Format("15:04:05"), day.Format("15:04")
	calendar := "OnCalendar=" + pick("*-*-* "+hour, short, "Mon..Sun *-*-* "+hour+" UTC", "2020-1-1 03:30",
		day.AddDate(0, 0, -30).Format("2006-01-02 ")+hour, "Mon,Tue,Wed..Sun "+short, "*-*-01/1 "+hour, "Fri..Mon 03:30\nOnCalendar="+hour,
		short+"\nOnCalendar=\nOnCalendar=*-*-1..31 "+hour, day.Format("Mon ")+hour)
	lines := []string{"[Timer]", "AccuracySec=1us"}
	if r.IntN(7) > 0 {
		lines = append(lines, calendar)
	}
	if r.IntN(4) == 0 {
		lines = append(lines, pick("OnBootSec=0", "OnBootSec=1h", "OnStartupSec=2h", "OnActiveSec=1h", "OnActiveSec=0", "OnActiveSec=\nOnBootSec=3h"))
	}
	if len(lines) == 2 {
		lines = append(lines, "OnActiveSec=2h")
	}
	lines = append(lines, "Persistent="+pick("yes", "yes", "yes", "yes", "yes", "yes", "no"), pick("", "", "RandomizedDelaySec=1s"))
	w = nspawn.World{Files: files(does, strings.Join(lines, "\n")), Enable: []string{"nightly.timer"}}
	age := []time.Duration{0, time.Minute, -26 * time.Hour, 26 * time.Hour, 75 * time.Hour, 9 * 24 * time.Hour, 400 * 24 * time.Hour}[max(r.IntN(7), r.IntN(7))]
	if age != 0 {
		with(w.Files, age)
	}
	switch r.IntN(3) {
	case 0:
		w.ReadOnly = []string{stamps}
		w.Files["/etc/fstab"] = nspawn.File{Text: "/dev/vda2 " + stamps + " ext4 ro 0 2\n"}
	case 1:
		w.Forgets = true
		w.Files["/boot/grub/grub.cfg"] = nspawn.File{Text: "linux /vmlinuz root=/dev/vda1 systemd.volatile=overlay\n"}
	}
	return w, fmt.Sprintf("%s; stamp %v old, read-only %v, forgets %v", strings.Join(lines, " "), age, w.ReadOnly, w.Forgets)
}

// TestTimersAgainstSystemd holds the verdict on random timers, from their files alone, against what systemd does with
// them: whether it restarts the machine never, once, or again and again.
func TestTimersAgainstSystemd(t *testing.T) {
	root := newRoot(t)
	r := rand.New(rand.NewPCG(3, uint64(testenv.Rounds(1, 2, 3))))
	for n := range testenv.Rounds(3, 12, 150) {
		w, text := randomTimer(r, time.Now())
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			t.Parallel()
			againstSystemd(t, root, w, text)
		})
	}
}

// againstSystemd holds the verdict on a world against what systemd does with it.
func againstSystemd(t *testing.T, root *nspawn.Root, w nspawn.World, text string) {
	m := foretoldTimers(t, root, w)
	if len(m.NotLookedAt) > 0 || len(m.Timers) == 0 || m.Timers[0].Unit != "nightly.timer" {
		t.Fatalf("%s: %+v, not looked at %+v", text, m.Timers, m.NotLookedAt)
	}
	x := &m.Timers[0]
	want := map[Danger]string{TimerLoops: "rrr", TimerSurprise: "rs", TimerActs: "s"}[x.Danger]
	if x.Danger == TimerLoops && x.Runs[0].Begins.Sub(m.Start) > time.Hour/2 {
		want = "s" // it is not yet so far
	}
	o, err := root.Boot(t.Context(), w, nspawn.Limits{Boots: 3, Hold: 3 * time.Second, Wall: 20 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}()
	got := ""
	for _, b := range o.Boots {
		got += b.End[:1]
	}
	t.Logf("%s: %s: systemd ends its boots %q", text, x.Danger, got)
	if got != want {
		t.Errorf("%s: systemd ends its boots %q, want %q for %s: %s", text, got, want, x.Danger, strings.Join(x.Says, "; "))
	}
}

// TestNextTimesOfALiveMachine holds the next times of timers, from files, against those that systemd has where it runs.
func TestNextTimesOfALiveMachine(t *testing.T) {
	root := newRoot(t)
	now := time.Now().UTC()
	far := func(in time.Duration) string { return now.Add(in).Format("15:04:05") }
	all := map[string]string{
		"a": "OnCalendar=" + far(5*time.Hour), "b": "OnCalendar=Mon *-*-1..7 " + far(7*time.Hour), "c": "OnCalendar=*-*~04/3 04:10:15",
		"d": "OnCalendar=quarterly\nPersistent=yes", "e": "OnCalendar=2031-02-29 12:00\nOnCalendar=2032-02-29 12:00",
		"f": "OnCalendar=" + far(3*time.Hour) + "\nOnCalendar=" + far(2*time.Hour) + "\nAccuracySec=1h", "g": "OnCalendar=@4102444800",
		"h": "OnCalendar=Sat,Sun 18:30:00 UTC\nOnCalendar=\nOnCalendar=Wed 06:30", "i": "OnCalendar=Thu 03:30 Europe/Berlin",
	}
	zone := func(name string) nspawn.File {
		text, err := os.ReadFile("/usr/share/zoneinfo/" + name)
		if err != nil {
			testenv.Lacks(t, "the zones of tzdata")
		}
		return nspawn.File{Text: string(text)}
	}
	w := nspawn.World{Files: map[string]nspawn.File{
		"/etc/localtime": zone("Asia/Tokyo"), "/usr/share/zoneinfo/Europe/Berlin": zone("Europe/Berlin"),
		"/etc/systemd/system/ask.service": {Text: "[Unit]\nAfter=timers.target\n[Service]\nType=oneshot\nStandardOutput=file:/var/log/timers\n" +
			"Environment=TZ=UTC\nExecStart=/bin/systemctl show -p Id,NextElapseUSecRealtime,LastTriggerUSec *.timer\n[Install]\nWantedBy=multi-user.target\n"}},
		Enable: []string{"ask.service"}}
	for name, text := range all {
		w.Files["/etc/systemd/system/"+name+".timer"] = nspawn.File{Text: "[Timer]\n" + text + "\n[Install]\nWantedBy=timers.target\n"}
		w.Files["/etc/systemd/system/"+name+".service"] = nspawn.File{Text: "[Service]\nType=oneshot\nExecStart=/bin/true\n"}
		w.Enable = append(w.Enable, name+".timer")
	}
	m := foretoldTimers(t, root, w)
	o, err := root.Boot(t.Context(), w, nspawn.Limits{Boots: 1, Hold: 3 * time.Second, Wall: 20 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}()
	text, err := os.ReadFile(o.Path("/var/log/timers"))
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for part := range strings.SplitSeq(string(text), "\n\n") {
		values := map[string]string{}
		for line := range strings.Lines(part) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			values[key] = value
		}
		said[values["Id"]] = values["NextElapseUSecRealtime"]
	}
	n := 0
	for i := range m.Timers {
		x := &m.Timers[i]
		if _, ours := all[strings.TrimSuffix(x.Unit, ".timer")]; !ours {
			continue
		}
		n++
		got := ""
		if len(x.Next) > 0 {
			got = x.Next[0].UTC().Format("Mon 2006-01-02 15:04:05 UTC")
		}
		if got == "" || got != said[x.Unit] {
			t.Errorf("%s (%v) is next at %q, systemd says %q", x.Unit, x.Settings, got, said[x.Unit])
		}
	}
	if n != len(all) {
		t.Errorf("%d timers of %d were seen; systemd says %v", n, len(all), said)
	}
}
