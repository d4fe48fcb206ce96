// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/refs"
)

// TestKeptRoom: the space that only shields keep is warned of where it will be wanted, and only there.
func TestKeptRoom(t *testing.T) {
	full := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		room *refs.Room
		want string
		not  string
	}{
		"not asked":   {nil, "2 GiB of 1 base are kept by their shields alone, the oldest not changed since 2026-11-01", "wanted"},
		"nearly full": {&refs.Room{SizeBytes: 100 << 30, FreeBytes: 9 << 30, Wanted: true, NoForecast: "x"}, "will be wanted: 9 GiB of 100 GiB are left there\n", "at this rate"},
		"will be": {&refs.Room{SizeBytes: 100 << 30, FreeBytes: 50 << 30, Full: &full, Early: &full, Wanted: true},
			"at this rate nothing about 2026-12-01 00:00 UTC (2026-12-01 00:00 UTC to open)", "not known"},
		"how":         {&refs.Room{SizeBytes: 100, FreeBytes: 1, Wanted: true}, "  $ shisa base plan --out plan.json /p/_base\n  $ shisa base quarantine --plan plan.json /p/_base\n", "not known"},
		"nobody says": {&refs.Room{SizeBytes: 100, FreeBytes: 50, NoForecast: "it was seen once"}, "wanted is not known: it was seen once", "at this rate"},
	} {
		var b strings.Builder
		census := &refs.Census{Bases: "/p/_base", Room: c.room, All: []refs.Base{{Name: "b", Path: "/p/b", State: refs.ByShield}},
			Kept: refs.Kept{Files: 1, AllocatedBytes: 2 << 30, Oldest: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}}
		if err := BaseScan(&b, census, Style{}); err != nil {
			t.Fatal(err)
		}
		if got := b.String(); !strings.Contains(got, c.want) || strings.Contains(got, c.not) {
			t.Errorf("%s: want %q and no %q in:\n%s", name, c.want, c.not, got)
		}
	}
	// What is needed is not to be set aside, but to be brought back.
	needed := &refs.Census{Bases: "/p/_base", Kept: refs.Kept{Files: 1},
		All: []refs.Base{{Name: "b", Path: "/p/_base/b", State: refs.Missing, Shield: "/p/b", Uses: []refs.Reference{{How: refs.Header}}}}}
	var b strings.Builder
	if err := BaseScan(&b, needed, Style{}); err != nil || strings.Contains(b.String(), "set aside") {
		t.Errorf("of what is needed, %v:\n%s", err, b.String())
	}
	for free, want := range map[int64]bool{0: true, 9: true, 10: false, 50: false} {
		if r := (refs.Room{SizeBytes: 100, FreeBytes: free}); r.Nearly() != want {
			t.Errorf("Nearly with %d of 100 left = %v", free, !want)
		}
	}
}
