// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func contextEnded(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx, cancel
}

// bind mounts dir below itself, n times, until the test's end.
func bind(t testing.TB, dir string, n int) (points []string) {
	t.Helper()
	for i := range n {
		at := filepath.Join(dir, fmt.Sprintf("at%d", i))
		if err := errors.Join(os.Mkdir(at, 0o700), unix.Mount(dir, at, "", unix.MS_BIND, "")); err != nil {
			t.Fatal(err)
		}
		points = append(points, at)
		t.Cleanup(func() {
			if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	return points
}

// TestMountsAgree holds what the kernel's memory says of our mounts against mountinfo.
func TestMountsAgree(t *testing.T) {
	r := openRefs(t)
	dir := tmpfs(t)
	points := bind(t, dir, 100)
	slave := filepath.Join(points[0], "at1")
	if err := errors.Join(unix.Mount("", points[0], "", unix.MS_SHARED, ""),
		unix.Mount(points[0], slave, "", unix.MS_BIND, ""),
		unix.Mount("", slave, "", unix.MS_SLAVE, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(slave, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	slaves := 0
	got, err := r.MountsIn(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	byID := map[int]Mount{}
	for _, m := range got {
		byID[m.ID] = m
	}
	for _, w := range mountinfo(t) {
		m := byID[w.id]
		dev := fmt.Sprintf("%d:%d", unix.Major(m.Dev), unix.Minor(m.Dev))
		if m.ID != w.id || m.ParentID != w.parent && m.Parent != 0 || dev != w.dev || m.Root != w.root ||
			m.Point != w.point && m.Parent != 0 || !m.Counted || m.Count < m.Baseline ||
			m.Group != w.group || m.Master != w.master {
			t.Errorf("mount %d = %+v, want %+v", w.id, m, w)
		}
		if above := byID[m.ParentID]; m.Parent == above.Addr && m.Parent != 0 &&
			(m.ParentGroup != above.Group || m.ParentMaster != above.Master) {
			t.Errorf("mount %d is on groups %d and %d, want those of %+v", w.id, m.ParentGroup, m.ParentMaster, above)
		}
		if m.Master != 0 {
			slaves++
		}
		one, err := r.Mount(t.Context(), w.id)
		if err != nil || one.Addr != m.Addr {
			t.Errorf("Mount(%d) = %+v, %v, want %+v", w.id, one, err, m)
		}
	}
	if slaves == 0 {
		t.Error("no mount has a master, want one at least")
	}
}

// TestMountsOf holds that all mounts of a super block are found, and what is mounted on them.
func TestMountsOf(t *testing.T) {
	r := openRefs(t)
	dir := tmpfs(t)
	const n = 150
	bind(t, dir, n)
	m := find(t, r, dir)
	all, err := r.MountsOf(t.Context(), m.Super)
	if err != nil || len(all) != n+1 || m.Children != n {
		t.Errorf("MountsOf = %d mounts, %v, with %d children, want %d with %d", len(all), err, m.Children, n+1, n)
	}
	for _, other := range all {
		if other.Super != m.Super || other.Dev != m.Dev || other.Namespace != m.Namespace {
			t.Errorf("%+v is not of the super block of %+v", other, m)
		}
	}
	again, err := r.Again(t.Context(), m)
	if err != nil || again.Addr != m.Addr || again.Count != m.Count {
		t.Errorf("Again = %+v, %v, want %+v", again, err, m)
	}
}

// TestCount holds that the counter is read exactly, and that of writers, also as on a kernel where a
// program sees the counters of its own CPU only.
func TestCount(t *testing.T) {
	for name, edit := range map[string]func(*ebpf.CollectionSpec) error{
		"all CPUs": nil,
		"one CPU at a time": func(s *ebpf.CollectionSpec) error {
			return s.Variables["only_here"].Set(true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := openEdited(t, edit)
			dir := tmpfs(t)
			m := find(t, r, dir)
			if m.Count != m.Baseline || m.Writers != 0 {
				t.Errorf("an idle mount has %d references and %d writers, want %d and 0", m.Count, m.Writers, m.Baseline)
			}
			var wait sync.WaitGroup
			fds := make([][]int, 8)
			for i := range fds { // from whatever CPU
				wait.Go(func() {
					sub := filepath.Join(dir, fmt.Sprint(i))
					if err := os.Mkdir(sub, 0o700); err != nil {
						t.Error(err)
						return
					}
					fds[i] = open(t, sub, 50)
				})
			}
			wait.Wait()
			n, err := r.Again(t.Context(), m)
			if err != nil || n.Count != m.Count+400 || n.Writers != 400 {
				t.Errorf("Again = %d references and %d writers, %v, want %d and 400", n.Count, n.Writers, err, m.Count+400)
			}
			for _, f := range fds {
				shut(t, f)
			}
			if n, err = r.Again(t.Context(), m); err != nil || n.Count != m.Count || n.Writers != 0 {
				t.Errorf("Again = %d references and %d writers, %v, want %d and 0", n.Count, n.Writers, err, m.Count)
			}
		})
	}
}

// TestSupers holds that a super block is found by its device as long as the kernel has it.
func TestSupers(t *testing.T) {
	r := openRefs(t)
	dir := tmpfs(t)
	m := find(t, r, dir)
	found := func(dev uint64) (all []Super) {
		t.Helper()
		all, err := r.Supers(t.Context(), dev)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	one := found(m.Dev)
	if len(one) != 1 || one[0].Addr != m.Super || one[0].Type != "tmpfs" || one[0].Frozen {
		t.Errorf("Supers(%x) = %+v, want that of %+v", m.Dev, one, m)
	}
	if all := found(0); len(all) < 10 {
		t.Errorf("Supers = %+v, want at least the 10 that every kernel has", all)
	}
	d := newDisk(t)
	disk := find(t, r, d.Mount)
	fd, err := unix.Open(d.Mount, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(d.Mount, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	lazy := found(disk.Dev)
	if len(lazy) != 1 || lazy[0].Addr != disk.Super || lazy[0].BlockDev != disk.Dev || lazy[0].Type != "ext4" {
		t.Fatalf("Supers(%x) = %+v, want the one that is lazily unmounted, %+v", disk.Dev, lazy, disk)
	}
	ms, err := r.MountsOf(t.Context(), disk.Super)
	if err != nil || len(ms) != 1 || ms[0].Namespace != 0 || ms[0].Count-ms[0].Baseline != 1 {
		t.Errorf("MountsOf = %+v, %v, want one in no namespace with one reference", ms, err)
	}
	shut(t, []int{fd})
	if left := found(disk.Dev); len(left) != 0 {
		t.Errorf("Supers(%x) = %+v after the last reference went, want none", disk.Dev, left)
	}
	if _, err := r.Again(t.Context(), disk); !errors.Is(err, ErrNoMount) {
		t.Errorf("Again = %v, want %v", err, ErrNoMount)
	}
}

// TestNoMount holds that a number that is none is said to be none.
func TestNoMount(t *testing.T) {
	r := openRefs(t)
	for _, id := range []int{-1, 0, 1 << 30} {
		if m, err := r.Mount(t.Context(), id); !errors.Is(err, ErrNoMount) {
			t.Errorf("Mount(%d) = %+v, %v, want %v", id, m, err, ErrNoMount)
		}
	}
	for _, super := range []uint64{0, 8, 1 << 63} {
		if ms, err := r.MountsOf(t.Context(), super); err == nil && len(ms) > 0 {
			t.Errorf("MountsOf(%x) = %+v, want none", super, ms)
		}
		if refs, err := r.References(t.Context(), super); err == nil && len(refs) > 0 {
			t.Errorf("References(%x) = %+v, want none", super, refs)
		}
	}
}

// TestChurn holds that what stands still is found while others mount and unmount, and that there is
// no half of a list.
func TestChurn(t *testing.T) {
	r := openRefs(t)
	dir := tmpfs(t)
	bind(t, dir, 50)
	m := find(t, r, dir)
	stop := make(chan struct{})
	var wait sync.WaitGroup
	for i := range 2 {
		at := filepath.Join(dir, fmt.Sprintf("churn%d", i))
		if err := os.Mkdir(at, 0o700); err != nil {
			t.Fatal(err)
		}
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
					t.Error(err)
					return
				}
				if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	changed := 0
	for range 200 {
		ms, err := r.MountsOf(t.Context(), m.Super)
		switch {
		case errors.Is(err, ErrChanged):
			changed++
		case err != nil:
			t.Error(err)
		case len(ms) < 51:
			t.Errorf("MountsOf = %d mounts, want the 51 that stay", len(ms))
		}
		if one, err := r.Mount(t.Context(), m.ID); err != nil || one.Addr != m.Addr {
			t.Errorf("Mount(%d) = %+v, %v, want %+v", m.ID, one, err, m)
		}
	}
	close(stop)
	wait.Wait()
	t.Logf("the list changed too often in %d of 200 walks", changed)
}
