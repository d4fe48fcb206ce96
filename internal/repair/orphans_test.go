// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// run starts a program that must succeed.
func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// formatted makes a qcow2 image with a file system that has files in it, with clusters of 4 KiB, so
// that one L2 table maps 2 MiB.
func formatted(t *testing.T, mkfs func(raw, files string) []string) memory {
	t.Helper()
	dir := t.TempDir()
	files, raw, img := filepath.Join(dir, "files"), filepath.Join(dir, "raw"), filepath.Join(dir, "img")
	if err := os.Mkdir(files, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		content := bytes.Repeat([]byte(fmt.Sprintf("file %d\n", i)), 9000)
		if err := os.WriteFile(filepath.Join(files, fmt.Sprint(i)), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(raw, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(raw, 320<<20); err != nil {
		t.Fatal(err)
	}
	args := mkfs(raw, files)
	run(t, args[0], args[1:]...)
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", raw, img)
	return load(t, img)
}

func word(b memory, off int64) uint64 { return binary.BigEndian.Uint64(b[off:]) }

// l1Slots gives the indexes of the L1 entries in use.
func l1Slots(t *testing.T, b memory) (list []int64, h *qcow2.Header) {
	t.Helper()
	h, err := qcow2.ReadHeader(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range h.L1Entries {
		if word(b, int64(h.L1Off)+8*i) != 0 {
			list = append(list, i)
		}
	}
	return list, h
}

// actions lists what a plan does, as "QC13 relink".
func actions(p *plan.Plan) (list []string) {
	for _, s := range p.Steps {
		list = append(list, s.Code+" "+s.Action)
	}
	return list
}

// TestLostL1Entries wipes one L1 entry after another of disks with real file systems. Where the plan
// puts the table back, it is the image from before; where it does not, it says so and changes
// nothing. A table is never put into a wrong place.
func TestLostL1Entries(t *testing.T) {
	testenv.Need(t, "qemu-img", "mkfs.ext4", "mkfs.xfs")
	for name, mkfs := range map[string]func(raw, files string) []string{
		"ext4": func(raw, files string) []string {
			return []string{"mkfs.ext4", "-q", "-F", "-b", "1024", "-d", files, raw}
		},
		"xfs": func(raw, _ string) []string { return []string{"mkfs.xfs", "-q", "-f", "-b", "size=1024", raw} },
	} {
		t.Run(name, func(t *testing.T) {
			sound := formatted(t, mkfs)
			slots, h := l1Slots(t, sound)
			back := 0
			for _, i := range slots {
				b := slices.Clone(sound)
				binary.BigEndian.PutUint64(b[int64(h.L1Off)+8*i:], 0)
				p := makePlan(t, b, repair.Options{})
				after := b.applied(t, p)
				switch {
				case slices.Contains(actions(p), "QC13 relink"):
					back++
					if !bytes.Equal(after, sound) {
						t.Errorf("L1 entry %d: the image is not what it was", i)
					}
				case p.After.Verdict != finding.Found || !bytes.Equal(after[:len(b)], b):
					t.Errorf("L1 entry %d: %s, %v", i, p.After.Verdict, actions(p))
				}
			}
			t.Logf("%d of %d tables are put back", back, len(slots))
			if back == 0 {
				t.Error("no table is put back")
			}
		})
	}
}

// TestTwoLostL1Entries: the only empty entry is no proof any more.
func TestTwoLostL1Entries(t *testing.T) {
	testenv.Need(t, "qemu-img", "mkfs.ext4")
	sound := formatted(t, func(raw, files string) []string {
		return []string{"mkfs.ext4", "-q", "-F", "-b", "1024", "-d", files, raw}
	})
	slots, h := l1Slots(t, sound)
	for k := range len(slots) - 1 {
		b := slices.Clone(sound)
		for _, i := range slots[k : k+2] {
			binary.BigEndian.PutUint64(b[int64(h.L1Off)+8*i:], 0)
		}
		after := b.applied(t, makePlan(t, b, repair.Options{}))
		for _, i := range slots[k : k+2] {
			off := int64(h.L1Off) + 8*i
			if got := word(after, off); got != 0 && got != word(sound, off) {
				t.Errorf("L1 entry %d became %#x, was %#x", i, got, word(sound, off))
			}
		}
	}
}

// TestPlace puts a table where the user says, and says that it was the user.
func TestPlace(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "a.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "2G")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 20M", path)
	sound := load(t, path)
	_, h := l1Slots(t, sound)
	b := slices.Clone(sound)
	table := int64(word(b, int64(h.L1Off)) & qcow2.OffsetMask)
	binary.BigEndian.PutUint64(b[h.L1Off:], 0)

	p := makePlan(t, b, repair.Options{})
	if !p.Empty() || p.After.Verdict != finding.Found {
		t.Errorf("without --place: %v, %s; want nothing, found", actions(p), p.After.Verdict)
	}
	// Nothing of it is freed, whatever is asked for.
	for _, o := range []repair.Options{{Leaks: true}, {Reclaim: true}, {Reclaim: true, CompareData: true}} {
		if p := makePlan(t, b, o); !p.Empty() {
			t.Errorf("%+v: %v, want nothing", o, actions(p))
		}
	}
	p = makePlan(t, b, repair.Options{Place: map[int64]int64{table: 0}})
	if after := b.applied(t, p); !bytes.Equal(after, sound) {
		t.Errorf("with --place: the image is not what it was: %v", actions(p))
	}
	if len(p.Steps) != 1 || p.Steps[0].Certainty != finding.Possible {
		t.Errorf("with --place: %+v, want one step that is only possible", p.Steps)
	}
}

// TestSnapshotTable: a table that a snapshot still has, and that is counted once more, is put back.
func TestSnapshotTable(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "a.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "2G")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 600M 20M", path)
	run(t, "qemu-img", "snapshot", "-c", "one", path)
	sound := load(t, path)
	_, h := l1Slots(t, sound)
	b := slices.Clone(sound)
	binary.BigEndian.PutUint64(b[int64(h.L1Off)+8:], 0)
	p := makePlan(t, b, repair.Options{})
	if after := b.applied(t, p); !bytes.Equal(after, sound) || p.After.Verdict != finding.Clean {
		t.Errorf("%v, %s; want the image from before", actions(p), p.After.Verdict)
	}
}

// TestTwoLostTables: where two tables are matched by their order only, nothing is done, and the plan
// says with which options a person can do it.
func TestTwoLostTables(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "a.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "2G")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 600M 20M", "-c", "write -P 8 1200M 20M", "-c", "write -P 9 10M 1M",
		"-c", "write -P 9 1700M 1M", path)
	sound := load(t, path)
	slots, h := l1Slots(t, sound)
	if len(slots) != 4 {
		t.Fatalf("the image has %d L2 tables, want 4", len(slots))
	}
	b := slices.Clone(sound)
	var places []string
	place := map[int64]int64{}
	for _, i := range slots[1:3] {
		at := int64(h.L1Off) + 8*i
		table := int64(word(b, at) & qcow2.OffsetMask)
		places = append(places, fmt.Sprintf("--place %#x=%d (", table, i))
		place[table] = i
		binary.BigEndian.PutUint64(b[at:], 0)
	}
	p := makePlan(t, b, repair.Options{})
	if !p.Empty() {
		t.Fatalf("%v, want nothing", actions(p))
	}
	for _, want := range places {
		if !slices.ContainsFunc(p.Remains, func(f finding.Finding) bool { return strings.Contains(f.Next, want) }) {
			t.Errorf("no advice has %q: %+v", want, p.Remains)
		}
	}
	if after := b.applied(t, makePlan(t, b, repair.Options{Place: place})); !bytes.Equal(after, sound) {
		t.Error("with --place: the image is not what it was")
	}
}

// TestForgottenSnapshots: what snapshots share with the disk is left as it is while the header does not
// name them, and all is as before once it does.
func TestForgottenSnapshots(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "a.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "2G")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4M", "-c", "write -P 8 600M 4M", path)
	for i := range 3 {
		run(t, "qemu-img", "snapshot", "-c", fmt.Sprint("number ", i), path)
		run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d 600M 1M", i), path)
	}
	sound := load(t, path)
	b := slices.Clone(sound)
	clear(b[60:72])
	for _, o := range []repair.Options{{}, {Leaks: true}, {Reclaim: true}, {Only: []string{"QC03"}, Reclaim: true},
		{Only: []string{"QC05", "QC15"}}} {
		p := makePlan(t, b, o)
		if !p.Empty() {
			t.Errorf("%+v: %v, want nothing", o, actions(p))
		}
		if len(p.Remains) == 0 {
			t.Errorf("%+v: nothing remains", o)
		}
	}
	p := makePlan(t, b, repair.Options{Snapshots: true})
	if after := b.applied(t, p); !bytes.Equal(after, sound) || p.After.Verdict != finding.Clean {
		t.Errorf("%v, %s; want the image from before", actions(p), p.After.Verdict)
	}
}

// TestProofFromBelow: the guest's blocks that prove a place may lie in the backing file. The plan relies
// on them, and on no others of it.
func TestProofFromBelow(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io", "mkfs.xfs")
	dir := t.TempDir()
	base, path := filepath.Join(dir, "base"), filepath.Join(dir, "a.qcow2")
	if err := os.WriteFile(base, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(base, 320<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.xfs", "-q", "-f", "-d", "agcount=4", base)
	below := load(t, base)
	// The overlay has the beginning of the second allocation group.
	part := filepath.Join(dir, "part")
	if err := os.WriteFile(part, below[80<<20:82<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", base, "-F", "raw", path)
	run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -s %s 80M 2M", part), path)
	sound := load(t, path)
	slots, h := l1Slots(t, sound)
	if len(slots) != 1 {
		t.Fatalf("%d L2 tables, want 1", len(slots))
	}
	b := slices.Clone(sound)
	binary.BigEndian.PutUint64(b[int64(h.L1Off)+8*slots[0]:], 0)
	if p := makePlan(t, b, repair.Options{}); !p.Empty() {
		t.Errorf("without the backing file: %v, want nothing", actions(p))
	}
	p := makePlan(t, b, repair.Options{Disk: below})
	if after := b.applied(t, p); !bytes.Equal(after, sound) {
		t.Fatalf("%v; the image is not what it was: %+v", actions(p), p.Remains)
	}
	var length int64
	for _, d := range p.Below {
		length += d.Length
	}
	if length == 0 || length > 1<<20 {
		t.Errorf("the plan relies on %d bytes of the backing file", length)
	}
	if err := p.SameBelow(below); err != nil {
		t.Error(err)
	}
	changed := slices.Clone(below)
	changed[32]++ // the file system's UUID
	if err := p.SameBelow(changed); !errors.Is(err, plan.ErrBelow) {
		t.Errorf("after a change: %v, want ErrBelow", err)
	}
	if err := p.SameBelow(below[:1<<20]); length > 0 && err == nil && p.Below[len(p.Below)-1].Offset > 1<<20 {
		t.Error("a backing file that was cut passes")
	}
}

// TestLostL1Table wipes or overwrites a whole L1 table. What comes back is where it was; of the rest the
// plan says that it is lost.
func TestLostL1Table(t *testing.T) {
	testenv.Need(t, "qemu-img", "mkfs.ext4", "mkfs.xfs")
	for name, tt := range map[string]struct {
		mkfs func(raw, files string) []string
		all  bool // every table comes back
	}{
		"ext4": {func(raw, files string) []string { return []string{"mkfs.ext4", "-q", "-F", "-d", files, raw} }, false},
		"xfs":  {func(raw, _ string) []string { return []string{"mkfs.xfs", "-q", "-f", raw} }, true},
	} {
		sound := formatted(t, tt.mkfs)
		slots, h := l1Slots(t, sound)
		for how, fill := range map[string]byte{"wiped": 0, "overwritten": 'x'} {
			t.Run(name+", "+how, func(t *testing.T) {
				b := slices.Clone(sound)
				copy(b[h.L1Off:int64(h.L1Off)+8*h.L1Entries], bytes.Repeat([]byte{fill}, int(8*h.L1Entries)))
				p := makePlan(t, b, repair.Options{})
				after := b.applied(t, p)
				_, now := l1Slots(t, after)
				back := 0
				for _, i := range slots {
					switch at := word(after, int64(now.L1Off)+8*i); at {
					case word(sound, int64(h.L1Off)+8*i):
						back++
					case 0:
					default:
						t.Errorf("L1 entry %d is %#x", i, at)
					}
				}
				t.Logf("%d of %d tables are put back", back, len(slots))
				if back == 0 || tt.all && back != len(slots) {
					t.Errorf("%d of %d tables are put back: %+v", back, len(slots), p.Remains)
				}
				if status, text := qemuCheck(t, after); status != 0 && status != 3 {
					t.Errorf("qemu-img check exits with %d:\n%s", status, text)
				}
				if lost := len(p.Hurt) > 0; lost != (fill != 0 && back < len(slots)) {
					t.Errorf("hurt: %+v", p.Hurt)
				}
				if p.After.Verdict == finding.Clean != (back == len(slots) && fill == 0) {
					t.Errorf("%s, %+v", p.After.Verdict, p.Remains)
				}
			})
		}
	}
}

// TestLostL1TableOfSnapshots: what the disk shares with a snapshot comes back from there.
func TestLostL1TableOfSnapshots(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "a.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "16M")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", "-c", "write -P 8 6M 1M", path)
	run(t, "qemu-img", "snapshot", "-c", "one", path)
	sound := load(t, path)
	_, h := l1Slots(t, sound)
	was := view(t, sound)
	for _, fill := range []byte{0, 'x'} {
		b := slices.Clone(sound)
		copy(b[h.L1Off:int64(h.L1Off)+8*h.L1Entries], bytes.Repeat([]byte{fill}, int(8*h.L1Entries)))
		p := makePlan(t, b, repair.Options{})
		after := b.applied(t, p)
		if !slices.EqualFunc(was, view(t, after), bytes.Equal) || len(p.Hurt) > 0 {
			t.Errorf("filled with %q: %v, %+v, %+v; the guest reads something else", fill, actions(p), p.Hurt, p.Remains)
		}
		if status, text := qemuCheck(t, after); status != 0 && status != 3 {
			t.Errorf("qemu-img check exits with %d:\n%s", status, text)
		}
	}
}
