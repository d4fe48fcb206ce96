// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// deepKernel has more to tell when it is asked for what is under way.
type deepKernel struct {
	fakeKernel
	more  []probe.Reference
	deep  error
	asked int
}

func (k *deepKernel) Everything(ctx context.Context, super uint64, ns ...uint64) ([]probe.Reference, error) {
	k.asked++
	if k.deep != nil {
		return nil, k.deep
	}
	refs, err := k.References(ctx, super, ns...)
	return append(slices.Clone(refs), k.more...), err
}

// TestImageUnderWay: an image that only the kernel has is not called free, and who uses it is told. So is
// who keeps a file system that was unmounted lazily.
func TestImageUnderWay(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4", "mkfs.erofs")
	h := byKernel(t)
	for _, k := range hold.Kinds() {
		name, ok := map[string]string{"erofs-image": "/image.erofs", "fuse-backing": "/held", "aio-request": ""}[k.Name]
		if !ok {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
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
			defer func() {
				if err := made.Release(); err != nil {
					t.Error(err)
				}
			}()
			named := func(about string) {
				t.Helper()
				_, wrong := settled(t, h, about, func(a hold.Answer) []string {
					if !slices.ContainsFunc(a.Holders, func(s hold.Seen) bool { return s.Word == k.Word && s.PID == made.PID }) {
						return []string{"is not told"}
					}
					return nil
				})
				if len(wrong) > 0 {
					t.Errorf("%s of %s %s", k.Word, about, wrong)
				}
			}
			if name != "" {
				named(d.Mount + name)
			}
			if err := unix.Unmount(d.Mount, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			named(d.Device)
		})
	}
}

// TestDeep: calls that wait are told where somebody is missing, and no more is put down to them than the
// counter has left.
func TestDeep(t *testing.T) {
	call := func(holder uint64, walks bool) probe.Reference {
		return probe.Reference{Kind: probe.Waits, PID: 11, TID: 12, FD: -1, Holder: holder, Mount: 0x40, Count: 1,
			Path: "/mnt/fifo", Call: unix.SYS_OPENAT, Walks: walks}
	}
	open := []probe.Reference{call(1, true), call(2, false)}
	file := probe.Reference{Kind: probe.OpenFD, Count: 1, PID: 11, TID: 11, FD: 3, Holder: 3, Mount: 0x40, Path: "/mnt/a"}
	for _, c := range []struct {
		name    string
		kernel  deepKernel
		asked   int
		verdict Verdict
		left    int64 // unexplained
		want    []string
	}{
		{"nobody is missing", deepKernel{fakeKernel: fakeKernel{mounts: kernelMounts(2, 1), refs: []probe.Reference{file}}, more: open},
			0, Busy, 0, []string{"open_fd 11 static  1"}},
		{"an open that waits", deepKernel{fakeKernel: fakeKernel{mounts: kernelMounts(3, 1)}, more: open}, 1, Busy, 0,
			[]string{"system_call 12 overlap openat 2"}},
		{"more on its stack than is counted", deepKernel{fakeKernel: fakeKernel{mounts: kernelMounts(2, 1)}, more: open}, 1, Busy, 0,
			[]string{"system_call 12 overlap openat 1"}},
		{"less than is counted", deepKernel{fakeKernel: fakeKernel{mounts: kernelMounts(5, 1)}, more: open}, 2, Busy, 2,
			[]string{"system_call 12 overlap openat 2"}},
		{"only left by calls before", deepKernel{fakeKernel: fakeKernel{mounts: kernelMounts(1, 1), counts: []int64{2, 2, 1, 1}},
			more: open}, 1, Free, 0, nil},
		{"refused", deepKernel{fakeKernel: fakeKernel{mounts: kernelMounts(2, 1)}, deep: errors.New("no such program")}, 2, Unknown, 1, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := Host{Linux: world(t, nil), Kernel: &c.kernel, Self: 99}
			target, err := Resolve(t.Context(), h, "/mnt")
			if err != nil {
				t.Fatal(err)
			}
			r, err := Scan(t.Context(), h, target, Options{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, o := range r.Holders {
				got = append(got, fmt.Sprintf("%s %d %s %s %d", o.Kind, o.Process.TID, o.Certainty, o.Syscall, o.References))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("holders (-want +got):\n%s", diff)
			}
			if r.Verdict != c.verdict || r.Audit.Unexplained != c.left || c.kernel.asked != c.asked {
				t.Errorf("%s, %d unexplained, asked %d times, want %s, %d, %d", r.Verdict, r.Audit.Unexplained,
					c.kernel.asked, c.verdict, c.left, c.asked)
			}
			noted := slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "no such program") })
			if noted != (c.kernel.deep != nil) {
				t.Errorf("notes %q", r.Notes)
			}
		})
	}
}

// TestImageUnsure: an image has no counter, so one is not called free where what is under way was not
// looked at.
func TestImageUnsure(t *testing.T) {
	image := filepath.Join(t.TempDir(), "vm.raw")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for deep, want := range map[error]Verdict{nil: Free, errors.New("no such program"): Unknown} {
		k := &deepKernel{fakeKernel: fakeKernel{mounts: kernelMounts(1, 1)}, deep: deep}
		h := Host{Linux: world(t, nil), Kernel: k, Self: 99}
		r, err := Scan(t.Context(), h, Target{Kind: TargetImage, Path: image, MountID: 40}, Options{})
		if err != nil || r.Verdict != want {
			t.Errorf("Scan with %v = %+v, %v, want %s", deep, r, err, want)
		}
	}
}
