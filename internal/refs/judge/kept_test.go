// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package judge

import (
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// TestKept: what only its shield keeps may be set aside by the rules for any other base.
func TestKept(t *testing.T) {
	live := refs.Base{Name: "a", Path: "/p/_base/a", State: refs.Live, File: diskio.ID{Dev: 1, Ino: 20}, SizeBytes: 9,
		Uses: []refs.Reference{{How: refs.Header, Holder: "/p/i/disk2", Depth: 1}}, Links: 2, Shield: "/s/new",
		Modified: now.Add(-20 * 24 * time.Hour), Changed: now.Add(-20 * 24 * time.Hour)}
	for _, c := range []struct {
		name   string
		change func(*world)
		want   string
	}{
		{"nobody needs it", func(*world) {}, ""},
		{"it was removed lately", func(w *world) { w.c.All[0].Changed = now.Add(-time.Hour) }, "too_young"},
		{"it has a name that nobody knows", func(w *world) { w.c.All[0].Links = 2 }, "linked"},
		{"two shields", func(w *world) {
			w.c.All[0].Links = 2
			w.s.Shields = append(w.s.Shields, pool.Shield{Name: "y", ID: w.c.All[0].File, Links: 2})
		}, ""},
		{"no use was found for the first time", func(w *world) { w.s.Notes[0].Candidates = nil }, "new_candidate"},
		{"a node has not spoken since", func(w *world) { w.s.Notes[0].Candidates[0].Seqs[1].Seq = 5 }, "not_since n2"},
		{"a node needs it by its name", func(w *world) {
			w.s.Reports[1].Uses = []pool.Use{{Name: "a", How: "open", Holder: "qemu"}}
		}, "used n2"},
		{"a node needs what has its name", func(w *world) {
			w.c.All = append(w.c.All, live)
			w.s.Reports[1].Uses = []pool.Use{{Name: "a", Inode: 20, How: "open", Holder: "qemu"}}
		}, ""},
		{"a node needs it and not what has its name", func(w *world) {
			w.c.All = append(w.c.All, live)
			w.s.Reports[1].Uses = []pool.Use{{Name: "a", Inode: 10, How: "open", Holder: "qemu"}}
		}, "used n2"},
		{"what is in quarantine rests on it", func(w *world) {
			w.c.All[0].Uses = []refs.Reference{{How: refs.Header, Holder: "/p/_base/.shisa/q/x", Depth: 1}}
		}, "used"},
		{"more than may be at once", func(w *world) {
			w.s.Policy.MaxFraction = 0.3
			w.c.All[2].Changed = now.Add(-time.Hour)
		}, "too_many"},
	} {
		w := newWorld()
		a := &w.c.All[0]
		a.State, a.Path, a.Links, w.s.Shields[0].Links = refs.ByShield, a.Shield, 1, 1
		c.change(w)
		p, notes := Judge(w.c, w.s, w.o)
		b := &p.All[0]
		b.Blockers = append(p.Blockers, b.Blockers...)
		want := MayQuarantine
		if c.want != "" {
			want = Keep
		}
		if got := strings.Join(b.rules(), "|"); got != c.want || b.Verdict != want {
			t.Errorf("%s: %s, %q, want %s, %q", c.name, b.Verdict, got, want, c.want)
		}
		if len(b.Uses) == 0 && (len(notes.Candidates) == 0 || notes.Candidates[0].Inode != b.Inode) {
			t.Errorf("%s: that no use was found is not noted: %+v", c.name, notes.Candidates)
		}
	}
}
