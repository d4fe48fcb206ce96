// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package jail

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// A child that was taken over could read for ever and never answer, and so be never quiet for
// patience. So what is read while a call waits is bounded, by what an honest reader may need. No clock
// is: a disk may be as slow as it likes.
const (
	// readCost is what each read counts as at least, in bytes: readers take metadata in pieces of so
	// much, and a read of nothing takes time too.
	readCost = 64 << 10
	// roomBytes is what any call may read, whatever the size of the disks.
	roomBytes = 256 << 20
	// scanShare says how often a call may read all of the disks that goes through all inodes, replays a
	// log or goes on with a list; otherShare is the part of them that others may. Where blocks have
	// 1 KiB, each counts as 64, and a file that is all fragments has a map of a sixteenth of its size.
	scanShare, otherShare = 8, 0.25
	// maxShared bounds the size of disks for that: nobody waits for what is read of more.
	maxShared = 64 << 40
)

// budget counts what is read for the calls that wait.
type budget struct {
	mu    sync.Mutex
	size  int64 // of all disks, at most maxShared
	asked int64 // what was read, in bytes, by readCost
	calls map[*lane]*waiting
}

// waiting is a call that waits for its answer.
type waiting struct {
	began int64 // budget.asked at that time
	// room is what may be read for it. It may have to wait for another call, as one that opens the file
	// system, so it has as much room as any of those that it waited along with.
	room int64
}

func newBudget(disks []volume.Disk) *budget {
	b := &budget{calls: make(map[*lane]*waiting)}
	for _, d := range disks {
		b.size = min(b.size+min(max(d.Size, 0), maxShared), maxShared)
	}
	return b
}

// room is what a call may read.
func (b *budget) room(q *message) int64 {
	switch int64(binary.LittleEndian.Uint64(q.b)) {
	case opLayout, opMount, opEntries, opInodes, opOwners, opNext:
		return roomBytes + scanShare*b.size
	}
	return roomBytes + int64(otherShare*float64(b.size))
}

// begin counts for a call from now on.
func (b *budget) begin(l *lane, q *message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := &waiting{began: b.asked, room: b.room(q)}
	for _, other := range b.calls {
		most := max(other.room, w.room)
		other.room, w.room = most, most
	}
	b.calls[l] = w
}

func (b *budget) done(l *lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.calls, l)
}

// read counts a read. It is an error if no call needs so much. Who reads for which call is not known;
// there are lanes calls at most.
func (b *budget) read(n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked += max(n, readCost)
	for _, w := range b.calls {
		if b.asked-w.began > lanes*w.room {
			return fmt.Errorf("it read %d bytes and gave no answer", b.asked-w.began)
		}
	}
	return nil
}
