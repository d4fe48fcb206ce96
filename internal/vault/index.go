// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
)

// indexSuffix ends the name of an index.
const indexSuffix = ".index"

// indexPath is where the index of a key is kept: what may be lost at any time, and is made again.
func (v *Vault) indexPath(key string) string {
	return filepath.Join(filepath.Dir(v.receipts), "index", key+indexSuffix)
}

// Index reads what PutIndex keeps under a key of hexadecimal digits, at most maxBytes of it; nil if there is nothing.
func (v *Vault) Index(key string, maxBytes int64) ([]byte, error) {
	if !IsID(key) {
		return nil, fmt.Errorf("%w: %.40q", ErrNotFound, key)
	}
	path := v.indexPath(key)
	f, err := v.disk.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	id, err := f.Identity()
	switch {
	case err != nil:
		return nil, err
	case id.SizeBytes > maxBytes:
		return nil, fmt.Errorf("the index %s is longer than %d bytes", path, maxBytes)
	}
	b := make([]byte, id.SizeBytes)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the index %s: %w", path, err)
	}
	return b, nil
}

// PutIndex keeps an index under a key, at once or not at all, for the user alone.
func (v *Vault) PutIndex(key string, index []byte) error {
	if !IsID(key) {
		return fmt.Errorf("%w: %.40q", ErrNotFound, key)
	}
	path := v.indexPath(key)
	err := v.disk.MakeDir(filepath.Dir(path), 0o700)
	if err == nil {
		err = v.replace(path, path[:len(path)-len(indexSuffix)]+freshSuffix, index)
	}
	if err != nil {
		return fmt.Errorf("keep the index %s: %w", path, err)
	}
	return nil
}
