// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"fmt"
	"slices"
)

// What a BaseStorage is about.
const (
	// OfBases is the file system of the directory of the bases, OfRoot that of a directory that was looked through,
	// Below one that is mounted somewhere below such a directory and has images that rest on others, and AtMount any that
	// is mounted at one place below such a directory.
	OfBases = "bases"
	OfRoot  = "root"
	Below   = "below"
	AtMount = "mount"
)

// BaseStorage is a file system that a node looked at.
type BaseStorage struct {
	// What is one of OfBases, OfRoot, Below and AtMount.
	What string `json:"what"`
	// Path is the directory of the bases, the directory that was looked through, or the place of the mount.
	Path string `json:"path"`
	// Type and ID tell the file system from others, see diskio.FileSystem.
	Type string `json:"type"`
	ID   string `json:"id"`
	// Source is what was mounted, as the kernel has it (HOST:/PATH of NFS), where there is no ID; "" if that is not known.
	Source string `json:"source"`
	// Overlays is how many images on it, below Path, rest on others; 0 for OfBases and AtMount.
	Overlays int64 `json:"overlays"`
}

// FS is the file system, in one word.
func (s *BaseStorage) FS() string {
	switch {
	case s.ID == "" && s.Source == "":
		return "type " + s.Type
	case s.ID == "":
		return "type " + s.Type + " of " + s.Source
	}
	return s.Type + "-" + s.ID
}

// validStorages says what is wrong with a list of them.
func validStorages(all []BaseStorage) error {
	for i := range all {
		s := &all[i]
		if !slices.Contains([]string{OfBases, OfRoot, Below, AtMount}, s.What) || s.Path == "" || s.Type == "" || s.Overlays < 0 {
			return fmt.Errorf("it tells of a file system as %q of %q, type %q, with %d overlays", s.What, s.Path, s.Type, s.Overlays)
		}
	}
	return nil
}
