// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// The lines of "blockget -v" of xfs_db that are looked at.
var (
	dbRecord = regexp.MustCompile(`^(dir |inode |rtbitmap|rtsum|quota)`)
	dbOwner  = regexp.MustCompile(`^setting inode to (\d+) for block (\d+)/(\d+)$`)
	dbEntry  = regexp.MustCompile(`(?s)^dir (\d+) (?:block \d+ )?entry (.*?)(?: offset \d+)? (\d+)$`)
)

// everything holds who has each block, and the entries of all directories, against what xfs_db
// finds when it goes through all of it.
func (s *second) everything() {
	s.Helper()
	types, inodes := map[string]string{}, map[string]files.Ino{}
	var want []string
	for _, record := range records(s.ask("blockget -n -v")) {
		// By far most are of this kind.
		if text, found := strings.CutPrefix(record, "setting block "); found {
			block, typ, _ := strings.Cut(text, " to ")
			types[block] = typ
		} else if m := dbOwner.FindStringSubmatch(record); m != nil {
			inodes[m[2]+"/"+m[3]] = files.Ino(s.number(m[1]))
		} else if m := dbEntry.FindStringSubmatch(record); m != nil {
			want = append(want, fmt.Sprintf("%s %q %s", m[1], m[2], m[3]))
		}
	}
	s.owners(types, inodes)
	var got []string
	for _, n := range s.all() {
		if !n.stat.IsDir() {
			continue
		}
		if err := (&file{inode: n}).Entries(s.Context(), func(e files.Entry) error {
			got = append(got, fmt.Sprintf("%d %q %d", n.ino, e.Name, e.Ino))
			return nil
		}); err != nil {
			s.Fatal(err)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || len(got) < 300 {
		s.Errorf("%d entries, xfs_db says %d", len(got), len(want))
		for _, line := range got {
			if !slices.Contains(want, line) {
				s.Errorf("only we have entry %s", line)
			}
		}
		for _, line := range want {
			if !slices.Contains(got, line) {
				s.Errorf("only xfs_db has entry %s", line)
			}
		}
	}
}

// records takes the lines apart; a name may have line breaks.
func records(text string) []string {
	var list []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "setting ") || dbRecord.MatchString(line) || len(list) == 0 {
			list = append(list, line)
		} else {
			list[len(list)-1] += line
		}
	}
	for i := range list {
		list[i] = strings.TrimSuffix(list[i], "\n")
	}
	return list
}

// owners holds who has each block against the types and inodes of xfs_db.
func (s *second) owners(types map[string]string, inodes map[string]files.Ino) {
	s.Helper()
	var all []files.Owner
	if err := s.Owners(s.Context(), []files.Range{{Length: s.size}}, func(o files.Owner) error {
		all = append(all, o)
		return nil
	}); err != nil {
		s.Fatal(err)
	}
	compared, differ := 0, 0
	seen := map[string]int{}
	for group := range s.groups {
		for block := range s.groupLength(group) {
			name := strconv.FormatInt(group, 10) + "/" + strconv.FormatInt(block, 10)
			off := s.place(group, block)
			typ, known := types[name]
			if !known {
				s.Fatalf("xfs_db says nothing of block %s", name)
			}
			i := sort.Search(len(all), func(i int) bool {
				return all[i].Range.Offset+all[i].Range.Length > off
			})
			found := false
			for ; i < len(all) && all[i].Range.Offset < off+s.block; i++ {
				found = found || saysType(all[i], typ) && all[i].Ino == inodes[name]
			}
			if !found && differ < 5 {
				s.Errorf("block %s is none of %q and inode %d, as xfs_db says", name, typ, inodes[name])
				differ++
			}
			compared++
			seen[typ]++
		}
	}
	for _, typ := range []string{"sb", "free2", "btbno", "btcnt", "btino", "inode", "data", "dir", "attr", "log"} {
		if seen[typ] == 0 {
			s.Errorf("xfs_db told of no block of type %s", typ)
		}
	}
	if int64(compared) != s.FS.blocks {
		s.Errorf("%d blocks were compared, want %d", compared, s.FS.blocks)
	}
}

// saysType tells whether an owner is what xfs_db calls it.
func saysType(o files.Owner, typ string) bool {
	switch typ {
	case "free1", "free2":
		return o.Use == files.UseFree
	case "log":
		return o.Use == files.UseJournal
	case "data":
		// The blocks of its btree are of the same type to xfs_db.
		return o.Use == files.UseData || o.Use == files.UseReserved || o.What == "extents of the data fork"
	}
	trees := map[string]string{"btbno": "free space btree by block", "btcnt": "free space btree by size",
		"btino": "inode btree", "btfino": "free inode btree", "btrmap": "reverse map btree",
		"btrefcnt": "reference count btree", "inode": "inode chunk", "freelist": "kept for the btrees",
		"sb": "superblock", "dir": "directory", "attr": "extended attributes",
		"symlink": "target of the symbolic link", "btbmapd": "extents of the data fork",
		"btbmapa": "extents of the attribute fork", "quota": "quotas", "agf": "AGF",
		"agi": "AGI", "agfl": "AGFL"}
	return trees[typ] != "" && strings.HasPrefix(o.What, trees[typ])
}
