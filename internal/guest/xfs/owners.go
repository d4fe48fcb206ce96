// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"context"
	"errors"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// Owners tells what parts of the volume are for.
func (f *FS) Owners(ctx context.Context, ranges []files.Range, fn func(files.Owner) error) error {
	return errors.New("placeholder")
}
