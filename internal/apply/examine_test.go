// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
)

// TestSomebodyWroteMeanwhile: what the plan relied on, and did not write, is held against what it has
// to be after the change, whether the examination reads it whole, in part, or not at all.
func TestSomebodyWroteMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		name        string
		off, length int64
	}{
		{"read whole", 6 * pageBytes, pageBytes},
		{"read in part", 6 * pageBytes, 512},
		{"read with more", 5 * pageBytes, 3 * pageBytes},
		{"not read", 0, 0},
	} {
		for _, wrong := range []bool{false, true} {
			d, p, before, after := world(t)
			o := options(d)
			o.Verify = func(_ context.Context, r io.ReaderAt, size int64) error {
				if wrong {
					f, err := d.OpenWithoutLocks(imagePath)
					if err != nil {
						return err
					}
					defer f.Close()
					if _, err := f.WriteAt([]byte{^after[watchAt]}, watchAt); err != nil {
						return err
					}
				}
				got := make([]byte, tt.length)
				if _, err := r.ReadAt(got, tt.off); err != nil {
					return err
				}
				if same := bytes.Equal(got, after[tt.off:tt.off+tt.length]); same == wrong && tt.length > 512 {
					t.Errorf("%s: what the examination reads is as it should be: %v", tt.name, same)
				}
				return nil
			}
			_, err := Apply(t.Context(), p, o)
			if !wrong {
				if err != nil || !bytes.Equal(content(t, d), after) {
					t.Errorf("%s: Apply = %v, want none and the image changed", tt.name, err)
				}
				continue
			}
			before[watchAt] = ^after[watchAt]
			if !errors.Is(err, ErrChanged) || !errors.Is(err, ErrRolledBack) || !bytes.Equal(content(t, d), before) {
				t.Errorf("%s: Apply = %v, want ErrChanged, ErrRolledBack and all else as before", tt.name, err)
			}
		}
	}
}
