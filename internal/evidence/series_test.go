// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// TestSeries: one point every ten minutes is kept, and found again; also after the clock went back.
func TestSeries(t *testing.T) {
	file := filepath.Join(t.TempDir(), "memory.jsonl")
	s, err := RecallSeries(filepath.Dir(file))
	if err != nil || s.Points == nil || len(s.Points) != 0 {
		t.Fatalf("without a file: %+v, %v", s, err)
	}
	begin := time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC)
	var kept []int
	for i, at := range []time.Duration{0, time.Minute, KeepEvery - 1, KeepEvery, KeepEvery + time.Minute, time.Minute} {
		is, err := s.Keep(MemoryPoint{Time: begin.Add(at), Available: int64(i), SUnreclaim: 1})
		if err != nil {
			t.Fatal(err)
		}
		if is {
			kept = append(kept, i)
		}
	}
	if want := []int{0, 3, 5}; !slices.Equal(kept, want) {
		t.Errorf("kept points %v, want %v", kept, want)
	}
	again, err := RecallSeries(filepath.Dir(file))
	if err != nil || len(again.Points) != 3 || again.Points[2].Available != 3 {
		t.Errorf("read again: %+v, %v; want three in the order of time", again, err)
	}
	if err := os.WriteFile(file, []byte("no point\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err = RecallSeries(filepath.Dir(file)); err != nil || len(again.Points) != 0 {
		t.Errorf("a line that is none: %+v, %v", again, err)
	}
}

// TestGivenAgain: logs and memory that were read before are taken as they are given.
func TestGivenAgain(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"proc/meminfo":               "MemTotal: 1000 kB\nMemAvailable: 500 kB\nSUnreclaim: 10 kB\n",
		"var/lib/shisa/memory.jsonl": "no point\n",
		"var/log/syslog":             "Mar  1 04:00:00 host kernel: EXT4-fs error (device sda1): ext4_lookup:1: x\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := tree.OpenDirectory(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	said := &Said{Log: Log{Events: []Event{{Form: "ext4.abort", Fields: map[string]string{"device": "sdb"}}}},
		Gaps: []Gap{{PartLog, "/var/log/x", "cut"}}}
	series := []MemoryPoint{{Time: time.Unix(1, 0), Available: 7}}
	e, err := Gather(t.Context(), l, Options{Now: time.Unix(100, 0), Said: said, Series: series})
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Log.Events) != 1 || e.Log.Events[0].Form != "ext4.abort" || !slices.Contains(e.Gaps, said.Gaps[0]) {
		t.Errorf("logs: %+v, %+v", e.Log.Events, e.Gaps)
	}
	if n := len(e.Memory.Series); n != 2 || e.Memory.Series[0].Available != 7 || len(series) != 1 {
		t.Errorf("memory: %+v", e.Memory.Series)
	}
}
