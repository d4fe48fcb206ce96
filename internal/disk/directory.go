// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/vmdk"
)

// maxListedNames is how many names an error lists.
const maxListedNames = 20

// descriptorIn finds the descriptor of the disk whose files lie in dir: of a disk in several files the
// directory is what a user thinks of as the disk. There must be one; the error lists those that there are.
// cause is that dir is a directory.
func (o Options) descriptorIn(ctx context.Context, dir string, cause error) (string, error) {
	names, err := diskio.WithinAt(ctx, dir, answerTimeout, func() ([]string, error) {
		return diskio.Files(ctx, dir, func(name string) bool {
			return strings.EqualFold(filepath.Ext(name), "."+formatVMDK)
		})
	}, nil)
	if err != nil {
		return dir, errors.Join(cause, err)
	}
	var found []string
	for _, path := range names {
		is, err := o.isDescriptor(ctx, path)
		switch {
		case ctx.Err() != nil:
			return dir, ctx.Err()
		case err != nil:
			return dir, fmt.Errorf("%w, and whether it is that of a vmdk disk cannot be told: %w", cause, err)
		case is:
			found = append(found, path)
		}
	}
	switch len(found) {
	case 0:
		return dir, fmt.Errorf("%w without a vmdk descriptor", cause)
	case 1:
		return found[0], nil
	}
	for i := range found {
		found[i] = filepath.Base(found[i])
	}
	list := strings.Join(found[:min(len(found), maxListedNames)], ", ")
	if more := len(found) - maxListedNames; more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return dir, finding.WithHint(fmt.Errorf("%w with %d vmdk descriptors: %s", cause, len(found), list),
		"name the one that is meant: that of the newest snapshot rests on the others")
}

// isDescriptor tells whether the file at path is an image in itself: the other files of a disk, which
// have no descriptor or are bytes of the disk, are not.
func (o Options) isDescriptor(ctx context.Context, path string) (bool, error) {
	return diskio.WithinAt(ctx, path, answerTimeout, func() (is bool, err error) {
		f, err := o.open(path)
		if err != nil {
			return false, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if format, err := image.Probe(f, f.Size(), path); err != nil || format != image.VMDK {
			return false, err
		}
		_, err = vmdk.Open(f, f.Size())
		if errors.Is(err, vmdk.ErrExtent) {
			return false, nil
		} else if errors.As(err, new(*image.FormatError)) {
			return true, nil // opening it says what is wrong
		}
		return err == nil, err
	}, nil)
}
