// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

// An entry of the snapshot table (qcow2.txt, "Snapshots"); each begins at a multiple of 8 bytes:
//
//	 0  L1: offset           8  L1: entries        12  id: bytes       14  name: bytes
//	16  date: seconds       20  date: nanoseconds  24  VM clock: nanoseconds
//	32  VM state: bytes     36  extra data: bytes
//	40  extra data: {VM state bytes uint64, disk size uint64, icount uint64, ...}, id, name

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/shisa-vm/shisa/internal/image"
)

const (
	snapshotEntryBytes = 40
	// snapshotKnownExtra is how much of the extra data has a meaning.
	snapshotKnownExtra = 24
)

// Snapshot is an internal snapshot, as its entry of the snapshot table describes it. Only what is
// said here was checked: positions and sizes may be anything, and are negative where the highest
// bit of the 64 is set.
type Snapshot struct {
	ID, Name string
	// L1Off and L1Entries are where the snapshot's own L1 table lies. CheckL1 checks them.
	L1Off     image.HostOff
	L1Entries int64
	Date      time.Time
	// VMClock is how long the machine had run.
	VMClock time.Duration
	// VMStateBytes is the size of the saved state of the machine, 0 without one.
	VMStateBytes int64
	// DiskBytes is the size of the virtual disk at that time.
	DiskBytes int64
	// ICount is the number of instructions executed, -1 where it is not recorded.
	ICount int64
	// ExtraBytes is the length of the extra data. In version 3 it is 16 or more.
	ExtraBytes int64
	// EntryOff is where the entry begins, EntryBytes its length without padding.
	EntryOff   image.HostOff
	EntryBytes int64
}

// SnapshotTable is the table of the internal snapshots.
type SnapshotTable struct {
	Snapshots []Snapshot
	// Blank is the number of entries behind Snapshots that lie wholly past the end of the file, and
	// so are zeros: no id, no name, no L1 table, no extra data. They take no memory.
	Blank int64
	// Bytes is the length of the whole table.
	Bytes int64
}

// ReadSnapshots reads the table of internal snapshots. Its errors are *OpenError; their Qemu is
// what qemu-img check prints behind "ERROR " or "ERROR failed to read the snapshot table: ".
func ReadSnapshots(r io.ReaderAt, size int64, h *Header) (*SnapshotTable, error) {
	t := &SnapshotTable{}
	if err := h.tableAt(60, "snapshot table", h.SnapshotsOff, uint64(h.Snapshots),
		snapshotEntryBytes, snapshotEntryBytes*MaxSnapshots); err != nil {
		return nil, err
	}
	w := &window{r: r, size: size}
	start := int64(h.SnapshotsOff)
	for i := range int64(h.Snapshots) {
		off := start + (t.Bytes+7)&^7
		if off >= size {
			t.Blank = int64(h.Snapshots) - i
			t.Bytes = off - start + t.Blank*snapshotEntryBytes
			if err := t.bounded(image.HostOff(off)); err != nil {
				return nil, err
			}
			break
		}
		s, err := h.readSnapshot(w, off, i)
		if err != nil {
			return nil, err
		}
		t.Bytes = off + s.EntryBytes - start
		if err := t.bounded(s.EntryOff); err != nil {
			return nil, err
		}
		t.Snapshots = append(t.Snapshots, s)
	}
	return t, nil
}

// bounded refuses a table that is too long once the entry at off is counted.
func (t *SnapshotTable) bounded(off image.HostOff) error {
	if t.Bytes <= MaxSnapshotTableBytes {
		return nil
	}
	return broken(off, "Snapshot table is too big",
		"the snapshot table has %d bytes or more, %d at most", t.Bytes, MaxSnapshotTableBytes)
}

// Len is the number of all snapshots, those that are blank as well.
func (t *SnapshotTable) Len() int64 { return int64(len(t.Snapshots)) + t.Blank }

func (h *Header) readSnapshot(w *window, off, index int64) (Snapshot, error) {
	fail := func(err error) (Snapshot, error) {
		return Snapshot{}, unreadable(image.HostOff(off), "Failed to read snapshot table",
			fmt.Sprintf("entry %d of the snapshot table", index), err)
	}
	p, err := w.at(off, snapshotEntryBytes)
	if err != nil {
		return fail(err)
	}
	be := binary.BigEndian
	idLen, nameLen := int(be.Uint16(p[12:])), int(be.Uint16(p[14:]))
	s := Snapshot{
		EntryOff:     image.HostOff(off),
		L1Off:        image.HostOff(be.Uint64(p)),
		L1Entries:    int64(be.Uint32(p[8:])),
		Date:         time.Unix(int64(be.Uint32(p[16:])), int64(be.Uint32(p[20:]))).UTC(),
		VMClock:      time.Duration(be.Uint64(p[24:])),
		VMStateBytes: int64(be.Uint32(p[32:])),
		ExtraBytes:   int64(be.Uint32(p[36:])),
		DiskBytes:    h.SizeBytes,
		ICount:       -1,
	}
	if s.ExtraBytes > MaxSnapshotExtraBytes {
		return s, broken(image.HostOff(off+36),
			fmt.Sprintf("Too much extra metadata in snapshot table entry %d", index),
			"entry %d of the snapshot table has %d bytes of extra data, %d at most",
			index, s.ExtraBytes, MaxSnapshotExtraBytes)
	}
	s.EntryBytes = snapshotEntryBytes + s.ExtraBytes + int64(idLen) + int64(nameLen)
	extra, err := w.at(off+snapshotEntryBytes, int(min(s.ExtraBytes, snapshotKnownExtra)))
	if err != nil {
		return fail(err)
	}
	for i, field := range []*int64{&s.VMStateBytes, &s.DiskBytes, &s.ICount} {
		if len(extra) >= 8*i+8 {
			*field = int64(be.Uint64(extra[8*i:]))
		}
	}
	pos := off + snapshotEntryBytes + s.ExtraBytes
	if s.ID, err = w.text(pos, idLen); err != nil {
		return fail(err)
	}
	if s.Name, err = w.text(pos+int64(idLen), nameLen); err != nil {
		return fail(err)
	}
	return s, nil
}

// CheckL1 says whether the L1 table of s can be where its entry says. The error is an *OpenError
// whose Qemu is the sentence with which qemu refuses to read the snapshot.
func (h *Header) CheckL1(s *Snapshot) error {
	return h.tableAt(s.EntryOff, "Snapshot L1 table", uint64(s.L1Off), uint64(s.L1Entries), 8,
		MaxL1Bytes)
}
