// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// sameCounts checks the image with both programs and says how their counts differ, "" if they do
// not.
func (b *bench) sameCounts(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, b.qemuImg, "check", "--output=json", path).Output()
	if err != nil {
		return "", fmt.Errorf("qemu-img check --output=json %s: %w", path, err)
	}
	var j struct {
		CheckErrors int64 `json:"check-errors"`
		Corruptions int64 `json:"corruptions"`
		Leaks       int64 `json:"leaks"`
		Allocated   int64 `json:"allocated-clusters"`
		Fragmented  int64 `json:"fragmented-clusters"`
		Compressed  int64 `json:"compressed-clusters"`
		Total       int64 `json:"total-clusters"`
		End         int64 `json:"image-end-offset"`
	}
	if err := json.Unmarshal(out, &j); err != nil {
		return "", fmt.Errorf("qemu-img check --output=json %s: %w", path, err)
	}
	d, err := b.checkJSON(ctx, path)
	if err != nil {
		return "", err
	}
	if len(d.Images) != 1 {
		return fmt.Sprintf("shisa reports %d images, want 1", len(d.Images)), nil
	}
	want := qcow2.Counts{CheckErrors: j.CheckErrors, Corruptions: j.Corruptions, Leaks: j.Leaks,
		AllocatedClusters: j.Allocated, FragmentedClusters: j.Fragmented, CompressedClusters: j.Compressed,
		TotalClusters: j.Total, ImageEndOffset: j.End}
	if got := d.Images[0].Counts; got != want {
		return fmt.Sprintf("shisa counts %+v, qemu-img %+v", got, want), nil
	}
	return "", nil
}
