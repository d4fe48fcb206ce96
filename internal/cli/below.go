// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
)

// sameBelow refuses a saved plan for an image if it was made from what the backing files held, and they
// hold something else by now, or cannot be asked.
func sameBelow(ctx context.Context, p *plan.Plan, image string, policy disk.Policy) error {
	if len(p.Below) == 0 {
		return nil
	}
	chain, err := disk.Open(ctx, image, disk.Options{Policy: policy})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		defer chain.Close()
		err = p.SameBelow(chain)
	}
	if err == nil {
		return nil
	}
	hint := "make the plan anew, and carry it out at once: shisa repair --apply"
	if errors.Is(err, disk.ErrNotFollowed) {
		hint = "name the directories that the plan was made with: --pool DIR, or --follow"
	}
	return withStatus(finding.StatusRefused, finding.WithHint(
		fmt.Errorf("%s: the plan was made from what its backing files hold: %w", image, err), hint))
}
