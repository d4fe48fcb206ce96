// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/refs"
)

// roomOf tells how full the file system of a directory is, and when it will be full as far as that was watched here. The
// error is that of ctx; what could not be asked is told in the result.
func roomOf(ctx context.Context, dir string) (*refs.Room, error) {
	r := &refs.Room{}
	room, err := diskio.WithinAt(ctx, dir, 10*time.Second, func() (diskio.Room, error) { return diskio.RoomAt(dir) }, nil)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		r.NoForecast = "how full it is could not be asked: " + oneLine{err}.Error()
		return r, nil
	}
	r.SizeBytes, r.FreeBytes = room.TotalBytes, room.FreeBytes
	r.Wanted = r.Nearly()
	f, err := forecast(ctx, dir, room, time.Now())
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		f.Why = oneLine{err}.Error()
	}
	if r.NoForecast = f.Why; !f.Ends {
		return r, nil
	}
	best, early := f.Best.UTC(), f.Early.UTC()
	r.Full, r.Early, r.Wanted = &best, &early, true
	if !f.Late.IsZero() {
		late := f.Late.UTC()
		r.Late = &late
	}
	return r, nil
}

// forecast tells when the file system of a directory will be full, by what "shisa doctor watch" remembers.
func forecast(ctx context.Context, dir string, room diskio.Room, now time.Time) (f doctor.Room, err error) {
	seen, err := evidence.RecallSpaces(stateDirOrNone(""), now)
	if err != nil {
		return f, err
	}
	t, err := tree.OpenLive(ctx)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	e, err := evidence.GatherRoom(ctx, t, evidence.Options{Now: now, Spaces: seen.Points})
	if err != nil {
		return f, err
	}
	return doctor.RoomOf(e, dir, uint64(room.FreeBytes), uint64(room.TotalBytes)), nil
}
