// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package roll tells which nodes use a pool of base images as others than the pool itself say: Nova's list of hosts,
// the configuration, and the server that the directory is mounted from. Who is named there and has not joined
// the pool may need any base of it.
package roll

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/config"
	"github.com/shisa-vm/shisa/internal/refs/judge"
)

// Call gives the nodes that use the pool of a census, in the order of their names, each once. unknown are the sources
// that could not be read. host is the machine that may be the server of the pool, p what the configuration says
// of the pool, nil for nothing. The error is that of ctx.
func Call(ctx context.Context, c *refs.Census, p *config.Pool, host *linux.Host) (known []judge.Known, unknown []error, err error) {
	if p == nil {
		p = &config.Pool{}
	}
	for _, m := range p.Members {
		known = append(known, judge.Known{Node: m, From: "the configuration"})
	}
	for _, h := range c.Hosts {
		known = append(known, judge.Known{Node: h.Name, From: refs.NovaHosts})
	}
	for i := range c.Gaps {
		if g := &c.Gaps[i]; g.What == refs.NovaHosts { // others may stand in it
			unknown = append(unknown, fmt.Errorf("%s: %s", g.Object, g.Reason))
		}
	}
	clients, err := clients(ctx, c.Bases, host)
	switch {
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case err != nil:
		unknown = append(unknown, fmt.Errorf("the clients of the NFS server: %w", err))
	}
	known = append(known, clients...)
	known = slices.DeleteFunc(known, func(k judge.Known) bool { return slices.Contains(p.Others, k.Node) })
	slices.SortStableFunc(known, func(a, b judge.Known) int { return cmp.Compare(a.Node, b.Node) })
	return slices.CompactFunc(known, func(a, b judge.Known) bool { return a.Node == b.Node }), unknown, nil
}

// timeout is how long one name is waited for.
const timeout = 10 * time.Second

// clients gives those that the NFS server of this host serves the pool to. It is known who is served, and what is
// exported, and not what to whom: all clients count where the pool is in any export.
func clients(ctx context.Context, bases string, host *linux.Host) ([]judge.Known, error) {
	exports, err := host.Exports(ctx)
	if err != nil || len(exports) == 0 {
		return nil, err
	}
	served, err := exported(ctx, bases, exports)
	if err != nil || !served {
		return nil, err
	}
	all, err := host.Clients(ctx)
	known := make([]judge.Known, 0, len(all))
	for _, c := range all {
		known = append(known, judge.Known{Node: nodeOf(c), From: fmt.Sprintf("client %q of the NFS server, from %s", c.Name, c.Address)})
	}
	return known, err
}

// exported tells whether a directory is in an export: below it, or on the same file system, since the export may have
// another path.
func exported(ctx context.Context, dir string, exports []string) (bool, error) {
	dev := func(path string) (uint64, error) {
		st, err := diskio.WithinAt(ctx, path, timeout, func() (diskio.Stat, error) { return diskio.Look(path) }, nil)
		if errors.Is(err, diskio.ErrDirectory) {
			err = nil
		}
		return st.Dev, err
	}
	of, err := dev(dir)
	if err != nil {
		return false, err
	}
	for _, e := range exports {
		e = filepath.Clean(e)
		if e == dir || e == "/" || strings.HasPrefix(dir+"/", e+"/") {
			return true, nil
		}
		at, err := dev(e)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if err == nil && at == of {
			return true, nil
		}
	}
	return false, nil
}

// nodeOf is the node that a client of NFS 4 is. The Linux client calls itself "Linux NFSv4.0 NODE/ADDRESS", or
// "Linux NFSv4.2 NODE" with a text of its own and a slash before it where it has one (fs/nfs/nfs4proc.c,
// nfs4_init_nonuniform_client_string, nfs4_init_uniform_client_string). Whatever else it is called is a node that
// nobody knows.
func nodeOf(c linux.Client) string {
	words := strings.Fields(c.Name)
	if len(words) < 3 || words[0] != "Linux" || !strings.HasPrefix(words[1], "NFSv4") {
		return cmp.Or(c.Name, c.Address)
	}
	if words[1] == "NFSv4.0" {
		node, _, _ := strings.Cut(words[2], "/")
		return node
	}
	return words[2][strings.LastIndexByte(words[2], '/')+1:]
}
