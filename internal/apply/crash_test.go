// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/cut"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/vault"
)

// survivors calls fn for each disk that may be found after the power was cut.
func survivors(d *cut.Disk, seed int, fn func(n int, s *cut.Disk)) {
	n := 0
	for s := range d.Survivors(uint64(seed)) {
		fn(n, s)
		n++
	}
}

// recovered recovers an image and holds that nothing is left to do.
func recovered(t *testing.T, s *cut.Disk, forward bool, what string, want ...[]byte) {
	t.Helper()
	o := options(s)
	o.Forward = forward
	out, err := Recover(t.Context(), imagePath, o)
	if err != nil {
		t.Errorf("%s: Recover = %+v, %v", what, out, err)
	}
	settled(t, s, what, want...)
}

// TestCrash cuts the power after every operation of a change, and recovers every state in which the
// disk may be found.
func TestCrash(t *testing.T) {
	states := 0
	for k := 0; ; k++ {
		d, p, before, after := world(t)
		fault(t, d, "crash after op "+strconv.Itoa(k))
		r, err := Apply(t.Context(), p, options(d))
		if err == nil {
			if enough(t, states, 350); r == nil || k < 40 {
				t.Errorf("Apply = %+v after %d operations", r, k)
			}
			return
		}
		if !errors.Is(err, cut.ErrCut) {
			t.Fatalf("Apply cut after %d = %v", k, err)
		}
		survivors(d, k, func(n int, s *cut.Disk) {
			states++
			what := fmt.Sprintf("cut after %d, state %d", k, n)
			inOrder(t, p, before, after, content(t, s), what)
			recovered(t, clone(t, s), false, what, before, after)
			recovered(t, s, true, what+", forward", before, after)
		})
	}
}

// TestCrashKeepsOneSide: taken back means the old bytes unless the change was committed; forward
// means the new ones as soon as the first of them may have been written.
func TestCrashKeepsOneSide(t *testing.T) {
	d, p, _, _ := world(t)
	fault(t, d, "")
	mustApply(t, d, p)
	first := 0
	for i, op := range d.Ops() {
		if op == "write "+imagePath+" 0x0+512" && first == 0 {
			first = i + 1
		}
	}
	for k := first; k <= first+8; k++ {
		d, p, before, after := world(t)
		fault(t, d, "crash after op "+strconv.Itoa(k))
		if _, err := Apply(t.Context(), p, options(d)); err == nil {
			t.Fatalf("Apply was not cut after %d", k)
		}
		survivors(d, k, func(n int, s *cut.Disk) {
			recovered(t, clone(t, s), false, "back", before)
			recovered(t, s, true, "forward", after)
		})
	}
}

// few calls fn for some of the states in which a disk may be found: all of them in long sweeps.
func few(d *cut.Disk, seed, most int, fn func(s *cut.Disk)) {
	states := d.Some(uint64(seed), most)
	if testenv.Long() {
		states = d.Survivors(uint64(seed))
	}
	for s := range states {
		fn(s)
	}
}

// crashIn cuts the power after every operation of fn on a copy of a disk, recovers, and gives the
// number of states that were tried.
func crashIn(
	t *testing.T, base *cut.Disk, most int, fn func(d *cut.Disk) error, what string, want ...[]byte,
) (states int) {
	t.Helper()
	for k := 0; ; k++ {
		d := clone(t, base)
		fault(t, d, "crash after op "+strconv.Itoa(k))
		if err := fn(d); err == nil {
			return states
		} else if !errors.Is(err, cut.ErrCut) {
			t.Fatalf("%s, cut after %d: %v", what, k, err)
		}
		few(d, k, most, func(s *cut.Disk) {
			states++
			what := fmt.Sprintf("%s, cut after %d", what, k)
			p, before, after := makeUp(t, 1, 1, imagePath)
			inOrder(t, p, before, after, content(t, s), what)
			recovered(t, s, false, what, want...)
		})
	}
}

// TestCrashInRecovery cuts the power a second time.
func TestCrashInRecovery(t *testing.T) {
	states, ways := 0, testenv.Rounds(1, 3, 3)
	for k := 0; ; k++ {
		d, p, before, after := world(t)
		fault(t, d, "crash after op "+strconv.Itoa(k))
		if _, err := Apply(t.Context(), p, options(d)); err == nil {
			enough(t, states, 1000*ways)
			return
		}
		few(d, k, 2, func(s *cut.Disk) {
			for _, forward := range []bool{false, true} {
				states += crashIn(t, s, ways, func(d *cut.Disk) error {
					o := options(d)
					o.Forward = forward
					_, err := Recover(t.Context(), imagePath, o)
					return err
				}, fmt.Sprintf("cut after %d, recovery forward=%v", k, forward), before, after)
			}
		})
	}
}

func TestCrashInUndo(t *testing.T) {
	d, p, before, after := world(t)
	mustApply(t, d, p)
	enough(t, crashIn(t, d, 1000, func(d *cut.Disk) error {
		_, err := Undo(t.Context(), imagePath, "", options(d))
		return err
	}, "undo", before, after), 100)
}

// enough holds that a sweep met as many states as it should: a change that merges all its writes
// would have few.
func enough(t *testing.T, states, least int) {
	t.Helper()
	t.Logf("%d states", states)
	if states < least {
		t.Errorf("%d states, want %d at least", states, least)
	}
}

func TestCrashInUndoAndRecovery(t *testing.T) {
	base, p, before, after := world(t)
	mustApply(t, base, p)
	states, ways := 0, testenv.Rounds(1, 3, 3)
	for k := 0; ; k++ {
		d := clone(t, base)
		fault(t, d, "crash after op "+strconv.Itoa(k))
		if _, err := Undo(t.Context(), imagePath, "", options(d)); err == nil {
			enough(t, states, 450*ways)
			return
		}
		few(d, k, 3, func(s *cut.Disk) {
			states += crashIn(t, s, ways, func(d *cut.Disk) error {
				_, err := Recover(t.Context(), "", options(d))
				return err
			}, fmt.Sprintf("undo cut after %d", k), before, after)
		})
	}
}

// The undo file in another directory is found by the receipt.
func TestCrashWithJournal(t *testing.T) {
	for k := 0; ; k++ {
		d, p, before, after := world(t)
		d.Put("/journal/x", nil)
		o := options(d)
		o.JournalDir = "/journal"
		fault(t, d, "crash after op "+strconv.Itoa(k))
		if _, err := Apply(t.Context(), p, o); err == nil {
			return
		}
		few(d, k, 8, func(s *cut.Disk) {
			if _, err := Recover(t.Context(), imagePath, options(s)); err != nil {
				t.Errorf("cut after %d: Recover = %v", k, err)
			}
			if _, err := Recover(t.Context(), "/journal", options(s)); err != nil {
				t.Errorf("cut after %d: Recover of the journal = %v", k, err)
			}
			settled(t, s, fmt.Sprintf("journal, cut after %d", k), before, after)
		})
	}
}

// An undo that is cut off is found by its receipt alone, wherever the undo file lies.
func TestCrashInUndoWithJournal(t *testing.T) {
	base, p, before, after := world(t)
	base.Put("/journal/x", nil)
	o := options(base)
	o.JournalDir = "/journal"
	if _, err := Apply(t.Context(), p, o); err != nil {
		t.Fatal(err)
	}
	for k := 0; ; k++ {
		d := clone(t, base)
		fault(t, d, "crash after op "+strconv.Itoa(k))
		if _, err := Undo(t.Context(), imagePath, "", options(d)); err == nil {
			return
		}
		few(d, k, 8, func(s *cut.Disk) {
			what := fmt.Sprintf("undo with a journal, cut after %d", k)
			if _, err := Recover(t.Context(), "", options(s)); err != nil {
				t.Errorf("%s: Recover = %v", what, err)
			}
			settled(t, s, what, before, after)
		})
	}
}

// fails makes every operation fail in one way, and holds that the image is whole: at once, or after a
// recovery where the error says that one is needed; also if the power is cut then.
func fails(t *testing.T, form string, most int) {
	t.Helper()
	for k := 1; k <= most; k++ {
		what := fmt.Sprintf(form, k)
		d, p, before, after := world(t)
		fault(t, d, what)
		_, err := Apply(t.Context(), p, options(d))
		check := func(s *cut.Disk, how string) {
			recovered(t, s, false, what+how, before, after)
		}
		if err != nil && !errors.Is(err, ErrInterrupted) {
			if !bytes.Equal(before, content(t, d)) {
				t.Errorf("%s: Apply = %v, and the image is not as it was", what, err)
			}
		}
		few(d, k, 40, func(s *cut.Disk) { check(s, ", then cut") })
		check(d, "")
		// What a recovery settled stays so, whatever an earlier sync that failed left unsure.
		side := content(t, d)
		few(d, k, 40, func(s *cut.Disk) { recovered(t, s, false, what+", recovered, then cut", side) })
	}
}

func TestFailures(t *testing.T) {
	d, p, _, _ := world(t)
	n := opsOf(t, d, func() { mustApply(t, d, p) })
	for _, form := range []string{"EIO on op %d", "ENOSPC on op %d", "EIO on write %d", "ENOSPC on write %d",
		"short write %d", "fsync error %d"} {
		t.Run(form, func(t *testing.T) { fails(t, form, n) })
	}
}

// After a sync that failed nothing more is written, and the undo file stays. Only where the image was
// not touched is what was made before it removed.
func TestSyncErrorStops(t *testing.T) {
	for _, undo := range []bool{false, true} {
		interrupted := map[string]int{}
		for k := 1; ; k++ {
			d, p, before, _ := world(t)
			if undo {
				mustApply(t, d, p)
			}
			fault(t, d, "fsync error "+strconv.Itoa(k))
			var err error
			if undo {
				_, err = Undo(t.Context(), imagePath, "", options(d))
			} else {
				_, err = Apply(t.Context(), p, options(d))
			}
			if err == nil {
				break
			}
			ops := d.Ops()
			last := ops[len(ops)-1]
			if !errors.Is(err, ErrInterrupted) {
				if last == "sync "+imagePath || !undo && !bytes.Equal(before, content(t, d)) {
					t.Errorf("fsync error %d = %v after %s", k, err, last)
				}
				continue
			}
			interrupted[last]++
			switch last {
			case "sync " + imagePath, "sync " + imagePath + vault.Suffix:
			case "syncdir " + stateDir + "/undo", "remove " + stateDir + "/undo/" + planID + ".json.new":
				// The receipt, when the image was in order.
			default:
				t.Errorf("fsync error %d: the last operation is %s", k, last)
			}
			if _, ok := d.Get(imagePath + vault.Suffix); !ok {
				t.Errorf("fsync error %d: the undo file is gone", k)
			}
			if _, err := Undo(t.Context(), imagePath, "", options(d)); err == nil && last == "sync "+imagePath {
				t.Errorf("fsync error %d: Undo before Recover went through", k)
			}
		}
		// Fence, four phases and the switch; back, the length has a sync of its own, and no new space.
		states := 2
		if undo {
			states = 3 // the one that was there is made sure
		}
		if interrupted["sync "+imagePath] != 6 || interrupted["sync "+imagePath+vault.Suffix] != states {
			t.Errorf("undo %v: what sync errors interrupt: %v, want six of the image and %d of the undo file",
				undo, interrupted, states)
		}
	}
}

func TestFailuresInUndo(t *testing.T) {
	base, p, before, after := world(t)
	mustApply(t, base, p)
	for _, form := range []string{"EIO on op %d", "fsync error %d", "short write %d"} {
		for k := 1; k <= 40; k++ {
			d := clone(t, base)
			fault(t, d, fmt.Sprintf(form, k))
			_, err := Undo(t.Context(), imagePath, "", options(d))
			if err != nil && !errors.Is(err, ErrInterrupted) && !bytes.Equal(after, content(t, d)) {
				t.Errorf(form+": Undo = %v, and the image is not as it was", k, err)
			}
			few(d, k, 20, func(s *cut.Disk) { recovered(t, s, false, fmt.Sprintf(form, k), before, after) })
			recovered(t, d, false, fmt.Sprintf(form, k), before, after)
		}
	}
}

// An operation that hangs is waited for until the user gives up. If it ends then, the change is
// taken back; if not, nothing more is done.
func TestHang(t *testing.T) {
	d, p, _, _ := world(t)
	n := opsOf(t, d, func() { mustApply(t, d, p) })
	for _, patience := range []time.Duration{time.Hour, time.Nanosecond} {
		for k := 1; k <= n; k++ {
			ctx, cancel := context.WithCancel(context.Background())
			storage, answer := context.WithCancel(context.Background())
			d, p, before, after := worldUntil(t, storage)
			fault(t, d, "hang at "+strconv.Itoa(k))
			o := options(d)
			o.Patience = patience
			go func() {
				for len(d.Ops()) < k {
					time.Sleep(50 * time.Microsecond)
				}
				cancel()
				if patience == time.Hour {
					answer()
				}
			}()
			_, err := Apply(ctx, p, o)
			what := fmt.Sprintf("hang at %d, patience %v", k, patience)
			if err == nil {
				t.Errorf("%s: Apply went through", what)
			}
			if err != nil && !errors.Is(err, ErrInterrupted) && !bytes.Equal(before, content(t, d)) {
				t.Errorf("%s: Apply = %v, and the image is not as it was", what, err)
			}
			few(d, k, 10, func(s *cut.Disk) { recovered(t, s, false, what, before, after) })
			answer()
		}
	}
}
