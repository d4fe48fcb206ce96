// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestShisa asks the program itself: what it says must be true, or that something is unexplained
// where the kernel shows nobody. It is asked about one kind of each sort; about all in a long run,
// as its scan has a proof of its own.
func TestShisa(t *testing.T) {
	needs(t)
	testenv.Need(t, "go")
	program := filepath.Join(t.TempDir(), "shisa")
	build := exec.Command("go", "build", "-o", program, "github.com/shisa-vm/shisa/cmd/shisa")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	some := []string{"open-fd", "thread-cwd", "blocked-open", "fd-in-flight", "peer", "namespace",
		"lazy-fd", "inotify-watch"}
	for _, k := range Kinds() {
		if !testenv.Long() && !slices.Contains(some, k.Name) {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
			want := Named
			switch {
			case k.Effect == Harmless:
				want = Silent
			case k.Word == "":
				want = Unexplained
			}
			// Others look at processes, too, and each look is a reference for a moment.
			var row Row
			for range 5 {
				row = measured(t, k, Shisa(program))
				if row.Said[0] == want {
					return
				}
			}
			t.Errorf("shisa holders of %s = %s, want %s", k.Name, row.Said[0], want)
		})
	}
}

// TestWorth holds that no wrong answer of the program is taken for a right one.
func TestWorth(t *testing.T) {
	const good = `{"status": [3], "verdict": "busy", "audit": {"read": true},
		"mounts": [{"asked": true, "unexplained": 0}],
		"holders": [{"kind": "open_fd", "process": {"pid": 7}, "path": "/mnt/held", "fd": 5,
			"also_fds": [6], "blocks": "umount"}]}`
	const silent = `{"status": [4], "verdict": "unknown", "audit": {"read": true},
		"mounts": [{"asked": true, "unexplained": 1}], "holders": []}`
	const free = `{"status": [0], "verdict": "free", "audit": {"read": true},
		"mounts": [{"asked": true, "unexplained": 0}], "holders": []}`
	blocks := Hold{PID: 7, FD: 6, Path: "/mnt/held", Kind: Kind{Effect: Blocks, Word: "open_fd"}}
	wordless := Hold{PID: 7, FD: 6, Kind: Kind{Effect: Blocks}}
	for _, c := range []struct {
		name, doc string
		hold      Hold
		status    int
		want      string
	}{
		{"right", good, blocks, 3, Named},
		{"another status", good, blocks, 0, Wrong + ": ends with 0 and says [3], want 3"},
		{"unexplained", silent, wordless, 4, Unexplained},
		{"missed", free, wordless, 0, Missed + ": is said to be free; is missed without a word; " +
			"ends with 0 and says [0], want 4"},
		{"not told", silent, Hold{PID: 7, FD: -1, Kind: Kind{Effect: Blocks, Word: "cwd"}}, 4,
			`wrong: is not told as cwd of 7/0 fd [] path "" namespace 0, blocks umount`},
		{"blamed", good, Hold{PID: 7, FD: 6, Kind: Kind{Effect: Harmless}}, 3,
			"wrong: is said to be held, and nobody does; is blamed on open_fd of 7/0 fd [6 5] path " +
				`"/mnt/held" namespace 0, blocks umount; ends with 3 and says [3], want 0`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var doc document
			if err := json.Unmarshal([]byte(c.doc), &doc); err != nil {
				t.Fatal(err)
			}
			if got := doc.worth(&c.hold, c.status); got != c.want {
				t.Errorf("worth() = %q, want %q", got, c.want)
			}
		})
	}
}
