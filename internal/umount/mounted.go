// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
)

// mounted is the uppermost mount at a path, or the only one of a device. It is looked up by names
// alone: nothing in the file system is touched.
func mounted(ctx context.Context, h *linux.Host, path string) (linux.Mount, error) {
	mounts, err := h.Mounts(ctx, 0)
	if err != nil {
		return linux.Mount{}, err
	}
	full, err := filepath.Abs(path)
	if err != nil {
		return linux.Mount{}, err
	}
	// The last one covers those before.
	for _, m := range slices.Backward(mounts) {
		if m.Point == full {
			return m, nil
		}
	}
	var of []linux.Mount
	for _, m := range mounts {
		if m.Source == full {
			of = append(of, m)
		}
	}
	switch len(of) {
	case 1:
		return of[0], nil
	case 0:
		return linux.Mount{}, fmt.Errorf("unmount %s: %w", path, ErrNotMounted)
	}
	points := []string{}
	for _, m := range of {
		points = append(points, m.Point)
	}
	return linux.Mount{}, fmt.Errorf("unmount %s: it is mounted at %s: say which one", path,
		strings.Join(points, " and "))
}

// undo is the command that mounts it again, "" where names alone do not tell.
func undo(m linux.Mount) string {
	if !strings.HasPrefix(m.Source, "/dev/") || m.Root != "/" {
		return ""
	}
	return fmt.Sprintf("mount -t %s %s %s", m.Type, finding.Word(m.Source), finding.Word(m.Point))
}
