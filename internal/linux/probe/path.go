// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"bytes"
	"context"
	"slices"
	"strings"
)

const (
	pathFirst = mountsPathFlagPATH_FIRST
	pathCross = mountsPathFlagPATH_CROSS

	// maxParts bounds the names of one path; PATH_MAX is 4096 bytes, and what is mounted deeper than
	// a path can say is cut.
	maxParts = 8192
)

// place is where an entry of a directory is.
type place struct {
	path    string // from the root that was asked for; the bytes are as the file system has them
	inode   uint64
	deleted bool // no name leads to it any more
	outside bool // not below the root of its mount: the path is from the root of the file system
	known   bool
}

// spot asks for a place: of the dentry, as seen through the mount (0: from the file system's root),
// up to the root of the mount or, across mounts, to that of the namespace.
type spot struct {
	dentry, mount, super uint64
	across               bool
}

func (r *Refs) places(ctx context.Context, spots []spot) ([]place, error) {
	qs := make([]question, len(spots))
	for i, s := range spots {
		qs[i] = question{Addr: s.dentry, Also: s.mount, Super: s.super, Flags: uint32(pathFirst)}
		if s.across {
			qs[i].Flags |= uint32(pathCross)
		}
	}
	places := make([]place, len(spots))
	parts := make([][]string, len(spots)) // the last first
	err := r.desk.ask(ctx, r.mounts.PathOf, qs, func(rec record) error {
		p := &places[rec.question]
		switch rec.kind {
		case foundName:
			name, _, _ := bytes.Cut(rec.data[headerBytes:], []byte{0})
			if len(parts[rec.question]) < maxParts {
				parts[rec.question] = append(parts[rec.question], string(name))
			}
		case foundPath:
			var f found
			if err := rec.into(&f); err != nil {
				return err
			}
			p.deleted = p.deleted || f.Flags&uint32(mountsInodeFlagINODE_DELETED) != 0
			p.outside = p.outside || f.Flags&uint32(mountsInodeFlagINODE_OUTSIDE) != 0
			if f.Addr != 0 {
				p.inode, p.known = f.Extra, true
			}
		case foundLost:
			// It was renamed or freed meanwhile: half a path would be a wrong one.
			*p, parts[rec.question] = place{outside: true}, nil
			qs[rec.question].Addr = 0
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range places {
		if qs[i].Addr == 0 {
			places[i] = place{}
			continue
		}
		slices.Reverse(parts[i])
		places[i].path = "/" + strings.Join(parts[i], "/")
	}
	return places, nil
}
