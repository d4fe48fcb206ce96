// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/vault"
)

// runResolved notes that a person put right the guest data that a repair of the image left wrong.
func runResolved(ctx context.Context, o repairOptions, image string, s *stdio) error {
	v, err := o.vault()
	if err != nil {
		return err
	}
	all, err := v.Find(ctx, image)
	i := slices.IndexFunc(all, func(c *vault.Candidate) bool {
		return c.ID == o.resolved && c.Receipt != nil && c.Match != vault.MatchName
	})
	switch {
	case i < 0 && err != nil:
		return changeError(ctx, err, image)
	case i < 0:
		if _, err := v.Receipt(o.resolved); err != nil {
			return finding.WithHint(err, "shisa check "+operand(image)+" names the receipts of what is remembered")
		}
		return withStatus(finding.StatusRefused,
			fmt.Errorf("receipt %s is not one of %s", o.resolved, image))
	}
	known, now := all[i].Receipt, time.Now().UTC().Truncate(time.Second)
	if len(known.Hurt) == 0 {
		return finding.WithHint(
			fmt.Errorf("receipt %s remembers no guest data that was wrong", o.resolved),
			"there is nothing to say about it")
	}
	r, err := v.Resolve(o.resolved, now)
	if errors.Is(err, vault.ErrNotFound) {
		// The repair was made on another host: its undo file tells of it, and what is said here
		// holds here.
		r = known
		r.Resolved = &now
		err = v.Put(r)
	}
	if err != nil {
		return changeError(ctx, err, image)
	}
	return o.showReceipt(s, r, image, finding.StatusClean)
}
