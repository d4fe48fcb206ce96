// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/notice"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// watching watches a world; heard gives what happens, without the looks at everything.
func (w *world) watching(census func() *refs.Census) (heard func() pool.Happened, end func(cancelled bool) error) {
	testenv.NeedRoot(w.t)
	events, err := notice.Watch(w.dir, linux.Open(""))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	all := make(chan pool.Happened, 1000)
	over := make(chan error, 1)
	go func() {
		over <- Watch(ctx, WatchOptions{Protect: ProtectOptions{NoRecord: true}, Every: time.Hour, Events: events,
			Census: func(context.Context) (*refs.Census, error) { return census(), nil },
			Tell:   func(h pool.Happened) error { all <- h; return nil }}, w.receipts())
	}()
	if h := <-all; h.What != pool.Passed {
		w.t.Fatalf("first = %+v, want a look at everything", h)
	}
	heard = func() pool.Happened {
		for {
			select {
			case h := <-all:
				if h.What != pool.Passed {
					return h
				}
			case err := <-over:
				w.t.Fatalf("Watch = %v", err)
			}
		}
	}
	return heard, func(cancelled bool) error {
		if cancelled {
			cancel()
		}
		defer cancel()
		defer events.Close()
		return <-over
	}
}

// TestPassWords: a look at everything tells what it could do nothing about.
func TestPassWords(t *testing.T) {
	of := func(base ...refs.Base) *refs.Census { return &refs.Census{All: base} }
	for _, c := range []struct {
		census *refs.Census
		want   string
	}{
		{of(refs.Base{State: refs.Live}, refs.Base{State: refs.Missing, Shield: "/s"}, refs.Base{State: refs.Missing, Held: "id"}), ""},
		{of(refs.Base{Path: "/p/a", State: refs.Missing}),
			"; 1 base is needed, missing and not kept here: /p/a (shisa base missing tells the ways back)"},
		{of(refs.Base{Path: "/p/a", State: refs.Missing}, refs.Base{Path: "/p/b", State: refs.Missing}),
			"; 2 bases are needed, missing and not kept here: /p/a, and others (shisa base missing tells the ways back)"},
		{&refs.Census{Gaps: []finding.Blind{{Object: "/p/i/disk"}}}, "; 1 place was not seen: /p/i/disk"},
		{&refs.Census{Gaps: []finding.Blind{{Object: "/p/i/disk"}, {Object: "/proc"}}}, "; 2 places were not seen: /p/i/disk, and others"},
	} {
		if got := passWords(c.census, &pool.Done{}); got != "0 shielded, 0 touched, 0 recorded, 0 left"+c.want {
			t.Errorf("passWords = %q, want %q", got, c.want)
		}
	}
}

// TestWatchPutsBack: a base that is needed is there again as soon as somebody removed it, and who did is told.
func TestWatchPutsBack(t *testing.T) {
	w := newWorld(t, "a")
	heard, end := w.watching(func() *refs.Census { return w.census("a") })
	id, err := diskio.Look(w.path("a"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		w.remove("a")
		back, removed := heard(), heard()
		if back.What != pool.Restored || back.Name != "a" || !strings.Contains(back.Why, "/a/disk needs it") {
			t.Errorf("happened %+v, want that a is there again", back)
		}
		if removed.What != pool.Removed || removed.PID != os.Getpid() || removed.Command == "" {
			t.Errorf("happened %+v, want who removed it: %d", removed, os.Getpid())
		}
		if now, err := diskio.Look(w.path("a")); err != nil || now.ID != id.ID || w.old("a") {
			t.Errorf("a is %+v, %v, want the same file, changed now", now, err)
		}
	}
	if err := end(true); !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v", err)
	}
	receipts, err := w.receipts().Receipts.BaseReceipts(t.Context())
	if err != nil || len(receipts) != 4 || receipts[0].Act != "watch" {
		t.Errorf("%d receipts, %v, want that of the first look and of each that was put back", len(receipts), err)
	}
	var acts []string
	for _, e := range w.state().Audits {
		acts = append(acts, e.Act)
	}
	if want := []string{"shield", "restore", "removed", "restore", "removed", "restore", "removed"}; !slices.Equal(acts, want) {
		t.Errorf("audit = %q, want %q", acts, want)
	}
}

// TestWatchLeaves: what nobody needs stays away, and its shield keeps it; what came to be needed since the last
// look is put back.
func TestWatchLeaves(t *testing.T) {
	w := newWorld(t, "a", "b")
	later := false
	heard, end := w.watching(func() *refs.Census {
		c := w.census()
		if later {
			c.All = append(c.All, refs.Base{Name: "b", Path: w.path("b"), State: refs.Missing,
				Uses: []refs.Reference{{How: refs.Header, Holder: "/new/disk", Depth: 1}}})
		}
		return c
	})
	w.remove("a")
	if one, two := heard(), heard(); one.What != pool.Removed || two.What != pool.NotNeeded {
		t.Errorf("happened %+v, %+v; want that a stays away", one, two)
	}
	later = true
	w.remove("b")
	if one, two := heard(), heard(); one.What != pool.Removed || two.What != pool.Restored {
		t.Errorf("happened %+v, %+v; want that b is there again", one, two)
	}
	if err := end(true); !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v", err)
	}
	if got := w.state().Alone(); len(got) != 1 || got[0].Name != "a" {
		t.Errorf("kept by shields alone: %+v, want a", got)
	}
}

func TestWatchGone(t *testing.T) {
	w := newWorld(t)
	_, end := w.watching(func() *refs.Census { return &refs.Census{Bases: w.dir} })
	if err := os.RemoveAll(w.dir); err != nil {
		t.Fatal(err)
	}
	if err := end(false); !errors.Is(err, ErrGone) {
		t.Errorf("Watch = %v, want %v", err, ErrGone)
	}
}
