// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package jail

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/shisa-vm/shisa/internal/guest/ext4"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/volume"
	"github.com/shisa-vm/shisa/internal/guest/xfs"
)

// ErrNotExamined: there is no reader for what is in the volume; the text says what that is.
var ErrNotExamined = errors.New("not examined")

// OpenVolume opens the file system on a volume in this process. The error is ErrNotExamined where
// there is none that can be read.
func OpenVolume(ctx context.Context, v *volume.Volume) (files.FS, error) {
	switch v.Kind {
	case volume.Ext2, volume.Ext3, volume.Ext4:
		return opened(ext4.Open(ctx, v, v.Size))
	case volume.XFS:
		return opened(xfs.Open(ctx, v, v.Size))
	}
	return nil, fmt.Errorf("%w: %s", ErrNotExamined, cmp.Or(v.NotExamined, string(v.Kind)))
}

// opened turns a reader that may be nil into an interface that is nil then.
func opened[T files.FS](fs T, err error) (files.FS, error) {
	if err != nil {
		return nil, err
	}
	return fs, nil
}
