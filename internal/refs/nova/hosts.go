// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package nova reads what OpenStack Nova says of the bases in its image cache: the list of hosts that it keeps
// beside the instances, and an export of its database. It reads bytes and opens nothing.
//
// Nova's word adds to what is on the disks, and never takes anything from it: an instance that its database
// does not know may run all the same.
package nova

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// HostsFile is the name of the list of hosts in the directory of instances (nova/virt/storage_users.py).
const HostsFile = "compute_nodes"

const (
	// MaxHostsBytes bounds the list: a host takes about forty bytes of it.
	MaxHostsBytes = 4 << 20
	// maxHosts bounds how many are kept: no cell of Nova has as many.
	maxHosts = 1 << 16
	// maxName bounds a name: Nova's column for it has 255 characters.
	maxName = 255
)

// ErrHosts: a list of hosts is torn, or is none, for errors.Is.
var ErrHosts = errors.New("is no whole list of hosts")

// ComputeNode is a host that uses a directory of instances, or did.
type ComputeNode struct {
	// Name is what Nova calls it: any text without control characters. It may hold a slash.
	Name string `json:"name"`
	// Heard is when it last registered, by its own clock, which may be wrong.
	Heard time.Time `json:"heard"`
	// AheadSeconds is by how much that is to come where it was read, which its clock is ahead at least; 0 for no more
	// than a few minutes.
	AheadSeconds int64 `json:"ahead_seconds"`
}

// ParseHosts reads the list of hosts, in the order of their names. Nova never takes one off it. Where the list is torn,
// as by a full file system in the midst of writing it, the hosts up to there come with ErrHosts: others may have
// stood behind them.
func ParseHosts(text []byte) ([]ComputeNode, error) {
	hosts, err := parseHosts(text)
	slices.SortFunc(hosts, func(a, b ComputeNode) int { return strings.Compare(a.Name, b.Name) })
	if err != nil {
		return hosts, fmt.Errorf("%w: %w", ErrHosts, err)
	}
	return hosts, nil
}

func parseHosts(text []byte) (hosts []ComputeNode, err error) {
	if len(text) > MaxHostsBytes {
		return nil, fmt.Errorf("it has %d bytes", len(text))
	}
	if !utf8.Valid(text) {
		hosts, _ = parseHosts(validBegin(text)) // that it is cut off there says less
		return hosts, errors.New("it is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	t, err := d.Token()
	if err != nil {
		return nil, torn(err)
	}
	if t != json.Delim('{') {
		return nil, errors.New("it does not begin with {")
	}
	seen := map[string]bool{}
	for d.More() {
		h, err := nextHost(d)
		if err == nil && seen[h.Name] {
			err = fmt.Errorf("%q stands in it twice", h.Name)
		}
		if err == nil && len(hosts) == maxHosts {
			err = fmt.Errorf("it has more than %d hosts", maxHosts)
		}
		if err != nil {
			return hosts, err
		}
		seen[h.Name] = true
		hosts = append(hosts, h)
	}
	if _, err := d.Token(); err != nil {
		return hosts, torn(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return hosts, errors.New("more stands behind its end")
	}
	return hosts, nil
}

// validBegin is what stands before the first byte that is no UTF-8.
func validBegin(text []byte) []byte {
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && n == 1 {
			return text[:i]
		}
		i += n
	}
	return text
}

// nextHost reads a name and its time, in seconds since 1970.
func nextHost(d *json.Decoder) (h ComputeNode, err error) {
	t, err := d.Token()
	if err != nil {
		return h, torn(err)
	}
	name, _ := t.(string)
	if err := checkName(name); err != nil {
		return h, err
	}
	if t, err = d.Token(); err != nil {
		return h, torn(err)
	}
	at, ok := t.(float64)
	// The year 9999 is the last that the documents can tell.
	if !ok || at < 0 || at > 253402300799 {
		return h, fmt.Errorf("the time of %q is %v", name, t)
	}
	whole, part := math.Modf(at)
	return ComputeNode{Name: name, Heard: time.Unix(int64(whole), int64(part*1e9)).UTC()}, nil
}

// checkName tells what is wrong with the name of a host.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("a host has no name")
	case utf8.RuneCountInString(name) > maxName:
		return fmt.Errorf("the name of a host has more than %d characters", maxName)
	case strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("%q is no name of a host", name)
	}
	return nil
}

// torn says in better words that the text ends too soon.
func torn(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it is cut off")
	}
	return err
}
