// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/klog"
)

// seen tells whether a message was read from another log already: a syslog daemon writes what the
// journal has too, and one message into several files. What was read longest ago is forgotten: a message is
// told once for each log then.
type seen struct {
	seed     maphash.Seed
	now, old map[place][]*sighting
	n        int // sightings in now
}

// maxSeen is how many sightings make a generation, of two that are remembered; maxSame how many of one text
// in one span.
const (
	maxSeen = 16 << 10
	maxSame = 32
)

// place is where sightings are looked for: by host, program and text together, and a span of time. Kernel:
// of the kernel's own.
type place struct {
	text   uint64
	kernel bool
	span   int64
}

// span is how long one is.
const span = 16 * time.Second

// sighting is a message with the logs that have had it.
type sighting struct {
	at       time.Time
	boot     string
	since    time.Duration
	hasSince bool
	by       []string
}

// apart is how far the times of one message in two logs may be: each daemon takes its own, and that of
// a syslog has no fraction. Messages of the kernel with the same time of its own are one, also if a
// daemon came to write them later.
const (
	apart = 2 * time.Second
	later = time.Hour
)

// twice notes that a log has a message of a host, "" for the machine itself, and tells whether another
// one had it before.
func (s *seen) twice(log, host string, m *Message) bool {
	if s.now == nil {
		s.seed, s.now = maphash.MakeSeed(), map[place][]*sighting{}
	}
	text := maphash.Comparable(s.seed, [3]string{host, m.Program, m.Text})
	at := time.Duration(m.Time.UnixNano())
	if s.by(text, false, at, apart, log, m) || m.hasSince && s.by(text, true, m.since, 2*time.Microsecond, log, m) {
		return true
	}
	if s.n >= maxSeen {
		s.now, s.old, s.n = map[place][]*sighting{}, s.now, 0
	}
	x := &sighting{m.Time, m.Boot, m.since, m.hasSince, []string{log}}
	s.add(place{text, false, int64(at / span)}, x)
	if m.hasSince {
		s.add(place{text, true, int64(m.since / span)}, x)
	}
	return false
}

func (s *seen) add(p place, x *sighting) {
	if list := s.now[p]; len(list) < maxSame {
		s.now[p] = append(list, x)
		s.n++
	}
}

// by tells whether a message is one that another log had, near a time of the day or of the kernel.
func (s *seen) by(text uint64, kernel bool, at, near time.Duration, log string, m *Message) bool {
	first, last := int64((at-near)/span), int64((at+near)/span)
	for n := first; n <= last; n++ {
		p := place{text, kernel, n}
		if m.among(s.now[p], log) || m.among(s.old[p], log) {
			return true
		}
	}
	return false
}

// among tells whether a message is one of those that were seen, in another log.
func (m *Message) among(list []*sighting, log string) bool {
	for _, x := range list {
		if slices.Contains(x.by, log) {
			continue
		}
		same := x.at.Sub(m.Time).Abs() <= apart
		if x.hasSince && m.hasSince {
			near := x.boot != "" && x.boot == m.Boot || x.at.Sub(m.Time).Abs() <= later
			same = near && (x.since-m.since).Abs() < 2*time.Microsecond
		}
		if same {
			x.by = append(x.by, log)
			return true
		}
	}
	return false
}

// varying are the fields in which messages may differ that say the same.
var varying = [...]string{"sector", "block", "offset", "tag", "lba", "segments", "flags", "id", "daddr",
	"opcode", "prio", "line", "at", "length", "blocks", "size", "text", "queue"}

// alike gives what messages that say the same have in common.
func alike(m *Message) string {
	var b strings.Builder
	b.WriteString(m.Form.Name + "\x00" + m.Host + "\x00" + m.Boot + "\x00" + m.Path)
	for _, f := range m.Fields {
		if !slices.Contains(varying[:], f.Name) {
			b.WriteString("\x00" + f.Name + "=" + f.Value)
		}
	}
	return b.String()
}

// lives tells whether a message begins or ends the life of what a device's name stands for: what was
// said before is of another file system, or of another mount of it.
func lives(form string) bool {
	_, what, _ := strings.Cut(form, ".")
	return what == "mounted" || what == "unmounted" || what == "capacity"
}

// collapse sorts messages by time and makes one of those that say the same of one life of a device,
// without a pause of more than an hour, in place. It may be done again when more were read.
func collapse(all []Message, known disks) []Message {
	slices.SortStableFunc(all, func(a, b Message) int { return a.Time.Compare(b.Time) })
	out := all[:0]
	last, life := map[string]int{}, map[string]int{}
	for i := range all {
		m := all[i]
		if kind, _, _ := strings.Cut(m.Form.Name, "."); kind == "kernel" || kind == "clock" {
			out = append(out, m) // each says something of its own time
			continue
		}
		where, device := m.place()
		device = m.Host + "\x00" + strings.TrimPrefix(cmp.Or(device, known[where]), "/dev/")
		if lives(m.Form.Name) {
			life[device]++
		}
		key := alike(&m) + "\x00" + strconv.Itoa(life[device])
		if j, ok := last[key]; ok && m.Time.Sub(out[j].Last) <= time.Hour {
			out[j].Count += m.Count
			if m.Last.After(out[j].Last) {
				out[j].Last = m.Last
			}
			continue
		}
		last[key] = len(out)
		out = append(out, m)
	}
	clear(all[len(out):])
	return out
}

// maxDisks bounds the addresses that are remembered.
const maxDisks = 16 << 10

// disks has the device that a SCSI address stands for in a boot, "" where that changed.
type disks map[string]string

// place is what a message says of a SCSI disk: where it is, and its device.
func (m *Message) place() (key, device string) {
	if a := m.Field("address"); a != "" && strings.HasPrefix(m.Form.Name, "scsi.") {
		key = m.Host + "\x00" + m.Boot + "\x00" + a
	}
	return key, m.Field("device")
}

// learn takes the device of a message that has it with its address.
func (d disks) learn(m *Message) {
	key, device := m.place()
	if key == "" || device == "" {
		return
	}
	was, known := d[key]
	switch {
	case known && was != device:
		d[key] = "" // another disk came to the address
	case !known && len(d) < maxDisks:
		d[key] = device
	}
}

// name gives messages that have an address alone the device: that a disk was taken out of use is said so.
func (d disks) name(all []Message) {
	for i := range all {
		m := &all[i]
		if key, device := m.place(); key != "" && device == "" && d[key] != "" {
			m.Fields = append(m.Fields, klog.Field{Name: "device", Value: d[key]})
		}
	}
}

// SameHost compares names of hosts, a short one with a long one too.
func SameHost(a, b string) bool {
	if a == "" || b == "" || a == b {
		return a == b
	}
	short := func(s string) string { first, _, _ := strings.Cut(s, "."); return strings.ToLower(first) }
	return short(a) == short(b)
}

// hostOf is who said a message, "" for the machine itself.
func (r *reader) hostOf(m *Message) string {
	if r.o.Collected {
		return m.Host
	}
	foreign := slices.ContainsFunc(central, func(dir string) bool { return strings.HasPrefix(m.Path, dir+"/") })
	switch {
	case m.Host == "", m.Host == "localhost", SameHost(m.Host, r.o.Host), r.o.Host == "" && !foreign:
		return ""
	}
	return m.Host
}
