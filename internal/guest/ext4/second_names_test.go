// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// lsLine is a line of "ls -l" of debugfs: inode, mode, the type in the entry.
var lsLine = regexp.MustCompile(`(?m)^ *(\d+) +\d+ \((\d+)\) `)

// names compares the entries of all directories with "ls -p", which gives inodes and names, and with
// "ls -l", which gives the types.
func (s *second) names() {
	s.Helper()
	var dirs []*inode
	var commands []string
	for _, n := range s.all() {
		if n.typ() == files.TypeDir {
			dirs = append(dirs, n)
			commands = append(commands, fmt.Sprintf("ls -p <%d>", n.stat.Ino),
				fmt.Sprintf("ls -l <%d>", n.stat.Ino))
		}
	}
	answers := s.ask(commands)
	for i, n := range dirs {
		var got, want []string
		if err := n.Entries(s.Context(), func(e files.Entry) error {
			if n.inline() && (e.Name == "." || e.Name == "..") {
				e.Type = 0 // these are not stored, and debugfs gives them none
			}
			got = append(got, fmt.Sprintf("%d %d %q", e.Ino, slices.Index(dirTypes[:], e.Type), e.Name))
			return nil
		}); err != nil {
			s.Fatal(err)
		}
		// No name has a slash, so what stands between slashes is the name, whatever its bytes are:
		// "/inode/mode/user/group/name/size/\n".
		types := lsLine.FindAllStringSubmatch(answers[2*i+1], -1)
		fields := strings.Split(answers[2*i], "/")
		for k := 0; len(fields) > 6; k, fields = k+1, fields[7:] {
			if k >= len(types) || types[k][1] != fields[1] {
				s.Fatalf("directory %d: %q and %q do not fit together", n.stat.Ino, answers[2*i],
					answers[2*i+1])
			}
			if fields[1] != "0" { // in use
				want = append(want, fmt.Sprintf("%s %s %q", fields[1], types[k][2], fields[5]))
			}
		}
		if !slices.Equal(got, want) || len(got) < 2 {
			s.Errorf("directory %d has\n%q, debugfs says\n%q", n.stat.Ino, got, want)
		}
	}
	if len(dirs) < 170 {
		s.Errorf("%d directories were compared, want more", len(dirs))
	}
}

// ncheckLine begins a line of "ncheck": an inode, then a path to the end of the line or, since names
// may have line breaks, to the next inode.
var ncheckLine = regexp.MustCompile(`(?m)^(\d+)\t`)

// paths compares the paths of all files with "ncheck".
func (s *second) paths() {
	s.Helper()
	got, want := map[string]bool{}, map[string]bool{}
	commands, line := []string(nil), "ncheck"
	var seen files.Set
	if err := files.Walk(s.Context(), s.fs, rootIno, "/", func(f *files.Found) error {
		if f.Err != nil {
			return f.Err
		}
		if f.Entry.Ino == rootIno {
			return nil
		}
		got[fmt.Sprintf("%d %q", f.Entry.Ino, lastNames(f.Path))] = true
		if seen.Add(f.Entry.Ino) {
			line += fmt.Sprintf(" %d", f.Entry.Ino)
		}
		if len(line) > 7000 { // debugfs reads lines of 8 KiB
			commands, line = append(commands, line), "ncheck"
		}
		return nil
	}); err != nil {
		s.Fatal(err)
	}
	for _, answer := range s.ask(append(commands, line)) {
		_, answer, _ = strings.Cut(answer, "\n") // the title
		places := ncheckLine.FindAllStringSubmatchIndex(answer, -1)
		for i, p := range places {
			end := len(answer)
			if i+1 < len(places) {
				end = places[i+1][0]
			}
			path := strings.TrimSuffix(answer[p[1]:end], "\n")
			// The root's own name is empty, so what is in it comes with two slashes.
			want[fmt.Sprintf("%s %q", answer[p[2]:p[3]], "/"+strings.TrimLeft(path, "/"))] = true
		}
	}
	for _, only := range []struct {
		who  string
		in   map[string]bool
		none map[string]bool
	}{{"we", got, want}, {"debugfs", want, got}} {
		for path := range only.in {
			if !only.none[path] {
				s.Errorf("only %s knows inode %s", only.who, path)
			}
		}
	}
	if len(got) < 2500 {
		s.Errorf("%d paths were compared, want more", len(got))
	}
}

// lastNames is a path as e2fsprogs gives one that is long: its last 33 names.
func lastNames(path string) string {
	names := strings.Split(path, "/")
	if len(names) <= 34 {
		return path
	}
	return "/.../" + strings.Join(names[len(names)-33:], "/")
}

var (
	dumpInfo  = regexp.MustCompile(`(?m)^([A-Z][A-Za-z ]+): +(.*)$`)
	dumpParts = regexp.MustCompile(`(Primary superblock|Backup superblock|Group descriptors|Block bitmap|` +
		`Inode bitmap|Inode table) at (\d+)(?:-(\d+))?`)
	dumpFree  = regexp.MustCompile(`(?m)^  Free blocks: (.*)$`)
	dumpGroup = regexp.MustCompile(`(?m)^Group (\d+): `)
)

// groups compares what is known of the file system as a whole, and where its metadata and its free
// space are, with dumpe2fs.
func (s *second) groups() {
	s.Helper()
	out, err := exec.Command("dumpe2fs", s.disk).Output()
	if err != nil {
		s.Fatal(err)
	}
	head, body, _ := strings.Cut(string(out), "\n\n\n")
	s.info(head)
	owners := s.owners()
	size, cluster := s.fs.super.blockBytes, s.fs.super.clusterBlocks
	last, parts := int64(-1), 0
	// Each group begins with "Group N: ".
	for _, p := range dumpGroup.FindAllStringSubmatchIndex(body, -1) {
		group := body[p[0]:]
		if i := strings.Index(group, "\nGroup "); i >= 0 {
			group = group[:i]
		}
		last = s.number(body[p[2]:p[3]], 10)
		for _, m := range dumpParts.FindAllStringSubmatch(group, -1) {
			first := s.number(m[2], 10)
			end := first + 1
			if m[3] != "" {
				end = s.number(m[3], 10) + 1
			}
			parts++
			for block := first; block < end; block++ {
				if o := owners.at(block * size); !saysPart(o, m[1], last) {
					s.Errorf("block %d is %+v, dumpe2fs says %q of group %d", block, o, m[1], last)
				}
			}
		}
		for _, m := range dumpFree.FindAllStringSubmatch(group, -1) {
			for part := range strings.SplitSeq(m[1], ", ") {
				if part == "" {
					continue
				}
				from, to, _ := strings.Cut(part, "-")
				if to == "" {
					to = from
				}
				owners.free(s.number(from, 10)*size, (s.number(to, 10)+cluster)*size)
			}
		}
	}
	if last+1 != s.fs.super.groups || parts < 3*int(last) {
		s.Errorf("dumpe2fs told of %d groups with %d parts, want %d", last+1, parts, s.fs.super.groups)
	}
	owners.noneFree()
}

// saysPart tells whether an owner is what dumpe2fs calls it.
func saysPart(o files.Owner, name string, group int64) bool {
	if o.Use != files.UseMetadata {
		return false
	}
	switch name {
	case "Primary superblock":
		return o.What == "superblock"
	case "Backup superblock":
		return o.What == fmt.Sprintf("superblock, copy of group %d", group)
	case "Group descriptors":
		return strings.HasPrefix(o.What, "group descriptors ")
	}
	return o.What == fmt.Sprintf("%s%s of group %d", strings.ToLower(name[:1]), name[1:], group)
}

// info compares what is known of the file system as a whole.
func (s *second) info(head string) {
	s.Helper()
	fields := map[string]string{}
	for _, m := range dumpInfo.FindAllStringSubmatch(head, -1) {
		fields[m[1]] = m[2]
	}
	i := s.fs.Info()
	got := fmt.Sprint(i.Label, " ", i.UUID, " ", i.SizeBytes/i.BlockBytes, " ", i.BlockBytes, " ",
		i.FreeBytes/i.BlockBytes, " ", i.Inodes, " ", i.FreeInodes)
	want := fmt.Sprint(strings.TrimSuffix(fields["Filesystem volume name"], "<none>"), " ",
		fields["Filesystem UUID"], " ", fields["Block count"], " ", fields["Block size"], " ",
		fields["Free blocks"], " ", fields["Inode count"], " ", fields["Free inodes"])
	if got != want {
		s.Errorf("it is %q, dumpe2fs says %q", got, want)
	}
	features := slices.Sorted(slices.Values(i.Features))
	if want := slices.Sorted(strings.FieldsSeq(fields["Filesystem features"])); !slices.Equal(features,
		want) {
		s.Errorf("features are %q, dumpe2fs says %q", features, want)
	}
}
