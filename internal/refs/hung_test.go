// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// hanging mounts a file system that does not answer until what it returns is called.
func (w *world) hanging(name string) (answer func()) {
	w.t.Helper()
	w.mkdir(name)
	w.write(name+".store", make([]byte, 1<<16))
	served, err := faultfs.Mount(w.path(name), faultfs.Stored{Name: "data", Store: w.path(name + ".store")})
	if errors.Is(err, faultfs.ErrUnavailable) {
		testenv.Lacks(w.t, err.Error())
	} else if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := served.Close(); err != nil {
			w.t.Error(err)
		}
	})
	hang, err := served.Set("data", "look hang")
	if err != nil {
		w.t.Fatal(err)
	}
	return func() {
		if err := hang.Lift(); err != nil {
			w.t.Error(err)
		}
	}
}

// TestCensusOfHung: who looks again and again at storage that hangs, as a mount below the pool or as a directory of its own,
// keeps few threads, tells what is not seen and since when, and sees it when it answers.
func TestCensusOfHung(t *testing.T) {
	testenv.NeedRoot(t)
	w := newWorld(t)
	w.base("a")
	below, far := w.hanging("pool/dead"), w.hanging("far")
	threads := func() int {
		all, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	ctx := diskio.WithHung(t.Context())
	look := func(ctx context.Context, roots ...string) (*Census, error) {
		return Look(ctx, Options{Pool: w.path("pool"), BaseName: "_base", Roots: roots, Timeout: 2 * time.Second})
	}
	before := threads()
	const rounds = 40
	for i := range rounds {
		c, err := look(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want := diskio.ErrTimeout.Error()
		if i > 0 {
			want += " since 2"
		}
		if why := whyNot(c, w.path("pool/dead")); !strings.HasPrefix(why, want) {
			t.Fatalf("Look %d did not see what hangs for the reason %q, want %q", i, why, want)
		}
		if _, err := look(ctx, w.path("far")); !errors.Is(err, diskio.ErrTimeout) {
			t.Fatalf("Look %d at what hangs = %v, want %v", i, err, diskio.ErrTimeout)
		}
	}
	if n := threads() - before; n > rounds/2 {
		t.Errorf("%d threads more after %d rounds", n, rounds)
	}
	below()
	far()
	for { // what hung comes back in a moment, and the next look sees it
		c, err := look(ctx, w.path("far"))
		if err != nil && !errors.Is(err, diskio.ErrTimeout) {
			t.Fatal(err)
		}
		if err == nil && whyNot(c, w.path("pool/dead")) == "" && whyNot(c, w.path("far")) == "" {
			if c.Looked.Files != 4 { // with the base and what is stored
				t.Errorf("%d files are seen, want 4", c.Looked.Files)
			}
			return
		}
	}
}

// whyNot is the reason for which something was not seen, "" if it was.
func whyNot(c *Census, path string) string {
	for _, g := range c.Gaps {
		if g.Object == path {
			return g.Reason
		}
	}
	return ""
}
