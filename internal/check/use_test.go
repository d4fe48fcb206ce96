// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
)

// A list of open files is used for ten times as long as it took, and says that it is not new.
func TestCensusShare(t *testing.T) {
	now, step := time.Unix(1000, 0), time.Duration(0)
	c := censor{host: linux.Open(t.TempDir()), now: func() time.Time {
		now = now.Add(step)
		return now
	}}
	ask := func(since time.Duration) (begun time.Time, fresh bool) {
		t.Helper()
		// The root has no /proc, which is an error each time.
		if _, fresh, err := c.at(t.Context(), now.Add(since)); err == nil {
			t.Fatal("at gives no error without /proc")
		} else {
			return c.begun, fresh
		}
		return
	}
	step = time.Second
	first, _ := ask(0) // takes a second
	step = 0
	now = now.Add(5 * time.Second)
	if begun, fresh := ask(0); begun != first || fresh {
		t.Errorf("at 5 s after a list that took 1 s = list of %v, fresh %v, want the first, not fresh", begun, fresh)
	}
	if begun, fresh := ask(-time.Hour); begun != first || !fresh {
		t.Errorf("at for a list of the last hour = list of %v, fresh %v, want the first, fresh", begun, fresh)
	}
	now = now.Add(5 * time.Second)
	if begun, fresh := ask(0); begun == first || !fresh {
		t.Errorf("at 11 s after a list that took 1 s = list of %v, fresh %v, want a new one", begun, fresh)
	}
}

// hostOf makes a /proc with one process, whose files can be listed if it has a name.
func hostOf(t *testing.T, comm string) string {
	t.Helper()
	root := t.TempDir()
	err := os.MkdirAll(root+"/proc/2", 0o755)
	if err == nil && comm != "" {
		err = errors.Join(os.Mkdir(root+"/proc/2/fd", 0o755), os.WriteFile(root+"/proc/2/comm", []byte(comm), 0o644))
	} else if err == nil {
		err = os.WriteFile(root+"/proc/2/fd", nil, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// That nobody was seen says nothing where not all could be; and it is no reason to end with another
// status.
func TestUseOfHiddenProcesses(t *testing.T) {
	path := makeImage(t, t.TempDir()+"/a.qcow2", small(""))
	for comm, want := range map[string]Use{
		"cron": {State: UseNone, Rounds: 1, Holders: []Holder{}},
		"": {State: UseUnknown, Rounds: 1, Holders: []Holder{},
			Reason: "no lock is held; 1 of 1 processes are protected from this user"},
	} {
		rep, err := Run(t.Context(), []string{path}, Options{Root: hostOf(t, comm)})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, rep.Images[0].Use); diff != "" || rep.Status[0] != finding.StatusClean {
			t.Errorf("Run beside the process %q = %v, use (-want +got):\n%s", comm, rep.Status, diff)
		}
	}
}

func TestDecide(t *testing.T) {
	noLocks := errors.New("no locks")
	for _, tc := range []struct {
		name       string
		lockErr    error
		gaps, late string
		want       UseState
		reason     string
	}{
		{"all seen", nil, "", "", UseNone, ""},
		{"not all seen", nil, "gaps", "", UseUnknown, "no lock is held; gaps"},
		{"an old list", nil, "", "late", UseNone, "no lock is held; late"},
		{"an old list of some", nil, "gaps", "late", UseUnknown, "no lock is held; gaps; late"},
		{"no locks", noLocks, "", "", UseNone, "no process of this host has it open; its locks are not known: no locks"},
		{"no locks, not all seen", noLocks, "gaps", "late", UseUnknown, "no locks; gaps; late"},
	} {
		u := Use{}
		u.decide(diskio.LockState{}, tc.lockErr, tc.gaps, tc.late)
		if u.State != tc.want || u.Reason != tc.reason {
			t.Errorf("%s: decide = %s (%q), want %s (%q)", tc.name, u.State, u.Reason, tc.want, tc.reason)
		}
	}
}
