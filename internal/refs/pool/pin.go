// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// PinSchema is the schema of a Pin.
const PinSchema = "shisa.base-pin/1"

// Pin says that a base is to be kept, whoever is found to need it or not. It is written once. One that was taken
// back keeps its document, under the name that PinGoneName gives.
type Pin struct {
	Schema string `json:"schema"`
	ID     string `json:"id"`
	// Name is that of the base, Inode the file that had it then, 0 for whichever has it: a pin may be of a base
	// that a node needs which is gone.
	Name  string `json:"name"`
	Inode uint64 `json:"inode"`
	// Reason and By are a person's, Node is where the pin was made.
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	Node   string    `json:"node"`
	Time   time.Time `json:"time"`
	// Until is when the pin ends by the clock of the file server, nil if it does not end.
	Until *time.Time `json:"until"`
	// Uses are those of a node that was retired, which the pin stands for.
	Uses []Use `json:"uses"`
}

// Text is the document as it is written.
func (p *Pin) Text() ([]byte, error) { return documentText(p) }

// PinName is the name of a pin in its directory, PinGoneName that of one that was taken back.
func PinName(id string) string { return id + ".json" }

// PinGoneName is the name of a pin that was taken back.
func PinGoneName(id string) string { return id + ".gone.json" }

// ParsePin reads a pin. The error is ErrPool with the line.
func ParsePin(name string, text []byte) (p Pin, err error) {
	if err := strict(text, &p, name); err != nil {
		return p, err
	}
	switch {
	case p.Schema != PinSchema:
		err = fmt.Errorf("its schema is %q, want %q", p.Schema, PinSchema)
	case !IsID(p.ID):
		err = fmt.Errorf("its id is %q", p.ID)
	case !IsName(p.Name):
		err = fmt.Errorf("its name %q is none in a directory", p.Name)
	case strings.TrimSpace(p.Reason) == "":
		err = fmt.Errorf("it has no reason")
	case p.Time.IsZero():
		err = fmt.Errorf("it has no time")
	case p.Uses == nil:
		err = fmt.Errorf("its uses are no list")
	}
	if err != nil {
		return p, fmt.Errorf("%s %w: %w", name, ErrPool, err)
	}
	return p, nil
}

// Holds tells whether a pin speaks for a base at a time by the clock of the file server.
func (p *Pin) Holds(name string, inode uint64, now time.Time) bool {
	if p.Until != nil && !now.Before(*p.Until) {
		return false
	}
	// The name may be another file's by now, and the file may have another name: either is meant.
	return p.Name == name || p.Inode != 0 && p.Inode == inode
}

// IsID tells whether s is what names a quarantine or a pin: 32 digits of hexadecimal in lower case.
func IsID(s string) bool { return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == "" }

// IsName tells whether s may be a name in a directory.
func IsName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= maxNameBytes && !strings.ContainsAny(s, "/\x00")
}

// maxNameBytes is the longest name of a file (NAME_MAX of Linux).
const maxNameBytes = 255

// documentText is a document as it is written.
func documentText(v any) ([]byte, error) {
	text, err := json.MarshalIndent(v, "", "  ")
	return append(text, '\n'), err
}
