// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
)

// TestRoomOf: the room in the file system of a directory is forecast by what was seen of it, and where nothing
// was, it is said why.
func TestRoomOf(t *testing.T) {
	const gib = 1 << 30
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	var seen []evidence.SpacePoint
	for h := 48; h > 0; h-- {
		seen = append(seen, evidence.SpacePoint{Time: now.Add(-time.Duration(h) * time.Hour),
			Of: []evidence.Space{{Key: "u", Free: uint64(24+h) * gib, Size: 100 * gib}}})
	}
	e := roomy(nil, now, seen)
	r := RoomOf(e, "/srv/pool/_base", 24*gib, 100*gib)
	if d := r.Best.Sub(now.Add(24 * time.Hour)); !r.Ends || d.Abs() > time.Hour || r.Early.After(r.Best) {
		t.Errorf("RoomOf = %+v, want that it is full in a day", r)
	}
	if len(e.Spaces) != len(seen) && len(e.Spaces[len(e.Spaces)-1].Of) > 0 {
		t.Error("the evidence was changed")
	}
	for name, c := range map[string]struct {
		e    *evidence.Evidence
		dir  string
		says string
	}{
		"elsewhere": {e, "/home", "is not known"},
		"not seen":  {roomy(nil, now, nil), "/srv", "it was seen once"},
		"a server": {func() *evidence.Evidence {
			e := roomy(nil, now, seen)
			e.FSs[0].Device, e.FSs[0].UUID = "", ""
			return e
		}(), "/srv", "is not remembered here"},
	} {
		if r := RoomOf(c.e, c.dir, 24*gib, 100*gib); r.Ends || !strings.Contains(r.Why, c.says) {
			t.Errorf("%s: %+v, want no forecast, since %q", name, r, c.says)
		}
	}
}
