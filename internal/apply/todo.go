// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"context"
	"errors"

	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/vault"
)

// Apply carries out a plan. The receipt says what was done; it is nil where the image was not
// touched. Where the context ends in the middle the image gets its old bytes back, and the error is
// both that of the context and ErrRolledBack. Beside these: ErrEmpty, ErrUsed, ErrUnfinished,
// ErrChanged, ErrNoRoom, ErrRolledBack, ErrInterrupted.
func Apply(ctx context.Context, p *plan.Plan, o Options) (*vault.Receipt, error) {
	return nil, errors.ErrUnsupported
}

// Undo gives an image the bytes that it had before the last change, or before the one that id
// names. image may be "" where id is not, and id where image is not.
func Undo(ctx context.Context, image, id string, o Options) (*vault.Receipt, error) {
	return nil, errors.ErrUnsupported
}

// Recover finishes or takes back what was cut off. target is an image, an undo file, the name of a
// receipt, a directory whose undo files are all looked at, with those below it, or "" for all
// receipts. The error joins those of the outcomes.
func Recover(ctx context.Context, target string, o Options) ([]Outcome, error) {
	return nil, errors.ErrUnsupported
}
