// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/linux"
)

// The bounds of a guest's /etc/fstab.
const (
	maxFstabBytes  = 256 << 10
	maxFstabMounts = 1000
	// maxFstabNotes is how many places of one walk are told, maxFstabLooks how many are looked for: each
	// may have to go through large directories.
	maxFstabNotes = 20
	maxFstabLooks = 100
)

// fstabEntry is a line of fstab(5) that puts a file system with files in the place of a directory.
type fstabEntry struct{ source, point string }

// parseFstab reads the lines of fstab(5) that put something in the place of a directory. What is no such
// line is passed over, as by mount(8).
func parseFstab(text string) []fstabEntry {
	var all []fstabEntry
	lines, _ := linux.ParseFstab([]byte(text))
	for _, e := range lines {
		if !e.Files() || e.Point == "/" || strings.ContainsRune(e.Point, 0) {
			continue
		}
		if len(all) == maxFstabMounts {
			break
		}
		all = append(all, fstabEntry{e.Source, e.Point})
	}
	return all
}

// MountedThere says where the guest shows other files than a directory of the file system holds, as its
// /etc/fstab tells: at dir, at what it lies below, and, unless flat, at what lies below it. It reads the
// file system, so the view is to be taken before.
func (g *Guest) MountedThere(ctx context.Context, fs files.FS, dir string, flat bool) []string {
	text, err := readFstab(ctx, fs)
	if err != nil {
		return []string{fmt.Sprintf("whether the guest mounts other file systems there is not known: /etc/fstab: %v",
			err)}
	}
	var notes []string
	more, looks := 0, 0
	for _, e := range parseFstab(text) {
		if !under(dir, e.point) && (flat || !under(e.point, dir)) {
			continue
		}
		if len(notes) == maxFstabNotes || looks == maxFstabLooks {
			more++
			continue
		}
		if looks++; under(e.point, dir) { // what is not there hides nothing
			if at, err := Lookup(ctx, fs, e.point, true); err != nil || !at.File.Stat().IsDir() {
				continue
			}
		}
		notes = append(notes, fmt.Sprintf("%s: the guest mounts another file system there, by its /etc/fstab: "+
			"%s; what was looked at lies hidden under that", e.point, g.fstabSource(e.source)))
	}
	if more > 0 {
		notes = append(notes, fmt.Sprintf("/etc/fstab of the guest names %d places more, which were not looked for", more))
	}
	return notes
}

// under tells whether a path is dir or lies below it.
func under(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// readFstab gives /etc/fstab, "" if there is none. Of a long one it is the beginning.
func readFstab(ctx context.Context, fs files.FS) (string, error) {
	f, err := Lookup(ctx, fs, "/etc/fstab", true)
	if errors.Is(err, ErrPath) || err == nil && !f.File.Stat().IsRegular() {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	size := f.File.Stat().Size
	b := make([]byte, min(max(size, 0), maxFstabBytes))
	if n, err := f.File.ReadAt(b, 0); n < len(b) {
		return "", errors.Join(err, io.ErrUnexpectedEOF)
	}
	if size > maxFstabBytes {
		return "", fmt.Errorf("it has %d bytes", size)
	}
	return string(b), nil
}

// fstabSource names what is mounted, with the part that it is, where that can be told.
func (g *Guest) fstabSource(source string) string {
	if part := g.fstabPart(source); part >= 0 {
		return fmt.Sprintf("%s, which is part %s", source, g.Layout.Volumes[part].Name)
	}
	return source
}

// fstabPart gives the index of the volume that a source names, -1 where it is not known.
func (g *Guest) fstabPart(source string) int {
	name := strings.NewReplacer(`"`, "", "'", "").Replace(source)
	for dir, key := range map[string]string{"by-uuid/": "UUID=", "by-label/": "LABEL=",
		"by-partuuid/": "PARTUUID=", "by-partlabel/": "PARTLABEL="} {
		if rest, is := strings.CutPrefix(name, "/dev/disk/"+dir); is {
			name = key + rest
		}
	}
	var found []int
	for i, v := range g.Layout.Volumes {
		if v.Name == deviceVolume(name) || len(g.Layout.Disks) == 1 && v.Name == deviceNumber(name) ||
			g.tagged(i, name) {
			found = append(found, i)
		}
	}
	if len(found) != 1 {
		return -1
	}
	return found[0]
}

// deviceVolume gives the logical volume that a device is, as vg/lv, "" for other devices. In names of
// device mapper a dash is doubled.
func deviceVolume(name string) string {
	rest, is := strings.CutPrefix(name, "/dev/mapper/")
	if !is {
		rest, _ = strings.CutPrefix(name, "/dev/")
		if strings.Count(rest, "/") == 1 && rest != name {
			return rest
		}
		return ""
	}
	const dash = "\x00"
	rest = strings.Replace(strings.ReplaceAll(rest, "--", dash), "-", "/", 1)
	return strings.ReplaceAll(rest, dash, "-")
}

// deviceNumber gives the number of a partition of the first disk, as of /dev/vda2, "" for others.
func deviceNumber(name string) string {
	for _, disk := range []string{"/dev/vda", "/dev/sda", "/dev/xvda", "/dev/hda", "/dev/nvme0n1p", "/dev/mmcblk0p"} {
		if number, is := strings.CutPrefix(name, disk); is && number != "" && strings.Trim(number, "0123456789") == "" {
			return number
		}
	}
	return ""
}
