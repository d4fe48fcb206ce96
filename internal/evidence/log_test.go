// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// ofFiles gathers the evidence of a copy of a machine.
func ofFiles(t *testing.T, files map[string]string) *Evidence {
	t.Helper()
	root := t.TempDir()
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
	e, err := Gather(t.Context(), dir, Options{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// now is the time of a line of a syslog.
func now() string { return time.Now().UTC().Format("Jan _2 15:04:05") }

func TestLogOfACopy(t *testing.T) {
	e := ofFiles(t, map[string]string{
		"etc/hostname": "h\n",
		"var/log/syslog": now() + " h.example kernel: EXT4-fs (sda1): Remounting filesystem read-only\n" +
			now() + " other kernel: EXT4-fs (sdb1): Remounting filesystem read-only\n" +
			now() + " h rsync: write failed: No space left on device (28)\n",
	})
	var got []string
	for i := range e.Log.Events {
		x := &e.Log.Events[i]
		got = append(got, fmt.Sprintf("%s %s %s %d", x.Form, x.Host, x.Fields["program"], x.From.Line))
	}
	if want := "ext4.ro   1\next4.ro other  2\nerrno.enospc  rsync 3"; strings.Join(got, "\n") != want {
		t.Errorf("events:\n%s\nwant:\n%s", strings.Join(got, "\n"), want)
	}
	if d := e.Log.Devices("ext4.ro"); len(d) != 1 || d[0] != "sda1" {
		t.Errorf("devices %v: those of another machine are none of this one", d)
	}
	if len(e.Log.Of("sdb1", "ext4.ro")) != 0 || len(e.Log.Of("sda1", "ext4.ro")) != 1 {
		t.Error("what another machine said is given for this one, or what it said is not")
	}
	if why, known := e.Known(PartBoots); known || why == "" {
		t.Errorf("boots are known: %+v", e.Boots)
	}
}

func TestDamagedLogIsAGap(t *testing.T) {
	e := ofFiles(t, map[string]string{"var/log/syslog": now() + " h cron: x\n",
		"var/log/kern.log.2.gz": "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x00"})
	if why, whole := e.Whole(PartLog); whole || !strings.Contains(why, "kern.log.2.gz") {
		t.Errorf("log whole = %v, %q", whole, why)
	}
}

func TestNoLogIsAGap(t *testing.T) {
	e := ofFiles(t, map[string]string{"etc/hostname": "h\n"})
	if why, known := e.Known(PartLog); known || !strings.Contains(why, "neither a journal nor") {
		t.Errorf("log known = %v, %q", known, why)
	}
}

// TestEmptyLogIsAGap: where logs were emptied nobody knows what they said, so no rule passes by them.
func TestEmptyLogIsAGap(t *testing.T) {
	for text, known := range map[string]bool{"": false, strings.Repeat("\x00", 300_000): false,
		now() + " h x: hello\n": true} {
		e := ofFiles(t, map[string]string{"etc/hostname": "h\n", "var/log/syslog": text, "var/log/kern.log": ""})
		if why, got := e.Known(PartLog); got != known {
			t.Errorf("Known of %q = %q, %v, want %v; sources %v", text, why, got, known, e.Log.Sources)
		}
	}
}

func TestHungSilent(t *testing.T) {
	hung := func(n int64, boot string) Event { return Event{Form: "hung.task", Count: n, Boot: boot} }
	for name, tt := range map[string]struct {
		events []Event
		want   bool
	}{
		"none":               {nil, false},
		"nine":               {[]Event{hung(9, "a")}, false},
		"ten":                {[]Event{hung(4, "a"), hung(6, "a")}, true},
		"ten in two boots":   {[]Event{hung(6, "a"), hung(6, "b")}, false},
		"it said so":         {[]Event{hung(1, "a"), {Form: "hung.silent", Boot: "a"}}, true},
		"in the boot before": {[]Event{{Form: "hung.silent", Boot: "a"}, {Form: "kernel.boot", Boot: "b"}}, false},
	} {
		g := &gatherer{e: &Evidence{Log: Log{Events: tt.events}}}
		if g.hungSilent() != tt.want {
			t.Errorf("%s: silent = %v", name, !tt.want)
		}
	}
	for value, want := range map[string]bool{"0": true, "3": false, "-1": false} {
		g := &gatherer{e: &Evidence{Log: Log{Events: []Event{hung(20, "a")}}, Config: Config{Sysctl: map[string]Setting{
			"kernel.hung_task_warnings": {value, Source{Path: "/proc/sys/kernel/hung_task_warnings"}}}}}}
		if g.hungSilent() != want {
			t.Errorf("with %s left: silent = %v", value, !want)
		}
	}
}
