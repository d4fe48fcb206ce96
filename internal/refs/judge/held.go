// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package judge

import (
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// held is for a base that was set aside.
func (j *judging) held(b *Decided) {
	j.members(b, b.ID)
	if b.State == refs.Claimed && !slices.Contains(j.o.Mine, b.ID) {
		b.block(WasClaimed, "", b.Path, "somebody is removing it for good, or was")
	}
	j.taken(b)
	if j.s.Policy == nil || j.o.Now.IsZero() {
		return
	}
	if !j.s.Policy.AllowPurge {
		b.block(PurgeOff, "", pool.Path(j.c.Bases, pool.File), "allow_purge is false")
	}
	if slices.Contains(j.o.Mine, b.ID) {
		return // the claim changed its names; it was long enough before that
	}
	least := time.Duration(j.s.Policy.MinQuarantine)
	if age := j.o.Now.Sub(b.changed); age < least {
		b.block(NotLongEnough, "", b.Path, "it is in quarantine since %s; it has to be for %v at least", b.changed.UTC().Format(dateTime), least)
	}
}

// taken is for a base that was set aside and of which another file has a name that it had. An image that rests on that name may
// have been made on either: only where both are known to hold the same does it not matter.
func (j *judging) taken(b *Decided) {
	had := map[string]bool{b.Name: true}
	for _, h := range j.s.Shields {
		had[h.Name] = had[h.Name] || h.ID.Ino == b.Inode
	}
	for i := range j.c.All {
		l := &j.c.All[i]
		if l.State != refs.Live || !had[l.Name] || l.File.Ino == b.Inode || len(l.Uses) == 0 {
			continue
		}
		was, is := j.s.Objects[b.Inode], j.s.Objects[l.File.Ino]
		if was.SHA256 == "" || was.SHA256 != is.SHA256 || was.SizeBytes != b.SizeBytes || is.SizeBytes != l.SizeBytes {
			b.block(NameTaken, "", l.Path, "another file has its name and is needed, by %s%s, and is not known to hold the same: "+
				"the image may have been made on this one", l.Uses[0].Holder, more(len(l.Uses)-1))
		}
	}
}

// said tells whether a report or a pin names a use that the census did not have yet.
func (j *judging) said(b *Decided) bool {
	return slices.ContainsFunc(b.Blockers, func(a Blocker) bool {
		return a.Rule == Used || a.Rule == Pinned
	})
}
