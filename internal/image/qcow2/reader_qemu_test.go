// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"encoding/json"
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
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/imagetest"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// run runs a program of qemu and gives its output.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).Output()
	if err != nil {
		var text []byte
		if e, ok := err.(*exec.ExitError); ok {
			text = e.Stderr
		}
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, text)
	}
	return out
}

// made is an image made by qemu.
type made struct {
	name     string
	options  string // for qemu-img create -o
	clusters int64  // bytes in a cluster
	write    bool   // write to it
	pack     bool   // write compressed clusters
	snaps    bool   // take snapshots between the writes
	backing  bool
	dataFile bool
	v2       bool
}

func zoo() []made {
	all := []made{
		{name: "preallocated metadata", options: "preallocation=metadata", clusters: 64 << 10,
			write: true},
		{name: "preallocated falloc", options: "preallocation=falloc", clusters: 64 << 10,
			write: true},
		{name: "preallocated and subclusters", options: "preallocation=metadata,extended_l2=on",
			clusters: 64 << 10, write: true},
		{name: "lazy refcounts", options: "lazy_refcounts=on", clusters: 64 << 10, write: true},
		{name: "refcounts of 1 bit", options: "refcount_bits=1", clusters: 4 << 10, write: true},
		{name: "refcounts of 64 bits", options: "refcount_bits=64", clusters: 4 << 10, write: true,
			snaps: true},
		{name: "raw data file", options: "data_file_raw=on", clusters: 64 << 10, write: true,
			dataFile: true},
		{name: "data file and subclusters", options: "extended_l2=on", clusters: 32 << 10,
			write: true, dataFile: true},
		{name: "zstd and subclusters", options: "extended_l2=on,compression_type=zstd",
			clusters: 64 << 10, write: true, pack: true},
		{name: "backing and subclusters", options: "extended_l2=on", clusters: 128 << 10,
			write: true, pack: true, backing: true},
		{name: "never written", clusters: 64 << 10},
	}
	sizes := []int64{512, 64 << 10, 2 << 20}
	if testenv.Long() {
		sizes = []int64{512, 1 << 10, 4 << 10, 32 << 10, 64 << 10, 512 << 10, 2 << 20}
	}
	for _, cs := range sizes {
		all = append(all,
			made{name: "version 2", options: "compat=0.10", clusters: cs, write: true, pack: true,
				snaps: true, v2: true},
			made{name: "zlib", clusters: cs, write: true, pack: true},
			made{name: "zstd", options: "compression_type=zstd", clusters: cs, write: true,
				pack: true},
			made{name: "snapshots", clusters: cs, write: true, pack: true, snaps: true},
		)
		if cs == 512 || cs == 64<<10 || testenv.Long() {
			all = append(all,
				made{name: "data file", clusters: cs, write: true, dataFile: true},
				made{name: "backing", clusters: cs, write: true, pack: true, backing: true})
		}
		if cs >= 16<<10 {
			all = append(all, made{name: "subclusters", options: "extended_l2=on", clusters: cs,
				write: true, pack: true, snaps: true})
		}
	}
	return all
}

// script gives commands for qemu-io that write here and there. It notes the clusters that it
// writes: a compressed cluster can only be written where there is none yet.
func (m made) script(rnd *rand.Rand, size int64, written map[int64]bool) []string {
	var args []string
	add := func(format string, a ...any) { args = append(args, "-c", fmt.Sprintf(format, a...)) }
	sectors := func(n int64) int64 { return rnd.Int64N(max(1, n/512)) * 512 }
	for i := range 40 {
		off := sectors(size)
		n := min(size-off, 512+sectors(m.clusters*(1+rnd.Int64N(4))))
		if rnd.IntN(2) == 0 {
			off, n = off&^(m.clusters-1), m.clusters*(1+rnd.Int64N(3))
			n = min(n, size-off)
		}
		kind := rnd.IntN(8)
		pack := m.pack && kind >= 3 && kind <= 4 && !written[off/m.clusters]
		if pack {
			off &^= m.clusters - 1
			n = min(m.clusters, size-off)
		}
		for c := off / m.clusters; c <= (off+n-1)/m.clusters; c++ {
			written[c] = true
		}
		switch {
		case kind == 0:
			add("write -z %d %d", off, n)
		case kind == 1 && !m.v2:
			add("write -z -u %d %d", off, n)
		case kind == 2:
			add("discard %d %d", off, n)
		case pack:
			add("write -c -P %d %d %d", i+1, off, n)
		default:
			add("write -P %d %d %d", i+1, off, n)
		}
	}
	return args
}

// make makes the image in dir and gives its path.
func (m made) make(t *testing.T, dir string, rnd *rand.Rand) string {
	t.Helper()
	path := filepath.Join(dir, "disk.qcow2")
	size := min(max(3<<20, 3*m.clusters), 200*m.clusters) + 5*512
	options := []string{fmt.Sprintf("cluster_size=%d", m.clusters)}
	if m.options != "" {
		options = append(options, m.options)
	}
	if m.dataFile {
		options = append(options, "data_file="+filepath.Join(dir, "disk.data"))
	}
	args := []string{"create", "-q", "-f", "qcow2", "-o", strings.Join(options, ",")}
	if m.backing {
		base := filepath.Join(dir, "base.raw")
		if err := os.WriteFile(base, slices.Repeat([]byte{0xbb}, int(size)), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-b", base, "-F", "raw")
	}
	run(t, "qemu-img", append(args, path, fmt.Sprint(size))...)
	if !m.write {
		return path
	}
	written := map[int64]bool{}
	run(t, "qemu-io", append(m.script(rnd, size, written), path)...)
	if m.snaps {
		for _, name := range []string{"first", "second one"} {
			run(t, "qemu-img", "snapshot", "-c", name, path)
			run(t, "qemu-io", append(m.script(rnd, size, written), path)...)
		}
	}
	return path
}

// opened is an image file that is open with all that a Disk of it needs.
type opened struct {
	f         *diskio.File
	h         *qcow2.Header
	o         qcow2.DiskOptions
	snapshots []qcow2.Snapshot
}

func open(t *testing.T, path string) opened {
	t.Helper()
	f := openFile(t, path)
	h, err := qcow2.ReadHeader(f, f.Size())
	if err != nil {
		t.Fatalf("ReadHeader(%s): %v", path, err)
	}
	o := opened{f: f, h: h}
	if h.DataFile != "" {
		data := openFile(t, h.DataFile)
		o.o.Data, o.o.DataBytes = data, data.Size()
	}
	table, err := qcow2.ReadSnapshots(f, f.Size(), h)
	if err != nil {
		t.Fatalf("ReadSnapshots(%s): %v", path, err)
	}
	o.snapshots = table.Snapshots
	return o
}

// disk gives the active disk, or the snapshot of that name.
func (o opened) disk(t *testing.T, snapshot string) *qcow2.Disk {
	t.Helper()
	if snapshot != "" {
		i := slices.IndexFunc(o.snapshots,
			func(s qcow2.Snapshot) bool { return s.Name == snapshot })
		if i < 0 {
			t.Fatalf("ReadSnapshots = %+v, want one named %q", o.snapshots, snapshot)
		}
		o.o.Snapshot = &o.snapshots[i]
	}
	d, err := qcow2.NewDisk(o.f, o.f.Size(), o.h, o.o)
	if err != nil {
		t.Fatalf("NewDisk(%s): %v", o.f.Name(), err)
	}
	return d
}

func openFile(t *testing.T, path string) *diskio.File {
	t.Helper()
	diskio.RequireUnchanged(t, path)
	f, err := diskio.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// alone names an image to qemu without its backing file.
func alone(path string) string {
	name, _ := json.Marshal(path) // a string
	return `json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":` + string(name) + `}}`
}

// qemuReads is what qemu reads from an image without its backing file.
func qemuReads(t *testing.T, path, snapshot string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "disk.raw")
	args := []string{"convert", "-O", "raw"}
	if snapshot != "" {
		args = append(args, "-l", "snapshot.name="+snapshot)
	}
	run(t, "qemu-img", append(args, alone(path), out)...)
	want, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return want
}

// mapEntry is an entry of qemu-img map.
type mapEntry struct {
	Start   int64  `json:"start"`
	Length  int64  `json:"length"`
	Present bool   `json:"present"`
	Zero    bool   `json:"zero"`
	Data    bool   `json:"data"`
	Offset  *int64 `json:"offset"`
}

func (e mapEntry) continues(last mapEntry) bool {
	return e.Present == last.Present && e.Zero == last.Zero && e.Data == last.Data &&
		(e.Offset == nil) == (last.Offset == nil) &&
		(e.Offset == nil || *last.Offset+last.Length == *e.Offset)
}

func joinEntries(es []mapEntry) []mapEntry {
	var out []mapEntry
	for _, e := range es {
		if n := len(out); n > 0 && e.continues(out[n-1]) {
			out[n-1].Length += e.Length
		} else {
			out = append(out, e)
		}
	}
	return out
}

// qemuMaps is the map of qemu. Where an image looks preallocated, qemu asks the file system for
// holes behind the data; that is not the business of one image's reader and left out.
func qemuMaps(t *testing.T, path string) []mapEntry {
	t.Helper()
	var es []mapEntry
	if err := json.Unmarshal(run(t, "qemu-img", "map", "--output=json", alone(path)),
		&es); err != nil {
		t.Fatal(err)
	}
	for i := range es {
		es[i].Zero = es[i].Zero && !es[i].Data
	}
	return joinEntries(es)
}

// ourMap is our map, in the words of qemu.
func ourMap(t *testing.T, d *qcow2.Disk) []mapEntry {
	t.Helper()
	var es []mapEntry
	err := d.Map(t.Context(), 0, d.Size(), func(x image.Extent) error {
		e := mapEntry{
			Start: int64(x.Guest), Length: x.Length, Present: x.Kind != image.Unallocated,
			Zero: x.Kind == image.Zero || x.Kind == image.Unallocated,
			Data: x.Kind == image.Data || x.Kind == image.Compressed,
		}
		if x.HasHost && d.Header().Crypt == qcow2.CryptNone {
			host := int64(x.Host)
			e.Offset = &host
		}
		es = append(es, e)
		return nil
	})
	if err != nil {
		t.Fatalf("Map: %v", err)
	}
	return es
}

// TestAgainstQemu holds bytes and maps against those of qemu.
func TestAgainstQemu(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	for i, m := range zoo() {
		t.Run(fmt.Sprintf("%s clusters=%d", m.name, m.clusters), func(t *testing.T) {
			t.Parallel()
			path := m.make(t, testenv.DiskDir(t), rand.New(rand.NewPCG(uint64(i), 11)))
			want, wantMap := qemuReads(t, path, ""), qemuMaps(t, path)
			o := open(t, path)
			imagetest.Run(t, func(t *testing.T) (image.Reader, []byte) {
				return o.disk(t, ""),
					want
			})
			if diff := cmp.Diff(wantMap, ourMap(t, o.disk(t, ""))); diff != "" {
				t.Errorf("Map(%s) (-qemu +got):\n%s", path, diff)
			}
			if !m.snaps {
				return
			}
			for _, name := range []string{"first", "second one"} {
				d, want := o.disk(t, name), qemuReads(t, path, name)
				got := make([]byte, d.Size())
				if n, err := d.ReadAt(got, 0); n != len(got) || err != nil {
					t.Errorf("ReadAt(all of %s) = %d, %v, want %d", name, n, err, len(got))
				}
				imagetest.Equal(t, "ReadAt(all of "+name+")", got, want)
			}
		})
	}
}

// What we draw ourselves is what qemu reads from it too.
func TestDrawnAgainstQemu(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for i, f := range []features{
		{version: 2, clusterBits: 9},
		{version: 2, clusterBits: 16},
		{version: 3, clusterBits: 12},
		{version: 3, clusterBits: 16, zstd: true},
		{version: 3, clusterBits: 14, extended: true},
		{version: 3, clusterBits: 17, extended: true, zstd: true},
		{version: 3, clusterBits: 21},
	} {
		t.Run(fmt.Sprintf("%+v", f), func(t *testing.T) {
			f.sizeBytes = sizeFor(f.clusterBits)
			g := draw(t, rand.New(rand.NewPCG(uint64(i), 21)), f)
			path := filepath.Join(t.TempDir(), "drawn.qcow2")
			if err := os.WriteFile(path, g.file, 0o644); err != nil {
				t.Fatal(err)
			}
			imagetest.Equal(t, "what qemu reads", qemuReads(t, path, ""), g.want)
			if diff := cmp.Diff(qemuMaps(t, path), ourMap(t, show(t, g))); diff != "" {
				t.Errorf("Map (-qemu +got):\n%s", diff)
			}
		})
	}
}
