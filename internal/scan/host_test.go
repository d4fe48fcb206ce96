// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package scan

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// TestHostAndImages holds that what is wrong with the host explains what is wrong with its images, and that
// leaks explain nothing.
func TestHostAndImages(t *testing.T) {
	dir := t.TempDir()
	makeImage(t, filepath.Join(dir, "leaks.qcow2"), "", 4)
	machine := func(state string) *evidence.Evidence {
		return &evidence.Evidence{Kind: tree.Live, Label: "h", Now: time.Unix(1_700_000_000, 0),
			Mounts:  []evidence.Mount{{Mount: linux.Mount{Point: "/", Type: "ext4"}, Own: true, FS: 0}},
			FSs:     []evidence.FS{{Type: "ext4", Device: "sda", Mounts: []int{0}}},
			Devices: []evidence.Device{{Block: linux.Block{Name: "sda"}, Driver: "sd", State: state}}}
	}
	for _, c := range []struct {
		name, state string
		status      int
		first       string
	}{{"well", "running", finding.StatusFound, "IM03"}, {"offline", "offline", finding.StatusFound, "BL01"}} {
		t.Run(c.name, func(t *testing.T) {
			rep, err := Run(t.Context(), []string{dir}, Options{
				Evidence: func(context.Context) (*evidence.Evidence, error) { return machine(c.state), nil }})
			if err != nil || rep.Doctor == nil {
				t.Fatalf("Run = %+v, %v", rep, err)
			}
			if rep.Status[0] != c.status || rep.Doctor.Findings[0].Code != c.first {
				t.Errorf("Run ends with %v and %s first, want %d and %s", rep.Status, rep.Doctor.Findings[0].Code, c.status, c.first)
			}
			i := slices.IndexFunc(rep.Doctor.Findings, func(f doctor.Finding) bool { return f.Code == "IM03" })
			if i < 0 || rep.Doctor.Findings[i].Severity != finding.Waste || rep.Doctor.Findings[i].Reach != doctor.Hint {
				t.Errorf("the leaks are %+v", rep.Doctor.Findings)
			}
		})
	}
}

// TestHostNotLookedAt holds that a host which cannot be looked at is no host that is well.
func TestHostNotLookedAt(t *testing.T) {
	dir := t.TempDir()
	makeImage(t, filepath.Join(dir, "a.qcow2"), "", 0)
	rep, err := Run(t.Context(), []string{dir}, Options{
		Evidence: func(context.Context) (*evidence.Evidence, error) { return nil, errors.New("no /proc") }})
	if err != nil || !slices.Contains(rep.Status, finding.StatusCannotTell) || len(rep.NotLookedAt) != 1 {
		t.Errorf("Run = %v, %+v, %v", rep.Status, rep.NotLookedAt, err)
	}
}
