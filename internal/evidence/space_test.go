// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSpaceSeries: one point every ten minutes is kept, a file for each month, and what is older than two weeks is
// not used any more.
func TestSpaceSeries(t *testing.T) {
	dir := t.TempDir()
	begin := time.Date(2026, 1, 31, 23, 45, 0, 0, time.UTC)
	s, err := RecallSpaces(dir, begin)
	if err != nil || s.Points == nil || len(s.Points) != 0 {
		t.Fatalf("without a file: %+v, %v", s, err)
	}
	point := func(after time.Duration) SpacePoint {
		return SpacePoint{Time: begin.Add(after), Of: []Space{{Key: "u", Free: 1, Size: 2}}}
	}
	var kept []int
	for i, after := range []time.Duration{0, time.Minute, KeepEvery, 2 * KeepEvery, 2*KeepEvery + time.Minute} {
		is, err := s.Keep(point(after))
		if err != nil {
			t.Fatal(err)
		}
		if is {
			kept = append(kept, i)
		}
	}
	if is, err := s.Keep(SpacePoint{Time: begin.Add(time.Hour)}); is || err != nil {
		t.Errorf("a point of nothing was kept: %t, %v", is, err)
	}
	if want := []int{0, 2, 3}; !slices.Equal(kept, want) {
		t.Errorf("kept points %v, want %v", kept, want)
	}
	for name, want := range map[string]int{"space-2026-01.jsonl": 2, "space-2026-02.jsonl": 1} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if got := strings.Count(string(text), "\n"); err != nil || got != want {
			t.Errorf("%s has %d lines, %v, want %d", name, got, err, want)
		}
	}
	again, err := RecallSpaces(dir, begin.Add(2*KeepEvery))
	if err != nil || len(again.Points) != 3 {
		t.Errorf("read again: %+v, %v; want three", again, err)
	}
	if again, err = RecallSpaces(dir, begin.Add(SpaceKept+KeepEvery)); err != nil || len(again.Points) != 2 {
		t.Errorf("two weeks later: %+v, %v; want two", again, err)
	}
	if _, bad := ParseSpaces([]byte("no point\n{\"time\":\"2026-01-01T00:00:00Z\",\"of\":[]}\n{\"time\":")); bad != 1 {
		t.Errorf("ParseSpaces counts %d bad lines, want 1: the last one is being written", bad)
	}
}

// TestSpacesOfATree holds that remembered points are found in a copy, and what is no point is told.
func TestSpacesOfATree(t *testing.T) {
	line := `{"time":"2023-11-14T22:00:00Z","of":[{"key":"u","free":1,"size":2,"inodes_free":3,"inodes":4}]}` + "\n"
	later := `{"time":"2024-11-14T22:00:00Z","of":[]}` + "\n"
	e := gathered(t, map[string]string{"var/lib/shisa/space-2023-11.jsonl": line + later + "no point\n"}) // now is 22:13:20
	if len(e.Spaces) != 1 || e.Spaces[0].Of[0] != (Space{"u", 1, 2, 3, 4}) {
		t.Errorf("remembered %+v, want the one point that is of before now", e.Spaces)
	}
	if !slices.ContainsFunc(e.Gaps, func(g Gap) bool { return strings.Contains(g.Reason, "1 lines are no points") }) {
		t.Errorf("the line that is none is not told: %+v", e.Gaps)
	}
}
