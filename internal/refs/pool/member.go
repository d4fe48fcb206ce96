// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Schemas of what is known of a node.
const (
	MemberSchema  = "shisa.base-member/1"
	RetiredSchema = "shisa.base-retired/1"
)

// maxNodeBytes bounds the name of a node: that of a host has 64 bytes at most, or 253 with its domain, and each
// may take three in the name of a file, which has 255: some of these are for the id of one that is put aside.
const maxNodeBytes = 255 - len(".0123456789abcdef0123456789abcdef") - len(".gone")

// Member says that a node uses the pool. It is written once and never removed: a node that says nothing may come
// back with all of its machines.
type Member struct {
	Schema string `json:"schema"`
	Node   string `json:"node"`
	// Machine is a digest of the number of the machine (machine-id(5)), "" if that is not known.
	Machine string    `json:"machine"`
	Joined  time.Time `json:"joined"`
	// By is "agent" for one that joined by its first report, or the person who named it.
	By     string `json:"by"`
	Reason string `json:"reason"`
}

// Retired says that a person knows that a node does not come back. What it used was turned into pins before.
type Retired struct {
	Schema string    `json:"schema"`
	Node   string    `json:"node"`
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	Time   time.Time `json:"time"`
	// Report is the digest of its last report, "" if it had none. A node that says anything after that is back.
	Report string `json:"report"`
	// Pins are the ids of those that stand for what it used.
	Pins []string `json:"pins"`
}

// Node is all that a pool keeps of one node.
type Node struct {
	Name string
	// Member is nil for a node that is known by its report alone: it is a member all the same.
	Member *Member
	// Retired is nil for one that was never retired, Report for one that has never said anything.
	Retired *Retired
	Report  *Report
}

// Away tells whether the node was retired and has said nothing since. One whose last report is lost may have.
func (n *Node) Away() bool {
	if n.Retired == nil {
		return false
	}
	said := ""
	if n.Report != nil {
		said = n.Report.SHA256
	}
	return said == n.Retired.Report
}

// Nodes gives all nodes that are known, in the order of their names: those that joined, those that reported, and
// those that were retired. All are members of every decision.
func (s *State) Nodes() []Node {
	all := map[string]*Node{}
	get := func(name string) *Node {
		n := all[name]
		if n == nil {
			n = &Node{Name: name}
			all[name] = n
		}
		return n
	}
	for i := range s.Members {
		get(s.Members[i].Node).Member = &s.Members[i]
	}
	for i := range s.Retired {
		get(s.Retired[i].Node).Retired = &s.Retired[i]
	}
	for i := range s.Reports {
		get(s.Reports[i].Node).Report = &s.Reports[i]
	}
	list := make([]Node, 0, len(all))
	for _, n := range all {
		list = append(list, *n)
	}
	slices.SortFunc(list, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// MachineDigest is what is told of the number of a machine, which is a secret of it (machine-id(5)); "" for none.
func MachineDigest(id string) string {
	if id == "" || id == "uninitialized" {
		return ""
	}
	sum := sha256.Sum256([]byte("shisa base\n" + id))
	return hex.EncodeToString(sum[:])
}

// IsNode tells whether s may be the name of a node.
func IsNode(s string) bool {
	return s != "" && len(NodeFile(s)) <= maxNodeBytes && utf8.ValidString(s) && !takenBack(NodeFile(s)) &&
		!strings.ContainsFunc(s, unicode.IsControl)
}

// NodeFile is the name of the documents of a node in their directories. No two nodes have the same, none leads to
// another directory, and none begins with a dot, as files do that are being written.
func NodeFile(node string) string {
	name := url.PathEscape(node)
	if strings.HasPrefix(name, ".") {
		name = "%2E" + name[1:]
	}
	return name + ".json"
}

// Text is the document as it is written.
func (m *Member) Text() ([]byte, error) { return documentText(m) }

// Text is the document as it is written.
func (r *Retired) Text() ([]byte, error) { return documentText(r) }

// ParseMember reads the document of a member. The error is ErrPool with the line.
func ParseMember(name string, text []byte) (m Member, err error) {
	if err := strict(text, &m, name); err != nil {
		return m, err
	}
	switch {
	case m.Schema != MemberSchema:
		err = fmt.Errorf("its schema is %q, want %q", m.Schema, MemberSchema)
	case !IsNode(m.Node):
		err = fmt.Errorf("its node is %q", m.Node)
	case m.Machine != "" && !isDigest(m.Machine):
		err = fmt.Errorf("its machine is %q", m.Machine)
	}
	if err != nil {
		return m, fmt.Errorf("%s %w: %w", name, ErrPool, err)
	}
	return m, nil
}

// ParseRetired reads the document of a node that was retired. The error is ErrPool with the line.
func ParseRetired(name string, text []byte) (r Retired, err error) {
	if err := strict(text, &r, name); err != nil {
		return r, err
	}
	switch {
	case r.Schema != RetiredSchema:
		err = fmt.Errorf("its schema is %q, want %q", r.Schema, RetiredSchema)
	case !IsNode(r.Node):
		err = fmt.Errorf("its node is %q", r.Node)
	case strings.TrimSpace(r.Reason) == "":
		err = errors.New("it has no reason")
	}
	if err != nil {
		return r, fmt.Errorf("%s %w: %w", name, ErrPool, err)
	}
	return r, nil
}

// ReadRetired reads the document of a node that was retired, whatever its name is.
func ReadRetired(ctx context.Context, path string, timeout time.Duration) (Retired, error) {
	text, err := read(ctx, path, timeout)
	if err != nil {
		return Retired{}, err
	}
	return ParseRetired(path, text)
}

// takenBack tells of a document that was put aside, as NODE.ID.gone.json or ID.gone.json: a node may be called "x.gone".
func takenBack(name string) bool {
	rest, ok := strings.CutSuffix(name, ".gone.json")
	return ok && IsID(rest[strings.LastIndexByte(rest, '.')+1:])
}

func (s *State) members(ctx context.Context, dir string, timeout time.Duration) error {
	return s.ofNodes(ctx, dir, timeout, func(path string, text []byte) (string, func(), error) {
		m, err := ParseMember(path, text)
		return m.Node, func() { s.Members = append(s.Members, m) }, err
	})
}

func (s *State) retired(ctx context.Context, dir string, timeout time.Duration) error {
	return s.ofNodes(ctx, dir, timeout, func(path string, text []byte) (string, func(), error) {
		r, err := ParseRetired(path, text)
		return r.Node, func() { s.Retired = append(s.Retired, r) }, err
	})
}

// ofNodes reads the documents of a directory, each of which is of one node and called like it. A document that
// cannot be read, or is not called like its node, may be that of a node which is needed: it is Unread.
func (s *State) ofNodes(ctx context.Context, dir string, timeout time.Duration,
	parse func(path string, text []byte) (node string, take func(), err error),
) error {
	names, err := listAll(ctx, dir, timeout)
	for _, n := range names {
		if unfinished(n) {
			continue // one that is being written
		}
		if takenBack(n) {
			stem := strings.TrimSuffix(n, ".gone.json")
			if i := strings.LastIndexByte(stem, '.'); i > 0 && filepath.Base(dir) == Members {
				s.Unjoined = append(s.Unjoined, stem[:i]+".json")
			}
			continue
		}
		path := filepath.Join(dir, n)
		text, err := read(ctx, path, timeout)
		var node string
		var take func()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			err = fmt.Errorf("%s: it was there a moment ago, and is not any more", path)
		case err == nil:
			node, take, err = parse(path, text)
		}
		if err == nil && NodeFile(node) != n {
			err = fmt.Errorf("%s %w: it is of node %q", path, ErrPool, node)
		}
		if err != nil {
			s.Unread = append(s.Unread, err)
			continue
		}
		take()
	}
	return err
}
