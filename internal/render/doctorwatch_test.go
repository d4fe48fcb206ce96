// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/doctor/watch"
	"github.com/shisa-vm/shisa/internal/finding"
)

func TestWatchLine(t *testing.T) {
	at := time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		e    watch.Event
		want string
	}{
		{watch.Event{Kind: watch.Found, Code: "FS01", Severity: finding.Danger, Object: "filesystem:h:sdb1", Summary: "sdb1 is read-only"},
			"DANGER  FS01  filesystem:h:sdb1  sdb1 is read-only"},
		{watch.Event{Kind: watch.Message, Form: "ext4.abort", Object: "sdb1", Summary: "abort\x1b[2J"}, `kernel (ext4.abort)  abort\x1b[2J`},
		{watch.Event{Kind: watch.Over, Code: "FS01", Summary: "it was"}, "over  FS01  it was"},
		{watch.Event{Kind: watch.CannotTell, Summary: "why"}, "CANNOT TELL  why"},
		{watch.Event{Kind: watch.Lost, Summary: "3 messages"}, "LOST MESSAGES  3 messages"},
		{watch.Event{Kind: watch.Memory, Summary: "a point"}, "memory  a point"},
	} {
		c.e.Time = at
		var b bytes.Buffer
		if err := WatchLine(&b, &c.e, Style{}); err != nil || b.String() != "2026-03-01T04:00:00Z  "+c.want+"\n" {
			t.Errorf("WatchLine(%s) = %q, %v, want %q", c.e.Kind, b.String(), err, c.want)
		}
	}
}

// TestMetricsAreSeries: each series is there once, however many findings it stands for, and not more than
// there may be; before the first examination there are those of the watch.
func TestMetricsAreSeries(t *testing.T) {
	r := &doctor.Report{Status: []int{3}}
	for i := range maxMetrics + 10 {
		for _, kind := range []string{"one", "two"} {
			r.Findings = append(r.Findings, doctor.Finding{Code: "FS04", Severity: finding.Danger, Kind: kind,
				Object: doctor.Object{Kind: doctor.File, On: "h", Name: fmt.Sprintf("a\"%d\n", i)}})
		}
	}
	for name, s := range map[string]*watch.Status{"before": {}, "after": {Report: r}} {
		var b bytes.Buffer
		if err := WatchMetrics(&b, s); err != nil {
			t.Fatal(err)
		}
		series, findings := map[string]bool{}, 0
		for line := range strings.Lines(b.String()) {
			if strings.HasPrefix(line, "#") {
				continue
			}
			key := line[:strings.LastIndexByte(line, ' ')]
			if series[key] {
				t.Errorf("%s: %s is there twice", name, key)
			}
			series[key] = true
			if strings.HasPrefix(key, "shisa_finding{") {
				findings++
			}
		}
		if want := map[string]int{"after": maxMetrics}[name]; findings != want || !series["shisa_watch_failed"] ||
			!strings.HasSuffix(b.String(), "\n# EOF\n") {
			t.Errorf("%s: %d findings, want %d, in\n%.2000s", name, findings, want, b.String())
		}
		if name == "after" && !strings.Contains(b.String(), "shisa_findings_left_out 20\n") {
			t.Error("what was left out is not told")
		}
	}
}
