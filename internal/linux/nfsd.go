// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// nfsdClients has a directory for each client of NFS 4, since Linux 5.3: fs/nfsd/nfs4state.c.
const nfsdClients = "/proc/fs/nfsd/clients"

// maxServed bounds the files that are told of.
const maxServed = 4096

// Served is a file that the kernel's NFS server has open or locked for a client of NFS 4. Clients of NFS 3
// open nothing there.
type Served struct {
	// Client is what it calls itself, Address from where it came.
	Client, Address string
	// State is what it has: "open", "lock", "deleg", "layout".
	State string
	Dev   uint64 // of the file system, as stat has it
	Inode uint64
	// Name is the end of its path, as far as the kernel tells it. A line break in a name ends it.
	Name string
}

// Client is one that the kernel's NFS server knows: of NFS 4 only.
type Client struct {
	// Name is what it calls itself, Address from where it comes.
	Name, Address string
}

// Clients gives the clients of the NFS server; where there is no server, none.
func (h *Host) Clients(ctx context.Context) (all []Client, err error) {
	names, err := h.names(ctx, nfsdClients)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	for _, c := range names {
		info, err := h.list(ctx, nfsdClients+"/"+c+"/info")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			continue // it left
		} else if err != nil {
			return nil, err
		}
		all = append(all, Client{field(string(info), "name"), field(string(info), "address")})
	}
	return all, nil
}

// Served gives the files that the NFS server has open for its clients, at most 4096, each state once;
// where there is no server, none. A client that goes meanwhile has none.
func (h *Host) Served(ctx context.Context) ([]Served, error) {
	clients, err := h.names(ctx, nfsdClients)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all []Served
	for _, c := range clients {
		info, err := h.list(ctx, nfsdClients+"/"+c+"/info")
		var states []byte
		if err == nil {
			states, err = h.list(ctx, nfsdClients+"/"+c+"/states")
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			continue // it left
		} else if err != nil {
			return nil, err
		}
		of := Served{Client: field(string(info), "name"), Address: field(string(info), "address")}
		for line := range strings.Lines(string(states)) {
			if s, ok := of.state(line); ok && len(all) < maxServed {
				all = append(all, s)
			}
		}
	}
	return all, nil
}

// field gives what stands behind a name of a client's info, `name: "text"`.
func field(info, name string) string {
	for line := range strings.Lines(info) {
		if text, ok := strings.CutPrefix(line, name+": "); ok {
			text = strings.TrimSuffix(text, "\n")
			if plain, err := strconv.Unquote(text); err == nil {
				return plain
			}
			return text
		}
	}
	return ""
}

// state reads a line such as
//
//   - 0x00…: { type: open, access: rw, deny: --, superblock: "fd:10:13649", filename: "a/b", owner: "…" }
//
// The name is not quoted: it ends where the owner begins, or the line.
func (of Served) state(line string) (Served, bool) {
	head, rest, ok := strings.Cut(line, `, superblock: "`)
	if !ok || !strings.HasPrefix(head, "- 0x") {
		return of, false
	}
	_, kind, ok := strings.Cut(head, "{ type: ")
	if !ok {
		return of, false
	}
	of.State, _, _ = strings.Cut(kind, ",")
	where, rest, ok := strings.Cut(rest, `"`)
	parts := strings.Split(where, ":")
	if !ok || len(parts) != 3 {
		return of, false
	}
	major, err1 := strconv.ParseUint(parts[0], 16, 32)
	minor, err2 := strconv.ParseUint(parts[1], 16, 32)
	inode, err3 := strconv.ParseUint(parts[2], 10, 64)
	if errors.Join(err1, err2, err3) != nil {
		return of, false
	}
	of.Dev, of.Inode = unix.Mkdev(uint32(major), uint32(minor)), inode
	if name, ok := strings.CutPrefix(rest, `, filename: "`); ok {
		name = strings.TrimSuffix(name, "\n")
		if i := strings.LastIndex(name, `", owner: "`); i >= 0 {
			name = name[:i]
		}
		of.Name = strings.TrimPrefix(strings.TrimSuffix(name, `" }`), "/")
	}
	return of, true
}
