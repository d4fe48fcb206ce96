// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/klog"
)

// seen tells whether a message was read from another log already: a syslog daemon writes what the
// journal has too, and one message into several files.
type seen map[string][]sighting

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
func (s seen) twice(log, host string, m *Message) bool {
	key := host + "\x00" + m.Program + "\x00" + m.Text
	list := s[key]
	for i := range list {
		x := &list[i]
		same := x.at.Sub(m.Time).Abs() <= apart
		if x.hasSince && m.hasSince {
			near := x.boot != "" && x.boot == m.Boot || x.at.Sub(m.Time).Abs() <= later
			same = near && (x.since-m.since).Abs() < 2*time.Microsecond
		}
		if same && !slices.Contains(x.by, log) {
			x.by = append(x.by, log)
			return true
		}
	}
	s[key] = append(list, sighting{m.Time, m.Boot, m.since, m.hasSince, []string{log}})
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
// without a pause of more than an hour.
func collapse(all []Message) []Message {
	slices.SortStableFunc(all, func(a, b Message) int { return a.Time.Compare(b.Time) })
	var out []Message
	last, life := map[string]int{}, map[string]int{}
	for i := range all {
		m := &all[i]
		if kind, _, _ := strings.Cut(m.Form.Name, "."); kind == "kernel" || kind == "clock" {
			out = append(out, *m) // each says something of its own time
			continue
		}
		device := m.Host + "\x00" + strings.TrimPrefix(m.Field("device"), "/dev/")
		if lives(m.Form.Name) {
			life[device]++
		}
		key := alike(m) + "\x00" + strconv.Itoa(life[device])
		if j, ok := last[key]; ok && m.Time.Sub(out[j].Last) <= time.Hour {
			out[j].Count += m.Count
			out[j].Last = m.Last
			continue
		}
		last[key] = len(out)
		out = append(out, *m)
	}
	return out
}

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
	if was, known := d[key]; known && was != device {
		device = "" // another disk came to the address
	}
	d[key] = device
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
	foreign := slices.ContainsFunc(central, func(dir string) bool { return strings.HasPrefix(m.Path, dir+"/") })
	switch {
	case m.Host == "", m.Host == "localhost", SameHost(m.Host, r.o.Host), r.o.Host == "" && !foreign:
		return ""
	}
	return m.Host
}
