// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux"
)

// logCounts is what the word of a log alone is worth, against one beside which the kernel shows how it stands.
const logCounts = 0.7

// heardOf asks a rule about file systems of which nothing but logs tells, as in a copy of files without /proc and
// /sys. What they tell to be wrong is found; that they tell nothing proves nothing.
func (r *Rule) heardOf(e *evidence.Evidence) []Result {
	own, first := heard(e)
	var out []Result
	for _, x := range r.Judge(own) {
		f := x.Finding
		if f == nil {
			continue
		}
		for i := first; i < len(own.FSs); i++ {
			if about := fsObject(own, i); f.Object == about || slices.Contains(f.Affects, about) {
				f.Confidence *= logCounts
				f.Summary += "; only logs tell so, and not how it stands now"
				f.Remedies = append([]Remedy{{Text: "look at the machine itself where it runs, or at its disk where it does not: only " +
					"that shows how it stands now", Command: "shisa doctor --write-probe"}}, f.Remedies...)
				if point(own, &own.FSs[i]) == "" && r.Code != "FS04" {
					f.Remedies = f.Remedies[:1] // the others are for where it is mounted
				}
				break
			}
		}
		out = append(out, x)
	}
	return out
}

// heard gives evidence with the file systems that logs speak of, beside those that are known; first is the index of
// the first of them. The last boot that logs tell of is taken for the present.
func heard(e *evidence.Evidence) (own *evidence.Evidence, first int) {
	x := *e
	own, first = &x, len(e.FSs)
	own.FSs, own.Mounts = slices.Clone(e.FSs), slices.Clone(e.Mounts)
	if n := len(e.Boots); n > 0 && e.Host.BootID == "" && e.Host.Booted.IsZero() {
		own.Host.BootID, own.Host.Booted = e.Boots[n-1].ID, e.Boots[n-1].Began
	}
	for i := range e.Log.Events {
		ev := &e.Log.Events[i]
		family, _, _ := strings.Cut(ev.Form, ".")
		if ev.Host != "" || !slices.Contains([]string{"ext4", "jbd2", "xfs", "btrfs"}, family) {
			continue
		}
		if family == "jbd2" {
			family = "ext4"
		}
		name := strings.TrimPrefix(ev.Fields["device"], "/dev/")
		if name == "" || strings.HasPrefix(name, "loop") && !mounting(ev) {
			continue
		}
		at := slices.IndexFunc(own.FSs, func(f evidence.FS) bool { return concerns(ev, &f) })
		if at < 0 {
			at = len(own.FSs)
			own.FSs = append(own.FSs, evidence.FS{Type: family, Device: name, From: ev.From})
		}
		if f := &own.FSs[at]; at >= first && mounting(ev) {
			f.UUID = uuidIn(ev) // the last one counts
		}
	}
	for i := first; i < len(own.FSs); i++ {
		planned(own, i)
	}
	return own, first
}

// planned says by /etc/fstab where a file system is mounted that only logs speak of.
func planned(e *evidence.Evidence, i int) {
	f := &e.FSs[i]
	for _, entry := range e.Config.Fstab {
		id, is := strings.CutPrefix(entry.Source, "UUID=")
		if is && f.UUID != "" && strings.EqualFold(id, f.UUID) || entry.Source == "/dev/"+f.Device {
			m := linux.Mount{Point: entry.Point, Root: "/", Type: f.Type, Source: entry.Source,
				Options: strings.Join(entry.Options, ",")}
			m.Super = m.Options
			f.Mounts = append(f.Mounts, len(e.Mounts))
			e.Mounts = append(e.Mounts, evidence.Mount{Mount: m, Own: true, FS: i, From: entry.From,
				NotAsked: "it is a copy"})
		}
	}
}
