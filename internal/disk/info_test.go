// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// qemuInfo is what qemu-img info --output=json says.
func qemuInfo(t *testing.T, args ...string) []map[string]any {
	t.Helper()
	out, errOut, status := output(t, ".", "qemu-img", append([]string{"info", "--output=json"}, args...)...)
	if status != 0 {
		t.Fatalf("qemu-img info %q = %d\n%s", args, status, errOut)
	}
	var list []map[string]any
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		list = make([]map[string]any, 1)
		if err := json.Unmarshal([]byte(out), &list[0]); err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// inQemusWords gives what n says in the words of qemu. n has all that qemu shows.
func inQemusWords(n *Info) map[string]any {
	type dict = map[string]any
	num := func(v int64) any { return float64(v) }
	d := dict{
		"filename": n.Path, "format": n.Format, "virtual-size": num(n.VirtualBytes),
		"actual-size": num(n.AllocatedBytes), "dirty-flag": false,
	}
	if n.Encrypted {
		d["encrypted"] = true
	}
	if b := n.Backing; b != nil {
		d["backing-filename"], d["full-backing-filename"] = b.Name, b.FullName
		if b.Link.Format != "" {
			d["backing-filename-format"] = b.Format
		}
	}
	var snaps []any
	for _, s := range n.Snapshots {
		sd := dict{
			"id": s.ID, "name": s.Name, "vm-state-size": num(s.VMStateBytes),
			"date-sec": num(s.Date.Unix()), "date-nsec": num(int64(s.Date.Nanosecond())),
			"vm-clock-sec": num(s.VMClockNs / 1e9), "vm-clock-nsec": num(s.VMClockNs % 1e9),
		}
		if s.Icount >= 0 {
			sd["icount"] = num(s.Icount)
		}
		snaps = append(snaps, sd)
	}
	if snaps != nil {
		d["snapshots"] = snaps
	}
	if q := n.Qcow2; q != nil {
		d["dirty-flag"], d["cluster-size"] = q.Dirty, num(n.ClusterBytes)
		spec := dict{"compat": q.Compat, "compression-type": q.Compression, "refcount-bits": num(int64(q.RefcountBits))}
		if q.Version == 3 {
			spec["lazy-refcounts"], spec["corrupt"], spec["extended-l2"] = q.LazyRefcounts, q.Corrupt, q.ExtendedL2
		}
		if n.DataFile != nil {
			spec["data-file"], spec["data-file-raw"] = n.DataFile.Name, q.DataFileRaw
		}
		var maps []any
		for _, b := range q.Bitmaps {
			flags := []any{}
			if b.InUse {
				flags = append(flags, "in-use")
			}
			if b.Auto {
				flags = append(flags, "auto")
			}
			maps = append(maps, dict{"name": b.Name, "granularity": num(b.GranularityBytes), "flags": flags})
		}
		if maps != nil {
			spec["bitmaps"] = maps
		}
		if n.Encryption != nil {
			spec["encrypt"] = encryptInQemusWords(n.Encryption)
		}
		d["format-specific"] = dict{"type": "qcow2", "data": spec}
	}
	return d
}

func encryptInQemusWords(e *Encrypted) map[string]any {
	d := map[string]any{"format": e.Format}
	if l := e.LUKS; l != nil {
		d["cipher-alg"], d["cipher-mode"], d["hash-alg"], d["ivgen-alg"] = l.Cipher, l.CipherMode, l.Hash, l.IVGen
		if l.IVGenHash != "" {
			d["ivgen-hash-alg"] = l.IVGenHash
		}
		d["uuid"], d["payload-offset"] = l.UUID, float64(l.PayloadOffset)
		d["master-key-iters"] = float64(l.MasterKeyIterations)
		var slots []any
		for _, s := range l.Slots {
			sd := map[string]any{"active": s.Active, "key-offset": float64(s.KeyOffset)}
			if s.Active {
				sd["iters"], sd["stripes"] = float64(s.Iterations), float64(s.Stripes)
			}
			slots = append(slots, sd)
		}
		d["slots"] = slots
	}
	return d
}

func sameInfo(t *testing.T, path string, o Options, args ...string) {
	t.Helper()
	got, err := Inspect(t.Context(), path, o)
	if err != nil {
		t.Fatalf("Inspect(%s) = %v", path, err)
	}
	want := qemuInfo(t, append(args, path)...)
	if len(got) != len(want) {
		t.Fatalf("Inspect(%s) = %d images, want %d", path, len(got), len(want))
	}
	for i := range got {
		if len(got[i].Blind) > 0 {
			t.Errorf("Inspect(%s): blind spots %v", path, got[i].Blind)
		}
		w := want[i]
		if got[i].Qcow2 == nil {
			delete(w, "format-specific")
		}
		if diff := cmp.Diff(w, inQemusWords(&got[i])); diff != "" {
			t.Errorf("Inspect(%s), image %d differs from qemu-img info (-qemu +shisa):\n%s", path, i, diff)
		}
	}
}

func TestInfoAsQemu(t *testing.T) {
	for _, seed := range seeds(4, 200) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			path := randomChain(t, newRand(20000+seed))
			sameInfo(t, path, follow, "--backing-chain")
			sameInfo(t, path, Options{Single: true})
		})
	}
}

func TestInfoOfEveryKind(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	dir := testenv.DiskDir(t)
	create := func(name string, args ...string) string {
		path := filepath.Join(dir, name)
		createImage(t, append(append([]string{"create", "-q", "-f"}, args...), path, "10M")...)
		return path
	}
	secret := []string{"--object", "secret,id=s,data=abc"}
	luks := func(opts string) []string {
		return append(append([]string{"qcow2"}, secret...), "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"+opts)
	}
	bitmaps := create("bitmaps", "qcow2")
	run(t, dir, "qemu-img", "bitmap", "--add", bitmaps, "first")
	run(t, dir, "qemu-img", "bitmap", "--add", "--disable", "-g", "512", bitmaps, "second")
	snapshots := create("snapshots", "qcow2", "-o", "lazy_refcounts=on,refcount_bits=64,cluster_size=2M")
	for _, name := range []string{"a", "with blanks", "a"} {
		run(t, dir, "qemu-img", "snapshot", "-c", name, snapshots)
	}
	paths := []string{
		bitmaps, snapshots,
		create("v2", "qcow2", "-o", "compat=0.10"),
		create("narrow", "qcow2", "-o", "refcount_bits=1,extended_l2=on,compression_type=zstd"),
		create("luks", luks("")...),
		create("aes", append(append([]string{"qcow2"}, secret...), "-o", "encrypt.format=aes,encrypt.key-secret=s")...),
		create("raw", "raw"),
	}
	if testenv.Long() { // making a LUKS header takes seconds
		paths = append(paths, create("essiv", luks(",encrypt.cipher-alg=serpent-128,encrypt.cipher-mode=cbc,"+
			"encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=sha512")...))
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			diskio.RequireUnchanged(t, path)
			sameInfo(t, path, Options{})
		})
	}
	// Encrypted disks have a map, but what they hold cannot be read.
	run(t, dir, "qemu-io", append(secret, "--image-opts", "-c", "write -q 0 64k",
		"driver=qcow2,encrypt.key-secret=s,file.filename="+filepath.Join(dir, "luks"))...)
	c := mustOpen(t, filepath.Join(dir, "luks"), Options{})
	if got := chainMap(t, c, 0, 65536); len(got) != 1 || !got[0].Data || got[0].Offset != nil {
		t.Errorf("Map(encrypted) = %+v, want data without an offset", got)
	}
	if _, err := c.ReadAt(make([]byte, 512), 0); !errors.Is(err, qcow2.ErrEncrypted) {
		t.Errorf("ReadAt(encrypted) = %v, want %v", err, qcow2.ErrEncrypted)
	}
}

// createImage runs qemu-img create. On a busy machine qemu sometimes fails to measure how long to
// hash the passphrase of a LUKS header; it is asked again then.
func createImage(t *testing.T, args ...string) {
	t.Helper()
	errOut := ""
	for range 10 {
		var status int
		if _, errOut, status = output(t, ".", "qemu-img", args...); status == 0 {
			return
		} else if !strings.Contains(errOut, "CPU usage") {
			break
		}
	}
	t.Fatalf("qemu-img %q: %s", args, errOut)
}

func TestInfoOtherFormats(t *testing.T) {
	testenv.Need(t, "qemu-img")
	dir := testenv.DiskDir(t)
	formats := []string{"vmdk", "vhdx", "vpc", "vdi", "qed"}
	if testenv.Long() {
		formats = append(formats, "luks")
	}
	for _, format := range formats {
		path := filepath.Join(dir, format)
		args := []string{"create", "-q", "-f", format, path, "10M"}
		if format == "luks" {
			args = []string{"create", "-q", "-f", "luks", "--object", "secret,id=s,data=abc", "-o", "key-secret=s,iter-time=10", path, "10M"}
		}
		createImage(t, args...)
		diskio.RequireUnchanged(t, path)
		infos, err := Inspect(t.Context(), path, Options{})
		if err != nil || infos[0].Format != format {
			t.Errorf("Inspect(%s) = %v, %v", format, infos, err)
			continue
		}
		want := int64(qemuInfo(t, path)[0]["virtual-size"].(float64))
		if n := infos[0]; n.VirtualBytes != want || len(n.Blind) > 0 || n.Encrypted != (format == "luks") {
			t.Errorf("Inspect(%s) = %d bytes, blind %v, want %d", format, n.VirtualBytes, n.Blind, want)
		}
		c, err := Open(t.Context(), path, Options{})
		if err == nil {
			err = c.Close()
		}
		if unread := slices.Contains([]string{"qed", "luks"}, format); unread != errors.Is(err, ErrFormat) ||
			!unread && err != nil {
			t.Errorf("Open(%s) = %v, want %v: %v", format, err, ErrFormat, unread)
		}
	}
}

// What cannot be read is a blind spot, and never an empty list.
func TestInfoBlind(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	overlay(t, path, "", "")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[63], b[64+6] = 200, 0x7f // 200 snapshots, behind the end of the file
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	d, err := Describe(t.Context(), []string{path, filepath.Join(dir, "gone")}, Options{})
	if err != nil || len(d.Disks) != 2 || len(d.Disks[0].Chain) != 1 || len(d.Disks[0].Chain[0].Blind) != 1 {
		t.Fatalf("Describe() = %+v, %v, want one image with a blind spot", d, err)
	}
	if d.Disks[1].Error == "" || !cmp.Equal(d.Status, []int{finding.StatusCannotTell}) {
		t.Errorf("Describe() = %q, status %v, want an error and %d", d.Disks[1].Error, d.Status, finding.StatusCannotTell)
	}
}

func TestDescribeStatus(t *testing.T) {
	dir := tree(t, "base", "other/base")
	in := func(name string) string { return filepath.Join(dir, name) }
	overlay(t, in("good"), "base", "raw")
	overlay(t, in("missing"), "gone", "raw")
	overlay(t, in("loop"), "loop", "qcow2")
	overlay(t, in("other/out"), "../base", "raw")
	overlay(t, in("nbd"), "nbd:x:1", "raw")
	testenv.Need(t, "qemu-img")
	for _, args := range []string{"-f vmdk -o subformat=monolithicFlat extent 1M", "-f qcow2 -o data_file=data.raw data 1M"} {
		run(t, dir, "qemu-img", append([]string{"create", "-q"}, strings.Fields(args)...)...)
	}
	for _, name := range []string{"extent-flat", "data.raw"} {
		if err := os.Remove(in(name)); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name  string
		paths []string
		chain bool
		want  []int
	}{
		{"sound", []string{"good"}, true, []int{0}},
		{"missing, not asked for", []string{"missing"}, false, []int{0}},
		{"missing", []string{"missing"}, true, []int{3}},
		{"a part of itself is missing", []string{"extent"}, false, []int{3}},
		{"its data are missing", []string{"data"}, false, []int{3}},
		{"outside, not asked for", []string{"other/out"}, false, []int{0}},
		{"loop", []string{"loop"}, true, []int{3}},
		{"outside", []string{"other/out"}, true, []int{4}},
		{"protocol", []string{"nbd"}, true, []int{4}},
		{"both", []string{"missing", "nbd", "good"}, true, []int{3, 4}},
		{"one is not there", []string{"good", "none"}, true, []int{4}},
		{"none is there", []string{"none", "nothing"}, true, []int{1}},
	}
	for _, tt := range tests {
		paths := make([]string, len(tt.paths))
		for i, p := range tt.paths {
			paths[i] = in(p)
		}
		d, err := Describe(t.Context(), paths, Options{Single: !tt.chain})
		if err != nil || !cmp.Equal(d.Status, tt.want) {
			t.Errorf("%s: Describe(%v) = status %v, %v, want %v", tt.name, tt.paths, d.Status, err, tt.want)
		}
	}
}

func TestSnapshots(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	dir := testenv.DiskDir(t)
	path := filepath.Join(dir, "x")
	run(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "x", "4M")
	for i, name := range []string{"first", "second", "1"} {
		run(t, dir, "qemu-io", "-c", fmt.Sprintf("write -q -P %d %dM 1M", i+1, i), "x")
		run(t, dir, "qemu-img", "snapshot", "-c", name, "x")
	}
	run(t, dir, "qemu-img", "resize", "-q", "x", "6M")
	diskio.RequireUnchanged(t, path)
	for _, tt := range []struct{ want, arg string }{
		// qemu looks for the id first: "1" is the snapshot "first".
		{"first", "1"}, {"second", "second"}, {"1", "3"},
	} {
		c := mustOpen(t, path, Options{Snapshot: tt.arg})
		want := bytesOf(t, path, "-l", "snapshot.name="+tt.want)[:4<<20] // qemu shows all as long as the disk
		got := make([]byte, c.Size())
		if _, err := c.ReadAt(got, 0); err != nil || c.Size() != 4<<20 {
			t.Fatalf("ReadAt(snapshot %s) = %v, size %d", tt.arg, err, c.Size())
		}
		if at := firstDifference(got, want); at >= 0 {
			t.Errorf("ReadAt(snapshot %s) differs from qemu-img convert at %#x", tt.arg, at)
		}
		d, err := Describe(t.Context(), []string{path}, Options{Snapshot: tt.arg})
		if err != nil || len(d.Disks[0].Chain[0].Snapshots) != 1 || d.Disks[0].Chain[0].Snapshots[0].Name != tt.want {
			t.Errorf("Describe(snapshot %s) = %+v, %v, want %s alone", tt.arg, d.Disks[0], err, tt.want)
		}
	}
	a, b := mustOpen(t, path, Options{Snapshot: "first"}), mustOpen(t, path, Options{Snapshot: "second"})
	if r, err := Compare(t.Context(), a, b, CompareOptions{}); err != nil || r.Outcome != ContentDiffers || r.Offset != 1<<20 {
		t.Errorf("Compare(two snapshots) = %+v, %v, want a difference at 1 MiB", r, err)
	}
	for _, o := range []Options{{Snapshot: "none"}, {Snapshot: "first", Format: "raw"}} {
		if _, err := Open(t.Context(), path, o); !errors.Is(err, ErrNoSnapshot) {
			t.Errorf("Open(%+v) = %v, want %v", o, err, ErrNoSnapshot)
		}
	}
}

func TestInfoUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	overlay(t, path, "", "")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, tt := range []struct {
		off  int64 // of the byte that QEMU locks for this
		want Use
	}{{-1, UseNone}, {100, UseRead}, {101, UseWrite}} {
		if tt.off >= 0 {
			lk := unix.Flock_t{Type: unix.F_RDLCK, Start: tt.off, Len: 1}
			if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
				t.Fatal(err)
			}
		}
		if infos, err := Inspect(t.Context(), path, Options{}); err != nil || infos[0].Use != tt.want {
			t.Errorf("Inspect(byte %d locked) = use %q, %v, want %q", tt.off, infos[0].Use, err, tt.want)
		}
	}
}

func TestChanged(t *testing.T) {
	dir := t.TempDir()
	overlay(t, filepath.Join(dir, "top"), "base", "raw")
	base := filepath.Join(dir, "base")
	if err := os.WriteFile(base, make([]byte, 4096), 0o644); err != nil {
		t.Fatal(err)
	}
	c := mustOpen(t, filepath.Join(dir, "top"), Options{})
	if got := c.Changed(); len(got) != 0 {
		t.Errorf("Changed() = %v, want none", got)
	}
	if err := os.Truncate(base, 8192); err != nil {
		t.Fatal(err)
	}
	if got := c.Changed(); !cmp.Equal(got, []string{base}) {
		t.Errorf("Changed() = %v, want %s", got, base)
	}
}
