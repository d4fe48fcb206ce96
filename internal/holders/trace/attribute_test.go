// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

// TestAttribute goes through the rules. The umount is from 100 to 110; a task is named by its number,
// with "!" where it certainly held the mount.
func TestAttribute(t *testing.T) {
	const mount, other, peer = 0xa, 0xb, 0xc
	umount := probe.Event{Kind: probe.Umount, Mount: mount, Since: 100, TS: 110, Count: 3, Before: 3,
		CountRead: true, TID: 1, Dev: 7, MountID: 40}
	hold := func(tid int, since, ts, left int64) probe.Event {
		return probe.Event{Kind: probe.Hold, Mount: mount, TID: tid, Since: since, TS: ts, Count: left, CountRead: true}
	}
	call := func(tid int, since, ts int64, released bool) probe.Event {
		return probe.Event{Kind: probe.Suspect, Dev: 7, MountID: 40, TID: tid, Since: since, TS: ts, Released: released,
			Got: probe.Call{Nr: unix.SYS_CLOSE}}
	}
	elsewhere := func(e probe.Event) probe.Event {
		e.Dev, e.MountID = 8, 41
		return e
	}
	ending := func(tid int, ts int64) probe.Event {
		e := call(tid, 0, ts, true)
		e.Got.Nr = -1
		return e
	}
	early := func(tid int, ts, left int64) probe.Event {
		e := hold(tid, 0, ts, left)
		e.Early = true
		return e
	}
	unread := umount
	unread.CountRead = false
	late := unread
	late.Since, late.TS = 10*lettingGo, 10*lettingGo+10
	more := umount
	more.Count, more.Before = 4, 4
	free := umount // when the umount ended
	free.Count = 2
	busyPeer := umount
	busyPeer.Peer = peer
	for _, c := range []struct {
		name   string
		u      probe.Event
		events []probe.Event
		want   []string
	}{
		{"nobody", umount, nil, nil},
		{"from before to after", umount, []probe.Event{hold(2, 90, 120, 2)}, []string{"2!"}},
		{"over before", umount, []probe.Event{hold(2, 90, 99, 2)}, nil},
		{"begun after", umount, []probe.Event{hold(2, 111, 120, 2)}, nil},
		{"the only one in the window", umount, []probe.Event{hold(2, 103, 120, 1)}, []string{"2!"}},
		{"one stays, so it may be that", umount, []probe.Event{hold(2, 103, 120, 2)}, []string{"2"}},
		{"one stays, and both were counted", more, []probe.Event{hold(2, 103, 120, 2)}, []string{"2!"}},
		{"two, of which one was counted", umount, []probe.Event{hold(2, 90, 120, 2), hold(3, 103, 121, 1)},
			[]string{"2!", "3"}},
		{"two, and both were counted", more, []probe.Event{hold(2, 103, 120, 2), hold(3, 103, 121, 1)},
			[]string{"2!", "3!"}},
		{"the only one, over within", free, []probe.Event{hold(2, 90, 105, 2)}, []string{"2!"}},
		{"taken by nobody knows whom", umount, []probe.Event{hold(2, 0, 120, 2)}, []string{"2"}},
		{"there before the watching", umount, []probe.Event{early(2, 120, 2)}, []string{"2!"}},
		{"there before the watching, gone within", umount, []probe.Event{early(2, 105, 2)}, []string{"2"}},
		{"there before the watching, gone before", umount, []probe.Event{early(2, 99, 2)}, nil},
		{"the umount itself", umount, []probe.Event{hold(1, 90, 105, 1)}, nil},
		{"another mount", umount, []probe.Event{{Kind: probe.Hold, Mount: other, TID: 2, Since: 90, TS: 120}}, nil},
		{"calls on another device", umount, []probe.Event{elsewhere(call(2, 90, 120, false)),
			elsewhere(call(3, 90, 120, true)), call(4, 90, 120, false)}, []string{"4"}},
		{"a peer", busyPeer, []probe.Event{{Kind: probe.Hold, Mount: peer, TID: 2, Since: 90, TS: 120}},
			[]string{"2!"}},
		{"a call within", unread, []probe.Event{call(2, 103, 105, false)}, []string{"2"}},
		{"a call all the while", unread, []probe.Event{call(2, 90, 120, false)}, []string{"2"}},
		{"a call after", unread, []probe.Event{call(2, 111, 120, false)}, nil},
		{"let go after", unread, []probe.Event{call(2, 0, 120, true)}, []string{"2!"}},
		{"opened and let go after", unread, []probe.Event{call(2, 111, 120, true)}, nil},
		{"letting go before", late, []probe.Event{call(2, 0, late.Since-lettingGo/2, true)}, []string{"2"}},
		{"let go long before", late, []probe.Event{call(2, 0, late.Since-2*lettingGo, true)}, nil},
		{"ended before", late, []probe.Event{ending(2, late.Since-2*lettingGo)}, []string{"2"}},
		{"ended long before", late, []probe.Event{ending(2, late.Since-settle)}, nil},
		{"letting go before, and another", late, []probe.Event{call(2, 0, late.Since-1, true),
			call(3, 0, late.TS+1, true)}, []string{"3!"}},
		{"a call before", late, []probe.Event{call(2, 0, late.Since-1, false)}, nil},
		{"let go long after", unread, []probe.Event{call(2, 0, 111+settle, true)}, nil},
	} {
		var got []string
		for _, b := range attribute(c.u, c.events) {
			text := fmt.Sprint(b.TID)
			if b.certain {
				text += "!"
			}
			got = append(got, text)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestLeavingBesideDecoy holds that a call on another mount of the same file system, which overlaps each
// umount, hides nobody who had begun to let go.
func TestLeavingBesideDecoy(t *testing.T) {
	const begin = 10 * lettingGo
	tr := Trace{own: 1, closed: true}
	table := []linux.Mount{{ID: 40, Point: "/a", Dev: 7}, {ID: 41, Point: "/b", Dev: 7}}
	p := &pending{u: probe.Event{Kind: probe.Umount, Since: begin, TS: begin + 10, Dev: 7, MountID: 40, TID: 1},
		mount: Mount{ID: 40, Path: "/a"}, table: table}
	got := tr.failure(p, []probe.Event{
		{Kind: probe.Suspect, Dev: 7, MountID: 40, PID: 2, TID: 2, TS: begin - 1, Released: true, Namespace: 1},
		{Kind: probe.Suspect, Dev: 7, PID: 3, TID: 3, TS: begin + 5, Got: probe.Call{Text: "/b"}, Namespace: 1},
	})
	if len(got.Holders) != 1 || got.Holders[0].Process.PID != 2 {
		t.Errorf("%d holders (%+v), want process 2", len(got.Holders), got.Holders)
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		name   string
		u      probe.Event
		blamed int
		want   holders.Verdict
	}{
		{"counted", probe.Event{Count: 3, CountRead: true}, 0, holders.Busy},
		{"seen", probe.Event{}, 1, holders.Busy},
		{"only children", probe.Event{Count: 2, CountRead: true, Children: true}, 0, holders.Nested},
		{"a peer", probe.Event{Count: 2, CountRead: true, Peer: 1}, 0, holders.BusyPeer},
		{"a peer by exclusion", probe.Event{Count: 2, CountRead: true, RetRead: true}, 0, holders.BusyPeer},
		{"not counted", probe.Event{RetRead: true}, 0, holders.Unknown},
	} {
		if got := verdict(c.u, c.blamed, c.u.RetRead); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
