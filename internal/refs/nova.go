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
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/nova"
)

const (
	// staleExport is how old an export of Nova's database may be before what it does not say counts as unseen.
	staleExport = 24 * time.Hour
	// clocksDiffer is how far ahead of this host's clock another's may be before that is told.
	clocksDiffer = 5 * time.Minute
	// writingHosts is how long Nova may take to write its list of hosts, which it empties first.
	writingHosts = 200 * time.Millisecond
	// readBytes is how much of an export is waited for at once.
	readBytes = 1 << 20
)

// NovaHosts is what a gap calls Nova's list of hosts.
const NovaHosts = "Nova's list of hosts"

// hosts reads which hosts use the directory of instances, or did, from Nova's list beside them.
func (t *taking) hosts(ctx context.Context) error {
	lists := []string{t.o.ComputeNodes}
	if t.o.ComputeNodes == "" {
		lists = nil
		for _, dir := range t.c.Instances {
			lists = append(lists, filepath.Join(dir, nova.HostsFile))
		}
	}
	for _, path := range lists {
		if err := t.hostsIn(ctx, path); err != nil {
			return err
		}
	}
	// One may stand in several lists, and in one that was read twice.
	slices.SortFunc(t.c.Hosts, func(a, b nova.ComputeNode) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), b.Heard.Compare(a.Heard))
	})
	t.c.Hosts = slices.CompactFunc(t.c.Hosts, func(a, b nova.ComputeNode) bool { return a.Name == b.Name })
	return nil
}

// hostsIn is hosts for one list. Its error is that of ctx.
func (t *taking) hostsIn(ctx context.Context, path string) error {
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
	t.gap(path, NovaHosts, reason(err))
	return nil
}

func (t *taking) readHosts(ctx context.Context, path string) error {
	text, err := diskio.WithinAt(ctx, path, t.o.Timeout, func() ([]byte, error) {
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
	for i := range hosts {
		if ahead := hosts[i].Heard.Sub(t.o.Now()); ahead > clocksDiffer {
			hosts[i].AheadSeconds = int64(ahead / time.Second)
		}
	}
	t.c.Hosts = append(t.c.Hosts, hosts...)
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
		users, live := e.Users(), t.live()
		for i := range t.c.All {
			b := &t.c.All[i]
			for _, name := range t.called(b) {
				if b.State == ByShield && live[name] {
					continue // the name is another file's by now
				}
				for _, n := range users.Of(name) {
					b.Uses = append(b.Uses, Reference{How: Nova, Holder: path, Machine: n.UUID, Node: n.Host, Task: n.Task,
						As: n.ImageOf(name), Since: n.Created})
				}
			}
		}
	}
	return nil
}

// readExport reads an export as far as it is one; what there is of it comes with the error.
func (t *taking) readExport(ctx context.Context, path string) (*nova.Export, error) {
	f, err := diskio.WithinAt(ctx, path, t.o.Timeout, func() (*diskio.File, error) { return diskio.Open(path) },
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
		part, err := diskio.WithinAt(p.ctx, p.f.Name(), p.timeout, func() ([]byte, error) {
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
