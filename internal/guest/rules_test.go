// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
)

// evidence looks into [base, base+span) of w with what is known of the rest of the disk known.
func evidence(t *testing.T, w *world, base, span int64, known io.ReaderAt) *Evidence {
	t.Helper()
	vols, _, err := Volumes(t.Context(), known, w.size)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := Proofs(t.Context(), vols, w.piece(t, base, span))
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// commands are file systems of the same size as often as they are made, each time with a new UUID.
func commands(t *testing.T) map[Kind]string {
	files, protofile := tree(t, 20, 40), proto(t, 30, 30)
	return map[Kind]string{
		Ext4:  "mkfs.ext4 -q -F -d " + files + " DISK",
		XFS:   "mkfs.xfs -q -f -p " + protofile + " DISK",
		Btrfs: "mkfs.btrfs -q -f --rootdir " + files + " DISK",
	}
}

// TestForeign looks into pieces of one file system for another of the same kind, size and layout.
func TestForeign(t *testing.T) {
	for kind, command := range commands(t) {
		a, b := newWorld(t, 4*gib), newWorld(t, 4*gib)
		a.mkfs(t, command)
		b.mkfs(t, command)
		foreign := 0
		for _, span := range []int64{512 * mib, 32 * mib} {
			for base := int64(0); base < a.size; base += span {
				// Nothing of a is missing, so that no volume is unknown, and the head of a is
				// missing, so that its copies are what is known.
				for _, known := range []io.ReaderAt{a, without{w: a, to: 64 * mib}} {
					ev := evidence(t, b, base, span, known)
					foreign += ev.Foreign
					for _, p := range ev.Proofs {
						t.Errorf("%s: Proofs(a piece of another) = %s, want none", kind, p.Text)
					}
				}
			}
		}
		if foreign == 0 {
			t.Errorf("%s: no block of the other file system was seen", kind)
		}
	}
}

// TestNestedFile stores disks with file systems as files of an outer file system, and wants no
// proof that takes a block of the inner ones for one of the outer disk.
func TestNestedFile(t *testing.T) {
	for kind, command := range commands(t) {
		inner := newWorld(t, 450*mib)
		run(t, "label: gpt\nstart=2048\n", "sfdisk", "-q", inner.Name())
		part := newWorld(t, 448*mib)
		part.mkfs(t, command)
		inner.put(t, part, mib)
		dir := t.TempDir()
		for i := range 2 {
			if err := os.Link(inner.Name(), fmt.Sprintf("%s/inner%d.img", dir, i)); err != nil {
				t.Fatal(err)
			}
		}
		outers := []string{"mkfs.ext4 -q -F -d " + dir + " DISK"}
		if kind == XFS { // mkfs.btrfs copies the holes too, which takes time
			outers = append(outers, "mkfs.btrfs -q -f --rootdir "+dir+" DISK")
		}
		for _, outerMkfs := range outers {
			w, outer := newWorld(t, 3*gib+2*mib), newWorld(t, 3*gib)
			run(t, "label: gpt\nstart=2048,size=3GiB\n", "sfdisk", "-q", w.Name())
			outer.mkfs(t, outerMkfs)
			w.put(t, outer, mib)
			for _, span := range []int64{512 * mib, 32 * mib} {
				t.Logf("%s with %s inside, span %d MiB: %s", strings.Fields(outerMkfs)[0], kind, span/mib, w.prove(t, span))
			}
		}
	}
}

// TestNestedAligned puts a whole disk inside of another at a multiple of the span, where a block
// of it would name a place to which the piece could go.
func TestNestedAligned(t *testing.T) {
	const span = 512 * mib
	for kind, command := range commands(t) {
		for _, label := range []string{"gpt", "dos"} {
			part := newWorld(t, 2*gib-4*mib)
			part.mkfs(t, command)
			inner := newWorld(t, 2*gib)
			run(t, "label: "+label+"\nstart=2048,size=2044MiB\n", "sfdisk", "-q", inner.Name())
			inner.put(t, part, mib)
			for _, outerMkfs := range []string{"", command} {
				w, outer := newWorld(t, 8*gib), newWorld(t, 8*gib-4*mib)
				run(t, "label: "+label+"\nstart=2048,size=8188MiB\n", "sfdisk", "-q", w.Name())
				if outerMkfs != "" {
					outer.mkfs(t, outerMkfs)
					w.put(t, outer, mib)
				}
				w.put(t, inner, 4*gib)
				for base := 4 * gib; base < 6*gib; base += span {
					for name, known := range map[string]io.ReaderAt{
						"all known":        w,
						"piece lost":       without{w: w, from: base, to: base + span},
						"head lost":        without{w: without{w: w, from: base, to: base + span}, to: span},
						"all but end lost": without{w: w, to: 8*gib - mib},
						"all lost":         without{w: w, to: 8 * gib},
						"head unreadable":  without{w: w, to: span, err: errors.New("gone")},
					} {
						for _, p := range evidence(t, w, base, span, known).Proofs {
							// A block of the outer file system may be left between those of the inner.
							if p.Base != base {
								t.Errorf("%s %s, %s, piece at %#x: %s", kind, label, name, base, p.Text)
							}
						}
					}
				}
			}
		}
	}
}

// TestMBRAlone puts the beginning of a disk of the same size inside of another, with a file system
// that does not fill its partition: it was cut, or never grown, and may be a file.
func TestMBRAlone(t *testing.T) {
	const span = 512 * mib
	w, part := newWorld(t, 8*gib), newWorld(t, 2*gib)
	inner := newWorld(t, 8*gib)
	run(t, "label: dos\nstart=2048,size=8190MiB\n", "sfdisk", "-q", inner.Name())
	part.mkfs(t, "mkfs.ext2 -q -F DISK")
	head := make([]byte, mbrSector)
	if _, err := inner.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	w.put(t, part, 4*gib+mib)
	if _, err := w.WriteAt(head, 4*gib); err != nil {
		t.Fatal(err)
	}
	for _, p := range evidence(t, w, 4*gib, span, without{w: w, to: 8 * gib}).Proofs {
		t.Errorf("Proofs() = %s, want none", p.Text)
	}
}

// TestLostHead loses the first piece of partitioned disks, with the table and the first superblock,
// and wants it back.
func TestLostHead(t *testing.T) {
	const span = 512 * mib
	for kind, command := range commands(t) {
		for label, size := range map[string]int64{"gpt": 4 * gib, "dos": 4 * gib, "whole disk": 4 * gib} {
			w := newWorld(t, size)
			start := int64(0)
			if label != "whole disk" {
				run(t, "label: "+label+"\nstart=2048,size=4094MiB\n", "sfdisk", "-q", w.Name())
				start = mib
			}
			part := newWorld(t, 4094*mib)
			if start == 0 {
				part = newWorld(t, size)
			}
			part.mkfs(t, command)
			w.put(t, part, start)
			for name, known := range map[string]io.ReaderAt{
				"the rest known": without{w: w, to: span},
				"unreadable":     without{w: w, to: span, err: errors.New("gone")},
				"nothing known":  without{w: w, to: size},
			} {
				ev := evidence(t, w, 0, span, known)
				if base, _, ok := ev.Place(); !ok || base != 0 {
					t.Errorf("%s %s, %s: Place() = %d, %v, want 0; %+v", kind, label, name, base, ok, ev)
				}
				if name == "the rest known" {
					t.Logf("%s %s: %s", kind, label, ev.Proofs[0].Text)
				}
			}
			for base := span; base < size; base += span {
				ev := evidence(t, w, base, span, without{w: w, to: span})
				if at, _, ok := ev.Place(); len(ev.Proofs) > 0 && (!ok || at != base) {
					t.Errorf("%s %s: Place() = %#x, %v, want %#x", kind, label, at, ok, base)
				}
			}
		}
	}
}

// TestOneBlock loses everything but a piece with one superblock in it, which is too little to learn
// a volume from.
func TestOneBlock(t *testing.T) {
	const span = 128 * mib
	w := newWorld(t, 2*gib)
	w.mkfs(t, "mkfs.ext4 -q -F DISK")
	ev := evidence(t, w, span, span, without{w: w, to: w.size})
	if len(ev.Proofs) > 0 || ev.Foreign == 0 {
		t.Errorf("Proofs() = %+v, want none, and one block that was seen", ev)
	}
	if ev = evidence(t, w, span, span, without{w: w, from: span, to: 2 * span}); len(ev.Proofs) != 1 {
		t.Errorf("Proofs() = %+v, want one where the volume is known", ev)
	}
}

// TestSameTwice has two partitions with one UUID: a block of either has two places.
func TestSameTwice(t *testing.T) {
	const span = 512 * mib
	for kind, command := range commands(t) {
		part := newWorld(t, gib)
		part.mkfs(t, command)
		w := newWorld(t, 4*gib)
		run(t, "label: gpt\nstart=2048,size=1GiB\nstart=4196352,size=1GiB\n", "sfdisk", "-q", w.Name())
		w.put(t, part, mib)
		w.put(t, part, 2*gib+mib)
		for _, base := range []int64{0, 2 * gib} {
			ev := evidence(t, w, base, span, w)
			for _, p := range ev.Proofs {
				if p.Kind != GPT {
					t.Errorf("%s: %s, want nothing of a block that may have two places", kind, p.Text)
				}
			}
			if ev.Ambiguous == 0 {
				t.Errorf("%s: Ambiguous = 0, want blocks that may have two places", kind)
			}
			vols, _, err := Volumes(t.Context(), w, w.size)
			if err != nil {
				t.Fatal(err)
			}
			p := w.piece(t, base, span)
			p.Possible = func(b int64) bool { return b == base }
			if ev, err = Proofs(t.Context(), vols, p); err != nil {
				t.Fatal(err)
			}
			if at, _, ok := ev.Place(); !ok || at != base {
				t.Errorf("%s: Place() with one place empty = %#x, %v, want %#x", kind, at, ok, base)
			}
		}
	}
}

// TestBtrfsTwice has metadata that is stored twice with a multiple of the span between.
func TestBtrfsTwice(t *testing.T) {
	const span = 512 * mib
	w := newWorld(t, 100*gib)
	w.mkfs(t, "mkfs.btrfs -q -f --rootdir "+tree(t, 20, 40)+" DISK")
	found := 0
	for base := int64(0); base < 4*gib; base += span {
		ev := evidence(t, w, base, span, w)
		if ev.Ambiguous == 0 {
			continue
		}
		found++
		vols, _, err := Volumes(t.Context(), w, w.size)
		if err != nil {
			t.Fatal(err)
		}
		p := w.piece(t, base, span)
		p.Possible = func(b int64) bool { return b == base }
		if ev, err = Proofs(t.Context(), vols, p); err != nil {
			t.Fatal(err)
		}
		if at, independent, ok := ev.Place(); !ok || !independent || at != base {
			t.Errorf("Place(piece at %#x) = %#x, %v, %v", base, at, independent, ok)
		}
	}
	if found == 0 {
		t.Error("no piece has a block with two places")
	}
}

// unzip gives the content of a file.
func unzip(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// lvmDisk gives a disk that is one physical volume of LVM, which LVM 2.03.16 made and reads. The
// logical volume root has 300 extents of 4 MiB from 700 on and then 200 from 100 on, data has 600
// from 1100 on. testdata/lvm.gz is its first megabyte.
func lvmDisk(t testing.TB) *world {
	t.Helper()
	head := unzip(t, "testdata/lvm.gz")
	w := newWorld(t, 8*gib)
	for at := 0; at < len(head); at += 4096 { // leaves holes
		if b := head[at:min(len(head), at+4096)]; !zero(b) {
			if _, err := w.WriteAt(b, int64(at)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return w
}

// TestLVM finds file systems in logical volumes, one of which is in two parts.
func TestLVM(t *testing.T) {
	for kind, command := range commands(t) {
		w := lvmDisk(t)
		const extent = 4 * mib
		root, data := newWorld(t, 500*extent), newWorld(t, 600*extent)
		root.mkfs(t, command)
		data.mkfs(t, command)
		w.put(t, data, mib+1100*extent)
		for _, r := range root.data(t, 0, root.size) {
			b := make([]byte, r.Length)
			if _, err := root.ReadAt(b, r.Offset); err != nil {
				t.Fatal(err)
			}
			for i := int64(0); i < r.Length; i += 64 * kib {
				at := r.Offset + i
				to := mib + 700*extent + at
				if at >= 300*extent {
					to = mib + 100*extent + at - 300*extent
				}
				if _, err := w.WriteAt(b[i:min(r.Length, i+64*kib)], to); err != nil {
					t.Fatal(err)
				}
			}
		}
		vols, blind, err := Volumes(t.Context(), w, w.size)
		if err != nil || len(blind) > 0 {
			t.Fatal(err, blind)
		}
		var got []string
		for _, v := range vols {
			if v.Logical != "" {
				got = append(got, fmt.Sprintf("%s %s %d", v.Logical, v.Kind, v.Start/extent))
			}
		}
		for _, v := range vols {
			if at, ok := v.onDisk(299*extent, extent+1); v.Logical == "vg-guest/root" && ok {
				t.Errorf("onDisk() of what is in two parts = %#x", at)
			}
			at, ok := v.onDisk(300*extent+7, 1)
			if v.Logical == "vg-guest/root" && (!ok || at != mib+100*extent+7) {
				t.Errorf("onDisk() in the second part = %#x, %v", at, ok)
			}
		}
		want := fmt.Sprintf("[vg-guest/data %s 1100 vg-guest/root %s 700]", kind, kind)
		if fmt.Sprint(got) != want {
			t.Errorf("Volumes() = %v, want %v", got, want)
		}
		for _, span := range []int64{512 * mib, 128 * mib, 32 * mib} {
			s := w.prove(t, span)
			t.Logf("%s in LVM, span %d MiB: %s", kind, span/mib, s)
			if kind == XFS && s.proved*2 < s.pieces {
				t.Errorf("%s in LVM, span %d MiB: %s, want half", kind, span/mib, s)
			}
		}
	}
}

// TestBounds reads a large piece only so far, says so, and still sees all over it.
func TestBounds(t *testing.T) {
	w := newWorld(t, 4*gib)
	w.mkfs(t, "mkfs.xfs -q -f -d agcount=16 -p "+proto(t, 100, 20)+" DISK")
	vols, _, err := Volumes(t.Context(), w, w.size)
	if err != nil {
		t.Fatal(err)
	}
	const span = 2 * gib
	p := Piece{Data: io.NewSectionReader(w, span, span), SpanBytes: span, DiskBytes: w.size,
		Mapped: []finding.Range{{Offset: gib, Length: gib}, {Offset: 0, Length: gib}, {Offset: -5, Length: gib},
			{Offset: 1 << 62, Length: 1 << 62}, {Offset: 7, Length: -1}}}
	ev, err := Proofs(t.Context(), vols, p)
	if err != nil || !ev.Cut && ev.Proofs[0].Count < enoughBlocks || ev.ReadBytes > MaxPieceBytes {
		t.Errorf("Proofs() = %+v, %v, want it cut or enough found", ev, err)
	}
	if at, _, ok := ev.Place(); !ok || at != span {
		t.Errorf("Place() = %#x, %v, want %#x", at, ok, span)
	}
	// Of one whose blocks say nothing all that is allowed is read.
	random := bytes.Repeat([]byte{'I', 'N', 0, 0, 3, 1, 2, 3}, 8<<20/8)
	p.Data = repeated(random)
	if ev, err = Proofs(t.Context(), vols, p); err != nil || !ev.Cut || len(ev.Proofs) > 0 ||
		ev.ReadBytes > MaxPieceBytes || ev.ReadBytes < MaxPieceBytes/2 {
		t.Errorf("Proofs(no file system) = %+v, %v, want nothing, cut short", ev, err)
	}
	// A volume with any number of places to look at does not get more.
	many := []Volume{{Kind: XFS, Length: maxBytes, xfs: &xfsGeometry{blockSize: 1 << 16, sector: 1 << 15,
		groups: maxXFSGroups, groupBlocks: 8191, blocks: 8191 * maxXFSGroups}}}
	q := p
	q.DiskBytes = maxBytes
	ev, err = Proofs(t.Context(), many, q)
	if err != nil || !ev.Cut || ev.ReadBytes > MaxPieceBytes {
		t.Errorf("Proofs(many places) = %+v, %v, want it cut", ev, err)
	}
	// Nor does one who asks for less.
	p.LimitBytes = 64 * mib
	if ev, err = Proofs(t.Context(), vols, p); err != nil || !ev.Cut || ev.ReadBytes > p.LimitBytes {
		t.Errorf("Proofs(limit of 64 MiB) = %+v, %v, want it cut", ev, err)
	}
	p.LimitBytes = 0
	// What cannot be read is said.
	p.Data = without{w: repeated(random), from: gib, to: gib + 10, err: errors.New("gone")}
	if ev, err = Proofs(t.Context(), vols, p); err != nil || len(ev.Unreadable) == 0 || ev.UnreadableWhy != "gone" {
		t.Errorf("Proofs(unreadable) = %+v, %v, want the place", ev, err)
	}
	if _, err := Proofs(t.Context(), vols, Piece{Data: p.Data, SpanBytes: 1}); !errors.Is(err, ErrPiece) {
		t.Errorf("Proofs(span of 1) = %v, want %v", err, ErrPiece)
	}
}

// repeated is bytes over and over.
type repeated []byte

func (r repeated) ReadAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		n += copy(p[n:], r[(off+int64(n))%int64(len(r)):])
	}
	return len(p), nil
}

// TestWeak counts a block with a single checksum of ext4's tables only beside another.
func TestWeak(t *testing.T) {
	v := Volume{Kind: Ext4, UUID: UUID{1}}
	for blocks, want := range []int{0, 0, 1} {
		e := &examiner{p: Piece{UnitBytes: defaultUnit}, ev: &Evidence{}, tallies: map[tallyKey]*tally{}}
		for i := range int64(blocks) {
			e.count(tallyKey{gib, v.Kind, v.UUID, false}, &v, i*mib, "block bitmap").weak++
		}
		e.conclude()
		if len(e.ev.Proofs) != want {
			t.Errorf("%d blocks with one checksum each make %d proofs, want %d", blocks, len(e.ev.Proofs), want)
		}
	}
}
