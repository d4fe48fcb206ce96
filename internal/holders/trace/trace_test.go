// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestEngines tries all engines: those that need no more than BPF and a processor with watchpoints
// have to work, and those that are said to work here; the others have to say why not.
func TestEngines(t *testing.T) {
	testenv.NeedRoot(t)
	all, err := Engines(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		t.Logf("%+v", s)
		must := slices.Contains(testenv.Engines(), s.Name)
		if must && !s.Usable {
			testenv.Lacks(t, "the engine "+s.Name+": "+s.Reason)
		}
		if s.Usable && (s.ReadPercent <= 0 || s.Slows() < 1) {
			t.Errorf("%s: what it costs to copy was not measured: %d %%", s.Name, s.ReadPercent)
		}
		if s.Usable == (s.Reason != "") {
			t.Errorf("%s: usable is %t, the reason against it %q", s.Name, s.Usable, s.Reason)
		}
		if s.Usable && s.Name != probe.Syscall && len(s.Missing) > 0 {
			t.Errorf("%s does not see %q", s.Name, s.Missing)
		}
		if s.Name == probe.Syscall && !slices.Equal(s.Missing, []string{seesMmap}) {
			t.Errorf("%s does not see %q, want mmap alone", s.Name, s.Missing)
		}
	}
}

// TestAuto holds that the first engine that works is taken, that the others were tried and say why they
// do not work or what they would cost, and that a watchpoint, which slows everybody down, is taken only
// where nothing else works or it is asked for.
func TestAuto(t *testing.T) {
	p := newMountpoint(t)
	mounts := []linux.Mount{p.mounted(t)}
	tr := started(t, Options{Engine: Auto, Mounts: mounts})
	at := slices.Index(Names(), tr.Engine().Name)
	if got, want := names(tr.Others()), slices.Delete(Names(), at, at+1); !slices.Equal(got, want) {
		t.Errorf("took %s, and tells of %q, want %q", tr.Engine().Name, got, want)
	}
	if Names()[len(Names())-1] != probe.Watch || tr.Engine().Name == probe.Watch {
		t.Errorf("took %s of %q, want the watch last, and anything else before it", tr.Engine().Name, Names())
	}
	for i, s := range tr.Others() {
		if i < at && (s.Usable || s.Reason == "") {
			t.Errorf("%s was not taken, for %q", s.Name, s.Reason)
		}
		if s.Usable && s.ReadPercent <= 0 {
			t.Errorf("%s works, and what it costs is not told: %+v", s.Name, s)
		}
	}
	first := started(t, Options{First: Exact(), Mounts: mounts})
	at = slices.Index(Exact(), first.Engine().Name)
	if got := names(first.Others()); at < 0 || !slices.Equal(got, Exact()[:at]) || at > 2 {
		t.Errorf("took %s after %q, want the first of %q that works", first.Engine().Name, got, Exact())
	}
}

func names(all []EngineState) []string {
	out := []string{}
	for _, s := range all {
		out = append(out, s.Name)
	}
	return out
}

func TestNoEngine(t *testing.T) {
	_, err := Start(context.Background(), Options{Engine: "dtrace", Host: linux.Open("")})
	var none *NoEngineError
	if !errors.As(err, &none) || !strings.Contains(err.Error(), "dtrace") {
		t.Errorf("Start = %v, want that there is no such engine", err)
	}
}

// TestAny holds that without mounts every umount of the host is told of.
func TestAny(t *testing.T) {
	p := newMountpoint(t)
	tr := started(t, Options{Engine: probe.Syscall})
	f, err := os.Open(filepath.Join(p.target, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(p.target, 0); err != unix.EBUSY {
		t.Fatalf("umount = %v, want %v", err, unix.EBUSY)
	}
	f.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for {
		told, err := tr.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if told.Mount.Path != p.target {
			continue // somebody else's
		}
		if c, _ := judge(told, os.Getpid(), -1); c != holders.HeldAtCheck || !told.Umount.ErrnoRead {
			t.Errorf("%+v does not name this process", told)
		}
		return
	}
}

// TestMoment holds that what is to be done at the moment of a failure is done, that a lasting holder is
// named by it, and that Tell gives what was not asked for.
func TestMoment(t *testing.T) {
	p := newMountpoint(t)
	m := p.mounted(t)
	moments := make(chan Failure, 1)
	lasting := holders.Holder{Kind: holders.OpenFD, Certainty: holders.Static, Blocks: holders.BlocksUmount,
		References: 1, Process: holders.Process{PID: 1 << 22}}
	tr := started(t, Options{Engine: probe.Watch, Mounts: []linux.Mount{m},
		Scan: func(_ context.Context, id int) (*holders.Report, error) {
			if id != m.ID {
				t.Errorf("scan of mount %d, want %d", id, m.ID)
			}
			return &holders.Report{Holders: []holders.Holder{lasting}}, nil
		},
		Moment: func(_ context.Context, f Failure) { moments <- f },
	})
	f, err := os.Open(filepath.Join(p.target, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Unmount(p.target, 0); err != unix.EBUSY {
		t.Fatalf("umount = %v, want %v", err, unix.EBUSY)
	}
	if at := <-moments; at.Mount.ID != m.ID || at.Mount.Path != p.target || at.References != 3 {
		t.Errorf("at the moment: %+v, want 3 references of mount %d", at, m.ID)
	}
	told := tr.Tell(context.Background())
	if len(told) != 1 || !told[0].Scanned || told[0].Unexplained != 0 || len(told[0].Holders) != 1 ||
		told[0].Holders[0].Process.PID != lasting.Process.PID {
		t.Errorf("told %+v, want one failure with the lasting holder", told)
	}
	if got := told[0].Status(); !slices.Equal(got, []int{3}) {
		t.Errorf("the status is %v, want 3", got)
	}
}

// TestUnexplained holds that nobody is never said where the kernel counts somebody.
func TestUnexplained(t *testing.T) {
	p := newMountpoint(t)
	tr := started(t, Options{Engine: probe.Watch, Mounts: []linux.Mount{p.mounted(t)}})
	f, err := os.Open(filepath.Join(p.target, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Unmount(p.target, 0); err != unix.EBUSY {
		t.Fatalf("umount = %v, want %v", err, unix.EBUSY)
	}
	var told []Failure
	for range 100 {
		if told = tr.Tell(context.Background()); len(told) > 0 {
			break
		}
	}
	if len(told) != 1 || told[0].Unexplained != 1 || told[0].Verdict != holders.Busy ||
		!slices.Equal(told[0].Status(), []int{4}) {
		t.Errorf("told %+v, want one reference that is not explained", told)
	}
}
