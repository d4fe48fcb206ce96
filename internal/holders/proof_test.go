// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// settling is how long an answer may be wrong because others look at processes at the same time: each
// such look is a reference, or a process in a copy of the mount, for a moment.
const settling = time.Minute

// TestProof makes every kind of holder there is and holds what is said against what is so: the kind,
// the process with its thread and descriptor, the path, what it blocks, and that the kernel's count
// is explained to the last reference. Of some kinds nothing shows who it is: there it has to be said
// that something is unexplained. Released, nothing is left of it in the answer.
func TestProof(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4", "mkfs.erofs")
	h := byKernel(t)
	for _, k := range hold.Kinds() {
		t.Run(k.Name, func(t *testing.T) { prove(t, h, k) })
	}
}

func prove(t *testing.T, h Host, k hold.Kind) {
	d, err := hold.NewDisk(t.Context(), t.TempDir())
	if errors.Is(err, hold.ErrUnavailable) {
		testenv.Lacks(t, err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	made, err := hold.Make(t.Context(), k, d.Place)
	if errors.Is(err, hold.ErrUnavailable) {
		testenv.Lacks(t, err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	released := false
	release := func() {
		if released {
			return
		}
		released = true
		if err := made.Release(); err != nil {
			t.Error(err)
		}
	}
	defer release()

	r, wrong := settled(t, h, about(d, k), made.Judge)
	for _, w := range wrong {
		t.Errorf("%s %s", k.Name, w)
	}
	blocked := slices.Contains([]Verdict{Busy, BusyPeer, Nested}, r.Verdict)
	tells := blocked || r.Status[0] == finding.StatusCannotTell
	switch got := d.Umount(k.Effect.Errno()); {
	case got != k.Effect.Errno():
		t.Errorf("umount(2) = %v with %s, want %v", got, k.Name, k.Effect.Errno())
	case k.Effect == hold.Blocks && !tells, k.Effect != hold.Blocks && k.Effect != hold.Hides && blocked:
		t.Errorf("verdict %s, status %d, and umount(2) says %v", r.Verdict, r.Status, got)
	}
	if k.Effect == hold.Pins {
		// The mount is gone; only by its device is the file system found, and who keeps it.
		if r, _ := settled(t, h, d.Device, notFree); r.Verdict == Free {
			t.Errorf("%s is said to be free, and %s keeps it", d.Device, k.Name)
		}
	}
	release()
	after := d.Mount
	if k.Effect != hold.Blocks {
		after = d.Device
	}
	if _, wrong := settled(t, h, after, releasedFrom(after == d.Mount)); len(wrong) > 0 {
		t.Errorf("%s without %s %q", after, k.Name, wrong)
	}
}

// settled scans until judge finds nothing wrong, or for so long that what is wrong stays so.
func settled(t *testing.T, h Host, name string, judge func(hold.Answer) []string) (*Report, []string) {
	t.Helper()
	for end := time.Now().Add(settling); ; time.Sleep(20 * time.Millisecond) {
		a, r, err := ask(context.Background(), h, name)
		if err != nil {
			t.Fatal(err)
		}
		wrong := judge(a)
		if len(wrong) == 0 || time.Now().After(end) {
			if len(wrong) > 0 {
				t.Logf("verdict %s, status %d, %+v", r.Verdict, r.Status, r.Audit)
				for _, o := range a.Holders {
					t.Log(o)
				}
			}
			return r, wrong
		}
	}
}

func notFree(a hold.Answer) []string {
	if a.Free {
		return []string{"is said to be free"}
	}
	return nil
}

// releasedFrom is hold.JudgeReleased. A device has no counter, so that of a process which is
// protected cannot be told whether it has the device open.
func releasedFrom(mount bool) func(hold.Answer) []string {
	return func(a hold.Answer) []string {
		if !mount {
			a.Audited, a.Free = true, true
		}
		return hold.JudgeReleased(a)
	}
}
