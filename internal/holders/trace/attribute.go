// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"cmp"
	"slices"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

const (
	// settle is how long after a failed umount it is waited for those to let go who held the mount:
	// SETTLE in the programs, ns. Who holds longer can be found by looking.
	settle = 1_000_000_000
	// whileUnmounting is what the kernel counts on a mount that is being unmounted and that nobody
	// holds: its place in the tree, and the umount itself.
	whileUnmounting = 2
	// lettingGo is how long a reference may stay after the call that drops it has begun: a busy machine does
	// other things in between. A task that ends gives its memory back before its files, for which settle is
	// the bound. ns.
	lettingGo = 100_000_000
)

// blame is one reference that a umount met, or may have.
type blame struct {
	probe.Event
	certain bool
}

// met tells whether a umount can have met the reference or call of an event, and whether it must
// have.
func met(u, e probe.Event) (may, must bool) {
	switch e.Kind {
	case probe.Hold:
		if e.Mount != u.Mount && (u.Peer == 0 || e.Mount != u.Peer) || e.TS < u.Since {
			return false, false
		}
		if e.Since == 0 {
			// Who took it was not seen. Each umount that is told of came after the begin of the watching.
			return e.TS < u.TS+settle, e.Early && e.TS >= u.TS
		}
		return e.Since <= u.TS, e.Since <= u.Since && e.TS >= u.TS
	case probe.Suspect:
		if u.Dev != 0 && e.Dev != u.Dev || e.TS < u.Since {
			return false, false
		}
		if e.Released {
			return e.TS < u.TS+settle && e.Since <= u.TS,
				e.Since <= u.Since && e.TS >= u.TS && u.MountID != 0 && e.MountID == u.MountID
		}
		return e.Since <= u.TS, false
	}
	return false, false
}

// attribute gives the references that a umount met, those of one task one after the other. What is known
// to be about another mount is not among events.
func attribute(u probe.Event, events []probe.Event) []blame {
	var out []blame
	// How many references stay, at most: those that are there at the begin, at the end, and later.
	lasting := max(min(u.Count, u.Before)-whileUnmounting, 0)
	for _, e := range events {
		if e.TID == u.TID && e.Start == u.Start && e.TS <= u.TS {
			continue // the umount itself
		}
		if e.Kind == probe.Hold && e.Mount == u.Mount && e.CountRead && e.TS >= u.TS {
			// Another umount under way counts as well, so this is an upper bound.
			lasting = min(lasting, max(e.Count-1, 0))
		}
		if may, must := met(u, e); may {
			out = append(out, blame{e, must})
		}
	}
	if len(out) == 0 {
		out = leaving(u, events)
	}
	if u.CountRead {
		// Where no more came and went than the kernel counted, each of them was counted.
		need := min(u.Count, u.Before) - whileUnmounting - lasting
		if int64(len(out)) <= need || lasting == 0 && tasks(out) == 1 {
			for i := range out {
				out[i].certain = true
			}
		}
	}
	slices.SortStableFunc(out, func(a, b blame) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.TID, b.TID), cmp.Compare(order(a), order(b)),
			cmp.Compare(b.TS-b.Since, a.TS-a.Since))
	})
	return out
}

// leaving gives those who had begun to let go when a umount failed that met nobody else. An engine that
// sees calls does not see when a reference is dropped.
func leaving(u probe.Event, events []probe.Event) (out []blame) {
	for _, e := range events {
		longest := int64(lettingGo)
		if kindOf(e) == holders.Ending {
			longest = settle
		}
		if e.Kind == probe.Suspect && e.Released && e.Dev == u.Dev && u.Dev != 0 &&
			e.TS < u.Since && u.Since-e.TS < longest {
			out = append(out, blame{e, false})
		}
	}
	return out
}

func order(b blame) int {
	if b.certain {
		return 0
	}
	return 1
}

// tasks counts whose references they are.
func tasks(all []blame) int {
	type task struct {
		start int64
		tid   int
	}
	seen := map[task]bool{}
	for _, b := range all {
		seen[task{b.Start, b.TID}] = true
	}
	return len(seen)
}

// verdict says in one word why a umount failed.
func verdict(u probe.Event, blamed int, read bool) holders.Verdict {
	switch {
	case u.Peer != 0:
		return holders.BusyPeer
	case u.CountRead && max(u.Count, u.Before) > whileUnmounting, blamed > 0:
		return holders.Busy
	case u.Children:
		return holders.Nested
	case u.CountRead && read:
		// The kernel said busy and nothing here was: it was a copy in another namespace.
		return holders.BusyPeer
	}
	return holders.Unknown
}
