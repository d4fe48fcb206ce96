// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/guest/busy"
)

// How many copies of a disk under load are taken, and how many must be as the kernel has them.
const (
	crashCopies      = 50
	crashCopiesQuick = 4
	crashShare       = 45
	crashBytes       = 512 << 20
	crashClones      = 8 << 30 // a sparse disk with a file system that shares the blocks of copies
	crashSpace       = 6 << 30
	crashWriters     = 2
)

// crashed is a file system that is copied while it is written to.
type crashed struct {
	name, kind, mkfs, mount string
	shown                   bool
	// old: kernels of today are built without it, an older one as a program mounts it.
	old bool
}

func crashRows() []row {
	var rows []row
	for _, c := range []crashed{
		{name: "ext4", kind: "ext4", mkfs: "-b 4096"},
		{name: "xfs", kind: "xfs"},
		{name: "ext4, blocks of 1 KiB", kind: "ext4", mkfs: "-b 1024 -J size=8", shown: true},
		{name: "ext4, data in the journal", kind: "ext4", mkfs: "-b 4096", mount: "data=journal",
			shown: true},
		{name: "xfs version 4", kind: "xfs", mkfs: "-m crc=0,reflink=0", shown: true, old: true},
	} {
		rows = append(rows, row{name: "crashed: " + c.name, space: crashSpace,
			special: func(ctx context.Context, b *bench, dir string) result { return b.crash(ctx, dir, c) }})
	}
	return rows
}

// crash takes copies of a disk at random moments of a load, as a power cut would leave it, and holds
// what shisa shows of each against what the kernel makes of it after its own replay.
func (b *bench) crash(ctx context.Context, dir string, c crashed) result {
	own := filepath.Join(dir, "crashed")
	g := guest{raw: filepath.Join(own, "clones.raw"), kind: "xfs", size: crashClones}
	defer os.RemoveAll(own)
	var n crashCount
	err := os.Mkdir(own, 0o755)
	if err == nil {
		err = sparse(g.raw, g.size)
	}
	if err == nil {
		_, err = command(ctx, "mkfs.xfs", "-q", "-m", "reflink=1", g.raw)
	}
	if err == nil {
		err = g.mounted(ctx, "rw", func(top string) error { return b.crashAt(ctx, top, c, &n) })
	}
	if err != nil {
		return result{missing: err.Error()}
	}
	copies := b.crashCopies()
	res := result{text: fmt.Sprintf("%d copies: %d equal, %d of them after a replay, %d incomplete", copies,
		n.equal, n.replayed, n.incomplete), theirsText: "the kernel's own replay"}
	share := goal{what: "equal to the kernel's", must: crashShare, unit: fmt.Sprintf(" of %d", copies),
		shown: c.shown, always: true}
	if b.quick {
		share.must = crashCopiesQuick - 1
	}
	res.goals = []outcome{{goal: share, got: float64(n.equal)},
		{goal: count("false views", 0), got: float64(n.wrong)}}
	return res
}

func (b *bench) crashCopies() int {
	if b.quick {
		return crashCopiesQuick
	}
	return crashCopies
}

func sparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// crashCount counts the copies: those that are shown as the kernel has them, those of them that
// needed a replay, those that are said to be incomplete, and those that are shown otherwise without
// a word.
type crashCount struct{ equal, replayed, incomplete, wrong int }

// crashAt makes the disk and its copies in a directory where files can be cloned.
func (b *bench) crashAt(ctx context.Context, top string, c crashed, n *crashCount) error {
	g := guest{raw: filepath.Join(top, "disk"), kind: c.kind, size: crashBytes}
	if err := sparse(g.raw, g.size); err != nil {
		return err
	}
	if _, err := command(ctx, append(append([]string{"mkfs." + c.kind, "-q"},
		strings.Fields(c.mkfs)...), g.raw)...); err != nil {
		return err
	}
	copies, err := b.copiesUnderLoad(ctx, g, c)
	if err != nil {
		return err
	}
	for _, one := range copies {
		if err := b.crashCopy(ctx, one, c, n); err != nil {
			return err
		}
		if err := os.Remove(one.raw); err != nil {
			return err
		}
	}
	return nil
}

// copiesUnderLoad clones the disk again and again while writers are at it.
func (b *bench) copiesUnderLoad(ctx context.Context, g guest, c crashed) (copies []guest, err error) {
	if c.old {
		end, err := oldLoad(ctx, g)
		if err != nil {
			return nil, err
		}
		copies, err = b.copies(ctx, g)
		return copies, errors.Join(err, end())
	}
	options := "rw"
	if c.mount != "" {
		options += "," + c.mount
	}
	return copies, g.mounted(ctx, options, func(top string) (err error) {
		stop, failed := make(chan struct{}), make(chan error, 1)
		go func() { failed <- write(top, stop) }()
		copies, err = b.copies(ctx, g)
		close(stop)
		return errors.Join(err, <-failed)
	})
}

// write changes files below top until it is told to stop.
func write(top string, stop <-chan struct{}) error {
	failed := make(chan error, crashWriters)
	for i := range uint64(crashWriters) {
		at := filepath.Join(top, fmt.Sprintf("writer%d", i))
		go func() { failed <- busy.Change(at, rand.New(rand.NewPCG(4, i)), stop) }()
	}
	var err error
	for range crashWriters {
		err = errors.Join(err, <-failed)
	}
	return err
}

// copies clones the disk at random moments.
func (b *bench) copies(ctx context.Context, g guest) (all []guest, err error) {
	moments := rand.New(rand.NewPCG(4, 99))
	for i := range b.crashCopies() {
		time.Sleep(time.Duration(20+moments.IntN(180)) * time.Millisecond)
		one := g
		one.raw = fmt.Sprintf("%s.%d", g.raw, i)
		if err := clone(ctx, g.raw, one.raw); err != nil {
			return all, err
		}
		all = append(all, one)
	}
	return all, nil
}

// clone copies a file in a moment, in which it cannot change.
func clone(ctx context.Context, from, to string) error {
	_, err := command(ctx, "cp", "--reflink=always", from, to)
	return err
}

// crashCopy judges one copy.
func (b *bench) crashCopy(ctx context.Context, g guest, c crashed, n *crashCount) error {
	second := g
	second.raw += ".kernel"
	if err := clone(ctx, g.raw, second.raw); err != nil {
		return err
	}
	defer os.Remove(second.raw)
	want, err := replayed(ctx, second, c)
	if err != nil {
		return err
	}
	got, state, err := b.ourTree(ctx, g.raw)
	switch {
	case err != nil:
		return err
	case state == "incomplete":
		n.incomplete++
		return nil
	case !maps.Equal(got, want):
		n.wrong++
		fmt.Fprintf(b.log, "      %s: %s\n", filepath.Base(g.raw), firstDifference(got, want))
		return nil
	}
	n.equal++
	if state == "recovered" {
		n.replayed++
	}
	return nil
}

// replayed is what the kernel shows of a disk that it mounted.
func replayed(ctx context.Context, g guest, c crashed) (tree map[string]string, err error) {
	if c.old {
		return oldTree(ctx, g)
	}
	return tree, g.mounted(ctx, "rw,nodev", func(top string) (err error) {
		tree, err = kernelTree(top)
		return err
	})
}

func firstDifference(got, want map[string]string) string {
	both := maps.Clone(want)
	maps.Copy(both, got)
	for _, p := range slices.Sorted(maps.Keys(both)) {
		if got[p] != want[p] {
			return fmt.Sprintf("%q is %q, the kernel has %q", p, got[p], want[p])
		}
	}
	return "none"
}

// line is what is compared of a name: all that stat(2) tells but the time of the last access, and
// the content.
func line(kind string, ino uint64, mode uint32, links, uid, gid uint64, size int64,
	mtime, ctime time.Time, content string,
) string {
	if kind == "directory" {
		content = ""
	}
	return fmt.Sprintf("%s inode %d mode %04o links %d owner %d:%d size %d mtime %s ctime %s %s", kind, ino,
		mode, links, uid, gid, size, mtime.UTC().Format(time.RFC3339Nano),
		ctime.UTC().Format(time.RFC3339Nano), content)
}

// kernelTree reads what is mounted.
func kernelTree(top string) (map[string]string, error) {
	tree := make(map[string]string)
	return tree, filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", path, err)
		}
		kind, content := "other", ""
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFDIR:
			kind = "directory"
		case syscall.S_IFREG:
			kind = "file"
			content, err = digest(path)
		case syscall.S_IFLNK:
			kind = "link"
			content, err = os.Readlink(path)
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(path, top), "/")
		tree[name] = line(kind, st.Ino, st.Mode&0o7777, uint64(st.Nlink), uint64(st.Uid), uint64(st.Gid),
			st.Size, time.Unix(st.Mtim.Unix()), time.Unix(st.Ctim.Unix()), content)
		return err
	})
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}

// guestList is what the bench reads of shisa disk find --json and of disk hash --json.
type guestList struct {
	Entries []struct {
		Path   string    `json:"path"`
		Inode  uint64    `json:"inode"`
		Type   string    `json:"type"`
		Mode   string    `json:"mode"`
		Links  uint64    `json:"links"`
		UID    uint64    `json:"uid"`
		GID    uint64    `json:"gid"`
		Size   int64     `json:"size_bytes"`
		Mtime  time.Time `json:"mtime"`
		Ctime  time.Time `json:"ctime"`
		Target string    `json:"target"`
		SHA256 string    `json:"sha256"`
	} `json:"entries"`
	View struct {
		State string `json:"state"`
	} `json:"view"`
	Complete bool `json:"complete"`
}

// ourTree reads the same of a copy with shisa. The state is "incomplete" if one of both commands says
// so.
func (b *bench) ourTree(ctx context.Context, disk string) (map[string]string, string, error) {
	names, err := b.guestList(ctx, "find", disk)
	if err != nil {
		return nil, "", err
	}
	sums, err := b.guestList(ctx, "hash", disk)
	if err != nil {
		return nil, "", err
	}
	content := make(map[string]string)
	for _, e := range sums.Entries {
		content[e.Path] = e.SHA256
	}
	tree := make(map[string]string)
	for _, e := range names.Entries {
		text := e.Target
		if e.Type == "file" {
			text = content[e.Path]
		}
		var mode uint32
		if _, err := fmt.Sscanf(e.Mode, "%o", &mode); err != nil {
			return nil, "", fmt.Errorf("mode %q of %q: %w", e.Mode, e.Path, err)
		}
		tree[e.Path] = line(e.Type, e.Inode, mode, e.Links, e.UID, e.GID, e.Size, e.Mtime, e.Ctime, text)
	}
	if !names.Complete || !sums.Complete {
		return tree, "incomplete", nil
	}
	return tree, names.View.State, nil
}

func (b *bench) guestList(ctx context.Context, command, disk string) (l guestList, err error) {
	cmd := exec.CommandContext(ctx, b.shisa, "disk", command, "--json", disk)
	var errs tail
	cmd.Stderr = &errs
	out, err := cmd.Output()
	// An exit status says what the document says too.
	if bad := json.Unmarshal(out, &l); bad != nil {
		return l, fmt.Errorf("shisa disk %s: %w: %s", command, errors.Join(err, bad), errs.b.Bytes())
	}
	return l, nil
}
