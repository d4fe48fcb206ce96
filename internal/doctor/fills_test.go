// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// roomy is a machine with one file system that has so much room.
func roomy(a *evidence.Answer, now time.Time, seen []evidence.SpacePoint) *evidence.Evidence {
	e := &evidence.Evidence{Kind: "live", Label: "h", Now: now, Spaces: seen,
		Mounts: []evidence.Mount{{Mount: linux.Mount{Point: "/srv", Type: "ext4", Options: "rw", Super: "rw"}, Own: true, Probe: a}},
		FSs:    []evidence.FS{{Type: "ext4", Device: "sdb1", UUID: "u", Mounts: []int{0}}}}
	e.Spaces = append(e.Spaces, e.SpaceNow())
	return e
}

// TestForecastOfRoom holds that room which falls is forecast with an interval that holds the truth, and that
// nothing is forecast by what tells nothing.
func TestForecastOfRoom(t *testing.T) {
	const gib, blocks = 1 << 30, 100 << 18 // 100 GiB in blocks of 4 KiB
	rnd := rand.New(rand.NewPCG(3, 3))
	jitter := func(n float64) float64 { return (rnd.Float64() - 0.5) * n }
	for _, c := range []struct {
		name  string
		every time.Duration
		free  func(hours float64) float64 // GiB, at so many hours before now
		size  func(hours float64) uint64  // GiB
		nodes func(hours float64) uint64
		kind  string // "" for none
		sev   finding.Severity
		hours float64 // until the end
		says  string
	}{
		{name: "two days of one GiB an hour", every: time.Hour, free: func(h float64) float64 { return 20 + h + jitter(0.3) },
			kind: "fills", sev: finding.Danger, hours: 20},
		{name: "slow, a week ahead", every: time.Hour, free: func(h float64) float64 { return 20 + h/8 + jitter(0.1) },
			kind: "fills", sev: finding.Warning, hours: 160},
		{name: "further ahead than it was watched", every: time.Hour, free: func(h float64) float64 { return 60 + h/10 }},
		{name: "emptied every night", every: time.Hour, free: func(h float64) float64 { return 20 + float64(int(h)%24) }},
		{name: "noise", every: time.Hour, free: func(float64) float64 { return 20 + jitter(2) }},
		{name: "grows", every: time.Hour, free: func(h float64) float64 { return 60 - h }},
		{name: "one file that is large", every: time.Hour, free: func(h float64) float64 {
			if h > 20 {
				return 40
			}
			return 20
		}},
		{name: "too short", every: time.Minute, free: func(h float64) float64 { return 20 + 10*h }},
		{name: "made larger since", every: time.Hour, free: func(h float64) float64 { return 20 + h/2 },
			size: func(h float64) uint64 {
				if h > 3 {
					return 50
				}
				return 100
			}},
		{name: "inodes", every: time.Hour, free: func(float64) float64 { return 50 },
			nodes: func(h float64) uint64 { return 20_000 + uint64(h*1000) }, kind: "inodes-fill", sev: finding.Danger, hours: 20},
		{name: "nearly full, and not watched", every: 0, free: func(float64) float64 { return 0.5 }, kind: "nearly-full",
			sev: finding.Warning, says: "cannot be told"},
		{name: "nearly full, and it goes on", every: time.Hour, free: func(h float64) float64 { return 0.5 + h/10 },
			kind: "nearly-full", sev: finding.Warning, hours: 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			var seen []evidence.SpacePoint
			of := func(h float64) evidence.Space {
				s := evidence.Space{Key: "u", Free: uint64(c.free(h) * gib), Size: 100 * gib, InodesFree: 500_000, Inodes: 600_000}
				if c.size != nil {
					s.Size = c.size(h) * gib
				}
				if c.nodes != nil {
					s.InodesFree = c.nodes(h)
				}
				return s
			}
			for i := 48; i > 0 && c.every > 0; i-- {
				before := time.Duration(i) * c.every
				seen = append(seen, evidence.SpacePoint{Time: noon.Add(-before), Of: []evidence.Space{of(before.Hours())}})
			}
			s := of(0)
			a := &evidence.Answer{BlockSize: 4096, Blocks: blocks, Free: s.Free / 4096, Avail: s.Free / 4096, Inodes: s.Inodes,
				InodesFree: s.InodesFree, WriteErrno: -1}
			r := ruleFS08()
			got := r.judge(roomy(a, noon, seen))
			if len(got) != 1 {
				t.Fatalf("FS08 gives %+v, want one result", got)
			}
			f := got[0].Finding
			switch {
			case c.kind == "" && f != nil:
				t.Errorf("found %s: %s", f.Kind, f.Summary)
			case c.kind == "":
			case f == nil || f.Kind != c.kind || f.Severity != c.sev:
				t.Errorf("found %+v, want %s %s", f, c.sev, c.kind)
			case c.says != "" && !strings.Contains(fmt.Sprint(f.Evidence), c.says):
				t.Errorf("it does not say %q: %+v", c.says, f.Evidence)
			case c.hours > 0:
				bytes, inodes := filled(roomy(a, noon, seen), 0)
				x := bytes
				if c.kind == "inodes-fill" {
					x = inodes
				}
				truth := noon.Add(time.Duration(c.hours * float64(time.Hour)))
				off := x.end.Best.Sub(truth).Abs()
				slack := time.Duration(c.hours * 0.1 * float64(time.Hour))
				if off > slack || x.end.Early.After(truth.Add(slack)) || !x.end.Late.IsZero() && x.end.Late.Before(truth.Add(-slack)) {
					t.Errorf("forecast %v, want %s within %s", x.end, truth, slack)
				}
			}
		})
	}
}

// TestRoomOfAFileSystem writes to a file system at an even pace and holds the forecast against when it is full.
func TestRoomOfAFileSystem(t *testing.T) {
	testenv.Need(t, "mkfs.ext4", "mount")
	testenv.NeedRoot(t)
	at := loopMount(t)
	var seen []evidence.SpacePoint
	full := -1
	var forecast trendEnd
	for hour := range 200 {
		var st unix.Statfs_t
		if err := unix.Statfs(at, &st); err != nil {
			t.Fatal(err)
		}
		now := noon.Add(time.Duration(hour) * time.Hour)
		a := &evidence.Answer{BlockSize: uint64(st.Bsize), Blocks: st.Blocks, Free: st.Bfree, Avail: st.Bavail, Inodes: st.Files,
			InodesFree: st.Ffree, WriteErrno: -1}
		e := roomy(a, now, seen)
		seen = e.Spaces
		if bytes, _ := filled(e, 0); bytes.ends && forecast.made.IsZero() {
			forecast = trendEnd{now, bytes.end.Best}
		}
		err := os.WriteFile(filepath.Join(at, fmt.Sprint(hour)), make([]byte, 1<<20), 0o600)
		if err != nil {
			full = hour
			break
		}
		fd, err := unix.Open(at, unix.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Syncfs(fd); err != nil { // what is not written yet is not counted at once
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	if full < 20 || forecast.made.IsZero() {
		t.Fatalf("it was full after %d hours, forecast %+v", full, forecast)
	}
	truth := noon.Add(time.Duration(full) * time.Hour)
	left := truth.Sub(forecast.made)
	t.Logf("full after %d hours; after %s that was forecast to be in %s, and was in %s", full, forecast.made.Sub(noon),
		forecast.end.Sub(forecast.made).Round(time.Minute), left)
	if off := forecast.end.Sub(truth).Abs(); off > left/4 {
		t.Errorf("the forecast of %s is off by %s, want at most a quarter of %s", forecast.end, off, left)
	}
}

// trendEnd is the first forecast that was made.
type trendEnd struct{ made, end time.Time }
