// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// chmod sets a mode, and one that lets the test clean up at its end.
func (w *world) chmod(name string, mode os.FileMode) {
	w.t.Helper()
	if err := os.Chmod(w.path(name), mode); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := os.Chmod(w.path(name), 0o755); err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.t.Error(err)
		}
	})
}

func (w *world) fifo(name string) {
	w.t.Helper()
	if err := unix.Mkfifo(w.path(name), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// TestMode000: what may not be read is a gap, wherever it lies.
func TestMode000(t *testing.T) {
	testenv.Need(t, "qemu-img")
	if testenv.AsUser(t) {
		return
	}
	for _, c := range []struct {
		name  string
		spoil func(*world)
		want  []string
	}{
		{"an image", func(w *world) { w.chmod("pool/i/disk", 0) }, []string{"b live:", "gap pool/i/disk: permission denied"}},
		{"the directory of a machine", func(w *world) { w.chmod("pool/i", 0) }, []string{"b live:", "gap pool/i: permission denied"}},
		{"one that may be listed alone", func(w *world) { w.chmod("pool/i", 0o444) }, []string{"b live:", "gap pool/i/disk: permission denied"}},
		{"a base", func(w *world) { w.chmod("pool/_base/b", 0) },
			[]string{"gap pool/_base/b: permission denied", "gap pool/_base/b: permission denied"}},
		{"the directory of the bases", func(w *world) { w.chmod("pool/_base", 0) }, nil},
	} {
		w := newWorld(t)
		w.image("pool/i/disk", "qcow2", w.base("b"))
		c.spoil(w)
		census := w.look(Options{})
		got := w.lines(census)
		if c.want == nil {
			if len(got) < 2 || !strings.Contains(strings.Join(got, "\n"), "gap pool/_base: permission denied") {
				t.Errorf("%s: Look = %q, want a gap", c.name, got)
			}
			continue
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: Look (-want +got):\n%s", c.name, d)
		}
	}
}

// TestSpecialInPool: what stands in the place of a document of the pool is waited for by nobody, and is a gap.
func TestSpecialInPool(t *testing.T) {
	for _, c := range []struct{ name, file string }{
		{"a pipe for the policy", "pool.json"}, {"a pipe for a report", "nodes/n2.json"}, {"a pipe for a member", "members/n2.json"},
		{"a pipe for a pin", "pins/0123456789abcdef0123456789abcdef.json"}, {"a pipe in quarantine", "q/0123456789abcdef0123456789abcdef.b"},
		{"a pipe for a retired node", "retired/n2.json"},
	} {
		w := newWorld(t)
		w.base("b")
		for _, dir := range []string{"nodes", "members", "pins", "q", "retired"} {
			w.mkdir("pool/_base/.shisa/" + dir)
		}
		w.fifo("pool/_base/.shisa/" + c.file)
		if got := w.lines(w.look(Options{Timeout: 5 * time.Second})); len(got) != 2 || !strings.HasPrefix(got[1], "gap pool/_base/.shisa: ") {
			t.Errorf("%s: Look = %q, want a gap", c.name, got)
		}
	}
}

// TestOddPolicy: a pool.json that cannot be read is a gap, and its pool none.
func TestOddPolicy(t *testing.T) {
	p := pool.NewPolicy("0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3e", time.Unix(1e9, 0))
	text, err := p.Text()
	if err != nil {
		t.Fatal(err)
	}
	whole := string(text)
	for _, c := range []struct{ name, text string }{
		{"empty", ""}, {"half", whole[:len(whole)/2]}, {"a key of a later version", strings.Replace(whole, `"min_age"`, `"min_years"`, 1)},
		{"zeros, as after a power cut", strings.Repeat("\x00", len(whole))},
	} {
		w := newWorld(t)
		w.base("b")
		w.write("pool/_base/.shisa/pool.json", []byte(c.text))
		census := w.look(Options{})
		if got := w.lines(census); len(got) != 2 || census.Pool != "" || census.Complete() {
			t.Errorf("%s: Look = %q of pool %q, want a gap", c.name, got, census.Pool)
		}
	}
}

// TestNotMounted: an empty directory where the pool should be mounted has no bases and no pool, and whoever rests on
// one from elsewhere misses it.
func TestNotMounted(t *testing.T) {
	w := newWorld(t)
	w.image("elsewhere/disk", "qcow2", w.path("pool/_base/b"))
	c := w.look(Options{Roots: []string{w.path("elsewhere")}})
	if d := cmp.Diff([]string{"b missing: header elsewhere/disk 1"}, w.lines(c)); d != "" || c.Pool != "" {
		t.Errorf("Look of pool %q (-want +got):\n%s", c.Pool, d)
	}
	if _, err := Look(t.Context(), Options{Pool: w.path("nowhere")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Look of no directory = %v, want %v", err, fs.ErrNotExist)
	}
}

// TestClocksOff: whatever the time of a file says, its header counts.
func TestClocksOff(t *testing.T) {
	for _, year := range []int{1970, 1999, 2106, 2400} {
		w := newWorld(t)
		b := w.base("b")
		w.image("pool/i/disk", "qcow2", b)
		at := time.Date(year, 1, 2, 0, 0, 0, 0, time.UTC)
		for _, name := range []string{b, w.path("pool/i/disk"), w.path("pool/i"), w.path("pool/_base")} {
			if err := os.Chtimes(name, at, at); err != nil {
				t.Fatal(err)
			}
		}
		if d := cmp.Diff([]string{"b live: header pool/i/disk 1"}, w.lines(w.look(Options{}))); d != "" {
			t.Errorf("in %d: Look (-want +got):\n%s", year, d)
		}
	}
}
