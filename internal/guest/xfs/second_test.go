// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestSecond asks xfs_db about each file system of the zoo that was unmounted: it reads the same
// bytes with other code, and tells what a mount does not show.
func TestSecond(t *testing.T) {
	testenv.Need(t, "xfs_db")
	for _, a := range zoo() {
		if a.crashed {
			continue // xfs_db replays no log
		}
		t.Run(a.name, func(t *testing.T) {
			// Together these have all that the format has; the others are for long sweeps.
			if !slices.Contains([]string{"v5 1k rmapbt", "v5 nrext64 2k inodes", "v5 4k sectors many groups",
				"v4", "v5 64k directory blocks"}, a.name) {
				testenv.NeedLong(t)
			}
			disk := unpacked(t, a)
			s := &second{T: t, disk: disk, FS: open(t, disk)}
			s.inodes()
			s.headers()
			s.everything()
			if view := s.View(); view.State != files.Clean || len(view.Problems) > 0 {
				t.Errorf("the view is %s: %+v", view.State, view.Problems)
			}
		})
	}
}

// unpacked gives a file with a file system of the zoo.
func unpacked(t *testing.T, a animal) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, filestest.Unpack(t, a.file()).Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return disk
}

// second holds one file system against what xfs_db says of it.
type second struct {
	*testing.T
	*FS
	disk string
}

// ask has xfs_db run commands, which change nothing, and gives what it prints.
func (s *second) ask(commands ...string) string {
	s.Helper()
	c := exec.Command("xfs_db", "-r", s.disk)
	c.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	c.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	out, err := c.Output()
	if err != nil {
		s.Fatalf("xfs_db: %v", err)
	}
	return string(out)
}

func (s *second) number(text string) int64 {
	s.Helper()
	v, err := strconv.ParseInt(text, 0, 64)
	if err != nil {
		s.Fatal(err)
	}
	return v
}

// all gives every inode in use.
func (s *second) all() []*inode {
	s.Helper()
	var list []*inode
	if err := s.eachInode(s.Context(), func(n *inode) error {
		list = append(list, n)
		return nil
	}); err != nil {
		s.Fatal(err)
	}
	return list
}

// inodeFields are what is compared of an inode; the first one is in each answer. Those of the
// other version of the format are not printed.
const inodeFields = "p core.magic core.mode core.format core.aformat core.uid core.gid core.nlinkv2 " +
	"core.projid_lo core.projid_hi core.atime.sec core.atime.nsec core.mtime.sec core.mtime.nsec " +
	"core.ctime.sec core.ctime.nsec core.size core.nblocks core.nextents core.naextents core.gen core.forkoff"

var (
	dbField  = regexp.MustCompile(`(?m)^([a-z0-9_.]+) = (\S+)(.*)$`)
	dbExtent = regexp.MustCompile(`(?m)^(data|attr) offset (\d+) startblock \d+ \((\d+)/(\d+)\) count (\d+) ` +
		`flag (\d)$`)
)

// inodes compares the fields and the extents of all inodes.
func (s *second) inodes() {
	s.Helper()
	list := s.all()
	fields := inodeFields
	if s.v5 {
		fields += " v3.inumber v3.flags2 v3.crtime.sec v3.crtime.nsec"
	}
	var commands []string
	for _, n := range list {
		commands = append(commands, fmt.Sprintf("inode %d", n.ino), fields, "bmap")
	}
	answers := strings.Split(s.ask(commands...), "core.magic = ")[1:]
	if len(answers) != len(list) || len(list) < 120 {
		s.Fatalf("xfs_db told of %d inodes, want %d", len(answers), len(list))
	}
	extents := 0
	for i, n := range list {
		got, want := s.ours(n), s.theirs(n, answers[i])
		if !slices.Equal(got, want) {
			s.Errorf("inode %d is\n%q, xfs_db says\n%q", n.ino, got, want)
		}
		extents += len(got) - 1
	}
	if extents < 100 {
		s.Errorf("%d extents were compared, want more", extents)
	}
}

// ours gives the fields of an inode on one line, then its extents.
func (s *second) ours(n *inode) []string {
	s.Helper()
	st := n.stat
	lines := []string{fmt.Sprint(st.Mode, n.format, n.aformat, st.UID, st.GID, st.Links, st.Project, st.Atime,
		st.Mtime, st.Ctime, st.Size, n.blocks, n.extents, n.aextents, st.Generation, n.forkoff/8, n.flags2,
		st.Birth)}
	forks := []fork{n.dataFork()}
	if k, ok := n.attrFork(); ok {
		forks = append(forks, k)
	}
	for _, k := range forks {
		name := "data"
		if !k.data {
			name = "attr"
		}
		w := forkWalk{n: n, fork: k, fn: func(e *extent) error {
			group, block, _ := s.split(e.start)
			lines = append(lines, fmt.Sprint(name, " ", e.file, " ", group, "/", block, " ", e.count, " ",
				e.unwritten))
			return nil
		}}
		if err := w.walk(s.Context()); err != nil {
			s.Fatal(err)
		}
	}
	return lines
}

// theirs gives the same of an answer of xfs_db.
func (s *second) theirs(n *inode, answer string) []string {
	s.Helper()
	f := map[string]string{}
	for _, m := range dbField.FindAllStringSubmatch(answer, -1) {
		f[m[1]] = m[2]
		if strings.HasSuffix(m[1], ".sec") {
			f[m[1]] += m[3]
		}
	}
	num := func(name string) int64 {
		s.Helper()
		if f[name] == "" {
			return 0 // not of this version
		}
		return s.number(f[name])
	}
	stamp := func(name string) files.Time {
		if f[name+".sec"] == "" {
			return files.Time{}
		}
		at, err := time.Parse(time.ANSIC, f[name+".sec"])
		if err != nil {
			s.Fatal(err)
		}
		return files.Time{Seconds: at.Unix(), Nanoseconds: uint32(num(name + ".nsec"))}
	}
	mode, err := strconv.ParseUint(f["core.mode"], 8, 32)
	if err != nil {
		s.Fatal(err)
	}
	size := num("core.size")
	if typ := mode & files.TypeMask; typ != files.TypeRegular && typ != files.TypeDir && typ != files.TypeLink {
		size = 0
	}
	lines := []string{fmt.Sprint(uint32(mode), uint8(num("core.format")), uint8(num("core.aformat")),
		uint32(num("core.uid")), uint32(num("core.gid")), uint32(num("core.nlinkv2")),
		uint32(num("core.projid_hi")<<16|num("core.projid_lo")), stamp("core.atime"), stamp("core.mtime"),
		stamp("core.ctime"), size, num("core.nblocks"), num("core.nextents"), num("core.naextents"),
		uint32(num("core.gen")), num("core.forkoff"), uint64(num("v3.flags2")), stamp("v3.crtime"))}
	if s.v5 && num("v3.inumber") != int64(n.ino) {
		s.Errorf("xfs_db tells of inode %s, want %d", f["v3.inumber"], n.ino)
	}
	for _, m := range dbExtent.FindAllStringSubmatch(answer, -1) {
		lines = append(lines, fmt.Sprint(m[1], " ", m[2], " ", m[3], "/", m[4], " ", m[5], " ", m[6] == "1"))
	}
	return lines
}

// headers compares what the groups say of themselves.
func (s *second) headers() {
	s.Helper()
	for group := range s.groups {
		text := s.ask(fmt.Sprintf("agf %d", group), "p", fmt.Sprintf("agi %d", group), "p")
		f := map[string]int64{}
		for _, m := range dbField.FindAllStringSubmatch(text, -1) {
			if v, err := strconv.ParseInt(m[2], 0, 64); err == nil {
				f[m[1]] = v
			}
		}
		space, err := s.agf(group)
		if err != nil {
			s.Fatal(err)
		}
		in, err := s.agi(group)
		if err != nil {
			s.Fatal(err)
		}
		tree := func(block, levels string) root { return root{f[block], int(f[levels])} }
		want := agf{byBlock: tree("bnoroot", "bnolevel"), bySize: tree("cntroot", "cntlevel"),
			rmap: tree("rmaproot", "rmaplevel"), refcount: tree("refcntroot", "refcntlevel"),
			first: f["flfirst"], last: f["fllast"], count: f["flcount"], free: f["freeblks"],
			btree: f["btreeblks"], rmapCount: f["rmapblocks"], refcount2: f["refcntblocks"]}
		if *space != want || f["length"] != s.groupLength(group) {
			s.Errorf("AGF of group %d is %+v, xfs_db says %+v", group, *space, want)
		}
		inodes := agi{inodes: f["count"], free: f["freecount"], tree: tree("root", "level"),
			fino: tree("free_root", "free_level"), unlinked: in.unlinked}
		if *in != inodes {
			s.Errorf("AGI of group %d is %+v, xfs_db says %+v", group, *in, inodes)
		}
	}
}
