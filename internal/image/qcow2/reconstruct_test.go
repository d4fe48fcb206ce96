// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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
	labzoo "github.com/shisa-vm/shisa/internal/lab/zoo"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// trash are the ways in which a header is lost; each gets the first cluster.
func trash() map[string]func(r *rand.Rand, p []byte) {
	random := func(r *rand.Rand, p []byte) {
		for i := range p {
			p[i] = byte(r.Uint32())
		}
	}
	return map[string]func(r *rand.Rand, p []byte){
		"random":       random,
		"zeros":        func(_ *rand.Rand, p []byte) { clear(p) },
		"first 16":     func(r *rand.Rand, p []byte) { random(r, p[:16]) },
		"first 48":     func(r *rand.Rand, p []byte) { random(r, p[:48]) },
		"first 112":    func(r *rand.Rand, p []byte) { clear(p[:112]) },
		"behind 64":    func(r *rand.Rand, p []byte) { random(r, p[64:]) },
		"sector":       func(r *rand.Rand, p []byte) { random(r, p[:512]) },
		"every second": func(r *rand.Rand, p []byte) { random(r, p[24:32]); random(r, p[40:48]); random(r, p[60:68]) },
	}
}

// fieldShares counts for how many images each field was found.
type fieldShares struct{ found, missing, wrong, of map[string]int }

func newShares() *fieldShares {
	return &fieldShares{map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}}
}

func (s *fieldShares) log(t *testing.T) {
	names := make([]string, 0, len(s.of))
	for n := range s.of {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		t.Logf("%-24s found %5.1f %%  left to the caller %5.1f %%  wrong %d of %d", n,
			100*float64(s.found[n])/float64(s.of[n]), 100*float64(s.missing[n])/float64(s.of[n]),
			s.wrong[n], s.of[n])
	}
}

// compare holds a reconstruction against the header that was there. What reads the same in every
// way is no difference.
func (s *fieldShares) compare(x *qcow2.Reconstruction, h *qcow2.Header) (wrong []string) {
	g := x.Header
	is := func(name string, ok bool, got, want any) {
		s.of[name]++
		f := x.Field(name)
		switch {
		case f != nil && f.Missing:
			s.missing[name]++
		case ok:
			s.found[name]++
		default:
			s.wrong[name]++
			wrong = append(wrong, fmt.Sprintf("%s = %v, want %v", name, got, want))
		}
	}
	// Without L2 tables nothing depends on their kind, without compressed clusters nothing on theirs.
	inc, want := g.Incompatible, h.Incompatible
	const open = qcow2.IncompatCompression | qcow2.IncompatDirty | qcow2.IncompatCorrupt
	is(qcow2.FieldIncompatible, inc&^open == want&^open || x.L1Last < 0 && h.Snapshots == 0 ||
		x.Counts.AllocatedClusters == 0 && inc^want == qcow2.IncompatExtendedL2 && x.Counts.Corruptions == 0,
		inc, want)
	is(qcow2.FieldClusterBits, g.ClusterBits == h.ClusterBits, g.ClusterBits, h.ClusterBits)
	is(qcow2.FieldVersion, g.Version >= h.Version, g.Version, h.Version)
	is(qcow2.FieldSize, g.SizeBytes == h.SizeBytes, g.SizeBytes, h.SizeBytes)
	is(qcow2.FieldL1Off, g.L1Off == h.L1Off, g.L1Off, h.L1Off)
	is(qcow2.FieldReftableOff, g.ReftableOff == h.ReftableOff, g.ReftableOff, h.ReftableOff)
	is(qcow2.FieldReftableSize, g.ReftableClusters == h.ReftableClusters, g.ReftableClusters, h.ReftableClusters)
	is(qcow2.FieldSnapshots, g.Snapshots == h.Snapshots, g.Snapshots, h.Snapshots)
	is(qcow2.FieldSnapshotsOff, h.Snapshots == 0 || g.SnapshotsOff == h.SnapshotsOff, g.SnapshotsOff, h.SnapshotsOff)
	is(qcow2.FieldRefcountOrder, g.RefcountOrder == h.RefcountOrder, g.RefcountOrder, h.RefcountOrder)
	is(qcow2.FieldCrypt, g.Crypt == h.Crypt && g.CryptOff == h.CryptOff && g.CryptLen == h.CryptLen,
		fmt.Sprint(g.Crypt, g.CryptOff, g.CryptLen), fmt.Sprint(h.Crypt, h.CryptOff, h.CryptLen))
	is(qcow2.FieldBacking, g.Backing == h.Backing, g.Backing, h.Backing)
	bitmaps := func(h *qcow2.Header) string {
		if h.Bitmaps == nil {
			return "none"
		}
		return fmt.Sprint(*h.Bitmaps)
	}
	is(qcow2.FieldBitmaps, bitmaps(g) == bitmaps(h), bitmaps(g), bitmaps(h))
	return wrong
}

// rebuilt is the file with the header that was found.
func rebuilt(file []byte, x *qcow2.Reconstruction) []byte {
	out := bytes.Clone(file)
	copy(out, x.HeaderBytes)
	for _, p := range x.Patches {
		copy(out[p.Offset:], p.New)
	}
	return out
}

// sameGuest compares the guests' views of two images.
func sameGuest(t *testing.T, a, b []byte) {
	t.Helper()
	disk := func(p []byte) *qcow2.Disk {
		h, err := qcow2.ReadHeader(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			t.Fatal(err)
		}
		d, err := qcow2.NewDisk(bytes.NewReader(p), int64(len(p)), h, qcow2.DiskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	x, y := disk(a), disk(b)
	if x.Size() != y.Size() {
		t.Fatalf("a disk of %d bytes, want %d", x.Size(), y.Size())
	}
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < x.Size(); off += int64(len(p)) {
		n, err := x.ReadAt(p, off)
		m, err2 := y.ReadAt(q, off)
		if n != m || !bytes.Equal(p[:n], q[:m]) || err != nil && err != io.EOF || err2 != nil && err2 != io.EOF {
			t.Fatalf("the disks differ at %#x: %d and %d bytes, %v, %v", off, n, m, err, err2)
		}
	}
}

// TestReconstruct takes the header from random images and finds it again.
func TestReconstruct(t *testing.T) {
	testenv.Need(t, "qemu-img")
	// A few rounds leave out large disks.
	n, largeBytes := uint64(testenv.Rounds(20, 80, 1000)), int64(testenv.Rounds(16, 1<<20, 1<<20))<<20
	ways := trash()
	names := make([]string, 0, len(ways))
	for w := range ways {
		names = append(names, w)
	}
	slices.Sort(names)
	shares, told, none := newShares(), newShares(), ""
	for seed := range n {
		spec := lab.RandomSpec(seed)
		if spec.VirtualBytes > largeBytes {
			continue
		}
		// Files of many large clusters are long and show no more.
		spec.VirtualBytes = min(spec.VirtualBytes, max(64<<20, int64(64)<<max(spec.ClusterBits, 9)))
		spec.Data = spec.VirtualBytes < 8<<20
		img := load(t, spec)
		h, err := qcow2.ReadHeader(bytes.NewReader(img), int64(len(img)))
		if err != nil {
			t.Fatal(err)
		}
		way := names[seed%uint64(len(names))]
		lost := bytes.Clone(img)
		ways[way](rand.New(rand.NewPCG(seed, 1)), lost[:h.ClusterSize()])
		t.Run(fmt.Sprintf("%d %s", seed, way), func(t *testing.T) {
			x, err := reconstruct(t, lost, qcow2.ReconstructOptions{})
			if err != nil {
				t.Fatalf("Reconstruct() = %v\n%+v", err, spec)
			}
			for _, w := range shares.compare(x, h) {
				t.Errorf("%s\n%+v", w, spec)
			}
			// What is missing is given, and then all must be right.
			opts := qcow2.ReconstructOptions{}
			for _, m := range x.Missing() {
				switch m {
				case qcow2.FieldSize:
					opts.SizeBytes = h.SizeBytes
				case qcow2.FieldBacking:
					opts.Backing = &none
				default:
					t.Errorf("%s is missing: %+v", m, x.Field(m))
				}
			}
			if x, err = reconstruct(t, lost, opts); err != nil {
				t.Fatal(err)
			}
			for _, w := range told.compare(x, h) {
				t.Errorf("%s\n%+v", w, spec)
			}
			if x.HeaderBytes == nil {
				t.Fatalf("no header, %v missing", x.Missing())
			}
			out := rebuilt(lost, x)
			sameGuest(t, out, img)
			bitmapsMarked(t, out, way != "zeros" && way != "random" && way != "sector" && way != "behind 64")
			if res := checkBytes(t, out); res.Counts.Corruptions+res.Counts.Leaks+res.Counts.CheckErrors != 0 {
				t.Errorf("a check of the rebuilt image finds %+v %+v", res.Counts, res.Findings)
			}
			if seed%4 == 1 {
				qemuAgrees(t, out, img)
			}
		})
	}
	t.Log("with nothing given:")
	shares.log(t)
	t.Log("with the size and the backing file given:")
	told.log(t)
}

// bitmapsMarked: where it is lost whether the bitmaps were complete, none is trusted.
func bitmapsMarked(t *testing.T, out []byte, survived bool) {
	t.Helper()
	h, err := qcow2.ReadHeader(bytes.NewReader(out), int64(len(out)))
	if err != nil {
		t.Fatal(err)
	}
	list, err := qcow2.ReadBitmaps(bytes.NewReader(out), int64(len(out)), h)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range list {
		if !b.InUse && !survived {
			t.Errorf("bitmap %q is trusted", b.Name)
		}
	}
}

// reconstruct is qcow2.Reconstruct that may not change its input.
func reconstruct(t *testing.T, img []byte, opts qcow2.ReconstructOptions) (*qcow2.Reconstruction, error) {
	t.Helper()
	before := bytes.Clone(img)
	x, err := qcow2.Reconstruct(t.Context(), bytes.NewReader(img), int64(len(img)), opts)
	if !bytes.Equal(img, before) {
		t.Error("the file was changed")
	}
	return x, err
}

// qemuAgrees lets qemu-img check the rebuilt image and compare it with the good one.
func qemuAgrees(t *testing.T, out, img []byte) {
	t.Helper()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "rebuilt.qcow2"), filepath.Join(dir, "good.qcow2")
	for path, p := range map[string][]byte{a: out, b: img} {
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"check", "-f", "qcow2", a}, {"compare", "-f", "qcow2", "-F", "qcow2", a, b}} {
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Errorf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// reconstructAll does the same with every so many of images that qemu made.
func reconstructAll(t *testing.T, images []labzoo.Image, every int) {
	shares, none := newShares(), ""
	for i, animal := range images {
		if i%every > 0 {
			continue
		}
		t.Run(animal.Name, func(t *testing.T) {
			img, err := os.ReadFile(animal.Path)
			if err != nil {
				t.Fatal(err)
			}
			h, err := qcow2.ReadHeader(bytes.NewReader(img), int64(len(img)))
			if err != nil {
				t.Fatal(err)
			}
			lost := bytes.Clone(img)
			r := rand.New(rand.NewPCG(1, 2))
			for i := range h.ClusterSize() {
				lost[i] = byte(r.Uint32())
			}
			opts := qcow2.ReconstructOptions{SizeBytes: h.SizeBytes, Backing: &none,
				BackingFormat: h.BackingFormat, DataFile: h.DataFile}
			if h.HasBacking {
				opts.Backing = &h.Backing
			}
			x, err := reconstruct(t, lost, opts)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range shares.compare(x, h) {
				// Only the header tells of the encryption of early versions.
				if h.Crypt == qcow2.CryptAES && strings.HasPrefix(w, qcow2.FieldCrypt) {
					continue
				}
				t.Error(w)
			}
			if x.HeaderBytes == nil {
				t.Fatalf("no header, %v missing", x.Missing())
			}
			before, after := checkBytes(t, img).Counts, checkBytes(t, rebuilt(lost, x)).Counts
			if after.Corruptions > before.Corruptions || after.Leaks > before.Leaks {
				t.Errorf("a check of the rebuilt image finds %+v, before %+v", after, before)
			}
			if h.Crypt == qcow2.CryptNone && !h.HasBacking && !h.HasDataFile() {
				sameGuest(t, rebuilt(lost, x), img)
			}
		})
	}
	shares.log(t)
}

// TestReconstructNames: what is left of the header cluster names the other files.
func TestReconstructNames(t *testing.T) {
	for _, tt := range []struct {
		name string
		spec lab.Spec
		cut  int // bytes lost at the front
		want string
		sure finding.Certainty
	}{
		{"name behind the extensions", lab.Spec{VirtualBytes: 1 << 20, Backing: "../base/a.qcow2",
			BackingFormat: "qcow2", FeatureNames: true}, 112, "../base/a.qcow2", finding.Likely},
		{"name where the header says", lab.Spec{VirtualBytes: 1 << 20, Backing: "b.img"}, 4, "b.img", finding.Sure},
		{"no name", lab.Spec{VirtualBytes: 1 << 20, FeatureNames: true}, 112, "", finding.Likely},
	} {
		t.Run(tt.name, func(t *testing.T) {
			img := load(t, tt.spec)
			clear(img[:tt.cut])
			x, err := reconstruct(t, img, qcow2.ReconstructOptions{SizeBytes: tt.spec.VirtualBytes})
			if err != nil {
				t.Fatal(err)
			}
			f := x.Field(qcow2.FieldBacking)
			if x.Header.Backing != tt.want || f.Missing || f.Certainty != tt.sure || x.HeaderBytes == nil {
				t.Fatalf("backing %q, field %+v, want %q, %s", x.Header.Backing, f, tt.want, tt.sure)
			}
			h, err := qcow2.ReadHeader(bytes.NewReader(rebuilt(img, x)), int64(len(img)))
			if err != nil || h.Backing != tt.want || h.BackingFormat != tt.spec.BackingFormat {
				t.Errorf("rebuilt header names %q (%s), %v; want %q", h.Backing, h.BackingFormat, err, tt.want)
			}
		})
	}
}

// TestReconstructStale: a larger table that an earlier time left, and that is not counted any more,
// is not taken for the L1 table.
func TestReconstructStale(t *testing.T) {
	img := load(t, lab.Spec{VirtualBytes: 1 << 30, Fill: .01, Front: true})
	h, err := qcow2.ReadHeader(bytes.NewReader(img), int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	cs, be := h.ClusterSize(), binary.BigEndian
	img = append(img, make([]byte, -int64(len(img))&(cs-1))...)
	l1 := bytes.Clone(img[h.L1Off:][:cs])
	table := int64(be.Uint64(l1) & qcow2.OffsetMask)
	be.PutUint64(l1[8*h.L1Entries:], uint64(len(img)))
	img = append(append(img, bytes.Clone(img[table:table+cs])...), l1...)
	clear(img[:cs])
	x, err := reconstruct(t, img, qcow2.ReconstructOptions{})
	if err != nil || x.Header.L1Off != h.L1Off {
		t.Errorf("Reconstruct() = L1 table at %#x, %v, want %#x", x.Header.L1Off, err, h.L1Off)
	}
	if f := x.Field(qcow2.FieldL1Off); f.Certainty != finding.Sure || len(f.Alternatives) > 0 {
		t.Errorf("the L1 table is %+v, want it sure", f)
	}
}

// TestReconstructNoEvidence: what is no image gives no header.
func TestReconstructNoEvidence(t *testing.T) {
	random := make([]byte, 4<<20)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	for name, p := range map[string][]byte{"empty": {}, "zeros": make([]byte, 1<<20), "random": random,
		"text": bytes.Repeat([]byte("no image at all\n"), 1<<12)} {
		if x, err := reconstruct(t, p, qcow2.ReconstructOptions{}); !errors.Is(err, qcow2.ErrNoEvidence) {
			t.Errorf("Reconstruct(%s) = %+v, %v, want %v", name, x, err, qcow2.ErrNoEvidence)
		}
	}
}

// TestReconstructUnreadable: what cannot be read is said, and the rest is found.
func TestReconstructUnreadable(t *testing.T) {
	img := load(t, lab.Spec{VirtualBytes: 64 << 20, Fill: .5, Data: true})
	clear(img[:64<<10])
	r := brokenDisk{bytes.NewReader(img), finding.Range{Offset: int64(len(img)) - 1<<20, Length: 4096}}
	x, err := qcow2.Reconstruct(t.Context(), r, int64(len(img)), qcow2.ReconstructOptions{SizeBytes: 64 << 20})
	if err != nil || len(x.Blind) == 0 || x.Header.L1Off == 0 {
		t.Errorf("Reconstruct() = %+v, %v, want the L1 table and a blind spot", x, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := qcow2.Reconstruct(ctx, bytes.NewReader(img), int64(len(img)), qcow2.ReconstructOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Reconstruct with a context that is over = %v, want %v", err, context.Canceled)
	}
}

// TestReconstructSize: a size from elsewhere is taken within the bounds only.
func TestReconstructSize(t *testing.T) {
	none := ""
	img := load(t, lab.Spec{VirtualBytes: 40 << 20})
	clear(img[:64<<10])
	x, err := reconstruct(t, img, qcow2.ReconstructOptions{Backing: &none})
	if err != nil || !slices.Equal(x.Missing(), []string{qcow2.FieldSize}) || x.HeaderBytes != nil {
		t.Fatalf("Reconstruct() = %v missing, %v, want the size", x.Missing(), err)
	}
	for _, n := range []int64{0, 40<<20 - 65536, x.SizeHigh + 512, 40<<20 + 1} {
		if x.SetSize(n, finding.Likely) {
			t.Errorf("SetSize(%d) is taken, within %d and %d", n, x.SizeLow, x.SizeHigh)
		}
	}
	if !x.SetSize(40<<20, finding.Likely) || len(x.Missing()) > 0 ||
		binary.BigEndian.Uint64(x.HeaderBytes[24:]) != 40<<20 {
		t.Errorf("SetSize(40 MiB) leaves %v missing", x.Missing())
	}
}

// TestReconstructMutations: whatever happened to the tables as well, it ends, takes little memory,
// and finds nothing that contradicts what is mapped.
func TestReconstructMutations(t *testing.T) {
	var images [][]byte
	for seed := range uint64(6) {
		spec := lab.RandomSpec(seed)
		spec.ClusterBits, spec.VirtualBytes, spec.ExtendedL2, spec.Partial = 9, 16<<10, false, 0
		images = append(images, load(t, spec))
	}
	r := rand.New(rand.NewPCG(1, 1))
	for k := range 200 {
		p := bytes.Clone(images[k%len(images)])
		for range 1 + r.IntN(4) {
			i := r.IntN(len(p))
			switch r.IntN(4) {
			case 0:
				p[i] ^= 1 << r.IntN(8)
			case 1:
				p = slices.Delete(p, i, min(len(p), i+512))
			case 2:
				copy(p[i&^511:], p[r.IntN(len(p))&^511:])
			case 3:
				p = append(p, p[i:min(len(p), i+512*r.IntN(9))]...)
			}
		}
		looksFor(t, p)
	}
}

// looksFor is what holds for every input.
func looksFor(t *testing.T, data []byte) {
	t.Helper()
	frugal(t, data, func(r *bytes.Reader) {
		x, err := qcow2.Reconstruct(t.Context(), r, r.Size(), qcow2.ReconstructOptions{})
		if err != nil && !errors.Is(err, qcow2.ErrNoEvidence) {
			t.Errorf("Reconstruct() = %v", err)
		}
		if err == nil && x.HeaderBytes != nil && x.Header.SizeBytes < x.SizeLow {
			t.Errorf("a disk of %d bytes, %d are mapped", x.Header.SizeBytes, x.SizeLow)
		}
	})
}

func FuzzReconstruct(f *testing.F) {
	seeds(f)
	for seed := range uint64(6) {
		spec := lab.RandomSpec(seed)
		spec.ClusterBits, spec.VirtualBytes, spec.ExtendedL2, spec.Partial = 9, 16<<10, false, 0
		img := load(f, spec)
		clear(img[:512])
		f.Add(img)
	}
	f.Fuzz(func(t *testing.T, data []byte) { looksFor(t, data) })
}
