// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// Former is a file that had a name which it can have again.
type Former struct {
	File      diskio.ID
	SizeBytes int64
	// ID is that of its quarantine, "" for one that only its shield keeps.
	ID string
	// Text tells it from others.
	Text string
}

// Formers are all files that had a name and can have it again: those in quarantine, and those that only their shields keep.
func (s *State) Formers(name string) (all []Former) {
	add := func(f Former) {
		if !slices.ContainsFunc(all, func(a Former) bool { return a.File == f.File }) {
			all = append(all, f)
		}
	}
	for i := range s.Held {
		if h := &s.Held[i]; h.Name == name {
			add(Former{h.File, h.SizeBytes, h.ID, fmt.Sprintf("inode %d, %d bytes, in quarantine since %s as %s", h.File.Ino, h.SizeBytes,
				h.Since.UTC().Format("2006-01-02 15:04 UTC"), h.ID)})
		}
	}
	for _, h := range s.ShieldsOf(name) {
		if s.IsAlone(&h) {
			add(Former{h.ID, h.SizeBytes, "", fmt.Sprintf("inode %d, %d bytes, which only its shield keeps", h.ID.Ino, h.SizeBytes)})
		}
	}
	return all
}

// OneContent tells whether at most one file had a name, or the records of all of them say that they hold the same. Else an
// image may have been made on any of them, and on top of another one it is another disk's.
func (s *State) OneContent(all []Former) bool {
	for i := range all {
		o, first := s.Objects[all[i].File.Ino], s.Objects[all[0].File.Ino]
		if len(all) > 1 && (o.SHA256 == "" || o.SHA256 != first.SHA256 || o.SizeBytes != all[i].SizeBytes) {
			return false
		}
	}
	return true
}

// IsSilly tells of a name that a client of NFS gives to a file which is removed while it is open there, until it is closed
// (fs/nfs/unlink.c, SILLYNAME_PREFIX). It is what is left of the name that the file had.
func IsSilly(name string) bool { return strings.HasPrefix(name, ".nfs") }
