// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/nova"
)

const (
	// staleExport is how old an export of Nova's database may be before what it does not say counts as unseen.
	staleExport = 24 * time.Hour
	// clocksDiffer is how far ahead of this host's clock the one may be that made it.
	clocksDiffer = 5 * time.Minute
	// writingHosts is how long Nova may take to write its list of hosts, which it empties first.
	writingHosts = 200 * time.Millisecond
	// readBytes is how much of an export is waited for at once.
	readBytes = 1 << 20
)

// hosts reads which hosts use the directory of instances, or did, from Nova's list beside them.
func (t *taking) hosts(ctx context.Context) error {
	if t.plain && t.o.ComputeNodes == "" {
		return nil
	}
	path := cmp.Or(t.o.ComputeNodes, filepath.Join(t.c.Roots[0], nova.HostsFile))
	err := t.readHosts(ctx, path)
	if errors.Is(err, nova.ErrHosts) {
		select {
		case <-ctx.Done():
		case <-time.After(writingHosts):
			err = t.readHosts(ctx, path)
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil, missing(err) && t.o.ComputeNodes == "":
		return nil
	}
	t.gap(path, "Nova's list of hosts", reason(err))
	return nil
}

func (t *taking) readHosts(ctx context.Context, path string) error {
	text, err := diskio.Within(ctx, t.o.Timeout, func() ([]byte, error) {
		f, err := diskio.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.NewSectionReader(f, 0, min(f.Size(), nova.MaxHostsBytes+1)))
	}, nil)
	if err != nil {
		return err
	}
	hosts, err := nova.ParseHosts(text)
	t.c.Hosts = append([]nova.ComputeNode{}, hosts...) // never nil, which JSON would tell as null
	return err
}

// exported adds the machines of exports of Nova's database to the bases whose names they give. They add to what
// is on the disks: a base that only the database knows of is not missing, since the database may speak of another
// directory, and an image that no machine rests on any more.
func (t *taking) exported(ctx context.Context) error {
	for _, path := range t.o.Nova {
		e, err := t.readExport(ctx, path)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			t.gap(path, "export of Nova's database", reason(err))
		}
		if e == nil || e.Made.IsZero() {
			continue
		}
		switch age := t.o.Now().Sub(e.Made); {
		case age > staleExport:
			t.gap(path, "export of Nova's database", fmt.Sprintf(
				"it was made at %s, more than a day ago: what was launched since is not in it", e.Made.Format("2006-01-02 15:04 MST")))
		case age < -clocksDiffer:
			t.gap(path, "export of Nova's database", fmt.Sprintf(
				"it says that it was made at %s, which is to come: how old it is cannot be told", e.Made.Format("2006-01-02 15:04 MST")))
		}
		t.c.Looked.Instances += int64(len(e.Instances))
		users := e.Users()
		for i := range t.c.All {
			b := &t.c.All[i]
			for _, n := range users.Of(b.Name) {
				b.Uses = append(b.Uses, Reference{How: Nova, Holder: path, Machine: n.UUID, Node: n.Host, Task: n.Task,
					As: n.Image})
			}
		}
	}
	return nil
}

// readExport reads an export as far as it is one; what there is of it comes with the error.
func (t *taking) readExport(ctx context.Context, path string) (*nova.Export, error) {
	f, err := diskio.Within(ctx, t.o.Timeout, func() (*diskio.File, error) { return diskio.Open(path) },
		func(f *diskio.File) { f.Close() })
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.Size() > nova.MaxExportBytes {
		return nil, fmt.Errorf("it has %d bytes, more than %d", f.Size(), nova.MaxExportBytes)
	}
	return nova.ReadExport(&patient{ctx: ctx, f: f, timeout: t.o.Timeout})
}

// patient reads a file from its beginning, and waits for each part of it no longer than timeout.
type patient struct {
	ctx     context.Context
	f       *diskio.File
	timeout time.Duration
	off     int64
	rest    []byte
}

func (p *patient) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		n := min(readBytes, p.f.Size()-p.off)
		if n <= 0 {
			return 0, io.EOF
		}
		off := p.off
		part, err := diskio.Within(p.ctx, p.timeout, func() ([]byte, error) {
			part := make([]byte, n)
			_, err := p.f.ReadAt(part, off)
			return part, err
		}, nil)
		if err != nil {
			return 0, err
		}
		p.off, p.rest = p.off+n, part
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
