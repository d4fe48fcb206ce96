// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// sizes lists claims of a size, one a line.
func sizes(t *testing.T, disk io.ReaderAt, limit int64) []string {
	t.Helper()
	claims, _, err := DiskSizes(t.Context(), disk, limit)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range claims {
		how := "at least"
		if c.Exact {
			how = "exactly"
		}
		if c.Confirmed {
			how += " confirmed"
		}
		got = append(got, fmt.Sprintf("%s %s %d", c.Kind, how, c.Bytes))
	}
	return got
}

// TestDiskSizes asks disks of odd sizes how large they are, of which more can be read than there is.
func TestDiskSizes(t *testing.T) {
	const size, limit = 3*gib + 5*mib + 512, 3*gib + 512*mib
	gpt := newWorld(t, size)
	run(t, "", "sgdisk", "-n", "1:2048:+1G", "-n", "2:0:+500M", gpt.Name())
	mbr := newWorld(t, size)
	run(t, "label: dos\nstart=2048,size=1GiB\nsize=1GiB\n", "sfdisk", "-q", mbr.Name())
	ext := newWorld(t, size)
	ext.mkfs(t, "mkfs.ext4 -q -F DISK")
	part := newWorld(t, gib)
	part.mkfs(t, "mkfs.xfs -q -f DISK")
	gpt.put(t, part, mib)
	wide := newWorld(t, 3*gib) // sectors of 4096 bytes
	wide.put(t, gpt4k(t, 3*gib/4096), 0)
	exact := fmt.Sprintf("gpt exactly confirmed %d", size)
	half := fmt.Sprintf("gpt exactly %d", size)
	parts := []string{fmt.Sprintf("other at least %d", mib+gib+500*mib), fmt.Sprintf("xfs at least %d", mib+gib)}
	parts[0] = strings.Replace(parts[0], "other", "unknown", 1)
	for _, w := range []*world{gpt, mbr, ext, wide} {
		if err := w.Truncate(limit); err != nil { // as a disk whose size is not known is read
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name  string
		disk  io.ReaderAt
		limit int64
		want  []string
	}{
		{"gpt", gpt, limit, append([]string{exact}, parts...)},
		{"gpt, primary lost", without{w: gpt, to: mib}, limit, append([]string{half}, parts...)},
		{"gpt, primary unreadable", without{w: gpt, to: mib, err: errors.New("gone")}, limit, append([]string{half}, parts...)},
		{"gpt, backup lost", without{w: gpt, from: size - mib, to: size}, limit, append([]string{half}, parts...)},
		{"gpt, backup unreadable", without{w: gpt, from: size - mib, to: size, err: errors.New("gone")}, limit, append([]string{half}, parts...)},
		{"gpt, less readable than said", gpt, gib, append([]string{half}, parts...)},
		{"gpt, limit of no sectors", gpt, limit - 100, append([]string{exact}, parts...)},
		{"gpt, both lost", without{w: without{w: gpt, to: mib}, from: size - mib, to: size}, limit,
			[]string{fmt.Sprintf("xfs at least %d", mib+gib)}},
		{"gpt of wide sectors", wide, limit, []string{fmt.Sprintf("gpt exactly confirmed %d", 3*gib)}},
		{"mbr", mbr, limit, []string{fmt.Sprintf("unknown at least %d", mib+2*gib), fmt.Sprintf("unknown at least %d", mib+gib)}},
		{"whole disk", ext, limit, []string{fmt.Sprintf("ext4 at least %d", size&^4095)}},
		{"whole disk, head lost", without{w: ext, to: mib}, limit, []string{fmt.Sprintf("ext4 at least %d", size&^4095)}},
		{"nothing", newWorld(t, mib), mib, nil},
		{"no bytes", newWorld(t, mib), 0, nil},
		{"negative", newWorld(t, mib), -1, nil},
	} {
		if got := sizes(t, tc.disk, tc.limit); fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: DiskSizes() = %v, want %v", tc.name, got, tc.want)
		}
	}
	if _, blind, err := DiskSizes(t.Context(), without{w: gpt, to: mib, err: errors.New("gone")}, limit); err != nil || len(blind) == 0 {
		t.Errorf("DiskSizes(unreadable) has no blind spot, %v", err)
	}
}
