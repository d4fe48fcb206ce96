// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package plan holds a change of one file as data: which bytes are written where and in which
// order, what stood there before, why, what the change rests on, and what it does not mend. A plan
// can be printed, reviewed, refused, carried out once, and undone. It changes nothing itself.
package plan

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
)

// Schema is what a plan's JSON document begins with.
const Schema = "shisa.plan/1"

// Phase orders the writes of a plan. All writes of a phase are on the disk before the first of the
// next one begins.
type Phase string

// The phases, in their order.
const (
	// New: space that nothing refers to yet, behind the end of the file.
	New Phase = "new"
	// Count: counts of what is in use become right. None falls below its references, so nothing in
	// use can be taken for free.
	Count Phase = "count"
	// Point: pointers and their flags.
	Point Phase = "point"
	// Lower: counts that become lower, of what nothing refers to any more.
	Lower Phase = "lower"
	// Switch: the first sector, written at once. It puts the change into force and ends the fence.
	Switch Phase = "switch"
)

// Phases lists the phases in their order.
func Phases() []Phase { return []Phase{New, Count, Point, Lower, Switch} }

// SectorBytes is what a disk writes whole or not at all.
const SectorBytes = 512

// Plan is a change of one file.
type Plan struct {
	Schema string `json:"schema"`
	// Status are the exit statuses that apply to making the plan, the first one first; for those
	// who print it.
	Status []int `json:"status"`
	// ID names the plan, its undo file and its receipt: 32 hexadecimal digits.
	ID string `json:"id"`
	// SHA256 is the Digest of a plan that was saved, "" before that. A document that was changed
	// since does not fit it.
	SHA256  string    `json:"sha256"`
	Created time.Time `json:"created"`
	// Tool is the program and version that made the plan.
	Tool   string `json:"tool"`
	Object Object `json:"object"`
	// Steps say what is done and why, in the order of the phases in which they begin. What is of one
	// phase is done together.
	Steps []Step `json:"steps"`
	// Before and After count what a check finds.
	Before State `json:"before"`
	After  State `json:"after"`
	// Remains are the findings of a check after the change; Blind is what could not be looked at.
	Remains []finding.Finding `json:"remains"`
	Blind   []finding.Blind   `json:"blind"`
	// Hurt are guest ranges whose data is known to be wrong whatever the tables say afterwards.
	Hurt []Hurt `json:"hurt"`
	// Files are what the guest ranges of Hurt and Remains are for, where that was looked for;
	// FilesNote says why it was not, or what could not be told.
	Files     []finding.Owner `json:"files"`
	FilesNote string          `json:"files_note"`
	// Relies are the ranges of the file that the plan was made from.
	Relies []Digest `json:"relies"`
	// Below are the ranges of the guest's disk that it was made from as well: what the backing files hold
	// there, where the image itself has nothing. See SameBelow.
	Below []Digest `json:"below"`
	// Fence keeps other programs from writing while the change is made; nil where there is none.
	Fence *Fence `json:"fence"`
	// Writes are ordered by phase, and by offset within one. None overlaps another.
	Writes []Write `json:"writes"`
	// SizeAfterBytes is the length of the file afterwards, never less than before.
	SizeAfterBytes int64 `json:"size_after_bytes"`
}

// Object is the file that a plan changes.
type Object struct {
	// Path is absolute and without symbolic links.
	Path string `json:"path"`
	// PathB64 is the path where it is no UTF-8, in base64; else "".
	PathB64   string    `json:"path_b64,omitempty"`
	Format    string    `json:"format"`
	Dev       uint64    `json:"dev"`
	Ino       uint64    `json:"ino"`
	SizeBytes int64     `json:"size_bytes"`
	ModTime   time.Time `json:"mod_time"`
}

// State counts what a check of the file finds.
type State struct {
	CheckErrors int64           `json:"check_errors"`
	Corruptions int64           `json:"corruptions"`
	Leaks       int64           `json:"leaks"`
	Verdict     finding.Verdict `json:"verdict"`
}

// Step is one thing that a plan mends.
type Step struct {
	// Code is the rule whose finding it mends, Name its name.
	Code string `json:"code"`
	Name string `json:"name"`
	// Action is what is done, as one word: "raise", "drop-copied", "set-copied", "quarantine",
	// "relink", "split", "reclaim", "rebuild", "clear", "rewrite".
	Action string `json:"action"`
	// Summary says in one sentence what is done and what it means.
	Summary   string            `json:"summary"`
	Certainty finding.Certainty `json:"certainty"`
	Count     int64             `json:"count"`
	// Host are the ranges of the file that it is about, Guest those of the virtual disk. The lists
	// may be cut; HostCut and GuestCut count the ranges left out.
	Host     []finding.Range `json:"host"`
	Guest    []finding.Range `json:"guest"`
	HostCut  int64           `json:"host_cut"`
	GuestCut int64           `json:"guest_cut"`
	// Proofs are the observations that it rests on.
	Proofs []finding.Evidence `json:"proofs"`
}

// Hurt is a range of guest data that is known to be wrong, and stays so until a person says that it
// was put right.
type Hurt struct {
	Code string `json:"code"` // of the rule that found it
	// Kind is "mixed" where several ranges hold the data of one of them, "lost" where the data is
	// gone and something else is read instead.
	Kind    string          `json:"kind"`
	Summary string          `json:"summary"`
	Guest   []finding.Range `json:"guest"`
	// Snapshot names the internal snapshot whose view is meant; empty for the active one.
	Snapshot string `json:"snapshot"`
}

// Digest is a range of the file and the CRC-32C (Castagnoli) of its bytes. What lies past the end
// of the file counts as zeros.
type Digest struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	CRC32C uint32 `json:"crc32c"`
}

// Fence is a change of the first sector that keeps other programs from writing. It is made before
// all other writes; the write of the phase Switch ends it.
type Fence struct {
	Offset int64 `json:"offset"`
	Old    Bytes `json:"old"`
	New    Bytes `json:"new"`
}

// Write puts New at Offset. Old is what stands there now; it is shorter than New where the file
// ends before, and never longer.
type Write struct {
	Phase  Phase `json:"phase"`
	Offset int64 `json:"offset"`
	Old    Bytes `json:"old"`
	New    Bytes `json:"new"`
}

// End is the first byte after w.
func (w Write) End() int64 { return w.Offset + int64(len(w.New)) }

// NewID makes up a name for a plan.
func NewID() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make up a name for the plan: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// Empty reports whether the plan changes nothing.
func (p *Plan) Empty() bool { return len(p.Writes) == 0 }

// BytesWritten is how many bytes of the file the plan writes.
func (p *Plan) BytesWritten() (n int64) {
	for _, w := range p.Writes {
		n += int64(len(w.New))
	}
	return n
}

// GrowsBy is how many bytes longer the file becomes.
func (p *Plan) GrowsBy() int64 { return p.SizeAfterBytes - p.Object.SizeBytes }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC-32C of p.
func Checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// ErrBelow: the backing files hold something else than what a plan was made from.
var ErrBelow = errors.New("what the backing files hold there was changed")

// SameBelow reads the guest's disk, through the whole backing chain, and returns ErrBelow if it is not
// what the plan was made from. Its other errors are those of disk.
func (p *Plan) SameBelow(disk io.ReaderAt) error {
	buf := make([]byte, 64<<10)
	for _, d := range p.Below {
		got, err := DigestOf(disk, math.MaxInt64, d.Offset, d.Length, buf)
		if err != nil {
			return err
		}
		if got != d {
			return fmt.Errorf("%d bytes of the disk at %#x: %w", d.Length, d.Offset, ErrBelow)
		}
	}
	return nil
}

// DigestOf reads a range of the file, which is size bytes long, and gives its Digest. buf is what
// it reads with and may not be empty.
func DigestOf(r io.ReaderAt, size, off, length int64, buf []byte) (Digest, error) {
	d := Digest{Offset: off, Length: length}
	for pos := int64(0); pos < length; {
		p := buf[:min(int64(len(buf)), length-pos)]
		n := int(max(0, min(int64(len(p)), size-off-pos)))
		if n > 0 {
			if m, err := r.ReadAt(p[:n], off+pos); m < n {
				if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return d, fmt.Errorf("read %d bytes at %#x: %w", n, off+pos, err)
			}
		}
		clear(p[n:])
		d.CRC32C = crc32.Update(d.CRC32C, castagnoli, p)
		pos += int64(len(p))
	}
	return d, nil
}
