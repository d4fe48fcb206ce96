// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestSecond asks debugfs and dumpe2fs about each file system that TestMounted holds against the
// kernel: they read the same bytes with other code, and tell what a mount does not show.
func TestSecond(t *testing.T) {
	testenv.Need(t, "debugfs", "dumpe2fs")
	// These two have the most in them that no other has: inline data, extents and checksums, and
	// maps of blocks without any of those. The others are for long sweeps: each takes seconds.
	quick := []string{"inline-256", "ext2-1k"}
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			if !slices.Contains(quick, v.name) {
				testenv.NeedLong(t)
			}
			disk := v.make(t, func(dir string) {
				filestest.Populate(t, dir, v.fill())
				if strings.Contains(v.mkfs, "ea_inode") {
					long := bytes.Repeat([]byte("a long value "), 3000)
					if err := unix.Setxattr(filepath.Join(dir, "attributes/0"), "user.long", long, 0); err != nil {
						t.Fatal(err)
					}
				}
			})
			s := &second{T: t, disk: disk, fs: openDisk(t, disk)}
			s.inodes()
			s.names()
			s.paths()
			s.groups()
			s.blocks()
			if view := s.fs.View(); view.State != files.Clean || len(view.Problems) > 0 {
				t.Errorf("the view is %s: %+v", view.State, view.Problems)
			}
		})
	}
}

// second holds one file system against what e2fsprogs says of it.
type second struct {
	*testing.T
	disk string
	fs   *FS
}

// ask has debugfs answer commands that change nothing, and gives the answer to each.
func (s *second) ask(commands []string) []string {
	s.Helper()
	c := exec.Command("debugfs", "-f", "-", s.disk)
	c.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	out, err := c.Output()
	if err != nil {
		s.Fatalf("debugfs: %v", err)
	}
	// Each answer follows the command, which is printed as it was read.
	text := string(out)
	answers := make([]string, len(commands))
	for i, command := range commands {
		before, after, found := strings.Cut(text, "debugfs: "+command+"\n")
		if !found {
			s.Fatalf("debugfs does not answer %q: %.200q", command, text)
		}
		if i > 0 {
			answers[i-1] = before
		}
		text = after
	}
	answers[len(answers)-1] = text
	return answers
}

// all gives every inode in use, with those of the file system's own.
func (s *second) all() []*inode {
	s.Helper()
	var list []*inode
	if err := s.fs.eachInode(s.Context(), func(n *inode) error {
		n, err := s.fs.load(s.Context(), n.stat.Ino)
		list = append(list, n)
		return err
	}); err != nil {
		s.Fatal(err)
	}
	return list
}

// told is what "stat" of debugfs tells of an inode, and what is compared of ours.
type told struct {
	Stat files.Stat
	Fast string // the target of a symbolic link that stands in the inode
	ACL  int64  // block of extended attributes
	Runs []run
	Tree []int64 // blocks of the map, ascending
}

// inodes compares the fields, the maps and the attributes of all inodes.
func (s *second) inodes() {
	s.Helper()
	list := s.all()
	var stats, lists []string
	for _, n := range list {
		stats = append(stats, fmt.Sprintf("stat <%d>", n.stat.Ino))
		lists = append(lists, fmt.Sprintf("ea_list <%d>", n.stat.Ino))
	}
	differ, extents := 0, 0
	for i, text := range s.ask(stats) {
		want, got := s.parseStat(list[i], text), s.ours(list[i])
		extents += len(got.Runs)
		if !reflect.DeepEqual(got, want) {
			s.Errorf("inode %d is\n%+v, debugfs says\n%+v", list[i].stat.Ino, got, want)
			if differ++; differ == 3 {
				break
			}
		}
	}
	s.attributes(list, s.ask(lists))
	if len(list) < 2500 || extents < 400 {
		s.Errorf("%d inodes with %d extents were compared, want more", len(list), extents)
	}
}

// ours is what we say of an inode.
func (s *second) ours(n *inode) told {
	s.Helper()
	o := told{Stat: n.stat, ACL: n.attrBlock()}
	o.Stat.Flags = n.flags
	w := &mapWalk{ctx: s.Context(), n: n, to: maxLogical, each: func(r run) error {
		o.Runs = joined(o.Runs, r)
		return nil
	}, tree: func(block int64) error {
		o.Tree = append(o.Tree, block)
		return nil
	}}
	if err := w.walk(); err != nil {
		s.Fatal(err)
	}
	slices.Sort(o.Tree)
	if n.fastLink() {
		target := make([]byte, n.stat.Size)
		if _, err := n.ReadAt(target, 0); err != nil {
			s.Fatal(err)
		}
		o.Fast = string(target)
	}
	return o
}

// joined adds a run to a list, to the last one if it goes on there.
func joined(list []run, r run) []run {
	if n := len(list); n > 0 {
		last := &list[n-1]
		if last.logical+last.count == r.logical && last.physical+last.count == r.physical &&
			last.unwritten == r.unwritten {
			last.count += r.count
			return list
		}
	}
	return append(list, r)
}

var (
	statFields = regexp.MustCompile(`(Mode|Flags|Generation|User|Group|Project|Size|File ACL|Links|` +
		`Blockcount): +(\w+)`)
	statTimes = regexp.MustCompile(`(?m)^ *(ctime|atime|mtime|crtime|dtime): 0x(\w+)(?::(\w+))? --`)
	statDev   = regexp.MustCompile(`Device major/minor number: (\d+):(\d+)`)
	statRuns  = regexp.MustCompile(`\(([A-Z]+\d*|\d+)(?:-(\d+))?(\[u\])?\):(\d+)(?:-\d+)?`)
	statFast  = regexp.MustCompile(`(?s)Fast link dest: "(.*)"`)
)

// statTypes are the words of debugfs.
var statTypes = map[string]uint32{"regular": files.TypeRegular, "directory": files.TypeDir,
	"symlink": files.TypeLink, "FIFO": files.TypeFIFO, "socket": files.TypeSocket,
	"block special": files.TypeBlock, "character special": files.TypeChar, "bad type": 0}

// parseStat reads the answer to "stat" of an inode.
func (s *second) parseStat(n *inode, text string) told {
	s.Helper()
	var w told
	st := &w.Stat
	st.Ino = n.stat.Ino
	_, kind, _ := strings.Cut(text, "Type: ")
	kind, _, _ = strings.Cut(kind, "  ")
	typ, known := statTypes[kind]
	if !known {
		s.Fatalf("inode %d: %.300s", n.stat.Ino, text)
	}
	head, _, _ := strings.Cut(text, "\nFragment:")
	for _, m := range statFields.FindAllStringSubmatch(head, -1) {
		base := 10
		if m[1] == "Mode" || m[1] == "Flags" {
			base = 0
		}
		v := s.number(m[2], base)
		switch m[1] {
		case "Mode":
			st.Mode = uint32(v) | typ
		case "Flags":
			st.Flags = uint32(v)
		case "Generation":
			st.Generation = uint32(v)
		case "User":
			st.UID = uint32(v)
		case "Group":
			st.GID = uint32(v)
		case "Project":
			st.Project = uint32(v)
		case "Size":
			st.Size = v
		case "File ACL":
			w.ACL = v
		case "Links":
			st.Links = uint32(v)
		case "Blockcount":
			st.Sectors = v
		}
	}
	// The kernel shows blocks of the file system, and inline data, as sectors (ext4_file_getattr).
	if st.Flags&flagHugeFile != 0 {
		st.Sectors *= s.fs.super.blockBytes / 512
	}
	if st.IsRegular() && st.Flags&flagInline != 0 {
		st.Sectors += (st.Size + 511) / 512
	}
	s.parseTimes(st, text)
	if m := statDev.FindStringSubmatch(text); m != nil {
		st.Major, st.Minor = uint32(s.number(m[1], 10)), uint32(s.number(m[2], 10))
	}
	if m := statFast.FindStringSubmatch(text); m != nil {
		w.Fast = m[1]
		return w
	}
	s.parseRuns(&w, text)
	return w
}

// parseTimes reads the times, which debugfs prints as they are on the disk.
func (s *second) parseTimes(st *files.Stat, text string) {
	s.Helper()
	for _, m := range statTimes.FindAllStringSubmatch(text, -1) {
		t := files.Time{Seconds: int64(int32(s.number(m[2], 16)))}
		if m[3] != "" {
			extra := s.number(m[3], 16)
			t.Seconds += (extra & 3) << 32
			t.Nanoseconds = uint32(extra >> 2)
		}
		switch m[1] {
		case "atime":
			st.Atime = t
		case "mtime":
			st.Mtime = t
		case "ctime":
			st.Ctime = t
		case "crtime":
			st.Birth = t
		}
	}
}

// parseRuns reads where the content of an inode lies, and the blocks that say so.
func (s *second) parseRuns(w *told, text string) {
	s.Helper()
	_, list, _ := strings.Cut(text, "EXTENTS:\n")
	if list == "" {
		_, list, _ = strings.Cut(text, "BLOCKS:\n")
	}
	list, _, _ = strings.Cut(list, "\n")
	for _, m := range statRuns.FindAllStringSubmatch(list, -1) {
		at := s.number(m[4], 10)
		if m[1][0] >= 'A' { // of the map: (ETB0), (IND), (DIND), (TIND)
			w.Tree = append(w.Tree, at)
			continue
		}
		r := run{logical: s.number(m[1], 10), physical: at, count: 1, unwritten: m[3] != ""}
		if m[2] != "" {
			r.count = s.number(m[2], 10) - r.logical + 1
		}
		w.Runs = joined(w.Runs, r)
	}
	slices.Sort(w.Tree)
}

func (s *second) number(text string, base int) int64 {
	s.Helper()
	v, err := strconv.ParseInt(text, base, 64)
	if err != nil {
		s.Fatal(err)
	}
	return v
}

// attributes holds the extended attributes of inodes against the answers to "ea_list", with the
// values that "ea_get" gives.
func (s *second) attributes(list []*inode, listed []string) {
	s.Helper()
	var commands []string
	want := map[files.Ino][]string{}
	for i, n := range list {
		for line := range strings.Lines(strings.TrimPrefix(listed[i], "Extended attributes:\n")) {
			name, _, _ := strings.Cut(strings.TrimSpace(line), " (")
			if name != "system.data" { // the content of the file
				commands = append(commands, fmt.Sprintf("ea_get -x <%d> %s", n.stat.Ino, name))
			}
		}
	}
	for i, answer := range s.ask(commands) {
		var ino files.Ino
		if _, err := fmt.Sscanf(commands[i], "ea_get -x <%d>", &ino); err != nil {
			s.Fatal(err)
		}
		head, hex, _ := strings.Cut(strings.TrimSpace(answer), " = ")
		want[ino] = append(want[ino], head+strings.ReplaceAll(hex, " ", ""))
	}
	for _, n := range list {
		var got []string
		if err := n.Xattrs(s.Context(), func(name string, value []byte) error {
			if strings.HasPrefix(name, "system.posix_acl_") {
				value = withoutIDs(value)
			}
			got = append(got, fmt.Sprintf("%s (%d)%x", name, len(value), value))
			return nil
		}); err != nil {
			s.Fatal(err)
		}
		slices.Sort(got)
		slices.Sort(want[n.stat.Ino])
		if !slices.Equal(got, want[n.stat.Ino]) {
			s.Errorf("inode %d has the attributes\n%q, debugfs says\n%q", n.stat.Ino, got,
				want[n.stat.Ino])
		}
	}
	if len(commands) < 40 {
		s.Errorf("%d attributes were compared, want more", len(commands))
	}
}

// withoutIDs gives an ACL as e2fsprogs has it, which writes an id of 0 where an entry has none; the
// kernel writes ACL_UNDEFINED_ID, all ones, and so do we.
func withoutIDs(acl []byte) []byte {
	acl = bytes.Clone(acl)
	for e := acl[4:]; len(e) > 0; e = e[8:] {
		if tag := le16(e, 0); tag != 2 && tag != 8 { // not a named user or group
			clear(e[4:8])
		}
	}
	return acl
}
