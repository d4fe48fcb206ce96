// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// victim is an image in memory that a test breaks.
type victim struct {
	img []byte
	h   *qcow2.Header
}

func (v victim) word(off int64) uint64      { return binary.BigEndian.Uint64(v.img[off:]) }
func (v victim) put(off int64, word uint64) { binary.BigEndian.PutUint64(v.img[off:], word) }
func (v victim) wipe(off, n int64)          { clear(v.img[off : off+n]) }
func (v victim) l1(i int64) int64           { return int64(v.h.L1Off) + 8*i }
func (v victim) l2(i int64) int64           { return int64(v.word(v.l1(i)) & qcow2.OffsetMask) }
func (v victim) snapshotL1() int64          { return int64(v.word(int64(v.h.SnapshotsOff))) }
func (v victim) refcount(cluster int64) int64 {
	return int64(v.word(int64(v.h.ReftableOff))) + 2*cluster
}

// What a check says of an image is what somebody does next. Where data may be lost nothing may be
// called harmless, and nothing that is counted may go without a finding.
func TestCheckTellsTheTruth(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	const sector = 512
	for _, tt := range []struct {
		name     string
		size     string
		options  string
		commands []string // qemu-io, or "snapshot NAME"
		damage   func(v victim)
		want     finding.Severity
		code     string
		certain  finding.Certainty
		snapshot string
	}{
		{"a table used only between the places looked at", "2G", "",
			[]string{"write 10M 20M", "write 513M 1M", "write 1100M 1M"},
			func(v victim) { v.put(v.l1(0), 0) }, finding.Lost, "QC13", finding.Possible, ""},
		{"a table of two entries", "2G", "", []string{"write 0 128k", "write 513M 1M", "write 1100M 1M"},
			func(v victim) { v.put(v.l1(0), 0) }, finding.Lost, "QC13", finding.Possible, ""},
		{"a wiped table whose clusters a snapshot holds", "1G", "",
			[]string{"write 0 20M", "snapshot one", "write 0 64k"},
			func(v victim) { v.wipe(v.l2(0), v.h.ClusterSize()) }, finding.Lost, "QC13", finding.Likely, ""},
		{"a snapshot's wiped L1 entry", "1G", "", []string{"write 0 20M", "snapshot one"},
			func(v victim) { v.put(v.snapshotL1(), 0) }, finding.Lost, "QC13", finding.Possible, "one"},
		{"the wiped end of the last table", "1G", "", []string{"write 0 64M"},
			func(v victim) { v.wipe(v.l2(0)+8*sector, 8*sector) }, finding.Waste, "QC14", finding.Likely, ""},
		{"the wiped end of the last table, of a few entries", "1G", "", []string{"write 0 66048k"},
			func(v victim) { v.wipe(v.l2(0)+16*sector, sector) }, finding.Waste, "QC14", finding.Likely, ""},
		{"a snapshot that the header no longer counts", "1G", "",
			[]string{"write 500M 30M", "snapshot one", "write 500M 30M"},
			func(v victim) { v.wipe(60, 12) }, finding.Lost, "QC13", finding.Possible, ""},
		{"late refcounts", "1G", "lazy_refcounts=on", []string{"write 0 4M"}, func(v victim) {
			v.put(72, qcow2.IncompatDirty)
			v.wipe(v.refcount(8), 16)
		}, finding.Warning, "QC04", finding.Sure, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := makeVictim(t, tt.size, tt.options, tt.commands)
			tt.damage(v)
			res := checkBytes(t, v.img)
			if w := finding.Worst(res.Findings); w != tt.want {
				t.Errorf("worst finding is %s, want %s: %+v", w, tt.want, res.Findings)
			}
			if !slices.ContainsFunc(res.Findings, func(f finding.Finding) bool {
				return f.Code == tt.code && f.Severity == tt.want && f.Certainty == tt.certain && f.Snapshot == tt.snapshot
			}) {
				t.Errorf("no %s of severity %s that is %s in snapshot %q: %+v", tt.code, tt.want, tt.certain,
					tt.snapshot, res.Findings)
			}
			if len(res.Findings) > 3 {
				t.Errorf("%d findings, want 3 at most: %+v", len(res.Findings), res.Findings)
			}
			for _, f := range res.Findings {
				if strings.Contains(f.Summary, "no harm to data") || strings.HasPrefix(f.Next, "harmless") {
					t.Errorf("data was lost, and %s says %q, %q", f.Code, f.Summary, f.Next)
				}
			}
		})
	}
}

func makeVictim(t *testing.T, size, options string, commands []string) victim {
	t.Helper()
	path := filepath.Join(t.TempDir(), "v.qcow2")
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=64k"+strings.TrimSuffix(","+options, ","), path, size)
	for _, c := range commands {
		if name, ok := strings.CutPrefix(c, "snapshot "); ok {
			run("qemu-img", "snapshot", "-c", name, path)
			continue
		}
		run("qemu-io", "-f", "qcow2", "-c", c, path)
	}
	img, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := qcow2.ReadHeader(bytes.NewReader(img), int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	return victim{img, h}
}

func checkBytes(t *testing.T, img []byte) *qcow2.Result {
	t.Helper()
	res, err := qcow2.Check(t.Context(), bytes.NewReader(img), int64(len(img)), qcow2.CheckOptions{DataFileBytes: -1})
	if err != nil {
		t.Fatalf("Check() = %v, want a result", err)
	}
	return res
}

// Compressed data lies in several clusters. One of them with a refcount that is too low is found,
// whichever it is, with the guest ranges that need it.
func TestCheckFindsLowRefcountsOfCompressedClusters(t *testing.T) {
	testenv.Need(t, "qemu-img")
	dir := t.TempDir()
	raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "v.qcow2")
	p := make([]byte, 1<<20)
	for i, x := 0, uint32(1); i < len(p); i++ {
		x = x*1664525 + 1013904223
		p[i] = byte(x>>24) & 63 // three quarters of its size when packed
	}
	if err := os.WriteFile(raw, p, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "convert", "-c", "-O", "qcow2", raw, path).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img convert: %v\n%s", err, out)
	}
	img, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := qcow2.ReadHeader(bytes.NewReader(img), int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	v, tried := victim{img, h}, 0
	for cluster := int64(0); cluster < int64(len(img))>>16; cluster++ {
		at := v.refcount(cluster)
		old := binary.BigEndian.Uint16(img[at:])
		if old < 2 {
			continue
		}
		tried++
		binary.BigEndian.PutUint16(img[at:], old-1)
		res := checkBytes(t, img)
		if i := slices.IndexFunc(res.Findings, func(f finding.Finding) bool { return f.Code == "QC02" }); i < 0 ||
			len(res.Findings[i].Guest) == 0 || res.Counts.Corruptions == 0 {
			t.Errorf("cluster %d: found %+v, %d corruptions; want QC02 with guest ranges", cluster, res.Findings,
				res.Counts.Corruptions)
		}
		binary.BigEndian.PutUint16(img[at:], old)
	}
	if tried == 0 {
		t.Fatal("no cluster holds several pieces of compressed data")
	}
}

// The offset of a snapshot's L1 table is a number from outside too: added to the table's length it
// may go beyond 2^64.
func TestCheckSurvivesSnapshotsAtTheEndOfNumbers(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	v := makeVictim(t, "1G", "", []string{"write 0 1M", "snapshot one"})
	binary.BigEndian.PutUint32(v.img[v.h.SnapshotsOff+8:], 8192)
	for _, off := range []uint64{math.MaxUint64 - 0xffff, 0xffffffff00000000, 1 << 63, math.MaxInt64 &^ 0xffff} {
		v.put(int64(v.h.SnapshotsOff), off)
		if res := checkBytes(t, v.img); finding.Worst(res.Findings) != finding.Lost {
			t.Errorf("L1 table at %#x: found %+v, want it to be lost", off, res.Findings)
		}
		path := filepath.Join(t.TempDir(), "v.qcow2")
		if err := os.WriteFile(path, v.img, 0o600); err != nil {
			t.Fatal(err)
		}
		want := qemuChecks(t, path)
		lines, _, _ := trace(t, path)
		if !slices.Equal(lines, want.lines) {
			t.Errorf("L1 table at %#x: Trace() says %q, qemu-img %q", off, lines, want.lines)
		}
	}
}

// Entries of the refcount table that share one block make millions of wrong refcounts of a few
// clusters. The memory allowed bounds what is kept of them, and what is not kept is said.
func TestCheckBoundsWrongRefcounts(t *testing.T) {
	const table, block = 1 << 20, 2 << 20
	img := make([]byte, block+512)
	be := binary.BigEndian
	copy(img, "QFI\xfb")
	be.PutUint32(img[4:], 3)
	be.PutUint32(img[20:], 9) // clusters of 512 bytes
	be.PutUint64(img[24:], 1<<20)
	be.PutUint32(img[36:], 32)
	be.PutUint64(img[40:], 512)
	be.PutUint64(img[48:], table)
	be.PutUint32(img[56:], (block-table)/512)
	be.PutUint32(img[100:], 104) // refcounts of one bit
	for off := table; off < block; off += 8 {
		be.PutUint64(img[off:], block)
	}
	for i := range 512 {
		img[block+i] = 0x55
	}
	const size, memory = 16 << 30, 8 << 20
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	res, err := qcow2.Check(t.Context(), sparse{img, size}, size,
		qcow2.CheckOptions{DataFileBytes: -1, MemoryBytes: memory, Workers: 1, Readers: 1})
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(size) / 512 / 2; res.Counts.Leaks < want-8192 || res.Counts.Leaks > want {
		t.Errorf("%d leaks, want about %d", res.Counts.Leaks, want)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 8*memory {
		t.Errorf("Check() allocated %d bytes in all, want %d at most", n, 8*memory)
	}
	if len(res.Blind) == 0 || finding.Worst(res.Findings) == finding.Note {
		t.Errorf("found %+v, blind to %+v; want both", res.Findings, res.Blind)
	}
}
