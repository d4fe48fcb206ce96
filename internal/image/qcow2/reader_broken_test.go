// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/imagetest"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// qemuReadsClusters is what qemu-io reads of each cluster, nil where it fails.
func qemuReadsClusters(t *testing.T, path string, size, cs int64) [][]byte {
	t.Helper()
	args := []string{"-r"}
	for off := int64(0); off < size; off += cs {
		args = append(args, "-c", fmt.Sprintf("read -v %d %d", off, min(cs, size-off)))
	}
	out, err := exec.CommandContext(t.Context(), "qemu-io", append(args, path)...).Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var clusters [][]byte
	var cur []byte
	for line := range strings.Lines(string(out)) {
		switch {
		case len(line) > 60 && line[8] == ':':
			b, err := hex.DecodeString(strings.ReplaceAll(line[11:58], " ", ""))
			if err != nil {
				t.Fatalf("qemu-io says %q: %v", line, err)
			}
			cur = append(cur, b...)
		case strings.HasPrefix(line, "read failed"):
			clusters, cur = append(clusters, nil), nil
		case strings.HasPrefix(line, "read "):
			clusters, cur = append(clusters, cur), nil
		}
	}
	return clusters
}

// damage changes one word of a table of the image, or a byte of compressed data, and says which.
func damage(rnd *rand.Rand, img []byte, h *qcow2.Header) string {
	be := binary.BigEndian
	l1 := int64(h.L1Off) + 8*rnd.Int64N(h.L1Entries)
	at, what := l1, "L1 entry"
	if l2 := int64(be.Uint64(img[l1:]) & qcow2.OffsetMask); l2 != 0 && rnd.IntN(6) > 0 {
		width := h.L2EntryBytes()
		at, what = l2+width*rnd.Int64N(min(h.L2Entries(),
			(h.SizeBytes+h.ClusterSize()-1)>>h.ClusterBits)), "L2 entry"
		entry := be.Uint64(img[at:])
		if entry&qcow2.FlagCompressed != 0 && rnd.IntN(2) == 0 {
			off, n := h.CompressedRange(entry)
			at := int64(off) + rnd.Int64N(min(n, 64))
			img[at] ^= 1 << rnd.IntN(8)
			return fmt.Sprintf("compressed data at %#x", at)
		}
		if width == 16 && rnd.IntN(2) == 0 {
			at, what = at+8, "bitmap"
		}
	}
	old := be.Uint64(img[at:])
	value := old ^ 1<<rnd.IntN(64)
	switch rnd.IntN(5) {
	case 0: // past the end, perhaps far
		value = old&^qcow2.OffsetMask | uint64(len(img))<<rnd.IntN(20)&qcow2.OffsetMask
	case 1:
		value = rnd.Uint64()
	}
	be.PutUint64(img[at:], value)
	return fmt.Sprintf("%s at %#x: %#x instead of %#x", what, at, value, old)
}

// With broken entries we give the bytes that qemu gives, or fail where it fails.
func TestBrokenAgainstQemu(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	rounds := uint64(testenv.Rounds(4, 15, 300))
	for _, f := range []features{
		{version: 2, clusterBits: 9, sizeBytes: 100*512 + 512},
		{version: 3, clusterBits: 12, sizeBytes: 40<<12 + 1024},
		{version: 3, clusterBits: 12, zstd: true, sizeBytes: 40 << 12},
		{version: 3, clusterBits: 14, extended: true, sizeBytes: 10<<14 + 512},
	} {
		t.Run(fmt.Sprintf("%+v", f), func(t *testing.T) {
			t.Parallel()
			for seed := range rounds {
				rnd := rand.New(rand.NewPCG(seed, uint64(f.clusterBits)))
				g := draw(t, rnd, f)
				what := damage(rnd, g.file, show(t, g).Header())
				path := filepath.Join(t.TempDir(), "broken.qcow2")
				if err := os.WriteFile(path, g.file, 0o644); err != nil {
					t.Fatal(err)
				}
				compareBroken(t, fmt.Sprintf("seed %d, %s", seed, what), path, show(t, g))
			}
		})
	}
}

func compareBroken(t *testing.T, what, path string, d *qcow2.Disk) {
	t.Helper()
	cs := d.Header().ClusterSize()
	for i, want := range qemuReadsClusters(t, path, d.Size(), cs) {
		off := int64(i) * cs
		got := make([]byte, min(cs, d.Size()-off))
		_, err := d.ReadAt(got, off)
		var entry *qcow2.EntryError
		switch {
		case err != nil && !errors.As(err, &entry):
			t.Errorf("%s: ReadAt(%#x) = %v, want an EntryError", what, off, err)
		case (err == nil) != (want != nil):
			t.Errorf("%s: ReadAt(%#x) = %v, but qemu-io reads %d bytes", what, off, err, len(want))
		case err == nil:
			imagetest.Equal(t, fmt.Sprintf("%s: ReadAt(%#x)", what, off), got, want)
		case int64(entry.Guest) > off || int64(entry.Guest)+entry.Length <= off:
			t.Errorf("%s: ReadAt(%#x) = %v, which is elsewhere", what, off, err)
		}
	}
	ours := d.Map(t.Context(), 0, d.Size(), func(image.Extent) error { return nil })
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "map", "--output=json",
		path).CombinedOutput(); (err == nil) != (ours == nil) {
		t.Errorf("%s: Map = %v, qemu-img map %v: %s", what, ours, err, out)
	}
	if ours != nil {
		return
	}
	if diff := cmp.Diff(qemuMaps(t, path), ourMap(t, d)); diff != "" {
		t.Errorf("%s: Map (-qemu +got):\n%s", what, diff)
	}
}

// tiny gives an image of 4 clusters of 64 KiB whose first L2 entries are given, at 4<<16, with the
// L1 entry given, at 3<<16.
func tiny(t testing.TB, options string, l1 uint64, l2 ...uint64) []byte {
	t.Helper()
	img := append(plain(t, options)[:3<<16:3<<16], make([]byte, 3<<16)...)
	return with(img, edit{3 << 16, l1}, edit{4 << 16, be64(l2...)},
		edit{5 << 16, strings.Repeat("x", 1<<16)})
}

func TestEntryErrors(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	const (
		l2   = qcow2.FlagCopied | 4<<16
		data = qcow2.FlagCopied | 5<<16
	)
	for _, c := range []struct {
		name    string
		options string
		l1      uint64
		l2      []uint64
		off     int64 // of the entry
		guest   int64
		length  int64
	}{
		{"misaligned L2 table", "cluster_size=64k", l2 | 512, nil, 3 << 16, 0, 512 << 20},
		{"misaligned cluster", "cluster_size=64k", l2, []uint64{data, data | 1024}, 4<<16 + 8,
			1 << 16, 1 << 16},
		{"misaligned reserved cluster", "cluster_size=64k", l2, []uint64{data, data | 1024 | 1},
			4<<16 + 8, 1 << 16, 1 << 16},
		{"zero in version 2", "cluster_size=64k,compat=0.10", l2, []uint64{data, 0, 1}, 4<<16 + 16,
			2 << 16, 1 << 16},
		{"reserved in version 2", "cluster_size=64k,compat=0.10", l2, []uint64{data, data | 1},
			4<<16 + 8, 1 << 16, 1 << 16},
		{"stored and zero", "cluster_size=64k,extended_l2=on", l2,
			[]uint64{0, 0, data, 1<<35 | 1<<3}, 4<<16 + 16, 1 << 16, 1 << 16},
		{"stored nowhere", "cluster_size=64k,extended_l2=on", l2, []uint64{0, 0, 0, 8}, 4<<16 + 16,
			1 << 16, 1 << 16},
		{"misaligned with subclusters", "cluster_size=64k,extended_l2=on", l2,
			[]uint64{data | 2048, 0}, 4 << 16, 0, 1 << 16},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := tiny(t, c.options, c.l1, c.l2...)
			d := show(t, drawn{file: img})
			var entry *qcow2.EntryError
			n, err := d.ReadAt(make([]byte, 4<<16), 0)
			if !errors.As(err, &entry) || !errors.Is(err, qcow2.ErrEntry) || int64(n) != c.guest {
				t.Fatalf("ReadAt(all) = %d, %v, want %d and an EntryError", n, err, c.guest)
			}
			if int64(entry.Off) != c.off || int64(entry.Guest) != c.guest ||
				entry.Length != c.length {
				t.Errorf("ReadAt(all) = %+v, want the entry at %#x for %d bytes at %#x", entry,
					c.off, c.length, c.guest)
			}
			mapped := int64(0)
			err = d.Map(t.Context(), 0, d.Size(), func(e image.Extent) error {
				mapped += e.Length
				return nil
			})
			if !errors.As(err, &entry) || mapped != c.guest {
				t.Errorf("Map = %v after %d bytes, want an EntryError after %d", err, mapped,
					c.guest)
			}
			// It goes on behind the range that the error names.
			if c.length == 1<<16 {
				next := c.guest + c.length
				err := d.Map(t.Context(), image.GuestOff(next), d.Size()-next,
					func(image.Extent) error { return nil })
				if err != nil {
					t.Errorf("Map behind it = %v", err)
				}
			}
			path := filepath.Join(t.TempDir(), "bad.qcow2")
			if err := os.WriteFile(path, img, 0o644); err != nil {
				t.Fatal(err)
			}
			out, _ := exec.CommandContext(t.Context(), "qemu-io", "-r", "-c",
				fmt.Sprintf("read %d 512", c.guest), path).CombinedOutput()
			if entry.Qemu == "" || !strings.Contains(string(out), entry.Qemu) {
				t.Errorf("qemu-io says %q, want %q in it", out, entry.Qemu)
			}
		})
	}
}

func TestDataFileErrors(t *testing.T) {
	var g drawn
	var h *qcow2.Header
	be, l2 := binary.BigEndian, int64(0)
	for seed := uint64(0); l2 == 0; seed++ { // until it has an L2 table
		g = draw(t, rand.New(rand.NewPCG(seed, 1)),
			features{version: 3, clusterBits: 12, dataFile: true, sizeBytes: 30 << 12})
		h = show(t, g).Header()
		l2 = int64(be.Uint64(g.file[h.L1Off:]) & qcow2.OffsetMask)
	}
	for name, entry := range map[string]uint64{
		"at another place": qcow2.FlagCopied | 7<<12,
		"compressed":       qcow2.FlagCompressed | 5<<12,
	} {
		be.PutUint64(g.file[l2:], entry)
		var bad *qcow2.EntryError
		if _, err := show(t, g).ReadAt(make([]byte, 512), 0); !errors.As(err, &bad) ||
			int64(bad.Off) != l2 {
			t.Errorf("ReadAt of a cluster %s = %v, want an EntryError", name, err)
		}
	}
	be.PutUint64(g.file[l2:], qcow2.FlagCopied)
	if n, err := show(t, g).ReadAt(make([]byte, 512), 0); n != 512 || err != nil {
		t.Errorf("ReadAt of the first cluster = %d, %v", n, err)
	}
	r := bytes.NewReader(g.file)
	d, err := qcow2.NewDisk(r, r.Size(), h, qcow2.DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(make([]byte, 512), 0); !errors.Is(err, qcow2.ErrNoDataFile) {
		t.Errorf("ReadAt without the data file = %v, want %v", err, qcow2.ErrNoDataFile)
	}
	if err := d.Map(t.Context(), 0, d.Size(), func(e image.Extent) error {
		if e.InDataFile != e.HasHost {
			t.Errorf("Map gives %+v, which must be in the data file", e)
		}
		return nil
	}); err != nil {
		t.Errorf("Map without the data file = %v", err)
	}
}

func TestEncrypted(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	// qemu measures its own time to derive a key, and gives up where the kernel counts time too
	// coarsely, so that it needs some luck.
	for try := 1; ; try++ {
		out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2",
			"--object", "secret,id=s,data=abc", "-o",
			"encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, "1M").CombinedOutput()
		if err == nil {
			break
		}
		if try == 30 {
			t.Fatalf("qemu-img create: %v\n%s", err, out)
		}
	}
	run(t, "qemu-io", "--object", "secret,id=s,data=abc", "--image-opts", "-c", "write 128k 64k",
		"driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename="+path)
	o := open(t, path)
	d := o.disk(t, "")
	if n, err := d.ReadAt(make([]byte, 1<<20), 0); !errors.Is(err, qcow2.ErrEncrypted) ||
		n != 128<<10 {
		t.Errorf("ReadAt(all) = %d, %v, want %d, %v", n, err, 128<<10, qcow2.ErrEncrypted)
	}
	if o.h.Crypt != qcow2.CryptLUKS || o.h.CryptLen == 0 || o.h.CryptOff == 0 {
		t.Errorf("ReadHeader = %+v, want a LUKS header", o.h)
	}
	// qemu needs the key for its map.
	want := []mapEntry{
		{0, 128 << 10, false, true, false, nil},
		{128 << 10, 64 << 10, true, false, true, nil},
		{192 << 10, 832 << 10, false, true, false, nil},
	}
	if diff := cmp.Diff(want, ourMap(t, d)); diff != "" {
		t.Errorf("Map (-want +got):\n%s", diff)
	}
}

func TestMissing(t *testing.T) {
	testenv.Need(t, "qemu-img")
	const l2, data = qcow2.FlagCopied | 4<<16, qcow2.FlagCopied | 5<<16
	for _, c := range []struct {
		name    string
		img     []byte
		missing int64
	}{
		{"complete", tiny(t, "cluster_size=64k", l2, data), 0},
		{"last cluster cut", tiny(t, "cluster_size=64k", l2, data)[:5<<16+1], 0},
		{"data cut", tiny(t, "cluster_size=64k", l2, data)[:5<<16], 1 << 16},
		{"data far away", tiny(t, "cluster_size=64k", l2, data, data+20<<16), 1 << 16},
		{"L2 table cut", tiny(t, "cluster_size=64k", l2, data)[:4<<16], 10 << 20},
		{"L2 table far away", tiny(t, "cluster_size=64k", l2+1<<40, data), 10 << 20},
		{"L1 table cut", tiny(t, "cluster_size=64k", l2, data)[:3<<16], 10 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := show(t, drawn{file: c.img})
			got := make([]byte, d.Size())
			if n, err := d.ReadAt(got, 0); n != len(got) || err != nil || d.Missing() != c.missing {
				t.Errorf("ReadAt(all) = %d, %v, %d bytes missing, want %d", n, err, d.Missing(),
					c.missing)
			}
			d = show(t, drawn{file: c.img})
			if err := d.Map(t.Context(), 0, d.Size(),
				func(image.Extent) error { return nil }); err != nil || d.Missing() != c.missing {
				t.Errorf("Map = %v, %d bytes missing, want %d", err, d.Missing(), c.missing)
			}
		})
	}
}

// Wherever the file cannot be read, the error says so, and what comes before is given.
func TestUnreadable(t *testing.T) {
	g := draw(t, rand.New(rand.NewPCG(3, 3)),
		features{version: 3, clusterBits: 12, sizeBytes: 100 << 12})
	whole := show(t, g)
	h := whole.Header()
	// Parts of 16 KiB are read for tables, so a bad sector hurts what is near too.
	for fail := int64(1); fail < int64(len(g.file)); fail += 4096 {
		r := &counting{r: bytes.NewReader(g.file), fail: fail}
		d, err := qcow2.NewDisk(r, int64(len(g.file)), h, qcow2.DiskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, d.Size())
		n, err := d.ReadAt(got, 0)
		if err != nil && !errors.Is(err, errBadSector) || err == nil && n != len(got) {
			t.Errorf("ReadAt(all) with a bad sector at %#x = %d, %v", fail, n, err)
		}
		imagetest.Equal(t, fmt.Sprintf("what is read before the bad sector at %#x", fail), got[:n],
			g.want[:n])
		if err := d.Map(t.Context(), 0, d.Size(),
			func(image.Extent) error { return nil }); err != nil && !errors.Is(err, errBadSector) {
			t.Errorf("Map with a bad sector at %#x = %v", fail, err)
		}
	}
}

// hostile are images of hardly more than a header that claim the most a header can.
func hostile(t testing.TB) map[string][]byte {
	huge := with(plain(t, "cluster_size=2M"), edit{36, uint32(4 << 20)}, edit{24, uint64(1 << 60)})
	pad := func(img []byte, n int) []byte { return append(img, make([]byte, n-len(img))...) }
	all := bytes.Repeat([]byte(be64(qcow2.FlagCopied|0x200000)), 64)
	packed := bytes.Repeat([]byte(be64(qcow2.FlagCompressed|0x3fff<<48|512)), 32)
	return map[string][]byte{
		"L1 of 32 MiB, not there": huge[:512],
		"L1 of 32 MiB, one entry": with(pad(huge[:512:512], 1024), edit{40, uint64(0)},
			edit{512, string(all)}),
		"compressed of 4 MiB": with(pad(plain(t, "cluster_size=2M")[:512:512], 1024),
			edit{40, uint64(0)}, edit{24, uint64(1 << 30)}, edit{512, string(packed)}),
	}
}

// Reading and mapping what a small file claims costs little memory, and ends.
func TestHostileCostsLittle(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for name, img := range hostile(t) {
		t.Run(name, func(t *testing.T) {
			used := memory(func() {
				d := show(t, drawn{file: img})
				p := make([]byte, 4096)
				for off := int64(0); off < d.Size(); off += d.Size()/50 | 1 {
					_, err := d.ReadAt(p, off)
					var entry *qcow2.EntryError
					if err != nil && !errors.Is(err, io.EOF) && !errors.As(err, &entry) {
						t.Errorf("ReadAt(%#x) = %v", off, err)
					}
				}
				calls := 0
				stop := errors.New("enough")
				err := d.Map(context.Background(), 0, d.Size(), func(image.Extent) error {
					if calls++; calls == 100_000 {
						return stop
					}
					return nil
				})
				var entry *qcow2.EntryError
				if err != nil && err != stop && !errors.As(err, &entry) {
					t.Errorf("Map = %v", err)
				}
			})
			if used > 8<<20 {
				t.Errorf("it takes %d bytes, want 8 MiB at most", used)
			}
		})
	}
}
