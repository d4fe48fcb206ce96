// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package klog_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/linux/klog"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if faultfs.IsChild(os.Args) {
		faultfs.Serve()
	}
	if err := hold.Apart(); err != nil {
		fmt.Fprintln(os.Stderr, err) // the tests that need it say so, too
	}
	testenv.Main(m)
}

// TestFaultsAreRecognised makes real faults: every message of this kernel that names the device has a
// form, which names it too, and the forms of the fault are among them.
func TestFaultsAreRecognised(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs")
	m := klog.New()
	for name, want := range map[string][]string{
		"ext4-journal-eio":   {"ext4.abort", "ext4.error", "ext4.ro", "jbd2.sb"},
		"ext4-error-logical": {"ext4.error", "ext4.abort", "ext4.ro"},
		"ext4-data-eio":      {"ext4.endbio"},
		"ext4-shutdown":      {"ext4.shutdown"},
		"xfs-log-eio":        {"xfs.logio", "xfs.shutdown"},
		"xfs-goingdown":      {"xfs.user"},
		"xfs-writeback-eio":  {"xfs.writeback"},
		"btrfs-abort":        {"btrfs.ro", "btrfs.error"}, // that it aborts is said once in a boot by some
		"btrfs-corrupt":      {"btrfs.csum"},
		"enospc-under":       nil, // errors of devices are said ten times in five seconds, of all of them
	} {
		t.Run(name, func(t *testing.T) {
			w, err := faultfs.Make(t.Context(), name, t.TempDir())
			if errors.Is(err, faultfs.ErrUnavailable) {
				testenv.Lacks(t, err.Error())
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			}()
			messages, err := w.Kernel()
			if err != nil {
				t.Fatal(err)
			}
			seen := recognised(t, m, messages, w.Hurt.Name)
			for _, f := range want {
				if !slices.Contains(seen, f) {
					t.Errorf("no %s among %v", f, seen)
				}
			}
		})
	}
}

// recognised holds that each message has a form and names the device, and gives the forms.
func recognised(t *testing.T, m *klog.Matcher, messages []faultfs.Message, device string) (seen []string) {
	t.Helper()
	for _, x := range messages {
		got, ok := m.Match("kernel", x.Text)
		if !ok {
			t.Errorf("%q is not known", x.Text)
			continue
		}
		if strings.HasSuffix(got.Form.Name, ".note") && x.Level < 4 {
			t.Errorf("%q, of level %d, is a note only", x.Text, x.Level)
		}
		if d := strings.TrimPrefix(got.Field("device"), "/dev/"); d != device && got.Field("filesystem") != device {
			t.Errorf("%q is about %q, want %q", x.Text, d, device)
		}
		seen = append(seen, got.Form.Name)
	}
	slices.Sort(seen)
	return slices.Compact(seen)
}
