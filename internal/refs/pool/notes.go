// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// NotesSchema is the schema of Notes.
const NotesSchema = "shisa.base-notes/1"

// Notes are what one node noted when it decided last: they tell what became less since.
type Notes struct {
	Schema string `json:"schema"`
	Pool   string `json:"pool"`
	Node   string `json:"node"`
	// Time is by the clock of the file server.
	Time time.Time `json:"time"`
	// Overlays is how many images rested on others when some last did.
	Overlays int64 `json:"overlays"`
	// Storages are the file systems that it looked at when nothing was missing on them.
	Storages []BaseStorage `json:"storages"`
	// Nodes are all that were ever known.
	Nodes []Spoke `json:"nodes"`
	// Candidates are the bases for which no use was found, each since that was first so.
	Candidates []Candidate `json:"candidates"`
}

// Spoke is what was known of a node.
type Spoke struct {
	Node string `json:"node"`
	// Seq is the highest number of its reports, 0 for none.
	Seq uint64 `json:"seq"`
	// Overlays is how many images rested on others when some last did.
	Overlays int64 `json:"overlays"`
	// Storages are the file systems that it told of when nothing was missing on them.
	Storages []BaseStorage `json:"storages"`
	// BootIDs are the last runs of the machine that it spoke of, in their order.
	BootIDs []string `json:"boot_ids"`
	// Turned: it spoke of a run of the machine that had ended before.
	Turned bool `json:"turned"`
}

// Candidate is a base for which no use was found.
type Candidate struct {
	Name      string    `json:"name"`
	Inode     uint64    `json:"inode"`
	SizeBytes int64     `json:"size_bytes"`
	Since     time.Time `json:"since"`
	// Seqs are the numbers of the reports that each node had given by then: those do not count for it.
	Seqs []NodeSeq `json:"seqs"`
}

// NodeSeq is the number of a report of a node.
type NodeSeq struct {
	Node string `json:"node"`
	Seq  uint64 `json:"seq"`
}

// Seq is the number of the report that a node had given when the base became a candidate, 0 for none.
func (c *Candidate) Seq(node string) uint64 {
	for _, s := range c.Seqs {
		if s.Node == node {
			return s.Seq
		}
	}
	return 0
}

// Text is the document as it is written.
func (n *Notes) Text() ([]byte, error) { return documentText(n) }

// ParseNotes reads notes. The error is ErrPool with the line.
func ParseNotes(name string, text []byte) (n Notes, err error) {
	if err := strict(text, &n, name); err != nil {
		return n, err
	}
	switch {
	case n.Schema != NotesSchema:
		err = fmt.Errorf("its schema is %q, want %q", n.Schema, NotesSchema)
	case !IsUUID(n.Pool):
		err = fmt.Errorf("its pool is %q", n.Pool)
	case !IsNode(n.Node):
		err = fmt.Errorf("its node is %q", n.Node)
	}
	if err == nil {
		err = validStorages(n.Storages)
	}
	for i := range n.Nodes {
		err = errors.Join(err, validStorages(n.Nodes[i].Storages))
		if seq := n.Nodes[i].Seq; seq > maxSeq {
			err = errors.Join(err, fmt.Errorf("it knows report %d of %q", seq, n.Nodes[i].Node))
		}
	}
	if err != nil {
		return n, fmt.Errorf("%s %w: %w", name, ErrPool, err)
	}
	return n, nil
}

func (s *State) notes(ctx context.Context, dir string, timeout time.Duration) error {
	return s.ofNodes(ctx, dir, timeout, func(path string, text []byte) (string, func(), error) {
		n, err := ParseNotes(path, text)
		if err == nil && s.Policy != nil && n.Pool != s.Policy.UUID {
			err = fmt.Errorf("%s %w: it is about pool %s", path, ErrPool, n.Pool)
		}
		return n.Node, func() { s.Notes = append(s.Notes, n) }, err
	})
}
