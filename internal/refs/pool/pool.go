// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package pool reads what a pool of base images keeps about itself, in a directory beside them:
//
//	.shisa/pool.json             which pool it is, and what is allowed in it
//	.shisa/shields/INODE.NAME    a second hard link of each base: who removes the first loses nothing
//	.shisa/objects/INODE.json    what each base held when it was first seen whole
//	.shisa/audit/NODE.jsonl      what was done, one line each, chained by digests
//	.shisa/pins/ID.json          bases that are to be kept, whoever needs them
//	.shisa/q/ID.NAME             bases that were set aside, each under an id of its own
//	.shisa/purge/ID.NAME         those that were claimed: about to be removed for good
//	.shisa/notes/NODE.json       what a node saw when it decided last
//	.shisa/journal/ID.ACT.json   what was about to be done to one of them
//	.shisa/members/NODE.json     a node that uses the pool: it is a member for ever
//	.shisa/nodes/NODE.json       what that node said last
//	.shisa/retired/NODE.json     a person said that the node does not come back
//
// Nodes that share the pool share nothing but this directory. Each file has one writer, or is written once.
// OpenStack Nova takes files with names of forty characters for bases, and leaves directories alone.
package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// Names in the directory of bases.
const (
	Dir     = ".shisa"
	File    = "pool.json"
	Shields = "shields"
	Objects = "objects"
	Audit   = "audit"
	Pins    = "pins"
	// Quarantine is where bases go that were set aside, Purge where those go that were claimed.
	Quarantine = "q"
	Purge      = "purge"
	Journal    = "journal"
	// Noted is where nodes note what they decided by.
	Noted = "notes"
	// Clock is a file that is touched to ask for the time of the file server.
	Clock = "clock"
	// Controller is a file that the program locks that sets aside or removes.
	Controller = "controller"
	Members    = "members"
	Nodes      = "nodes"
	Gone       = "retired"
)

// Schemas of the documents.
const (
	Schema       = "shisa.pool/1"
	ObjectSchema = "shisa.base-object/1"
)

const (
	// MaxBytes bounds each document: that of a base of 8 TiB has two million digests at most.
	MaxBytes = 160 << 20
	// ChunkBytes is how much of a base each digest of its list is of.
	ChunkBytes = 4 << 20
)

// ErrPool: a document is not what it should be, for errors.Is. It comes with the file and the line.
var ErrPool = errors.New("is no document of a pool")

// Policy is pool.json. Every value has to be there: what is missing may be what was to be forbidden.
type Policy struct {
	Schema string `json:"schema"`
	// UUID tells pools apart, whatever their paths are.
	UUID    string    `json:"uuid"`
	Created time.Time `json:"created"`
	// AllowPurge: what was set aside may be removed for good, by a person.
	AllowPurge bool `json:"allow_purge"`
	// MinAge is how old a base is at least that is set aside, MinQuarantine how long it stays there,
	// LaunchGrace how long a node may take from looking a base up to writing the overlay.
	MinAge        Span `json:"min_age"`
	MinQuarantine Span `json:"min_quarantine"`
	LaunchGrace   Span `json:"launch_grace"`
	// MaxFraction is how many of the bases may be set aside at once.
	MaxFraction float64 `json:"max_fraction"`
}

// NewPolicy is what a pool begins with: nothing that removes is allowed.
func NewPolicy(uuid string, now time.Time) Policy {
	return Policy{Schema: Schema, UUID: uuid, Created: now.UTC().Truncate(time.Second),
		MinAge: Span(24 * time.Hour), MinQuarantine: Span(14 * 24 * time.Hour), LaunchGrace: Span(15 * time.Minute),
		MaxFraction: 0.1}
}

// Span is a duration, in JSON as Go writes it: "336h0m0s".
type Span time.Duration

// MarshalText is encoding.TextMarshaler.
func (s Span) MarshalText() ([]byte, error) { return []byte(time.Duration(s).String()), nil }

// UnmarshalText is encoding.TextUnmarshaler.
func (s *Span) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	if err == nil && d < 0 {
		err = fmt.Errorf("%q is negative", text)
	}
	*s = Span(d)
	return err
}

// ParsePolicy reads pool.json. The error is ErrPool with the line.
func ParsePolicy(text []byte) (p Policy, err error) {
	if err := strict(text, &p, File); err != nil {
		return p, err
	}
	switch {
	case p.Schema != Schema:
		err = fmt.Errorf("its schema is %q, want %q", p.Schema, Schema)
	case !IsUUID(p.UUID):
		err = fmt.Errorf("its uuid is %q", p.UUID)
	case !(p.MaxFraction >= 0 && p.MaxFraction <= 1):
		err = fmt.Errorf("max_fraction is %v, want 0 to 1", p.MaxFraction)
	case time.Duration(p.LaunchGrace) < time.Minute:
		err = fmt.Errorf("launch_grace is %v, want a minute at least", time.Duration(p.LaunchGrace))
	}
	if err != nil {
		return p, fmt.Errorf("%s %w: %w", File, ErrPool, err)
	}
	return p, nil
}

// IsUUID tells whether s is a UUID in lower case.
func IsUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range s {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !strings.ContainsRune("0123456789abcdef", c) {
			return false
		}
	}
	return true
}

// Object is what is known of one base since it was first seen whole.
type Object struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
	Inode  uint64 `json:"inode"`
	// Born is when the file was made, the zero time where its file system does not keep that: an inode is
	// given away again. The time of the last change tells nothing, since bases in use are touched.
	Born      time.Time `json:"born"`
	SizeBytes int64     `json:"size_bytes"`
	Seen      time.Time `json:"seen"`
	Format    string    `json:"format"`
	// SHA256 is of all of it, Chunks of each 4 MiB, the last of which may be shorter.
	SHA256 string   `json:"sha256"`
	Chunks []string `json:"chunks"`
}

// ParseObject reads the document of a base. The error is ErrPool with the line.
func ParseObject(name string, text []byte) (o Object, err error) {
	if err := strict(text, &o, name); err != nil {
		return o, err
	}
	want := (o.SizeBytes + ChunkBytes - 1) / ChunkBytes
	switch {
	case o.Schema != ObjectSchema:
		err = fmt.Errorf("its schema is %q, want %q", o.Schema, ObjectSchema)
	case o.SizeBytes < 0 || int64(len(o.Chunks)) != want:
		err = fmt.Errorf("%d digests for %d bytes, want %d", len(o.Chunks), o.SizeBytes, want)
	case !isDigest(o.SHA256):
		err = fmt.Errorf("its digest is %q", o.SHA256)
	}
	for i, c := range o.Chunks {
		if err == nil && !isDigest(c) {
			err = fmt.Errorf("digest %d is %q", i, c)
		}
	}
	if err != nil {
		return o, fmt.Errorf("%s %w: %w", name, ErrPool, err)
	}
	return o, nil
}

func isDigest(s string) bool {
	if len(s) != 64 {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

// Shield is a second name of a base.
type Shield struct {
	// Name is that of the base when the shield was made, Path the shield itself.
	Name string
	Path string
	ID   diskio.ID
	// SizeBytes is the length, AllocatedBytes what it takes, Links how many names the file has now.
	SizeBytes, AllocatedBytes int64
	Modified                  time.Time
	Links                     uint64
	// Changed is when its names were changed last.
	Changed time.Time
}

// ShieldName is the name of a shield in its directory.
func ShieldName(inode uint64, name string) string { return strconv.FormatUint(inode, 10) + "." + name }

// ParseShieldName takes the name of a shield apart.
func ParseShieldName(s string) (inode uint64, name string, ok bool) {
	n, name, ok := strings.Cut(s, ".")
	inode, err := strconv.ParseUint(n, 10, 64)
	return inode, name, ok && err == nil && name != "" && strconv.FormatUint(inode, 10) == n
}

// ObjectName is the name of the document of a base in its directory.
func ObjectName(inode uint64) string { return strconv.FormatUint(inode, 10) + ".json" }

// Path is a name below the directory that a pool keeps beside its bases.
func Path(bases string, parts ...string) string {
	return filepath.Join(append([]string{bases, Dir}, parts...)...)
}

// Text is the document as it is written.
func (p *Policy) Text() ([]byte, error) {
	text, err := json.MarshalIndent(p, "", "  ")
	return append(text, '\n'), err
}

// Text is the document as it is written.
func (o *Object) Text() ([]byte, error) {
	text, err := json.MarshalIndent(o, "", " ")
	return append(text, '\n'), err
}
