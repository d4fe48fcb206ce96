// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package vault keeps what a change of an image needs to be taken back: the undo file with the old
// and new bytes, and the receipt that says what was done. doc/formats/undo.md describes both. It
// changes no image.
package vault

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// Errors of reading what the vault holds, for errors.Is.
var (
	// ErrNotUndo: the file is no undo file.
	ErrNotUndo = errors.New("not an undo file")
	// ErrPartial: the undo file was never finished, so the image was not touched.
	ErrPartial = errors.New("the undo file was never finished; the image was not touched")
	// ErrDamaged: an undo file or receipt was finished once and is not whole any more.
	ErrDamaged = errors.New("is damaged")
	// ErrNewer: an undo file or receipt was made by a newer program.
	ErrNewer = errors.New("was made by a newer version of shisa")
	// ErrForeign: an undo file belongs to a user who may not write to the image, so what it says is not
	// written there.
	ErrForeign = errors.New("belongs to another user")
	// ErrReceipt: a receipt could not be written.
	ErrReceipt = errors.New("write the receipt")
	// ErrNotFound: there is no receipt of that name.
	ErrNotFound = errors.New("no receipt of that name")
)

// State is how far a change came.
type State string

// The states. A change begins as prepared and ends as committed or rolled back; a committed one may
// be undone.
const (
	// Prepared: the undo file is whole, the image was not touched.
	Prepared State = "prepared"
	// Applying: the image may hold old bytes, new ones, or both.
	Applying State = "applying"
	// Committed: the image holds the new bytes and passed its check.
	Committed State = "committed"
	// RolledBack: the image holds the old bytes again, or still does.
	RolledBack State = "rolled_back"
	// Undoing: a committed change is being undone.
	Undoing State = "undoing"
	// Undone: the image holds the old bytes again.
	Undone State = "undone"
	// SetAside: an interrupted change was given up. The image holds what it holds, and the undo file
	// has another name: see Vault.SetAside. It is a state of receipts alone.
	SetAside State = "set_aside"
	// Partial is the state of an undo file that was never finished.
	Partial State = "partial"
)

// Unfinished reports whether a change was left in the middle: it needs recovery.
func (s State) Unfinished() bool {
	return s == Prepared || s == Applying || s == Undoing || s == Partial
}

// Options say where the vault is. The zero value has the machine's disk and no state directory.
type Options struct {
	// Disk is what files are read and written with; nil for the machine's.
	Disk diskio.Disk
	// StateDir is the state directory, absolute; receipts are in its directory undo.
	StateDir string
	// JournalDirs are directories, beside that of the image, that may hold undo files.
	JournalDirs []string
}

// Vault finds, reads and writes receipts and undo files.
type Vault struct {
	disk     diskio.Disk
	receipts string
	journals []string
}

// New returns the vault in a state directory. It touches nothing.
func New(o Options) (*Vault, error) {
	if !filepath.IsAbs(o.StateDir) {
		return nil, fmt.Errorf("the state directory %q is not absolute", o.StateDir)
	}
	if o.Disk == nil {
		o.Disk = diskio.Host()
	}
	return &Vault{o.Disk, filepath.Join(o.StateDir, "undo"), o.JournalDirs}, nil
}

// StateDir is where state lies if the user says nothing else: /var/lib/shisa for root, else
// $XDG_STATE_HOME/shisa, or ~/.local/state/shisa. env looks up an environment variable.
func StateDir(root bool, env func(string) string) (string, error) {
	if root {
		return "/var/lib/shisa", nil
	}
	// A relative XDG_STATE_HOME counts as none (XDG Base Directory Specification 0.8).
	if dir := env("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "shisa"), nil
	}
	if home := env("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local/state/shisa"), nil
	}
	return "", errors.New("no state directory: neither XDG_STATE_HOME nor HOME is an absolute path")
}

// ReceiptsDir is the directory of the receipts.
func (v *Vault) ReceiptsDir() string { return v.receipts }
