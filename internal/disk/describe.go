// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"fmt"

	"github.com/shisa-vm/shisa/internal/finding"
)

// Description describes several disks: the document shisa.info/1.
type Description struct {
	// Status lists every exit status that applies, the one that is returned first.
	Status []int       `json:"status"`
	Disks  []Described `json:"disks"`
}

// Described is one of the disks that were asked for.
type Described struct {
	Path string `json:"path"`
	// Chain are the image itself and, where they were asked for, those below it.
	Chain []Info `json:"chain"`
	// Error says why there is nothing to describe, "" where there is; Hint what to do about it.
	Error string `json:"error"`
	Hint  string `json:"hint"`

	Err error `json:"-"`
}

// Describe is Inspect for several images. Images that cannot be described are part of the result;
// the error is that of ctx.
func Describe(ctx context.Context, paths []string, o Options) (*Description, error) {
	d := &Description{Disks: []Described{}}
	var applies []int
	failed := 0
	for _, path := range paths {
		one := Described{Path: path, Chain: []Info{}}
		chain, err := Inspect(ctx, path, o)
		if cerr := ctx.Err(); cerr != nil {
			return d, cerr
		}
		if err == nil && o.Snapshot != "" {
			err = chain[0].only(o.Snapshot)
		}
		if err != nil {
			one.Err, one.Error, one.Hint = err, err.Error(), finding.HintOf(err)
			failed++
		} else {
			one.Chain = chain
			applies = append(applies, statusOfChain(chain, o)...)
		}
		d.Disks = append(d.Disks, one)
	}
	switch {
	case failed == len(paths):
		applies = append(applies, finding.StatusFailed)
	case failed > 0:
		applies = append(applies, finding.StatusCannotTell)
	}
	d.Status = finding.OrderStatus(applies...)
	return d, nil
}

// only keeps one of the internal snapshots.
func (n *Info) only(want string) error {
	for _, by := range []func(Snapshot) string{
		func(s Snapshot) string { return s.ID }, func(s Snapshot) string { return s.Name },
	} {
		for _, s := range n.Snapshots {
			if by(s) == want {
				n.Snapshots = []Snapshot{s}
				return nil
			}
		}
	}
	return noSnapshot(n.Path, want)
}

func noSnapshot(path, want string) error {
	return finding.WithHint(fmt.Errorf("%s: %w %q", path, ErrNoSnapshot, want),
		"shisa info lists the snapshots of an image")
}

// statusOfChain tells what an unfinished chain and unreadable parts mean for the exit status. A
// chain that was not asked for is not missed; the files that hold the image's own bytes are.
func statusOfChain(chain []Info, o Options) []int {
	var applies []int
	for _, n := range chain {
		if len(n.Blind) > 0 {
			applies = append(applies, finding.StatusCannotTell)
		}
		if n.Backing != nil && !o.Single {
			applies = append(applies, statusOfLink(n.Backing, o)...)
		}
		own := []*LinkInfo{n.DataFile}
		if n.VMDK != nil {
			for _, e := range n.VMDK.Extents {
				own = append(own, e.File)
			}
		}
		for _, l := range own {
			applies = append(applies, statusOfLink(l, o)...)
		}
	}
	return applies
}

// statusOfLink tells what became of a file that was named, which may be nil. To leave one alone is no
// failure where nothing is read of it.
func statusOfLink(l *LinkInfo, o Options) []int {
	if l == nil {
		return nil
	}
	switch l.State {
	case LinkMissing, LinkUnreadable, LinkLoop:
		return []int{finding.StatusFound}
	case LinkNotFollowed, LinkTooDeep, LinkProtocol:
		if !o.Single {
			return []int{finding.StatusCannotTell}
		}
	}
	return nil
}
