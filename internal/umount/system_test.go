// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// asking is world with the kernel's own lists.
func asking(t *testing.T) World {
	t.Helper()
	testenv.NeedRoot(t)
	refs, err := probe.OpenRefs()
	if errors.Is(err, probe.ErrRefused) {
		testenv.Lacks(t, err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := refs.Close(); err != nil {
			t.Error(err)
		}
	})
	w := world()
	w.Kernel = func() (Kernel, error) { return refs, nil }
	h := holders.Host{Linux: w.Host, Kernel: refs, Self: holders.Self()}
	w.ScanSystem = func(ctx context.Context, m linux.Mount) (*holders.Report, error) {
		return holders.Scan(ctx, h, holders.SystemOf(m), holders.Options{})
	}
	return w
}

// TestSystemGone is --then-device-free of a file system without a device: it is gone with the last of
// its mounts and open files, and not before. Who keeps it meanwhile is told.
func TestSystemGone(t *testing.T) {
	w := asking(t)
	dir, other := mount(t), t.TempDir()
	if err := unix.Mount(dir, other, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	r, err := Unmount(t.Context(), w, dir, Options{DeviceFree: true, Wait: 50 * time.Millisecond})
	if err != nil || r.State != Pinned || r.Status[0] != finding.StatusFound || r.Report == nil ||
		r.Report.Target.Kind != holders.TargetSystem {
		t.Fatalf("Unmount = %+v, %v, want that its file system lives on", r, err)
	}
	if !slices.ContainsFunc(r.Report.Holders, func(h holders.Holder) bool {
		return h.Kind == holders.Mounted && h.Path == other
	}) {
		t.Errorf("who keeps it: %+v, want the mount on %s", r.Report.Holders, other)
	}
	r, err = Unmount(t.Context(), w, other, Options{DeviceFree: true, Wait: patience})
	if err != nil || r.State != Done || r.Status[0] != finding.StatusClean {
		t.Errorf("Unmount of the last = %+v, %v, want it gone", r, err)
	}
}

// TestSystemWaits: the last open file goes while it is waited for.
func TestSystemWaits(t *testing.T) {
	w := asking(t)
	dir := mount(t)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	open := true
	shut := func() {
		if !open {
			return
		}
		open = false
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	}
	defer shut()
	refs := w.Kernel
	w.Kernel = func() (Kernel, error) {
		k, err := refs()
		return &telling{Kernel: k, third: shut}, err
	}
	r, err := Unmount(t.Context(), w, dir, Options{DeviceFree: true, Lazy: true, AcceptLazy: true,
		Wait: patience})
	if err != nil || r.State != Done || open {
		t.Errorf("Unmount = %+v, %v, open %t, want it gone when the last was closed", r, err, open)
	}
}

// telling is a kernel that tells when it is asked for the third time.
type telling struct {
	Kernel
	asked int
	third func()
}

func (k *telling) Super(ctx context.Context, addr uint64) ([]probe.Super, error) {
	if k.asked++; k.asked == 3 {
		k.third()
	}
	return k.Kernel.Super(ctx, addr)
}

// kernelOf says of a file system first what was so, then what is.
type kernelOf struct {
	mount probe.Mount
	says  [][]probe.Super
	fails error
}

func (k *kernelOf) Mount(context.Context, int) (probe.Mount, error) { return k.mount, nil }

func (k *kernelOf) Super(context.Context, uint64) ([]probe.Super, error) {
	if len(k.says) == 0 {
		return nil, k.fails
	}
	one := k.says[0]
	k.says = k.says[1:]
	return one, nil
}

// TestAlive: an address that another file system has by now is not taken for the old one, and one that
// is being taken down is not called gone.
func TestAlive(t *testing.T) {
	testenv.NeedRoot(t)
	old := probe.Super{Addr: 1, Root: 2}
	for _, c := range []struct {
		name  string
		now   []probe.Super
		fails error
		want  State
		why   string
	}{
		{"gone", nil, nil, Done, ""},
		{"as it was", []probe.Super{old}, nil, Pinned, ""},
		{"being taken down", []probe.Super{{Addr: 1}}, nil, Pinned, ""},
		{"another one", []probe.Super{{Addr: 1, Root: 3}}, nil, Done, ""},
		{"not to be read", nil, errors.New("no BPF any more"), Unknown, "no BPF any more"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := mount(t)
			w := world()
			m, err := mounted(t.Context(), w.Host, dir)
			if err != nil {
				t.Fatal(err)
			}
			k := &kernelOf{mount: probe.Mount{ID: m.ID, Super: 1}, fails: c.fails}
			was, now := old, slices.Clone(c.now)
			was.Dev = m.Dev
			for i := range now {
				now[i].Dev = m.Dev
			}
			k.says = [][]probe.Super{{was}}
			if c.fails == nil {
				k.says = append(k.says, now)
			}
			w.Kernel = func() (Kernel, error) { return k, nil }
			r, err := Unmount(t.Context(), w, dir, Options{DeviceFree: true})
			if err != nil || r.State != c.want {
				t.Errorf("Unmount = %+v, %v, want %s", r, err, c.want)
			} else if c.why != "" && !strings.Contains(strings.Join(r.Notes, " "), c.why) {
				t.Errorf("notes %q, want %q", r.Notes, c.why)
			}
		})
	}
}
