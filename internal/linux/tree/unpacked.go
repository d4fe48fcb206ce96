// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package tree

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// ReadUnpacked is ReadBundle of one that somebody unpacked at dir; dir may also be the directory "root" in it, of
// the files that were read. The error is ErrNotBundle, and fs.ErrNotExist as well where there is no
// such thing. A system that has a file of the index's name in its root is none: it has /etc, too.
func ReadUnpacked(ctx context.Context, dir string) (Tree, Info, error) {
	real, err := diskio.Within(ctx, readTimeout, func() (string, error) { return diskio.RealPath(dir) }, nil)
	if err != nil {
		return nil, Info{}, err
	}
	t, info, err := readUnpacked(ctx, real)
	if errors.Is(err, fs.ErrNotExist) && filepath.Base(real) == "root" && real != "/root" {
		return readUnpacked(ctx, filepath.Dir(real))
	}
	return t, info, err
}

func readUnpacked(ctx context.Context, dir string) (Tree, Info, error) {
	l, err := diskio.Within(ctx, 2*readTimeout, func() (*Local, error) { return newDirectory(ctx, dir) },
		func(l *Local) { l.Close() })
	if err != nil {
		return nil, Info{}, err
	}
	defer l.Close()
	if _, err := l.List(ctx, "/etc"); err == nil {
		return nil, Info{}, fmt.Errorf("%w: it is a system: %w", ErrNotBundle, fs.ErrNotExist)
	}
	text, err := l.Read(ctx, "/"+indexName, maxIndexBytes)
	switch {
	case Missing(err):
		return nil, Info{}, fmt.Errorf("%w: it has no %s: %w", ErrNotBundle, indexName, fs.ErrNotExist)
	case err != nil:
		return nil, Info{}, err
	}
	var x index
	if err := json.Unmarshal(text, &x); err != nil {
		return nil, Info{}, fmt.Errorf("%w: its index: %w", ErrNotBundle, err)
	}
	if x.Schema != bundleSchema {
		return nil, Info{}, fmt.Errorf("%w: its schema is %q, want %q", ErrNotBundle, x.Schema, bundleSchema)
	}
	files, left := map[string][]byte{}, int64(maxBundleBytes)
	for _, i := range x.Answers {
		if _, known := files[i.File]; known || i.File == "" {
			continue
		}
		if len(files) == maxMembers || left <= 0 {
			return nil, x.Info, fmt.Errorf("%w: it has more than %d files or %d bytes", ErrNotBundle, maxMembers, maxBundleBytes)
		}
		b, err := l.Read(ctx, path.Clean("/"+i.File), left)
		if Missing(err) {
			continue // newBundle says that it is not in it
		}
		if err != nil {
			return nil, x.Info, fmt.Errorf("read %s of the bundle: %w", i.File, err)
		}
		files[i.File], left = b, left-int64(len(b))
	}
	return newBundle(x, files)
}
