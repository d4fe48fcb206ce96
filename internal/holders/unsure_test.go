// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/linux/probe"
)

// A copy of the mount that the kernel has for itself keeps nobody from unmounting; whether it keeps the
// device is not known, which is an answer where that is asked for.
func TestHiddenCopy(t *testing.T) {
	for all, want := range map[bool][]int{false: {0}, true: {4}} {
		k := &fakeKernel{mounts: append(kernelMounts(1, 1), probe.Mount{Addr: 0x51, Super: 9, ID: 51, Internal: true})}
		h := Host{Linux: world(t, nil), Kernel: k, Self: 99}
		target, err := Resolve(t.Context(), h, "/mnt")
		if err != nil {
			t.Fatal(err)
		}
		r, err := Scan(t.Context(), h, target, Options{AllSuperblock: all})
		if err != nil || r.Verdict != Free || !slices.Equal(r.Status, want) || len(r.Notes) != 1 {
			t.Errorf("Scan(all: %t) = %s %v %q, %v, want free, %v and a note", all, r.Verdict, r.Status, r.Notes, err, want)
		}
	}
}

// A process that does not let itself be looked at may have an image open, unless the kernel's lists have
// it: then they have its files too.
func TestProtected(t *testing.T) {
	image := filepath.Join(t.TempDir(), "vm.raw")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		more map[string]string
		refs []probe.Reference
		want Verdict
	}{
		{"none", nil, nil, Free},
		{"one", map[string]string{"proc/12/task": "no directory"}, nil, Unknown},
		{"the first process", map[string]string{"proc/1/task": "no directory"}, nil, Free},
		{"one that the kernel's lists have", map[string]string{"proc/12/task": "no directory"},
			[]probe.Reference{{Kind: probe.Namespace, PID: 12, TID: 12, FD: -1, Inode: 200}}, Free},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := Host{Linux: world(t, tc.more), Kernel: &fakeKernel{mounts: kernelMounts(1, 1), refs: tc.refs}, Self: 99}
			r, err := Scan(t.Context(), h, Target{Kind: TargetImage, Path: image, MountID: 40}, Options{})
			if err != nil || r.Verdict != tc.want || r.NotLooked != len(tc.more) {
				t.Errorf("Scan = %+v, %v, want %s", r, err, tc.want)
			}
		})
	}
}

// Somebody who holds a mount is told before what is mounted on it.
func TestBusyAndNested(t *testing.T) {
	k := &fakeKernel{mounts: kernelMounts(2, 1), refs: []probe.Reference{
		{Kind: probe.Cwd, PID: 11, TID: 11, FD: -1, Holder: 1, Mount: 0x40, Count: 1, Path: "/mnt"}}}
	h := Host{Linux: world(t, map[string]string{"proc/self/mountinfo": `20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
40 20 7:3 / /mnt rw shared:2 - ext4 /dev/loop3 rw
41 40 0:9 / /mnt/x rw - tmpfs tmpfs rw
`}), Kernel: k, Self: 99}
	target, err := Resolve(t.Context(), h, "/mnt")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Scan(t.Context(), h, target, Options{})
	if err != nil || r.Verdict != Busy || len(r.Holders) != 2 {
		t.Errorf("Scan = %+v, %v, want busy by two", r, err)
	}
}
