// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import "fmt"

// What a BaseStorage is about.
const (
	// OfBases is the file system of the directory of the bases, OfRoot that of a directory that was looked through,
	// and Below one that is mounted somewhere below such a directory.
	OfBases = "bases"
	OfRoot  = "root"
	Below   = "below"
)

// BaseStorage is a file system that a node looked at.
type BaseStorage struct {
	// What is one of OfBases, OfRoot and Below.
	What string `json:"what"`
	// Path is the directory of the bases, or the directory that was looked through.
	Path string `json:"path"`
	// Type and ID tell the file system from others, see diskio.FileSystem.
	Type string `json:"type"`
	ID   string `json:"id"`
	// Overlays is how many images on it, below Path, rest on others; 0 for OfBases.
	Overlays int64 `json:"overlays"`
}

// FS is the file system, in one word.
func (s *BaseStorage) FS() string {
	if s.ID == "" {
		return "type " + s.Type
	}
	return s.Type + "-" + s.ID
}

// validStorages says what is wrong with a list of them.
func validStorages(all []BaseStorage) error {
	for i := range all {
		s := &all[i]
		if (s.What != OfBases && s.What != OfRoot && s.What != Below) || s.Path == "" || s.Type == "" || s.Overlays < 0 {
			return fmt.Errorf("it tells of a file system as %q of %q, type %q, with %d overlays", s.What, s.Path, s.Type, s.Overlays)
		}
	}
	return nil
}
