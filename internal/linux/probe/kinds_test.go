// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// unexplained is how many references the kernel counts that are in none of these lists, of those kinds
// where there are any: on the kernel's own behalf.
var unexplained = map[string]int64{"loop": 1, "swap": 1, "uprobe": 1, "binfmt-misc": 1}

// kindOf is our word for kinds of holders that a scan says something else of.
var kindOf = map[string]Kind{"mount-context": Context, "peer": OpenFD, "peer-slave": OpenFD,
	"peer-user-namespace": OpenFD, "bind-fd": OpenFD, "detached-mount": OPath,
	"overlay-lazy-fd": OpenFD}

// TestKinds holds for every kind of holder that what is found is exactly what was made, and that the
// kernel's count of references is the baseline and what was found.
func TestKinds(t *testing.T) {
	r := openRefs(t)
	for _, k := range hold.Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			d := newDisk(t)
			super := find(t, r, d.Mount).Super
			h, err := hold.Make(t.Context(), k, d.Place)
			if errors.Is(err, hold.ErrUnavailable) {
				testenv.Lacks(t, err.Error())
			}
			if err != nil {
				t.Fatal(err)
			}
			// Others look at processes, too, and each look is a reference for a moment.
			var s state
			for range 200 {
				if s = look(t, r, super); s.explains(k.Name) {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if !s.explains(k.Name) {
				t.Errorf("with %s %d references are unexplained, want %d", k.Name, s.rest, unexplained[k.Name])
			}
			if kind, ok := wanted(k); ok && k.Effect != hold.Harmless {
				s.require(t, kind, h)
			} else if k.Effect == hold.Harmless && len(s.refs) > 0 {
				t.Errorf("%s refers to the mount, want nothing: %+v", k.Name, s.refs)
			}
			if t.Failed() {
				s.log(t)
			}
			if err := h.Release(); err != nil {
				t.Error(err)
			}
		})
	}
}

// state is all that is known of a super block at one moment.
type state struct {
	mounts []Mount
	refs   []Reference // without those who are just in our own namespace
	rest   int64       // references that the kernel counts, and nobody has
	waits  int64       // references put down to calls that wait
}

func look(t *testing.T, r *Refs, super uint64) (s state) {
	t.Helper()
	var err error
	if s.mounts, err = r.MountsOf(t.Context(), super); err != nil {
		t.Fatal(err)
	}
	var spaces []uint64
	own := find(t, r, "/").Namespace
	for _, m := range s.mounts {
		if m.Namespace != 0 && m.Namespace != own {
			spaces = append(spaces, m.Namespace)
		}
		if !m.Counted {
			t.Fatalf("%+v has no count: %v", m, r.Uncounted())
		}
		s.rest += m.Count - m.Baseline
	}
	// A process of somebody else may change its mappings faster than they can be read.
	for range 200 {
		s.refs, err = r.Everything(t.Context(), super, spaces...)
		if err == nil || !strings.Contains(err.Error(), ErrChanged.Error()) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	held := map[uint64]bool{}
	for _, ref := range s.refs {
		if !held[ref.Holder] {
			s.rest -= ref.Count
			if ref.Kind == Waits {
				s.waits += ref.Count
			}
		}
		held[ref.Holder] = true
	}
	return s
}

// explains tells whether the count comes out even. What a call left on its stack that is over may look as
// if the next one waited for it, which is for the caller to weigh: no more is put down to calls than that.
func (s state) explains(name string) bool {
	missing := unexplained[name] - s.rest
	return missing >= 0 && missing <= s.waits
}

// wanted is the kind that a holder must be found as; ok is false for what is no process' own.
func wanted(k hold.Kind) (kind Kind, ok bool) {
	if kind, ok := kindOf[k.Name]; ok {
		return kind, true
	}
	switch kind = Kind(k.Word); kind {
	case OpenFD, OPath, Cwd, Root, Exe, Mapping, UnixSocket, InFlight, IOUring, AIO, Waits, Backing, Image, Fanotify, Namespace:
		return kind, true
	case Uprobe:
		return kind, k.Name == "perf-uprobe"
	}
	return "", false
}

// require holds that what h made is found as the kind, with its process and where it is.
func (s state) require(t *testing.T, kind Kind, h *hold.Hold) {
	t.Helper()
	if kind == Namespace && h.PID == 0 {
		return // bound to a file: a mount says it
	}
	whole := len(s.mounts) == 1 && s.mounts[0].Point != "" // else the path is another mount's
	for _, ref := range s.refs {
		if ref.Comm == "" && ref.Kind != Image || ref.Kind != Namespace && ref.Inode == 0 {
			t.Errorf("%+v has no name or no inode", ref)
		}
		if ref.Kind == kind && (h.PID == 0 || ref.PID == h.PID) && (h.TID == 0 || ref.TID == h.TID) &&
			(h.FD < 0 || ref.FD == h.FD) && (!whole || h.Path == "" || ref.Path == h.Path) {
			return
		}
	}
	t.Errorf("no %s of process %d, thread %d, descriptor %d at %q was found", kind, h.PID, h.TID, h.FD, h.Path)
}

func (s state) log(t *testing.T) {
	for _, m := range s.mounts {
		t.Logf("%+v", m)
	}
	for _, ref := range s.refs[:min(len(s.refs), 20)] {
		t.Logf("%+v", ref)
	}
}

// newDisk is an ext4 on a loop device, mounted where only these tests see it.
func newDisk(t testing.TB) *hold.Disk {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4")
	d, err := hold.NewDisk(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// find gives the mount at a path of our own namespace.
func find(t testing.TB, r *Refs, point string) Mount {
	t.Helper()
	for _, w := range slices.Backward(mountinfo(t)) {
		if w.point == point {
			m, err := r.Mount(t.Context(), w.id)
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
	}
	t.Fatalf("nothing is mounted at %s", point)
	return Mount{}
}
