// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"errors"
	"io/fs"
	"maps"
	"strconv"
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/cut"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/vault"
)

// fakeSettings is a kernel with settings. most is the largest value that it takes, 0 for any; fail has a
// write fail.
type fakeSettings struct {
	values map[string]string
	most   string
	fail   error
	// after runs before each write.
	before func()
}

func (f *fakeSettings) ReadSetting(path string) (string, error) {
	v, there := f.values[path]
	if !there {
		return "", fs.ErrNotExist
	}
	return v, nil
}

func (f *fakeSettings) WriteSetting(path, value string) error {
	if f.before != nil {
		f.before()
	}
	switch {
	case f.fail != nil:
		return f.fail
	case f.most != "":
		value = f.most
	}
	f.values[path] = value
	return nil
}

const (
	sdaTimeout = "/sys/devices/pci0000:00/0000:03:00.0/host2/target2:0:0/2:0:0:0/timeout"
	sdbTimeout = "/sys/devices/pci0000:00/0000:03:00.0/host2/target2:0:1/2:0:1:0/timeout"
)

// liveWorld is a disk, a kernel, and a plan of a rule with two settings.
func liveWorld(t *testing.T) (*cut.Disk, *fakeSettings, *plan.Texts, Options) {
	t.Helper()
	d := cut.New(t.Context())
	d.Put(confPath, []byte("old\n"))
	k := &fakeSettings{values: map[string]string{sdaTimeout: "30", sdbTimeout: "180"}}
	o := options(d)
	o.Settings = k
	p := &plan.Texts{Tool: "test", Why: "wait longer", Files: []plan.Text{{Path: confPath, Mode: "0644", Content: "new\n"}},
		Live: []plan.Live{{Path: sdaTimeout, What: "timeout of sda", Value: "300"}, {Path: sdbTimeout, What: "timeout of sdb",
			Value: "300"}}, Costs: []string{"who writes waits longer"}}
	if err := DraftTexts(t.Context(), p, o); err != nil {
		t.Fatal(err)
	}
	return d, k, p, o
}

// liveIs holds the file and both settings against what they should be.
func liveIs(t *testing.T, d *cut.Disk, k *fakeSettings, what, file, sda, sdb string) {
	t.Helper()
	got, _ := d.Get(confPath)
	if string(got) != file || k.values[sdaTimeout] != sda || k.values[sdbTimeout] != sdb {
		t.Errorf("%s: the file holds %q, the settings are %q and %q; want %q, %q and %q", what, got, k.values[sdaTimeout],
			k.values[sdbTimeout], file, sda, sdb)
	}
}

func TestLiveApplyAndUndo(t *testing.T) {
	d, k, p, o := liveWorld(t)
	if p.Live[0].Before != "30" || p.Live[1].Before != "180" {
		t.Fatalf("the plan says that the values are %q and %q", p.Live[0].Before, p.Live[1].Before)
	}
	r, err := ApplyTexts(t.Context(), p, o)
	if err != nil || r.State != vault.Committed {
		t.Fatalf("apply: %v", err)
	}
	liveIs(t, d, k, "applied", "new\n", "300", "300")
	delete(k.values, sdbTimeout) // its disk was taken out meanwhile
	if r, err = UndoTexts(t.Context(), r.ID, o); err != nil || r.State != vault.Undone {
		t.Fatalf("undo: %v", err)
	}
	liveIs(t, d, k, "undone", "old\n", "30", "")
}

// TestLiveStartedAnew: after a start without the setting in force the undo takes the file back all the same.
func TestLiveStartedAnew(t *testing.T) {
	d, k, p, o := liveWorld(t)
	r, err := ApplyTexts(t.Context(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	k.values[sdaTimeout], k.values[sdbTimeout] = "30", "180"
	if _, err := UndoTexts(t.Context(), r.ID, o); err != nil {
		t.Fatal(err)
	}
	liveIs(t, d, k, "undone", "old\n", "30", "180")
}

// TestLiveRefused: values that somebody else has set are left alone.
func TestLiveRefused(t *testing.T) {
	d, k, p, o := liveWorld(t)
	k.values[sdaTimeout] = "60"
	if _, err := ApplyTexts(t.Context(), p, o); !errors.Is(err, ErrChanged) {
		t.Errorf("apply where a value was changed: %v, want ErrChanged", err)
	}
	liveIs(t, d, k, "refused", "old\n", "60", "180")
	k.values[sdaTimeout] = "30"
	r, err := ApplyTexts(t.Context(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	k.values[sdbTimeout] = "900"
	if _, err := UndoTexts(t.Context(), r.ID, o); !errors.Is(err, ErrChanged) {
		t.Errorf("undo where a value was changed: %v, want ErrChanged", err)
	}
	liveIs(t, d, k, "not undone", "new\n", "300", "900")
}

// TestLiveRolledBack: a kernel that does not take the value has everything taken back.
func TestLiveRolledBack(t *testing.T) {
	for name, spoil := range map[string]func(*fakeSettings){
		"it fails": func(k *fakeSettings) { k.fail = errors.New("invalid argument") },
		"the second fails": func(k *fakeSettings) {
			n := 0
			k.before = func() {
				k.fail = nil
				if n++; n == 2 {
					k.fail = errors.New("invalid argument")
				}
			}
		},
	} {
		d, k, p, o := liveWorld(t)
		spoil(k)
		r, err := ApplyTexts(t.Context(), p, o)
		if !errors.Is(err, ErrRolledBack) || r == nil || r.State != vault.RolledBack {
			t.Errorf("%s: %v, want that it is rolled back", name, err)
		}
		liveIs(t, d, k, name, "old\n", "30", "180")
	}
	// One that takes another value than it was given.
	d, k, p, o := liveWorld(t)
	k.most = "120"
	if _, err := ApplyTexts(t.Context(), p, o); err == nil {
		t.Error("a value that the kernel did not take passes for set")
	}
	if got, _ := d.Get(confPath); string(got) == "" || k.values[sdbTimeout] != "180" {
		t.Errorf("the file holds %q, sdb is %s", got, k.values[sdbTimeout])
	}
}

// TestLivePlans: a plan may set the known settings to numbers, and nothing else.
func TestLivePlans(t *testing.T) {
	for name, change := range map[string]func(*plan.Live){
		"another file":  func(l *plan.Live) { l.Path = "/sys/devices/x/power/control" },
		"not in sysfs":  func(l *plan.Live) { l.Path = "/etc/timeout" },
		"not clean":     func(l *plan.Live) { l.Path = "/sys/devices/../kernel/timeout" },
		"no number":     func(l *plan.Live) { l.Value = "-1" },
		"two lines":     func(l *plan.Live) { l.What = "a\nb" },
		"nothing":       func(l *plan.Live) { l.Value = "" },
		"set twice":     func(l *plan.Live) { l.Path = sdbTimeout },
		"a huge number": func(l *plan.Live) { l.Value = "123456789012345678901" },
	} {
		_, _, p, _ := liveWorld(t)
		change(&p.Live[0])
		if err := p.Validate(); !errors.Is(err, plan.ErrNotPlan) {
			t.Errorf("%s: %v, want ErrNotPlan", name, err)
		}
	}
}

// TestLiveCrash cuts the change off after every operation on the disk: by a power cut, after which the rule alone decides
// about the values, and by the end of the program, after which the kernel has what was set. Recovery brings both halves to the
// same side.
func TestLiveCrash(t *testing.T) {
	states := 0
	for n := 0; ; n++ {
		d, k, p, o := liveWorld(t)
		fault(t, d, "crash after op "+strconv.Itoa(n))
		_, err := ApplyTexts(t.Context(), p, o)
		if err == nil {
			break
		}
		if !errors.Is(err, cut.ErrCut) {
			t.Fatalf("cut after %d: %v", n, err)
		}
		for _, started := range []bool{false, true} {
			for s := range d.Some(uint64(n), 4) {
				states++
				values := maps.Clone(k.values)
				if got, _ := s.Get(confPath); started && string(got) == "new\n" {
					values = map[string]string{sdaTimeout: "300", sdbTimeout: "300"}
				} else if started {
					values = map[string]string{sdaTimeout: "30", sdbTimeout: "180"}
				}
				own := options(s)
				now := &fakeSettings{values: values}
				own.Settings = now
				if _, err := Recover(t.Context(), "", own); err != nil {
					t.Errorf("recover after %d: %v", n, err)
				}
				if got, _ := s.Get(confPath); string(got) == "new\n" {
					liveIs(t, s, now, "after "+strconv.Itoa(n), "new\n", "300", "300")
				} else {
					liveIs(t, s, now, "after "+strconv.Itoa(n), "old\n", "30", "180")
				}
			}
		}
	}
	if states < 50 {
		t.Errorf("%d states, want more", states)
	}
}
