// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"context"
	"fmt"
	"slices"
)

// maxFiles bounds the paths that Files gives: each is going to be opened.
const maxFiles = 4096

// Files gives the paths of the regular files in dir, not below it, whose names keep takes, in
// alphabetical order. A directory with more than 4096 of them is an error. It may block.
func Files(ctx context.Context, dir string, keep func(name string) bool) ([]string, error) {
	var paths []string
	err := listOne(ctx, dir, keep, func(path string) error {
		if len(paths) == maxFiles {
			return fmt.Errorf("list %s: more than %d files", dir, maxFiles)
		}
		paths = append(paths, path)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	return paths, nil
}
