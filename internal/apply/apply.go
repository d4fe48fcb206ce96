// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package apply carries out a plan, undoes one that was carried out, and finishes or takes back one
// that was cut off. At every moment the disk holds what is needed for one of the two: nothing is
// written to an image before its old bytes are safe.
package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/vault"
)

// Errors, for errors.Is. Where nothing else is said, the image was not touched. Others that come
// back are diskio.ErrInUse (a *diskio.InUseError), diskio.ErrNoLocks, vault.ErrNewer,
// vault.ErrDamaged, plan.ErrNotPlan, and those of opening.
var (
	// ErrEmpty: the plan changes nothing.
	ErrEmpty = errors.New("the plan changes nothing")
	// ErrUsed: the plan was carried out before, or someone tried to.
	ErrUsed = errors.New("the plan was used before")
	// ErrChanged: the image is not as the plan, or the undo file, needs it. The error is a
	// *ChangedError.
	ErrChanged = errors.New("was changed")
	// ErrNoRoom: there is not enough space. The error is a *RoomError.
	ErrNoRoom = errors.New("not enough room")
	// ErrUnfinished: an earlier change of the image was left in the middle: Recover comes first.
	ErrUnfinished = errors.New("an earlier change was left in the middle")
	// ErrRolledBack: the change went wrong, and the image has its old bytes again.
	ErrRolledBack = errors.New("the change was rolled back; the image is as it was")
	// ErrInterrupted: the change went wrong in the middle and the image may hold a part of it. The
	// undo file is there, and Recover puts it right.
	ErrInterrupted = errors.New("the change was interrupted; the image may hold a part of it")
	// ErrNothing: nothing is known that could be undone.
	ErrNothing = errors.New("nothing to undo")
	// ErrLater: a later change is in force, and is to be undone first. The error is a *LaterError.
	ErrLater = errors.New("a later change is in force")
)

// LaterError is ErrLater with the change that is in the way.
type LaterError struct {
	Path string
	// ID is the newest change of the image that is in force, Made when it was made.
	ID   string
	Made time.Time
	// Wanted is the change that was to be undone.
	Wanted string
}

func (e *LaterError) Error() string {
	return fmt.Sprintf("the change %s of %s cannot be undone: %s of %s was made after it", e.Wanted,
		e.Path, e.ID, e.Made.UTC().Format("2006-01-02 15:04:05 UTC"))
}

// Is makes errors.Is(e, ErrLater) true.
func (e *LaterError) Is(target error) bool { return target == ErrLater }

// ChangedError is ErrChanged with what is different.
type ChangedError struct {
	Path string
	// What says what is different, in words.
	What string
	// Ranges of the image that are different. The list may be cut; Cut counts those left out.
	Ranges []finding.Range
	Cut    int64
}

func (e *ChangedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s was changed: %s", e.Path, e.What)
	for i, r := range e.Ranges {
		if i == 3 {
			fmt.Fprintf(&b, ", and %d more ranges", int64(len(e.Ranges)-i)+e.Cut)
			break
		}
		sep := ", "
		if i == 0 {
			sep = " at "
		}
		fmt.Fprintf(&b, "%s%#x (%d bytes)", sep, r.Offset, r.Length)
	}
	return b.String()
}

// Is makes errors.Is(e, ErrChanged) true.
func (e *ChangedError) Is(target error) bool { return target == ErrChanged }

// RoomError is ErrNoRoom with the numbers.
type RoomError struct {
	// Where is the directory or device that lacks room.
	Where                string
	NeedBytes, FreeBytes int64
}

func (e *RoomError) Error() string {
	return fmt.Sprintf("not enough room at %s: %d bytes are needed, %d are free", e.Where,
		e.NeedBytes, e.FreeBytes)
}

// Is makes errors.Is(e, ErrNoRoom) true.
func (e *RoomError) Is(target error) bool { return target == ErrNoRoom }

// DefaultPatience is how long an operation on storage is waited for after the context ended.
const DefaultPatience = 30 * time.Second

// Options of Apply, Undo and Recover. Only StateDir must be set.
type Options struct {
	// Disk is what files are read and written with; nil for the machine's.
	Disk diskio.Disk
	// Settings are what settings of the running kernel are read and written with; nil for the machine's.
	Settings diskio.Settings
	// StateDir is the state directory, absolute: see vault.StateDir.
	StateDir string
	// JournalDir is where Apply makes the undo file, and where Undo and Recover look for one too.
	// "" is the directory of the image, and for block devices that of the receipts.
	JournalDir string
	// Now gives the time; nil for the clock of the machine.
	Now func() time.Time
	// Progress is told of what is being done, in words, and how many bytes of it are done; nil for
	// nobody. It is called by the goroutine that called Apply.
	Progress func(what string, doneBytes, totalBytes int64)
	// AcceptNoLocks: the user knows that nobody else uses the image, on a file system that keeps no
	// locks (diskio.ErrNoLocks), or whose locks other hosts do not see.
	AcceptNoLocks bool
	// Root is where /proc of the host is found; "" is "/".
	Root string
	// Verify examines the image after the last write and before the change counts as made. Its
	// error rolls the change back. nil examines nothing beyond the bytes that were written.
	Verify func(ctx context.Context, r io.ReaderAt, sizeBytes int64) error
	// VerifyOf gives Verify for the change that a receipt tells of, where Recover finishes it; nil is
	// Verify itself.
	VerifyOf func(*vault.Receipt) func(ctx context.Context, r io.ReaderAt, sizeBytes int64) error
	// Patience is how long an operation on storage that hangs is waited for after the context
	// ended; 0 is DefaultPatience. What hangs for longer ends as ErrInterrupted.
	Patience time.Duration
	// Forward makes Recover finish a change that was cut off, instead of taking it back.
	Forward bool
	// LeaveAsIs tells whether the user accepts that an image which somebody wrote to after a change of
	// it was cut off stays as it is: then Recover gives that change up, and keeps its undo file under
	// another name. nil accepts it of none.
	LeaveAsIs func(image string) bool
	// Looked is told by Recover where it looked for changes; nil for nobody.
	Looked func(Place)
}

// Place is where Recover looked for changes.
type Place struct {
	// Path is a directory, or an image.
	Path string
	// Receipts and UndoFiles count what was found there, or is known of the image.
	Receipts, UndoFiles int
}

// What Recover did about a change.
const (
	DidNothing    = "nothing"     // it was finished already
	DidRemove     = "removed"     // an undo file that was never finished, of an untouched image
	DidRollBack   = "rolled_back" // the image has its old bytes
	DidCommit     = "committed"   // the image has its new bytes
	DidUndo       = "undone"      // an undo that was cut off is finished
	DidSetAside   = "set_aside"   // the change was given up, and the image is left as it is
	DidNotRecover = "failed"      // see Err
)

// Outcome is what Recover did about one change.
type Outcome struct {
	ID       string // "" for an undo file that was never finished
	Image    string // "" where it is not known
	UndoPath string
	Did      string
	Receipt  *vault.Receipt // nil where there is none
	Err      error          // set for DidNotRecover
	// Texts are the files of a change of text files; then Image is the first of them, and UndoPath the
	// receipt, which holds what was there before.
	Texts []string
}
