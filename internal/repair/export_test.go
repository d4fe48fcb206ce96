// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"context"
	"io"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// FieldFix is fieldFix, for tests.
type FieldFix = fieldFix

// HeaderFields is headerFields, for tests.
func HeaderFields(ctx context.Context, r io.ReaderAt, size int64) ([]FieldFix, error) {
	return headerFields(ctx, r, size)
}

// ForgottenSnapshots is forgottenSnapshots, for tests.
func ForgottenSnapshots(ctx context.Context, r io.ReaderAt, size int64, res *qcow2.Result) ([]FieldFix, error) {
	return forgottenSnapshots(ctx, r, size, res)
}
