// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
)

// ProbedDevice is a device with requests under way of which none was answered while it was looked at.
type ProbedDevice struct {
	Name     string        `json:"name"`
	InFlight int64         `json:"in_flight"`
	Waited   time.Duration `json:"waited"`
}

// traffic is what /proc/diskstats counts of a device (Documentation/admin-guide/iostats.rst of the kernel).
type traffic struct {
	name     string
	inFlight int64
	done     int64 // requests that were answered
}

// parseTraffic reads /proc/diskstats, by the numbers of devices:
//
//	8 1 sda1 4082 0 512 9 1820 0 77 5 1 12 14 ...
//	         reads      |  writes     in flight         discards 11, flushes 15
func parseTraffic(text string) map[uint64]traffic {
	all := map[uint64]traffic{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 12 {
			continue
		}
		n := numbers(f[3:])
		t := traffic{name: f[2], inFlight: n[8], done: n[0] + n[4]}
		if len(n) > 15 {
			t.done += n[11] + n[15]
		}
		all[unix.Mkdev(uint32(whole(f[0])), uint32(whole(f[1])))] = t
	}
	return all
}

// stalledDevices gives the devices whose requests wait and none is answered, at several looks. Where nothing
// waits, or all goes on, that takes no time.
func (p *prober) stalledDevices(ctx context.Context) map[uint64]ProbedDevice {
	read := func() map[uint64]traffic {
		text, err := p.t.Read(ctx, "/proc/diskstats", maxSmallBytes)
		if err != nil {
			return nil // nothing is known, and no mount is avoided
		}
		return parseTraffic(string(text))
	}
	first := read()
	maps.DeleteFunc(first, func(_ uint64, t traffic) bool { return t.inFlight <= 0 })
	begun := time.Now()
	for end := begun.Add(cmp.Or(p.o.Between, usualBetween)); len(first) > 0 && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(betweenLooks):
		}
		now := read()
		maps.DeleteFunc(first, func(dev uint64, then traffic) bool {
			return now[dev].inFlight <= 0 || now[dev].done != then.done
		})
	}
	found := map[uint64]ProbedDevice{}
	for dev, t := range first {
		found[dev] = ProbedDevice{Name: t.name, InFlight: t.inFlight, Waited: time.Since(begun)}
	}
	return found
}

// avoidStalled tells the tree that what lies on a device that does not answer is not to be touched.
func (p *prober) avoidStalled(all []Mount, stalled map[uint64]ProbedDevice, own uint64) {
	t, can := p.t.(interface{ Avoid(dir, reason string) })
	if !can {
		return
	}
	for i := range all {
		m := &all[i]
		if d, is := stalled[m.Dev]; is && m.Namespace == own && m.Point != "/" && linux.MayHang(m.Type) == "" {
			t.Avoid(m.Point, fmt.Sprintf("%d requests to %s wait, and none was answered within %s", d.InFlight, d.Name,
				d.Waited.Round(100*time.Millisecond)))
		}
	}
}
