// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package config reads what an administrator says of the pools of base images on a host, /etc/shisa/base.yaml:
//
//	node: node1
//	pools:
//	  - path: /var/lib/nova/instances
//	    bases: _base
//	    uuid: 0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3e
//	    roots: [/srv/rescue]
//	    nova_export: [/var/lib/shisa/nova.jsonl]
//	    compute_nodes: /var/lib/nova/instances/compute_nodes
//	    libvirt: [/var/lib/docker/volumes/nova_libvirt_qemu/_data]
//	    members: [node1, node2]
//	    others: [backup-host]
//	    protect: true
//	    keepalive: 6h
//	    watch: true
//	    purge: false
//
// It is read strictly: what is misspelt may be what was to forbid something.
package config

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// Default is where it is looked for.
const Default = "/etc/shisa/base.yaml"

const (
	maxBytes = 1 << 20
	maxPools = 1000
	maxItems = 10_000 // of a list
	timeout  = 10 * time.Second
)

// ErrConfig: it is not what it should be, for errors.Is. It comes with the file and the line.
var ErrConfig = errors.New("is no configuration of pools")

// Pool is what is said of one pool.
type Pool struct {
	// Path is the pool as commands name it, Bases what the directory of bases in it is called, "" for "_base".
	Path  string
	Bases string
	// UUID is that of its pool.json, "" for any.
	UUID string
	// Roots are further directories whose images may rest on the bases.
	Roots []string
	// NovaExports are exports of Nova's database, ComputeNodes is Nova's list of hosts, "" for the one beside the
	// instances.
	NovaExports  []string
	ComputeNodes string
	// Libvirt are directories in which a libvirt in a container keeps its descriptions of machines.
	Libvirt []string
	// Members are nodes that use the pool, whether they have ever said anything or not. Others are names by
	// which Nova or the server of the files knows who does not use it, or who is a member by another name.
	Members, Others []string
	// Protect has the agent protect the bases, and KeepAlive is how old one that is needed may become before it is
	// touched, 0 for as Nova needs it. Watch has it bring a base back as soon as it is removed.
	Protect   bool
	KeepAlive time.Duration
	Watch     bool
	// Quarantine and Purge allow that bases are set aside, and removed for good, by a person on this host. Of purging
	// pool.json has to say so too.
	Quarantine, Purge bool

	// Line is where it begins in its file.
	Line int
}

// Pools are those of a file.
type Pools struct {
	// Name is the file, "" if there is none.
	Name string
	// Node is what this host is called among the nodes that use a pool, "" for the name of the host.
	Node string
	All  []Pool
}

// Read reads a file of pools. An empty name is Default, which need not be there.
func Read(ctx context.Context, name string) (*Pools, error) {
	path := cmp.Or(name, Default)
	text, err := diskio.WithinAt(ctx, path, timeout, func() ([]byte, error) {
		f, err := diskio.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.NewSectionReader(f, 0, min(f.Size(), maxBytes+1)))
	}, nil)
	switch {
	case name == "" && errors.Is(err, fs.ErrNotExist):
		return &Pools{}, nil
	case err != nil:
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return Parse(path, text)
}

// Parse reads the text of a file of pools.
func Parse(name string, text []byte) (*Pools, error) {
	if len(text) > maxBytes {
		return nil, fmt.Errorf("%s %w: it has more than %d bytes", name, ErrConfig, maxBytes)
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	var doc, more yaml.Node
	err := d.Decode(&doc)
	if err == nil {
		if e := d.Decode(&more); !errors.Is(e, io.EOF) {
			err = errors.Join(fmt.Errorf("line %d: only one document is wanted", more.Line), e)
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s:1: %w: it is empty, want a list named pools", name, ErrConfig)
	case err != nil:
		return nil, fmt.Errorf("%s %w: %w", name, ErrConfig, err) // it has the line
	}
	p := &Pools{Name: name}
	if err := p.take(doc.Content[0]); err != nil {
		var at *wrong
		if errors.As(err, &at) {
			return nil, fmt.Errorf("%s:%d: %w: %s", name, at.line, ErrConfig, at.why)
		}
		return nil, err
	}
	return p, nil
}

// wrong says what is wrong with a line.
type wrong struct {
	line int
	why  string
}

func (w *wrong) Error() string { return fmt.Sprintf("line %d: %s", w.line, w.why) }

func wrongAt(n *yaml.Node, format string, args ...any) error {
	return &wrong{n.Line, fmt.Sprintf(format, args...)}
}

func (p *Pools) take(doc *yaml.Node) error {
	return object(doc, map[string]func(*yaml.Node) error{"node": name(&p.Node), "pools": func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode || len(n.Content) == 0 || len(n.Content) > maxPools {
			return wrongAt(n, "want a list of 1 to %d pools", maxPools)
		}
		seen := map[string]int{}
		for _, item := range n.Content {
			pool := Pool{Line: item.Line}
			if err := pool.take(item); err != nil {
				return err
			}
			key := filepath.Join(pool.Path, pool.Bases)
			if at, twice := seen[key]; twice {
				return wrongAt(item, "the pool %s is on line %d already", pool.Path, at)
			}
			seen[key] = item.Line
			p.All = append(p.All, pool)
		}
		return nil
	}})
}

// keys are those of a pool, and how each is read. Those of which the place is wanted later are kept in at.
func (p *Pool) keys(at map[string]*yaml.Node) map[string]func(*yaml.Node) error {
	keep := func(key string, fn func(*yaml.Node) error) func(*yaml.Node) error {
		return func(n *yaml.Node) error { at[key] = n; return fn(n) }
	}
	return map[string]func(*yaml.Node) error{
		"path":          path(&p.Path),
		"bases":         name(&p.Bases),
		"uuid":          text(&p.UUID),
		"roots":         list(&p.Roots, path),
		"nova_export":   list(&p.NovaExports, path),
		"compute_nodes": path(&p.ComputeNodes),
		"libvirt":       list(&p.Libvirt, path),
		"members":       list(&p.Members, text),
		"others":        list(&p.Others, text),
		"protect":       boolean(&p.Protect),
		"keepalive":     keep("keepalive", span(&p.KeepAlive)),
		"watch":         keep("watch", boolean(&p.Watch)),
		"quarantine":    boolean(&p.Quarantine),
		"purge":         boolean(&p.Purge),
	}
}

func (p *Pool) take(n *yaml.Node) error {
	at := map[string]*yaml.Node{}
	err := object(n, p.keys(at), "path")
	switch {
	case err != nil:
		return err
	case !p.Protect && p.Watch:
		return wrongAt(at["watch"], "watch does nothing without protect: true")
	case !p.Protect && at["keepalive"] != nil:
		return wrongAt(at["keepalive"], "keepalive does nothing without protect: true")
	}
	for _, m := range p.Members {
		if slices.Contains(p.Others, m) {
			return wrongAt(n, "%q is among members and among others", m)
		}
	}
	return nil
}

// object takes the keys of a map. Those that are wanted have to be there.
func object(n *yaml.Node, keys map[string]func(*yaml.Node) error, wanted ...string) error {
	all := strings.Join(slices.Sorted(maps.Keys(keys)), ", ")
	if n.Kind != yaml.MappingNode {
		return wrongAt(n, "want a map with the keys %s", all)
	}
	have := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		take := keys[key.Value]
		line, twice := have[key.Value]
		switch {
		case take == nil:
			return wrongAt(key, "the key %q is not known, want one of %s", key.Value, all)
		case twice:
			return wrongAt(key, "the key %q is on line %d already", key.Value, line)
		case value.Kind == yaml.AliasNode:
			return wrongAt(value, "%s refers to another place, which is not understood here", key.Value)
		case value.Tag == "!!null":
			return wrongAt(key, "%s has no value", key.Value)
		}
		have[key.Value] = key.Line
		if err := take(value); err != nil {
			return err
		}
	}
	for _, key := range wanted {
		if have[key] == 0 {
			return wrongAt(n, "%s is missing", key)
		}
	}
	return nil
}

func text(to *string) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || strings.TrimSpace(n.Value) == "" {
			return wrongAt(n, "want a text that is not empty")
		}
		*to = n.Value
		return nil
	}
}

func path(to *string) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || !filepath.IsAbs(n.Value) || strings.ContainsRune(n.Value, 0) {
			return wrongAt(n, "%q is no absolute path", n.Value)
		}
		*to = filepath.Clean(n.Value)
		return nil
	}
}

func name(to *string) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || n.Value == "" || n.Value == "." || n.Value == ".." || strings.ContainsAny(n.Value, "/\x00") {
			return wrongAt(n, "%q is no name in a directory", n.Value)
		}
		*to = n.Value
		return nil
	}
}

func boolean(to *bool) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		// YAML 1.1 takes yes and on for true, which others take for words.
		v, err := strconv.ParseBool(n.Value)
		if n.Kind != yaml.ScalarNode || n.Value != "true" && n.Value != "false" {
			return wrongAt(n, "want true or false, not %q", n.Value)
		}
		*to = v
		return err
	}
}

func span(to *time.Duration) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		d, err := time.ParseDuration(n.Value)
		if err != nil || d <= 0 {
			return wrongAt(n, "want a duration such as 6h or 20m, not %q", n.Value)
		}
		*to = d
		return nil
	}
}

func list(to *[]string, of func(*string) func(*yaml.Node) error) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode || len(n.Content) > maxItems {
			return wrongAt(n, "want a list of at most %d", maxItems)
		}
		all := make([]string, len(n.Content))
		for i, item := range n.Content {
			if err := of(&all[i])(item); err != nil {
				return err
			}
		}
		*to = all
		return nil
	}
}
