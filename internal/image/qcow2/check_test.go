// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
	labzoo "github.com/shisa-vm/shisa/internal/lab/zoo"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// check examines the image at path.
func check(t testing.TB, path string) (*qcow2.Result, error) {
	t.Helper()
	f, err := diskio.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := int64(-1)
	if st, err := os.Stat(filepath.Join(filepath.Dir(path), "payload")); err == nil {
		data = st.Size()
	}
	return qcow2.Check(t.Context(), f, f.Size(), qcow2.CheckOptions{Name: path, MaxRanges: -1, DataFileBytes: data})
}

// qemuVerdict is what qemu-img check says of an image.
type qemuVerdict struct {
	exit   int
	counts qcow2.Counts
	json   bool // it printed counts
	lines  []string
}

// qemuChecks runs the real qemu-img check.
func qemuChecks(t testing.TB, path string) qemuVerdict {
	t.Helper()
	cmd := exec.Command("qemu-img", "check", "-f", "qcow2", "--output=json", path)
	cmd.Dir = filepath.Dir(path) // qemu looks for data files in the working directory
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	v := qemuVerdict{exit: cmd.ProcessState.ExitCode()}
	var j struct {
		CheckErrors int64 `json:"check-errors"`
		Corruptions int64 `json:"corruptions"`
		Leaks       int64 `json:"leaks"`
		Allocated   int64 `json:"allocated-clusters"`
		Fragmented  int64 `json:"fragmented-clusters"`
		Compressed  int64 `json:"compressed-clusters"`
		Total       int64 `json:"total-clusters"`
		End         int64 `json:"image-end-offset"`
	}
	if err := json.Unmarshal(stdout.Bytes(), &j); err == nil {
		v.json = true
		v.counts = qcow2.Counts{CheckErrors: j.CheckErrors, Corruptions: j.Corruptions, Leaks: j.Leaks,
			AllocatedClusters: j.Allocated, FragmentedClusters: j.Fragmented,
			CompressedClusters: j.Compressed, TotalClusters: j.Total, ImageEndOffset: j.End}
	}
	for _, l := range strings.Split(strings.TrimSpace(stderr.String()), "\n") {
		l, failed := strings.CutPrefix(l, "qemu-img: Check failed")
		if l = strings.TrimPrefix(l, "qemu-img: "); l != "" && (!failed || l != ": ") {
			v.lines = append(v.lines, l)
		}
	}
	return v
}

// trace gives the lines and counts of Trace, the reason of a stop as qemu-img words it.
func trace(t testing.TB, path string) (lines []string, counts qcow2.Counts, stopped bool) {
	t.Helper()
	f, err := diskio.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	counts, err = qcow2.Trace(t.Context(), f, f.Size(), qcow2.CheckOptions{}, func(l qcow2.Line) error {
		lines = append(lines, l.Text)
		return nil
	})
	var stop *qcow2.StopError
	if errors.As(err, &stop) {
		return append(lines, ": "+stop.Reason), counts, true
	}
	if err != nil {
		t.Fatalf("Trace(%s) = %v", path, err)
	}
	return lines, counts, false
}

// agrees holds Check and Trace against qemu-img. It returns what differs, "" if nothing does.
func agrees(t testing.TB, path string) string {
	t.Helper()
	q := qemuChecks(t, path)
	res, err := check(t, path)
	if err != nil {
		var open *qcow2.OpenError
		if !errors.As(err, &open) {
			return fmt.Sprintf("Check() = %v, want an *OpenError", err)
		}
		if q.exit != 1 || !strings.Contains(strings.Join(q.lines, " "), open.Qemu) {
			return fmt.Sprintf("Check() = %v (qemu: %s), qemu-img: exit %d, %q", err, open.Qemu, q.exit, q.lines)
		}
		return ""
	}
	if q.exit == 1 && !q.json && len(q.lines) > 0 && strings.Contains(q.lines[len(q.lines)-1], "Could not open") {
		// qemu refuses the image for what we can still look behind; it must be a finding.
		if finding.Worst(res.Findings).Rank() > finding.Danger.Rank() {
			return fmt.Sprintf("Check() found nothing grave, but qemu-img says %q", q.lines)
		}
		return ""
	}
	lines, counts, stopped := trace(t, path)
	if d := cmp.Diff(q.lines, lines); d != "" {
		return "lines differ (-qemu-img +ours):\n" + d
	}
	if stopped {
		if res.Counts.Corruptions+res.Counts.CheckErrors == 0 {
			return fmt.Sprintf("Check() = %+v, but qemu-img gives up: %q", res.Counts, q.lines)
		}
		return ""
	}
	if d := cmp.Diff(q.counts, counts); d != "" {
		return "Trace counts differ (-qemu-img +ours):\n" + d
	}
	if d := cmp.Diff(q.counts, res.Counts); d != "" {
		return "Check counts differ (-qemu-img +ours):\n" + d
	}
	return ""
}

// specs are images of every kind that the lab makes.
func specs() map[string]lab.Spec {
	m := map[string]lab.Spec{}
	for bits := 9; bits <= 21; bits++ {
		m[fmt.Sprintf("cluster=%d", 1<<bits)] = lab.Spec{VirtualBytes: 300 << bits, ClusterBits: bits, Fill: 0.7}
	}
	for _, bits := range []int{1, 2, 4, 8, 16, 32, 64} {
		m[fmt.Sprintf("refcounts=%d", bits)] = lab.Spec{VirtualBytes: 4 << 20, ClusterBits: 12, RefcountBits: bits}
	}
	m["version=2"] = lab.Spec{VirtualBytes: 64 << 20, Version: 2, Layout: lab.Random, Fill: 0.5}
	m["random"] = lab.Spec{VirtualBytes: 1 << 30, ClusterBits: 12, Layout: lab.Random, Fill: 0.3}
	m["runs"] = lab.Spec{VirtualBytes: 1 << 30, Layout: lab.Runs(16)}
	m["snapshots"] = lab.Spec{VirtualBytes: 64 << 20, ClusterBits: 12, Snapshots: 5, Rewrite: 0.2}
	m["extended"] = lab.Spec{VirtualBytes: 64 << 20, ExtendedL2: true, Partial: 0.3, Snapshots: 1}
	m["compressed"] = lab.Spec{VirtualBytes: 16 << 20, Compressed: 0.6, ZeroPlain: 0.1, ZeroAlloc: 0.1}
	m["data file"] = lab.Spec{VirtualBytes: 16 << 20, DataFile: "payload", RawDataFile: true}
	m["bitmaps"] = lab.Spec{VirtualBytes: 64 << 20, Bitmaps: 3}
	m["leaks"] = lab.Spec{VirtualBytes: 64 << 20, Leaks: 7, TailLeaks: 3}
	m["duplicates"] = lab.Spec{VirtualBytes: 64 << 20, Duplicates: 5}
	m["empty"] = lab.Spec{VirtualBytes: 64 << 20, Fill: -1}
	m["hole"] = lab.Spec{VirtualBytes: 10 << 10, ClusterBits: 9, AppendHole: 1 << 30}
	return m
}

// build makes an image and requires that checking it changes nothing.
func build(t testing.TB, spec lab.Spec) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	if err := lab.Write(path, spec); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheckAgreesWithQemuImg(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for name, spec := range specs() {
		t.Run(name, func(t *testing.T) {
			path := build(t, spec)
			diskio.RequireUnchanged(t, path)
			if d := agrees(t, path); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestLabZoo makes the images of the lab's zoo once for what is tried with all of them.
func TestLabZoo(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	animals, err := labzoo.Fill(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	animals = slices.DeleteFunc(animals, func(a labzoo.Image) bool { return a.Format != "qcow2" })
	t.Run("check", func(t *testing.T) { checkAgreesOver(t, animals) })
	t.Run("reconstruct", func(t *testing.T) { reconstructAll(t, animals, testenv.Rounds(4, 1, 1)) })
}

func checkAgreesOver(t *testing.T, animals []labzoo.Image) {
	for _, a := range animals {
		if a.Encrypted {
			continue
		}
		t.Run(a.Name, func(t *testing.T) {
			diskio.RequireUnchanged(t, a.Path)
			if d := agrees(t, a.Path); d != "" {
				t.Error(d)
			}
			res, err := check(t, a.Path)
			if err != nil {
				t.Fatal(err)
			}
			if !a.Leaks && !a.Dirty && finding.Worst(res.Findings) != finding.Note {
				t.Errorf("Check(%s) = %+v, want nothing", a.Name, res.Findings)
			}
		})
	}
}

// metadata lists the ranges of an image that a check reads: header, tables, refcounts.
func metadata(img []byte) (list [][2]int) {
	be := binary.BigEndian
	cs := 1 << be.Uint32(img[20:])
	l1, n := int(be.Uint64(img[40:])), int(be.Uint32(img[36:]))
	reft := int(be.Uint64(img[48:]))
	list = append(list, [2]int{0, 320}, [2]int{l1, 8 * n}, [2]int{reft, 64})
	for i := range n {
		if off := int(be.Uint64(img[l1+8*i:]) & qcow2.OffsetMask); off != 0 {
			list = append(list, [2]int{off, min(cs, 2048)}, [2]int{off, min(cs, 2048)})
		}
	}
	for i := range 8 {
		if off := int(be.Uint64(img[reft+8*i:])); off != 0 {
			list = append(list, [2]int{off, min(cs, 1024)}, [2]int{off, min(cs, 1024)})
		}
	}
	if off := int(be.Uint64(img[64:])); off != 0 {
		list = append(list, [2]int{off, 300})
	}
	return list
}

// spoil changes a few bytes of metadata.
func spoil(rnd *rand.Rand, img []byte) (what string) {
	for range []int{1, 1, 1, 2, 4}[rnd.IntN(5)] {
		places := metadata(img)
		p := places[rnd.IntN(len(places))]
		off := p[0] + rnd.IntN(p[1])
		if off < 0 || off >= len(img) { // by an offset that was spoiled before
			continue
		}
		old := img[off]
		img[off] = []byte{old ^ 1<<rnd.IntN(8), 0, 0xff, byte(rnd.IntN(256))}[rnd.IntN(4)]
		what += fmt.Sprintf("%#x: %#x -> %#x ", off, old, img[off])
		be, end := binary.BigEndian, uint64(len(img))
		n := uint64(be.Uint32(img[36:]))
		if be.Uint32(img[20:]) > 21 || n > 1<<16 || be.Uint64(img[40:]) > end || be.Uint64(img[40:])+8*n > end ||
			be.Uint64(img[48:]) > end-64 {
			break // metadata can no longer be found
		}
	}
	return what
}

// spoilable are the images that are small enough to be spoiled many times.
func spoilable(t *testing.T) (imgs map[string][]byte) {
	imgs = map[string][]byte{}
	for name, spec := range specs() {
		switch name {
		case "hole", "data file", "random", "runs", "cluster=1048576", "cluster=2097152":
			continue
		}
		img, err := os.ReadFile(build(t, spec))
		if err != nil {
			t.Fatal(err)
		}
		if len(img) < 100<<20 {
			imgs[name] = img
		}
	}
	return imgs
}

// A single byte of metadata, or a few, are changed; afterwards both must say the same. The seed of
// a failure is in its name.
func TestCheckAgreesOnSpoiledImages(t *testing.T) {
	testenv.Need(t, "qemu-img")
	imgs := spoilable(t)
	names := make([]string, 0, len(imgs))
	for n := range imgs {
		names = append(names, n)
	}
	slices.Sort(names)
	path := filepath.Join(t.TempDir(), "spoiled.qcow2")
	for seed := range testenv.Rounds(30, 300, 10000) {
		rnd := rand.New(rand.NewPCG(uint64(seed), 1))
		name := names[rnd.IntN(len(names))]
		img := slices.Clone(imgs[name])
		what := spoil(rnd, img)
		if err := os.WriteFile(path, img, 0o600); err != nil {
			t.Fatal(err)
		}
		if d := agrees(t, path); d != "" {
			t.Errorf("seed %d, image %q, %s: %s", seed, name, what, d)
		}
	}
}

// A random valid image is clean; a random single fault is found, and named with the part of the
// disk that it hurts.
func TestCheckFindsEveryFault(t *testing.T) {
	dir := t.TempDir()
	for seed := range testenv.Rounds(25, 250, 5000) {
		path := filepath.Join(dir, fmt.Sprintf("%d.qcow2", seed))
		spec := lab.RandomSpec(uint64(seed))
		if err := lab.Write(path, spec); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		res, err := check(t, path)
		if err != nil || len(res.Findings) > 0 || len(res.Blind) > 0 {
			t.Errorf("seed %d: Check(valid image) = %+v, %v, want nothing", seed, res, err)
		}
		hit, err := lab.Break(path, uint64(seed))
		if err != nil {
			t.Fatalf("seed %d: Break() = %v", seed, err)
		}
		if why := missed(t, path, hit); why != "" {
			t.Errorf("seed %d, fault %s: %s", seed, hit.Fault, why)
		}
		os.Remove(path)
	}
}

// missed says what a check did not see of a fault.
func missed(t *testing.T, path string, hit lab.Hit) string {
	res, err := check(t, path)
	if hit.Refused {
		if err == nil && finding.Worst(res.Findings).Rank() > finding.Danger.Rank() {
			return fmt.Sprintf("Check() = %+v, want a refusal", res.Findings)
		}
		return ""
	}
	if err != nil {
		return fmt.Sprintf("Check() = %v", err)
	}
	var codes []string
	// Where single entries were wiped, nothing on the disk may tell which part of it they mapped.
	touched := len(hit.Guest) == 0 || hit.Fault == "l2-entry-wiped" || hit.Fault == "l2-sector-wiped"
	for _, f := range res.Findings {
		codes = append(codes, f.Code)
		if !kindWord.MatchString(f.Kind) {
			return fmt.Sprintf("Check() found a %s of the kind %q, which is no word", f.Code, f.Kind)
		}
		for _, g := range f.Guest {
			for _, h := range hit.Guest {
				touched = touched || g.Offset < h.End() && h.Offset < g.End()
			}
		}
	}
	if !slices.ContainsFunc(hit.Want, func(c string) bool { return slices.Contains(codes, c) }) {
		return fmt.Sprintf("Check() found %v, want one of %v", codes, hit.Want)
	}
	if !touched {
		return fmt.Sprintf("Check() found %v, but in no range of %v", codes, hit.Guest)
	}
	return ""
}

// Each fault by its name, on an image where it is possible.
func TestCheckFindsFaultsByName(t *testing.T) {
	bases := []lab.Spec{
		{VirtualBytes: 2 << 30, Fill: 0.05, Front: true},
		{VirtualBytes: 8 << 20, ClusterBits: 12, Snapshots: 2, Rewrite: 0.3, Bitmaps: 2},
		{VirtualBytes: 16 << 20, Compressed: 0.5},
		{VirtualBytes: 16 << 20, ExtendedL2: true, Partial: 0.5, Fill: 0.5},
		{VirtualBytes: 16 << 20, ExtendedL2: true, Compressed: 0.5},
		{VirtualBytes: 16 << 20, DataFile: "payload", RawDataFile: true},
		{VirtualBytes: 4 << 20, ClusterBits: 9},
		{VirtualBytes: 16 << 20, Backing: "base.raw", BackingFormat: "raw", FeatureNames: true},
		{VirtualBytes: 8 << 20, ClusterBits: 12, RefcountBits: 2},
	}
	for _, fault := range lab.Faults() {
		switch fault.Name {
		case "data-file-missing": // seen by who opens the data file
			continue
		case "encryption-header-past-end": // TestCheckFindsLostEncryptionHeader
			continue
		}
		t.Run(fault.Name, func(t *testing.T) {
			applied := 0
			for i, spec := range bases {
				path := build(t, spec)
				hit, err := fault.Apply(path, uint64(i))
				if errors.Is(err, lab.ErrNotApplicable) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				applied++
				if why := missed(t, path, hit); why != "" {
					t.Errorf("on image %d: %s", i, why)
				}
			}
			if applied == 0 {
				t.Error("no image here can have this fault")
			}
		})
	}
}

func TestCheckFindsLostEncryptionHeader(t *testing.T) {
	testenv.Need(t, "qemu-img")
	path := filepath.Join(t.TempDir(), "luks.qcow2")
	var out []byte
	err := errors.New("not tried")
	// qemu measures the CPU to choose the work of the key, and gives up where it cannot.
	for try := 0; try < 100 && err != nil; try++ {
		out, err = exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x",
			"-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, "4M").CombinedOutput()
	}
	if err != nil {
		t.Fatalf("qemu-img create: %v: %s", err, out)
	}
	if res, err := check(t, path); err != nil || len(res.Findings) > 0 {
		t.Fatalf("Check(encrypted) = %+v, %v, want nothing", res, err)
	}
	i := slices.IndexFunc(lab.Faults(), func(f lab.Fault) bool { return f.Name == "encryption-header-past-end" })
	hit, err := lab.Faults()[i].Apply(path, 1)
	if err != nil {
		t.Fatal(err)
	}
	if why := missed(t, path, hit); why != "" {
		t.Error(why)
	}
}

// Two entries lead to one cluster whose refcount has room for one.
func TestCheckFindsOverflow(t *testing.T) {
	path := build(t, lab.Spec{VirtualBytes: 16 << 20, RefcountBits: 1})
	i := slices.IndexFunc(lab.Faults(), func(f lab.Fault) bool { return f.Name == "l2-entry-cross-link" })
	if _, err := lab.Faults()[i].Apply(path, 1); err != nil {
		t.Fatal(err)
	}
	diskio.RequireUnchanged(t, path)
	res, err := check(t, path)
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, f := range res.Findings {
		codes = append(codes, f.Code)
		if f.Code == finding.QC23.Code && (f.Count != 1 || len(f.Host) != 1) {
			t.Errorf("Check() = %+v, want one cluster and its place", f)
		}
	}
	if !slices.Contains(codes, finding.QC23.Code) {
		t.Errorf("Check() found %v, want %s among them", codes, finding.QC23.Code)
	}
}

// Wiped sectors of a table that was written in order are placed exactly.
func TestCheckPlacesWipedSectors(t *testing.T) {
	for _, name := range []string{"l2-sector-wiped", "l2-wiped", "l1-entry-wiped"} {
		i := slices.IndexFunc(lab.Faults(), func(f lab.Fault) bool { return f.Name == name })
		if i < 0 {
			t.Fatalf("the lab has no fault %s", name)
		}
		for seed := range uint64(6) {
			path := build(t, lab.Spec{VirtualBytes: 4 << 30, ClusterBits: 16})
			hit, err := lab.Faults()[i].Apply(path, seed)
			if err != nil {
				t.Fatal(err)
			}
			res, err := check(t, path)
			if err != nil {
				t.Fatal(err)
			}
			at := slices.IndexFunc(res.Findings, func(f finding.Finding) bool { return f.Code == "QC13" })
			if at < 0 {
				t.Errorf("%s, seed %d: Check() = %+v, want QC13", name, seed, res.Findings)
				continue
			}
			// At the end of the file a crash is as good an explanation.
			last := hit.Guest[0].End() == 4<<30
			if f := res.Findings[at]; f.Certainty != finding.Likely && !last || !cmp.Equal(f.Guest, hit.Guest) {
				t.Errorf("%s, seed %d: Check() places it at %v (%s), want %v", name, seed, f.Guest, f.Certainty, hit.Guest)
			}
		}
	}
}

func TestCheckStopsWhenAsked(t *testing.T) {
	path := build(t, lab.Spec{VirtualBytes: 1 << 30, ClusterBits: 12})
	f, err := diskio.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := qcow2.Check(ctx, f, f.Size(), qcow2.CheckOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Check(cancelled) = %v, want %v", err, context.Canceled)
	}
}

func TestCheckInflates(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	for _, kind := range []string{"zlib", "zstd"} {
		t.Run(kind, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "packed.qcow2")
			run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compression_type="+kind, path, "8M")
			run(t, "qemu-io", "-c", "write -c -P 7 0 1M", "-c", "write -c -P 9 2M 1M", path)
			inflate := func() *qcow2.Result {
				f, err := diskio.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				res, err := qcow2.Check(t.Context(), f, f.Size(), qcow2.CheckOptions{Inflate: true, DataFileBytes: -1})
				if err != nil {
					t.Fatal(err)
				}
				return res
			}
			if res := inflate(); len(res.Findings)+len(res.Blind) > 0 {
				t.Fatalf("Check(inflate) = %+v, %+v, want nothing", res.Findings, res.Blind)
			}
			img, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			be := binary.BigEndian
			l2 := be.Uint64(img[be.Uint64(img[40:]):]) & qcow2.OffsetMask
			h, err := qcow2.ReadHeader(bytes.NewReader(img), int64(len(img)))
			if err != nil {
				t.Fatal(err)
			}
			off, _ := h.CompressedRange(be.Uint64(img[l2+8*33:]))
			for i := range 8 {
				img[int64(off)+int64(i)] ^= 0xff
			}
			if err := os.WriteFile(path, img, 0o600); err != nil {
				t.Fatal(err)
			}
			res := inflate()
			want := []finding.Range{{Offset: 33 << 16, Length: 1 << 16}}
			if len(res.Findings) != 1 || res.Findings[0].Code != "QC18" || !cmp.Equal(res.Findings[0].Guest, want) {
				t.Errorf("Check(inflate) = %+v, want QC18 at %v", res.Findings, want)
			}
		})
	}
}
