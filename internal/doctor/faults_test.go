// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	mounts "github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// ours are the rules that are held against real faults here.
const ours = "FS01 FS02 FS03 FS04 FS05 FS08 NF01 PR01"

// verdict is what is found in a world, above a note, as "CODE kind": of the machine that has it, and of a
// copy of its disk. May is what is found as well where the kernel came to it.
// Clean is a file system that nobody was writing to.
type verdict struct {
	live, may, copied []string
	clean             bool
}

func verdicts() map[string]verdict {
	const gaveUp, noted, file = "FS01 gave-up", "FS05 errors-noted", "FS04 content"
	return map[string]verdict{
		"ext4-journal-eio":     {live: []string{gaveUp, noted}, copied: []string{noted}},
		"ext4-disk-eio":        {live: []string{gaveUp, noted}, may: []string{file}},
		"ext4-error-logical":   {live: []string{gaveUp, noted}, copied: []string{gaveUp, noted}},
		"ext4-data-eio":        {live: []string{file}},
		"ext4-shutdown":        {live: []string{"FS01 shut-down"}},
		"ext4-errors-continue": {live: []string{"FS01 errors", noted}},
		"xfs-log-eio":          {live: []string{"FS02 shut-down"}},
		"xfs-goingdown":        {live: []string{"FS02 by-hand"}},
		"xfs-writeback-eio":    {live: []string{file}},
		"btrfs-abort":          {live: []string{"FS03 forced-ro", noted}},
		"btrfs-read-eio":       {live: []string{noted}},
		"btrfs-corrupt":        {live: []string{file, noted}},
		"ext4-full":            {live: []string{"FS08 full"}},
		"ext4-reserved-only":   {live: []string{"FS08 reserved"}},
		"ext4-inodes-full":     {live: []string{"FS08 inodes"}},
		"enospc-under":         {live: []string{file}},
		"enospc-journal":       {live: []string{gaveUp, noted}, copied: []string{noted}},
		"ext4-read-only":       {clean: true},
		"delay":                {},
		"frozen-writer":        {live: []string{"PR01 waits"}},
		"dead-fuse":            {live: []string{"NF01 gone"}},
		"hang-writer":          {live: []string{"NF01 device", "PR01 waits"}},
		"stuck-fuse":           {live: []string{"NF01 fuse", "PR01 waits", "PR01 waits"}},
		// It answers some looks, and no reads.
		"stuck-fuse-killed": {live: []string{"PR01 waits"}, may: []string{"NF01 fuse"}},
		"many-mounts":       {live: []string{"NF01 fuse"}},
		"autofs-trap":       {},
		"healthy":           {},
	}
}

// TestFaults makes real faults, and holds what the rules say of them: of each what it is, and no more.
func TestFaults(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs")
	want := verdicts()
	for _, s := range faultfs.Scenarios() {
		t.Run(s.Name, func(t *testing.T) {
			dir, before := t.TempDir(), hurtBefore(t)
			w, err := faultfs.Make(t.Context(), s.Name, dir)
			if errors.Is(err, faultfs.ErrUnavailable) {
				testenv.Lacks(t, err.Error())
			} else if err != nil {
				t.Fatal(err)
			}
			asker := &mounts.Asker{}
			t.Cleanup(func() {
				if err := w.Close(); err != nil {
					t.Error(err)
				}
				reaped(t, asker)
			})
			x, known := want[s.Name]
			if !known {
				t.Fatalf("nothing is said of what is to be found in %s", s.Name)
			}
			if w.Hurt != nil && !w.Hangs {
				judgeCopy(t, w, x)
			}
			judgeLive(t, w, asker, x, before)
		})
	}
}

// hurtBefore counts what the kernel said of files until now.
func hurtBefore(t *testing.T) map[string]int64 {
	t.Helper()
	l, err := tree.OpenLive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e, err := evidence.Gather(t.Context(), l, evidence.Options{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return hurtCount(e)
}

func hurtCount(e *evidence.Evidence) map[string]int64 {
	count := map[string]int64{}
	for i := range e.Log.Events {
		count[hurtKey(&e.Log.Events[i])] += e.Log.Events[i].Count
	}
	return count
}

func hurtKey(ev *evidence.Event) string {
	return ev.Form + " " + ev.Fields["device"] + " " + ev.Fields["inode"]
}

// reaped waits until no child is left that asked a mount.
func reaped(t *testing.T, a *mounts.Asker) {
	t.Helper()
	for until := time.Now().Add(5 * time.Minute); a.Left() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("children that asked mounts do not end")
		}
	}
}

// liveEvidence asks this machine and gathers.
func liveEvidence(t *testing.T, a *mounts.Asker, write bool) *evidence.Evidence {
	t.Helper()
	l, err := tree.OpenLive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	now := time.Now()
	files, err := evidence.Probe(t.Context(), l, evidence.ProbeOptions{Now: now, Asker: a, Write: write,
		Between: 300 * time.Millisecond, Patience: mounts.Options{Patience: 500 * time.Millisecond, Total: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	e, err := evidence.Gather(t.Context(), tree.Overlay(l, files), evidence.Options{Now: now, Label: "h"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// judgeLive holds what is found on the machine that has the fault.
func judgeLive(t *testing.T, w *faultfs.World, a *mounts.Asker, want verdict, before map[string]int64) {
	t.Helper()
	e := liveEvidence(t, a, false)
	// The kernel tells of some mounts only, when there are many: so what it said of a file of the world before
	// may be taken for one of this.
	now := hurtCount(e)
	e.Log.Events = slices.DeleteFunc(e.Log.Events, func(ev evidence.Event) bool {
		// Its ring is full: as many may have gone as came.
		other := ev.Fields["inode"] != "" && ev.Fields["inode"] != fmt.Sprint(w.Inode)
		return other && now[hurtKey(&ev)] == before[hurtKey(&ev)]
	})
	got, results := foundIn(e, w)
	must := slices.DeleteFunc(slices.Clone(got), func(x string) bool { return slices.Contains(want.may, x) })
	if !slices.Equal(must, want.live) {
		t.Errorf("found %q, want %q", got, want.live)
		for _, r := range results {
			t.Logf("%s %s %s %+v", r.Outcome, r.Object, r.Why, r.Finding)
		}
	}
	for _, r := range results {
		if r.Outcome == Unknown && !strings.Contains(r.Object.Name, "@") && !w.Hangs {
			t.Errorf("%s: unknown, though it can be read: %s", r.Object, r.Why)
		}
	}
	if w.Trap != nil {
		if n, err := w.Trap.Hits(); n != 0 || err != nil {
			t.Errorf("the mount point of autofs was triggered %d times, %v", n, err)
		}
	}
	for _, point := range w.Others {
		if i := slices.IndexFunc(e.Mounts, func(m evidence.Mount) bool { return m.Point == point }); i < 0 ||
			e.Mounts[i].Probe == nil || e.Mounts[i].Probe.Errno != 0 {
			t.Errorf("%s did not answer", point)
		}
	}
	if named := slices.Contains(want.live, "FS04 content"); named && !slices.ContainsFunc(results, func(r Result) bool {
		return r.Object.Kind == File && strings.HasSuffix(r.Object.Name, fmt.Sprintf(":inode %d", w.Inode))
	}) {
		t.Errorf("inode %d is not named", w.Inode)
	}
}

// foundIn gives what the rules find about a world, above a note, as "CODE kind" in order.
func foundIn(e *evidence.Evidence, w *faultfs.World) (found []string, results []Result) {
	for _, rule := range Rules() {
		if !strings.Contains(ours, rule.Code) {
			continue
		}
		for _, r := range rule.judge(e) {
			if !concernsWorld(e, w, &r) {
				continue
			}
			results = append(results, r)
			if r.Outcome == Fail && r.Finding.Severity.Rank() < finding.Note.Rank() {
				text := rule.Code + " " + r.Finding.Kind
				found = append(found, text)
			}
		}
	}
	return found, results
}

// concernsWorld tells whether a result is about what is hurt in a world. Others on this machine are not ours.
func concernsWorld(e *evidence.Evidence, w *faultfs.World, r *Result) bool {
	names := []string{}
	if w.Hurt != nil {
		names = append(names, w.Hurt.Name)
	}
	for _, d := range w.Disks {
		names = append(names, d.Name)
	}
	switch r.Object.Kind {
	case FileSystem, File:
		name, _, _ := strings.Cut(r.Object.Name, ":")
		return slices.Contains(names, name) || e.Kind == tree.Disk
	case Mount:
		return strings.HasPrefix(r.Object.Name, w.Dir+"/")
	case Task:
		return slices.ContainsFunc(w.Stuck, func(u *faultfs.User) bool {
			return strings.HasSuffix(r.Object.Name, fmt.Sprintf("[%d]", u.PID))
		})
	}
	return false
}

// judgeCopy holds what is found on a copy of the disk. That it failed is in no log there: so it is never
// told to be well.
func judgeCopy(t *testing.T, w *faultfs.World, want verdict) {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "copy.raw")
	if err := w.CopyTo(disk); err != nil {
		t.Fatal(err)
	}
	g, err := inside.Open(t.Context(), inside.Name{Disk: disk}, inside.Options{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	now := time.Now()
	s, err := inside.System(t.Context(), g, "", "guest", now)
	if err != nil {
		t.Fatal(err)
	}
	e, err := evidence.Gather(t.Context(), s, evidence.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	got, results := foundIn(e, w)
	if !slices.Equal(got, want.copied) {
		t.Errorf("found on the copy %q, want %q", got, want.copied)
	}
	if want.clean {
		return
	}
	for _, rule := range []Rule{ruleFS01(), ruleFS02()} {
		for _, r := range rule.judge(e) {
			if r.Outcome == Pass {
				t.Errorf("%s is told to be well on a copy of a disk that was not unmounted", r.Object)
			}
		}
	}
	dirty := ruleFS06()
	if len(w.Disks) > 0 && w.Hurt.Type != "btrfs" {
		r := dirty.judge(e)
		if len(r) != 1 || r[0].Finding == nil || r[0].Finding.Kind != "not-unmounted" {
			t.Errorf("of the log of the copy: %+v; %+v", r, results)
		}
	}
}
