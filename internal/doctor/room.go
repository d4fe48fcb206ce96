// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
)

// Room is the forecast of the room in one file system.
type Room struct {
	// Ends: it will be used up, about Best. With 95 % certainty that is between Early and Late, which is zero
	// where it has no bound.
	Ends              bool
	Best, Early, Late time.Time
	// Why says why there is no forecast, "" if there is one.
	Why string
}

// RoomOf forecasts when the file system that a directory lies on will be full, as FS08 does: by the room that was seen in
// it over at least MinSpan, and that of now. dir has no symbolic links.
func RoomOf(e *evidence.Evidence, dir string, freeBytes, sizeBytes uint64) Room {
	at := e.MountOf(dir)
	if at < 0 || e.Mounts[at].FS < 0 {
		return Room{Why: "which file system it lies on is not known"}
	}
	i := e.Mounts[at].FS
	key := e.FSs[i].SpaceKey()
	if key == "" {
		return Room{Why: "the room in it is not remembered here: it is a server's, or has no device"}
	}
	now := *e
	now.Spaces = append(slices.Clone(e.Spaces), evidence.SpacePoint{Time: e.Now,
		Of: []evidence.Space{{Key: key, Free: freeBytes, Size: sizeBytes}}})
	f, _ := filled(&now, i)
	return Room{Ends: f.ends, Best: f.end.Best, Early: f.end.Early, Late: f.end.Late, Why: f.why}
}
