// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ways

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/guest"
)

// Volumes says whether the file systems of a candidate are those that the images on top of the base know.
type Volumes string

// What the UUIDs say. None of it proves anything: copies and snapshots of one disk share them, and a guest may have
// made a file system anew. But where they differ, the candidate is most likely of another disk.
const (
	VolumesSame  Volumes = "same"
	VolumesOther Volumes = "other"
	// VolumesUnknown: the images hold none of the blocks that have a UUID, or the candidate has none.
	VolumesUnknown Volumes = "unknown"
)

// The place of the block with the UUID in a file system, and how much of it has to be known (ext4: superblock, xfs:
// sb_uuid at 32, btrfs: fsid at 32 of the superblock).
const (
	extUUIDAt, xfsUUIDAt, btrfsUUIDAt = 1024 + 104, 32, 64<<10 + 32
	uuidBytes                         = 16
)

// maxOwn bounds how many runs of an overlay are kept: those of 64 GiB in clusters of 64 KiB.
const maxOwn = 1 << 20

// overlaid reads an overlay with a candidate for its base below.
type overlaid struct {
	top, base *disk.Chain
	own       []run
}

// run is a range that an overlay itself says something about.
type run struct{ off, length int64 }

// overlay opens an image without its base, on top of a candidate.
func overlay(ctx context.Context, path string, base *disk.Chain) (*overlaid, error) {
	top, err := disk.Open(ctx, path, disk.Options{Single: true})
	if err != nil {
		return nil, err
	}
	o := &overlaid{top: top, base: base}
	err = top.Map(ctx, 0, top.Size(), func(e *disk.Entry) error {
		switch n := len(o.own); {
		case e.Depth != 0 || !e.Present:
		case n > 0 && o.own[n-1].off+o.own[n-1].length == int64(e.Start):
			o.own[n-1].length += e.Length
		case n == maxOwn:
			return fmt.Errorf("%s is in more than %d pieces", path, maxOwn)
		default:
			o.own = append(o.own, run{int64(e.Start), e.Length})
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, top.Close())
	}
	return o, nil
}

func (o *overlaid) Close() error { return o.top.Close() }

// at gives who says what is at off, and for how many bytes from there on.
func (o *overlaid) at(off int64) (own bool, length int64) {
	i := sort.Search(len(o.own), func(i int) bool { return o.own[i].off+o.own[i].length > off })
	switch {
	case i == len(o.own):
		return false, o.top.Size() - off
	case o.own[i].off <= off:
		return true, o.own[i].off + o.own[i].length - off
	}
	return false, o.own[i].off - off
}

// ReadAt is io.ReaderAt. Past the end of the base there are zeros.
func (o *overlaid) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) && off < o.top.Size() {
		own, length := o.at(off)
		part := p[done:min(int64(len(p)), int64(done)+length)]
		var err error
		switch {
		case own:
			err = readBlock(o.top, part, off)
		case off >= o.base.Size():
			clear(part)
		default:
			part = part[:min(int64(len(part)), o.base.Size()-off)]
			err = readBlock(o.base, part, off)
		}
		if err != nil {
			return done, err
		}
		done, off = done+len(part), off+int64(len(part))
	}
	if done < len(p) {
		return done, errShort
	}
	return done, nil
}

// errShort: more was asked for than the disk has.
var errShort = errors.New("past the end of the disk")

// volumes holds the file systems that an overlay itself knows against those of a candidate for its base. why says
// which differ.
func volumes(ctx context.Context, path string, candidate *disk.Chain) (v Volumes, why string, err error) {
	o, err := overlay(ctx, path, candidate)
	if err != nil {
		return VolumesUnknown, "", err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	theirs, _, err := guest.Volumes(ctx, candidate, candidate.Size())
	if err != nil {
		return VolumesUnknown, "", err
	}
	// What cannot be read there tells nothing, for or against.
	ours, _, err := guest.Volumes(ctx, o, o.top.Size())
	if err != nil {
		return VolumesUnknown, "", err
	}
	v = VolumesUnknown
	for i := range ours {
		u := &ours[i]
		if !o.knows(u) {
			continue
		}
		k := slices.IndexFunc(theirs, func(t guest.Volume) bool { return t.Start == u.Start && t.UUID != guest.UUID{} })
		switch {
		case k < 0:
			// The candidate has none there: the guest may have made it.
		case theirs[k].UUID == u.UUID:
			if v == VolumesUnknown {
				v = VolumesSame
			}
		default:
			v = VolumesOther
			why = fmt.Sprintf("the %s at %#x has the UUID %s, and %s says %s", u.Kind, u.Start, theirs[k].UUID, path, u.UUID)
		}
	}
	return v, why, nil
}

// knows tells whether the overlay itself holds the UUID of a file system.
func (o *overlaid) knows(u *guest.Volume) bool {
	at := u.Start
	switch u.Kind {
	case guest.Ext2, guest.Ext3, guest.Ext4:
		at += extUUIDAt
	case guest.XFS:
		at += xfsUUIDAt
	case guest.Btrfs:
		at += btrfsUUIDAt
	default:
		return false
	}
	own, length := o.at(at)
	return own && length >= uuidBytes && !u.FromCopy
}
