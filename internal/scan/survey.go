// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package scan

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/hypervisor"
	"github.com/shisa-vm/shisa/internal/linux"
)

// lookTimeout is how long a place may take to answer.
const lookTimeout = 10 * time.Second

// host is what is to be looked at on a host without being named.
type host struct {
	places []hypervisor.Place
	named  []string // directories and images
	maybe  []string // files that programs of machines have open
	pools  []string // directories that may be opened because the host's configuration names them
	blind  []finding.Blind
}

// survey finds where images live on this host. Its error is that of ctx.
func survey(ctx context.Context, opts Options) (*host, error) {
	h := &host{places: []hypervisor.Place{}, blind: []finding.Blind{}}
	found, err := hypervisor.Find(ctx, hypervisor.Options{
		Root: opts.Check.Root, Home: opts.Home, Timeout: lookTimeout})
	if err != nil {
		return h, err
	}
	for _, p := range found {
		h.add(p)
	}
	if err := h.processes(ctx, linux.Open(opts.Check.Root), opts.Check.Root); err != nil {
		return h, err
	}
	for _, list := range []*[]string{&h.named, &h.maybe, &h.pools} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return h, nil
}

// add takes a place, and what follows from it.
func (h *host) add(p hypervisor.Place) {
	h.places = append(h.places, p)
	if p.Error != "" {
		h.notSeen(p.Path, p.Why, p.Error)
	}
	if !p.Readable {
		return
	}
	switch p.Kind {
	case hypervisor.PlaceDirectory:
		h.named, h.pools = append(h.named, p.Path), append(h.pools, p.Path)
	case hypervisor.PlaceImage:
		h.named = append(h.named, p.Path)
	case hypervisor.PlaceProcess:
		h.maybe = append(h.maybe, p.Path)
	}
}

func (h *host) notSeen(object, what, reason string) {
	h.blind = append(h.blind, finding.Blind{Object: object, What: what, Reason: reason,
		Host: []finding.Range{}, Guest: []finding.Range{}})
}

// processes adds what programs that run machines have open.
func (h *host) processes(ctx context.Context, l *linux.Host, root string) error {
	census, err := l.Census(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		h.notSeen("/proc", "files that running programs have open", err.Error())
		return nil
	}
	for _, gap := range census.MachineGaps(ctx) {
		h.notSeen("/proc", "files that running programs have open", gap)
	}
	known := map[string]bool{}
	for _, f := range census.MachineFiles(ctx) {
		p := h.openFile(ctx, f, root)
		if !h.mayBeDisk(ctx, p.Path) {
			continue
		}
		if key := p.Path + "\x00" + p.Machine; !known[key] {
			known[key] = true
			h.add(p)
		}
	}
	return ctx.Err()
}

// openFile makes a place of a file that a program has open. Where its name leads elsewhere by now,
// or nowhere, the file is reached through the program.
func (h *host) openFile(ctx context.Context, f linux.MachineFile, root string) hypervisor.Place {
	path := f.Path
	if root != "" {
		path = filepath.Join(root, filepath.Join("/", path))
	}
	machine := f.Process.Machine()
	who := fmt.Sprintf("open in process %d (%s)", f.PID, f.Process.Command())
	if !f.Deleted && (f.Ino == 0 || h.leadsTo(ctx, path, f.Ino)) {
		return hypervisor.Look(ctx, lookTimeout, hypervisor.PlaceProcess, path, who, machine)
	}
	through := fmt.Sprintf("%s/proc/%d/fd/%d", strings.TrimSuffix(root, "/"), f.PID, f.FD)
	why := who + ", there called " + f.Path
	if f.Deleted {
		why = fmt.Sprintf("%s, and %s was removed since: when the program ends, the file is gone",
			who, f.Path)
	}
	return hypervisor.Look(ctx, lookTimeout, hypervisor.PlaceProcess, through, why, machine)
}

// mayBeDisk is false for character devices, FIFOs and sockets, such as /dev/fuse and /dev/vfio/vfio:
// every machine has some open, and none holds an image. A generic SCSI device does lead to a disk,
// one that is not looked at.
func (h *host) mayBeDisk(ctx context.Context, path string) bool {
	_, err := diskio.Within(ctx, lookTimeout, func() (diskio.Stat, error) { return diskio.Look(path) }, nil)
	return !errors.Is(err, diskio.ErrSpecial) || strings.HasPrefix(path, "/dev/sg")
}

// leadsTo reports whether a path leads to the file with that inode.
func (h *host) leadsTo(ctx context.Context, path string, ino uint64) bool {
	st, err := diskio.Within(ctx, lookTimeout, func() (diskio.Stat, error) { return diskio.Look(path) }, nil)
	return err != nil || st.ID.Ino == ino
}
