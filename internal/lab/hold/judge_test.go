// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"strings"
	"testing"
)

// answer is a right one for h, changed.
func answer(h *Hold, change func(*Answer)) Answer {
	s := h.want()
	if h.Kind.Effect != Blocks {
		s.Blocks = "superblock"
	}
	a := Answer{Audited: true, Holders: []Seen{s}}
	change(&a)
	return a
}

func TestJudge(t *testing.T) {
	blocks := &Hold{PID: 7, TID: 8, FD: 3, Path: "/mnt/held", Namespace: 5,
		Kind: Kind{Name: "x", Effect: Blocks, Word: "open_fd"}}
	pins := &Hold{PID: 7, FD: -1, Kind: Kind{Name: "x", Effect: Pins, Word: "namespace"}}
	nameless := &Hold{PID: 7, FD: -1, Kind: Kind{Name: "x", Effect: Blocks}}
	hides := &Hold{PID: 7, FD: 3, Kind: Kind{Name: "x", Effect: Hides, Word: "open_fd"}}
	harmless := &Hold{PID: 7, FD: 3, Kind: Kind{Name: "x", Effect: Harmless}}
	none := func(a *Answer) { a.Holders = nil }
	for _, c := range []struct {
		name   string
		hold   *Hold
		change func(*Answer)
		want   string // a part of what is wrong, "" for nothing
	}{
		{"right", blocks, func(*Answer) {}, ""},
		{"deleted", blocks, func(a *Answer) { a.Holders[0].Path += " (deleted)" }, ""},
		{"another kind", blocks, func(a *Answer) { a.Holders[0].Word = "cwd" },
			"is not told as open_fd of 7/8"},
		{"another process", blocks, func(a *Answer) { a.Holders[0].PID = 9 }, "is not told"},
		{"somebody else too", blocks, func(a *Answer) {
			a.Holders = append(a.Holders, Seen{Word: "cwd", PID: 9, Blocks: "umount"})
		}, "is blamed on cwd of 9/0"},
		{"another thread", blocks, func(a *Answer) { a.Holders[0].TID = 9 }, "is not told"},
		{"another descriptor", blocks, func(a *Answer) { a.Holders[0].FDs = []int{1} }, "is not told"},
		{"another path", blocks, func(a *Answer) { a.Holders[0].Path = "/mnt" }, "is not told"},
		{"another namespace", blocks, func(a *Answer) { a.Holders[0].Namespace = 6 }, "is not told"},
		{"said to block nothing", blocks, func(a *Answer) { a.Holders[0].Blocks = "superblock" },
			"is not told"},
		{"one more unexplained", blocks, func(a *Answer) { a.Unexplained = 1 }, "has 1 references"},
		{"too much explained", blocks, func(a *Answer) { a.Unexplained = -1 }, "has -1 references"},
		{"no audit", blocks, func(a *Answer) { a.Audited = false }, "is not audited"},
		{"only unexplained", blocks, func(a *Answer) { none(a); a.Unexplained = 1 }, "is not told"},
		{"missed", blocks, none, "is missed without a word"},
		{"said to be free", blocks, func(a *Answer) { none(a); a.Free = true }, "is said to be free"},
		{"nameless, unexplained", nameless, func(a *Answer) { none(a); a.Unexplained = 2 }, ""},
		{"nameless, missed", nameless, none, "is missed without a word"},
		{"pins", pins, func(*Answer) {}, ""},
		{"pins, said to block", pins, func(a *Answer) { a.Holders[0].Blocks = "umount" }, "is blamed on"},
		{"pins, missed", pins, none, "is not told"},
		{"pins, said to be free", pins, func(a *Answer) { none(a); a.Free = true }, "is said to be free"},
		{"pins, unexplained", pins, func(a *Answer) { a.Unexplained = 1 }, "has 1 references"},
		{"hides", hides, func(a *Answer) { a.Audited = false }, ""},
		{"hides, missed", hides, none, "is not told"},
		{"harmless", harmless, func(a *Answer) { none(a); a.Free = true }, ""},
		{"harmless, named", harmless, func(*Answer) {}, "nobody does"},
		{"harmless, unexplained", harmless, func(a *Answer) { none(a); a.Free, a.Unexplained = true, 1 },
			"has 1 references"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.hold.Judge(answer(c.hold, c.change))
			if all := strings.Join(got, "; "); c.want == "" && all != "" || !strings.Contains(all, c.want) {
				t.Errorf("Judge() = %q, want %q", all, c.want)
			}
		})
	}
}

func TestJudgeReleased(t *testing.T) {
	if got := JudgeReleased(Answer{Free: true, Audited: true}); got != nil {
		t.Errorf("JudgeReleased(free) = %q, want nothing", got)
	}
	for _, a := range []Answer{{Free: true}, {Audited: true},
		{Free: true, Audited: true, Unexplained: 1},
		{Free: true, Audited: true, Holders: []Seen{{Word: "cwd"}}}} {
		if got := JudgeReleased(a); len(got) != 1 {
			t.Errorf("JudgeReleased(%+v) = %q, want one sentence", a, got)
		}
	}
}
