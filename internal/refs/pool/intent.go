// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"fmt"
	"slices"
	"time"
)

// IntentSchema is the schema of an Intent.
const IntentSchema = "shisa.base-intent/1"

// The acts that leave an intent while they are under way.
const (
	ActQuarantine = "quarantine"
	ActPurge      = "purge"
	ActRestore    = "restore"
	// ActUndo takes the name of a base away that an act gave it; its shield keeps it.
	ActUndo = "undo"
)

// What the audit calls a quarantine of what only its shield keeps, and taking that back: neither takes the name of a base away.
const (
	NoteHold   = "hold"
	NoteUnhold = "unhold"
)

// Noted is what the audit calls the act.
func (i *Intent) Noted() string {
	switch {
	case i.Act == ActQuarantine && !IsName(i.From):
		return NoteHold
	case i.Act == ActUndo && !IsName(i.From):
		return NoteUnhold
	}
	return i.Act
}

// Intent says what is about to be done to a base. It is written before the first step of an act and removed after
// its last: one that is there tells of an act that is under way, or of one that came to no end.
type Intent struct {
	Schema string `json:"schema"`
	// ID is that of the quarantine.
	ID   string `json:"id"`
	Act  string `json:"act"`
	Name string `json:"name"`
	// Inode and SizeBytes tell which file is meant, whatever its name is.
	Inode     uint64 `json:"inode"`
	SizeBytes int64  `json:"size_bytes"`
	// From and To are names below the directory of the bases. To is "" for a file that is to lose its last name.
	From string `json:"from"`
	To   string `json:"to"`
	Node string `json:"node"`
	// Time is by the clock of the file server.
	Time time.Time `json:"time"`
}

// Text is the document as it is written.
func (i *Intent) Text() ([]byte, error) { return documentText(i) }

// IntentName is the name of an intent in its directory. A base in quarantine may be restored while another
// program claims it, so that an id may have one intent of each act.
func IntentName(id, act string) string { return id + "." + act + ".json" }

// ParseIntent reads an intent. The error is ErrPool with the line.
func ParseIntent(name string, text []byte) (i Intent, err error) {
	if err := strict(text, &i, name); err != nil {
		return i, err
	}
	switch {
	case i.Schema != IntentSchema:
		err = fmt.Errorf("its schema is %q, want %q", i.Schema, IntentSchema)
	case !IsID(i.ID):
		err = fmt.Errorf("its id is %q", i.ID)
	case !slices.Contains([]string{ActQuarantine, ActPurge, ActRestore, ActUndo}, i.Act):
		err = fmt.Errorf("its act is %q", i.Act)
	case !IsName(i.Name):
		err = fmt.Errorf("its name %q is none in a directory", i.Name)
	case i.Inode == 0 || i.SizeBytes < 0:
		err = fmt.Errorf("it is about inode %d of %d bytes", i.Inode, i.SizeBytes)
	}
	if err != nil {
		return i, fmt.Errorf("%s %w: %w", name, ErrPool, err)
	}
	return i, nil
}
