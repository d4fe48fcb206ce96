// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// headerImages are the images whose headers are broken.
func headerImages() map[string]lab.Spec {
	return map[string]lab.Spec{
		"usual":     {VirtualBytes: 600 << 20, Fill: .01, Front: true, FeatureNames: true},
		"version 2": {VirtualBytes: 4 << 20, Version: 2},
		"snapshots": {VirtualBytes: 4 << 20, Snapshots: 3, Rewrite: .1},
		"small":     {VirtualBytes: 300 << 10, ClusterBits: 9, RefcountBits: 64},
		"overlay": {VirtualBytes: 8 << 20, Fill: .3, Backing: "../base/a.qcow2", BackingFormat: "qcow2",
			FeatureNames: true},
		"zstd":    {VirtualBytes: 8 << 20, Compressed: .5, Zstd: true},
		"bitmaps": {VirtualBytes: 8 << 20, Bitmaps: 2, Fill: .2},
		"no data": {VirtualBytes: 40 << 20, Fill: -1},
	}
}

// applyFixes writes what is proved.
func applyFixes(t *testing.T, b memory, list []repair.FieldFix) memory {
	t.Helper()
	out := append(memory(nil), b...)
	for _, f := range list {
		if !f.Proved {
			continue
		}
		if now := out[f.Offset : f.Offset+int64(len(f.New))]; !bytes.Equal(now, f.Old) {
			t.Fatalf("at %#x stands %x, the fix says %x", f.Offset, now, f.Old)
		}
		copy(out[f.Offset:], f.New)
	}
	return out
}

// TestHeaderFields breaks every number of the header: what is mended in place is what stood there.
func TestHeaderFields(t *testing.T) {
	var table strings.Builder
	images := map[string]memory{}
	for n, spec := range headerImages() {
		_, images[n] = build(t, spec)
	}
	names := slices.Sorted(maps.Keys(images))
	path := filepath.Join(t.TempDir(), "image.qcow2")
	for _, f := range lab.Faults() {
		if !strings.HasPrefix(f.Name, "header-") && f.Name != "snapshot-offset" && f.Name != "snapshot-count" {
			continue
		}
		for _, name := range names {
			if err := os.WriteFile(path, images[name], 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := f.Apply(path, 1)
			if errors.Is(err, lab.ErrNotApplicable) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			good, bad := images[name], load(t, path)
			list := fieldsOf(t, bad)
			fmt.Fprintf(&table, "%-28s %-10s %s\n", f.Name, name, fixesLine(list))
			fixed := applyFixes(t, bad, list)
			for _, x := range list {
				if at := int(x.Offset); x.Proved && !bytes.Equal(fixed[at:at+len(x.Old)], good[at:at+len(x.Old)]) {
					t.Errorf("%s, %s: %s became %x, it was %x: %+v", f.Name, name, x.Field, x.New,
						good[at:at+len(x.Old)], x.Evidence)
				}
			}
		}
	}
	golden(t, "header-faults", table.String())
}

// fieldsOf is HeaderFields and ForgottenSnapshots.
func fieldsOf(t *testing.T, b memory) []repair.FieldFix {
	t.Helper()
	before := append(memory(nil), b...)
	list, err := repair.HeaderFields(t.Context(), b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 {
		if list, err = repair.ForgottenSnapshots(t.Context(), b, int64(len(b)), checked(t, b)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(before, b) {
		t.Error("looking changed the image")
	}
	return list
}

func fixesLine(list []repair.FieldFix) string {
	var parts []string
	for _, f := range list {
		s := f.Field + " " + f.Code
		switch {
		case f.Proved:
			s += fmt.Sprintf(" mended, %s, %d proofs", f.Certainty, len(f.Evidence))
		case len(f.New) > 0:
			s += fmt.Sprintf(" left, %s", f.Certainty)
		default:
			s += " left, unknown"
		}
		parts = append(parts, s)
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, "; ")
}

// TestHeaderFieldsSound: nothing is found in sound images.
func TestHeaderFieldsSound(t *testing.T) {
	for seed := range uint64(12) {
		spec := lab.RandomSpec(seed)
		if spec.ClusterBits > 16 {
			continue // their files are long
		}
		_, b := build(t, spec)
		if list := fieldsOf(t, b); len(list) > 0 {
			t.Errorf("HeaderFields of a sound image = %+v", list)
		}
	}
}

// TestHeaderFieldsTwo: several numbers at once, and random ones, are mended to what they were or left.
func TestHeaderFieldsTwo(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	offsets := []struct{ off, n int }{{0, 4}, {4, 4}, {8, 8}, {20, 4}, {24, 8}, {36, 4}, {40, 8}, {48, 8},
		{56, 4}, {60, 4}, {64, 8}, {72, 8}, {96, 4}, {100, 4}, {104, 1}}
	mended, left := 0, 0
	rounds := testenv.Rounds(4, 12, 200)
	for _, name := range slices.Sorted(maps.Keys(headerImages())) {
		_, good := build(t, headerImages()[name])
		for range rounds {
			bad := append(memory(nil), good...)
			for range 1 + r.IntN(2) {
				o := offsets[r.IntN(len(offsets))]
				if binary.BigEndian.Uint32(good[4:]) == 2 && o.off >= 72 {
					continue
				}
				for i := range o.n {
					if r.IntN(2) == 0 {
						bad[o.off+i] = byte(r.Uint32())
					}
				}
			}
			list := fieldsOf(t, bad)
			fixed := applyFixes(t, bad, list)
			for _, x := range list {
				at := int(x.Offset)
				switch {
				case !x.Proved:
					left++
				case !bytes.Equal(fixed[at:at+len(x.Old)], good[at:at+len(x.Old)]):
					t.Errorf("%s: %s became %x, it was %x, with %x there: %+v", name, x.Field, x.New,
						good[at:at+len(x.Old)], x.Old, x.Evidence)
				default:
					mended++
				}
			}
		}
	}
	t.Logf("%d numbers mended, %d left", mended, left)
	if mended < 10 {
		t.Errorf("%d numbers mended, want 10 or more", mended)
	}
}

// withHeader is the image after the writes of a new header.
func withHeader(t *testing.T, b memory, p *repair.HeaderPlan) memory {
	t.Helper()
	out := append(memory(nil), b...)
	for i, w := range p.Writes {
		if !bytes.Equal(out[w.Offset:w.End()], w.Old) {
			t.Fatalf("at %#x stands %x, the plan says %x", w.Offset, out[w.Offset:w.End()], w.Old)
		}
		if last := i == len(p.Writes)-1; last != (w.Offset == 0) || last && w.Phase != plan.Switch {
			t.Fatalf("write %d of %d is at %#x in phase %s: the first sector must be the last", i,
				len(p.Writes), w.Offset, w.Phase)
		}
		copy(out[w.Offset:], w.New)
	}
	return out
}

// TestRebuildHeader: the size comes from the guest's partition table, everything else from the tables.
func TestRebuildHeader(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io", "sfdisk")
	dir, none := t.TempDir(), ""
	raw, img := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")
	run := func(stdin string, args ...string) {
		t.Helper()
		c := exec.Command(args[0], args[1:]...)
		c.Stdin = strings.NewReader(stdin)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	run("", "qemu-img", "create", "-q", "-f", "raw", raw, "3000M")
	run("label: gpt\n,1G\n,\n", "sfdisk", "-q", raw)
	run("", "qemu-io", "-f", "raw", "-c", "write -P 5 100M 3M", raw)
	run("", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, img)
	good := load(t, img)
	lost := append(memory(nil), good...)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 64 << 10 {
		lost[i] = byte(r.Uint32())
	}
	p, err := repair.RebuildHeader(t.Context(), lost, int64(len(lost)), repair.HeaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.Missing, []string{qcow2.FieldBacking}) || len(p.Writes) > 0 {
		t.Errorf("%v are missing, %d writes; want the backing file and none", p.Missing, len(p.Writes))
	}
	p, err = repair.RebuildHeader(t.Context(), lost, int64(len(lost)), repair.HeaderOptions{Backing: &none})
	if err != nil || len(p.Missing) > 0 || p.Header.SizeBytes != 3000<<20 {
		t.Fatalf("RebuildHeader() = %+v, %v, want a disk of 3000 MiB", p, err)
	}
	for _, f := range p.Fields {
		if f.Name == qcow2.FieldSize && (f.Certainty != finding.Likely ||
			!slices.ContainsFunc(f.Evidence, func(e finding.Evidence) bool { return e.Source == "guest" })) {
			t.Errorf("the size rests on %+v", f)
		}
	}
	if p.Counts == nil || *p.Counts != checked(t, good).Counts {
		t.Errorf("a check behind the new header counts %+v, want %+v", p.Counts, checked(t, good).Counts)
	}
	out := withHeader(t, lost, p)
	rebuilt := filepath.Join(dir, "rebuilt.qcow2")
	if err := os.WriteFile(rebuilt, out, 0o600); err != nil {
		t.Fatal(err)
	}
	run("", "qemu-img", "check", rebuilt)
	run("", "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, rebuilt)
}

// TestRebuildHeaderThenRepair: with the refcount table lost as well, the ordinary repair of the copy
// does the rest.
func TestRebuildHeaderThenRepair(t *testing.T) {
	testenv.Need(t, "qemu-img")
	none := ""
	for _, clusterBits := range []int{12, 14, 16} {
		spec := lab.Spec{VirtualBytes: 30 << 20, ClusterBits: clusterBits, Data: true, Fill: .3}
		_, good := build(t, spec)
		h, err := qcow2.ReadHeader(good, int64(len(good)))
		if err != nil {
			t.Fatal(err)
		}
		lost := append(memory(nil), good...)
		clear(lost[:int64(h.ReftableOff)+h.ClusterSize()]) // header and refcount table
		p, err := repair.RebuildHeader(t.Context(), lost, int64(len(lost)),
			repair.HeaderOptions{Backing: &none, SizeBytes: spec.VirtualBytes})
		if err != nil || len(p.Missing) > 0 {
			t.Fatalf("RebuildHeader() = %+v, %v", p, err)
		}
		out := withHeader(t, lost, p)
		mended := out.applied(t, makePlan(t, out, repair.Options{}))
		if status, text := qemuCheck(t, mended); status != 0 && status != 3 {
			t.Errorf("clusters of 2^%d: qemu-img check = %d after the repair\n%s", clusterBits, status, text)
		}
		same(t, mended, good)
	}
}

// same lets qemu-img compare two images.
func same(t *testing.T, a, b memory) {
	t.Helper()
	dir := t.TempDir()
	x, y := filepath.Join(dir, "x.qcow2"), filepath.Join(dir, "y.qcow2")
	for path, p := range map[string]memory{x: a, y: b} {
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("qemu-img", "compare", x, y).CombinedOutput(); err != nil {
		t.Errorf("qemu-img compare: %v\n%s", err, out)
	}
}

// TestRebuildHeaderOptions: what is impossible is refused, and what is given is taken.
func TestRebuildHeaderOptions(t *testing.T) {
	_, b := build(t, lab.Spec{VirtualBytes: 8 << 20})
	long := strings.Repeat("x", 1024)
	for _, o := range []repair.HeaderOptions{{ClusterBytes: 1000}, {ClusterBytes: 4 << 20}, {SizeBytes: 100},
		{SizeBytes: -512}, {Version: 4}, {L1Offset: -1}, {Backing: &long}} {
		if _, err := repair.RebuildHeader(t.Context(), b, int64(len(b)), o); !errors.Is(err, repair.ErrHeaderOptions) {
			t.Errorf("RebuildHeader with %+v = %v, want %v", o, err, repair.ErrHeaderOptions)
		}
	}
	clear(b[:64<<10])
	name := "base.qcow2"
	p, err := repair.RebuildHeader(t.Context(), b, int64(len(b)), repair.HeaderOptions{ClusterBytes: 64 << 10,
		SizeBytes: 8 << 20, Backing: &name, BackingFormat: "qcow2", Version: 2})
	if err != nil || p.Header.Backing != name || p.Header.Version != 2 || len(p.Missing) > 0 {
		t.Fatalf("RebuildHeader() = %+v, %v", p, err)
	}
	out := withHeader(t, b, p)
	if h, err := qcow2.ReadHeader(out, int64(len(out))); err != nil || h.Backing != name || h.BackingFormat != "qcow2" {
		t.Errorf("the new header reads as %+v, %v", h, err)
	}
	// A size outside of what the tables allow leaves the header unwritten.
	p, err = repair.RebuildHeader(t.Context(), b, int64(len(b)), repair.HeaderOptions{Backing: &name, SizeBytes: 512})
	if err != nil || !slices.Equal(p.Missing, []string{qcow2.FieldSize}) || len(p.Writes) > 0 {
		t.Errorf("RebuildHeader with a disk of 512 bytes: %v missing, %d writes, %v", p.Missing, len(p.Writes), err)
	}
}

// TestRebuildWithoutL1: the header is lost and the L1 table as well. With the place and the size given, a
// copy is made, and a repair of it puts the L2 tables back.
func TestRebuildWithoutL1(t *testing.T) {
	testenv.Need(t, "qemu-img", "mkfs.xfs")
	sound := formatted(t, func(raw, _ string) []string { return []string{"mkfs.xfs", "-q", "-f", raw} })
	_, h := l1Slots(t, sound)
	for _, fill := range []byte{0, 'x'} {
		b := slices.Clone(sound)
		clear(b[:plan.SectorBytes])
		copy(b[h.L1Off:int64(h.L1Off)+8*h.L1Entries], bytes.Repeat([]byte{fill}, int(8*h.L1Entries)))
		none := ""
		o := repair.HeaderOptions{SizeBytes: h.SizeBytes, Backing: &none}
		p, err := repair.RebuildHeader(t.Context(), b, int64(len(b)), o)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Missing) == 0 {
			t.Error("without the place of the L1 table nothing is missing")
		}
		o.L1Offset = int64(h.L1Off)
		if p, err = repair.RebuildHeader(t.Context(), b, int64(len(b)), o); err != nil || len(p.Missing) > 0 {
			t.Fatalf("%v; missing: %v", err, p.Missing)
		}
		for _, w := range p.Writes {
			copy(b[w.Offset:], w.New)
		}
		after := b.applied(t, makePlan(t, b, repair.Options{}))
		if !slices.EqualFunc(view(t, sound), view(t, after), bytes.Equal) {
			t.Error("the guest reads something else")
		}
		if status, text := qemuCheck(t, after); status != 0 && status != 3 {
			t.Errorf("qemu-img check exits with %d:\n%s", status, text)
		}
	}
}

// TestRebuildSizeBound: a file system that fills the disk says how large it was at least.
func TestRebuildSizeBound(t *testing.T) {
	testenv.Need(t, "qemu-img", "mkfs.ext4")
	b := formatted(t, func(raw, files string) []string { return []string{"mkfs.ext4", "-q", "-F", "-d", files, raw} })
	clear(b[:plan.SectorBytes])
	p, err := repair.RebuildHeader(t.Context(), b, int64(len(b)), repair.HeaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(p.Missing, qcow2.FieldSize) || p.SizeLowBytes != 320<<20 || p.SizeHighBytes < p.SizeLowBytes {
		t.Errorf("missing %v, %d to %d bytes; want the size, from %d on", p.Missing, p.SizeLowBytes, p.SizeHighBytes, 320<<20)
	}
}
