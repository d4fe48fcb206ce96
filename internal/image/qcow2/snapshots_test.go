// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// readSnapshots reads the header and the snapshot table of an image.
func readSnapshots(t testing.TB, img []byte) (*qcow2.SnapshotTable, error) {
	t.Helper()
	r := bytes.NewReader(img)
	h, err := qcow2.ReadHeader(r, r.Size())
	if err != nil {
		t.Fatal(err)
	}
	return qcow2.ReadSnapshots(r, r.Size(), h)
}

func TestSnapshotsAgainstQemu(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	for _, options := range []string{"compat=0.10", "compat=1.1", "cluster_size=512"} {
		t.Run(options, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "1M")
			for _, c := range []struct{ name, size string }{
				{"a", "1M"}, {"name with spaces and ünicode", "2M"}, {strings.Repeat("long ", 40),
					"2M"},
			} {
				if options != "compat=0.10" { // which keeps no size for a snapshot
					run(t, "qemu-img", "resize", "-q", path, c.size)
				}
				run(t, "qemu-img", "snapshot", "-c", c.name, path)
			}
			var info struct {
				Snapshots []struct {
					ID      string `json:"id"`
					Name    string `json:"name"`
					Sec     int64  `json:"date-sec"`
					Nsec    int64  `json:"date-nsec"`
					VMSec   int64  `json:"vm-clock-sec"`
					VMNsec  int64  `json:"vm-clock-nsec"`
					VMState int64  `json:"vm-state-size"`
					ICount  *int64 `json:"icount"`
				}
			}
			if err := json.Unmarshal(run(t, "qemu-img", "info", "--output=json", path),
				&info); err != nil {
				t.Fatal(err)
			}
			o := open(t, path)
			if len(o.snapshots) != len(info.Snapshots) || len(info.Snapshots) == 0 {
				t.Fatalf("ReadSnapshots = %+v, qemu-img says %+v", o.snapshots, info.Snapshots)
			}
			for i, want := range info.Snapshots {
				got, icount := o.snapshots[i], int64(-1)
				if want.ICount != nil {
					icount = *want.ICount
				}
				if got.ID != want.ID || got.Name != want.Name ||
					!got.Date.Equal(time.Unix(want.Sec, want.Nsec)) ||
					got.VMClock != time.Duration(want.VMSec*1e9+want.VMNsec) ||
					got.VMStateBytes != want.VMState || got.ICount != icount {
					t.Errorf("snapshot %d = %+v, qemu-img says %+v", i, got, want)
				}
				size := int64(1 << 20)
				if i > 0 && options != "compat=0.10" {
					size = 2 << 20
				}
				if got.DiskBytes != size || o.disk(t, got.Name).Size() != size {
					t.Errorf("snapshot %d has a disk of %d bytes, want %d", i, got.DiskBytes, size)
				}
			}
		})
	}
}

// entry makes an entry of the snapshot table, padded.
func snapshotEntry(l1 uint64, entries uint32, id, name string, extra []byte) string {
	p := binary.BigEndian.AppendUint64(nil, l1)
	p = binary.BigEndian.AppendUint32(p, entries)
	p = binary.BigEndian.AppendUint16(p, uint16(len(id)))
	p = binary.BigEndian.AppendUint16(p, uint16(len(name)))
	p = append(p, be32s(1700000000, 5)+be64(7_000_000_000)+be32s(99, uint32(len(extra)))...)
	p = append(append(append(p, extra...), id...), name...)
	return string(append(p, make([]byte, (8-len(p)%8)%8)...))
}

func TestSnapshotEntry(t *testing.T) {
	testenv.Need(t, "qemu-img")
	extra := []byte(be64(1<<40, 2<<20, 12345) + "more that nobody knows")
	table := snapshotEntry(0x1234567, 3, "1", "one", nil) + snapshotEntry(1<<63, 4, "2\x00x", "two",
		extra)
	img := with(append(plain(t, "cluster_size=64k"), make([]byte, 8<<16)...),
		edit{60, uint32(2)}, edit{64, uint64(4 << 16)}, edit{4 << 16, table})
	got, err := readSnapshots(t, img)
	if err != nil {
		t.Fatal(err)
	}
	want := &qcow2.SnapshotTable{Bytes: 48 + 40 + 46 + 6, Snapshots: []qcow2.Snapshot{
		{
			ID: "1", Name: "one", L1Off: 0x1234567, L1Entries: 3, Date: time.Unix(1700000000,
				5).UTC(), VMClock: 7 * time.Second,
			VMStateBytes: 99, DiskBytes: 10 << 20, ICount: -1, EntryOff: 4 << 16, EntryBytes: 44,
		}, {
			ID: "2", Name: "two", L1Off: -1 << 63, L1Entries: 4, Date: time.Unix(1700000000,
				5).UTC(), VMClock: 7 * time.Second,
			VMStateBytes: 1 << 40, DiskBytes: 2 << 20, ICount: 12345, ExtraBytes: 46, EntryOff: 4<<16 + 48, EntryBytes: 40 + 46 + 6,
		},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ReadSnapshots (-want +got):\n%s", diff)
	}
}

func TestSnapshotRefusals(t *testing.T) {
	testenv.Need(t, "qemu-img")
	img := append(plain(t, "cluster_size=64k"), make([]byte, 2<<16)...)
	table := edit{64, uint64(4 << 16)}
	many := []byte{}
	for len(many) <= qcow2.MaxSnapshotTableBytes {
		many = append(many, snapshotEntry(0, 0, strings.Repeat("i", 65000),
			strings.Repeat("n", 65000), nil)...)
	}
	for _, c := range []struct {
		name string
		img  []byte
		off  int64
	}{
		{"too many", with(img, table, edit{60, uint32(65537)}), 60},
		{"misaligned", with(img, edit{64, uint64(4<<16 + 8)}, edit{60, uint32(1)}), 60},
		{"negative", with(img, edit{64, uint64(1<<63 + 4<<16)}, edit{60, uint32(1)}), 60},
		{"too much extra", with(img, table, edit{60, uint32(2)},
			edit{4<<16 + 40 + 36, uint32(1025)}), 4<<16 + 40 + 36},
		{"too big", with(append(img[:4<<16:4<<16], many...), table, edit{60, uint32(65536)}), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := readSnapshots(t, c.img)
			var refused *qcow2.OpenError
			if !errors.As(err, &refused) || !errors.Is(err, qcow2.ErrHeader) || c.off != 0 &&
				int64(refused.Off) != c.off {
				t.Fatalf("ReadSnapshots = %v, want %v at %#x", err, qcow2.ErrHeader, c.off)
			}
			path := filepath.Join(t.TempDir(), "bad.qcow2")
			if err := os.WriteFile(path, c.img, 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), "qemu-img", "check", path).CombinedOutput()
			if err == nil || !strings.Contains(string(out), refused.Qemu) {
				t.Errorf("qemu-img check says %q, want %q in it", out, refused.Qemu)
			}
		})
	}
}

// 65536 snapshots claimed by a file that is hardly longer than its header are zeros to qemu. They
// must cost nothing.
func TestSnapshotsBlank(t *testing.T) {
	testenv.Need(t, "qemu-img")
	img := with(plain(t, "cluster_size=512"), edit{60, uint32(65536)},
		edit{64, uint64(1 << 40)})[:512]
	var table *qcow2.SnapshotTable
	var err error
	if used := memory(func() { table, err = readSnapshots(t, img) }); used > 64<<10 {
		t.Errorf("ReadSnapshots takes %d bytes, want 64 KiB at most", used)
	}
	if err != nil || len(table.Snapshots) != 0 || table.Len() != 65536 || table.Bytes != 65536*40 {
		t.Errorf("ReadSnapshots = %+v, %v, want 65536 blank ones", table, err)
	}
	// One that is there, then blank ones.
	img = append(plain(t, "cluster_size=512")[:1024:1024],
		snapshotEntry(0, 0, "1", "one", nil)[:44]...)
	img = with(img, edit{60, uint32(3)}, edit{64, uint64(1024)})
	table, err = readSnapshots(t, img)
	if err != nil || len(table.Snapshots) != 1 || table.Snapshots[0].Name != "one" ||
		table.Blank != 2 || table.Bytes != 48+2*40 {
		t.Errorf("ReadSnapshots = %+v, %v, want one and 2 blank ones", table, err)
	}
}

// memory is how much fn allocates in all.
func memory(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestSnapshotsUnreadable(t *testing.T) {
	testenv.Need(t, "qemu-img")
	img := append(plain(t, "cluster_size=64k"), make([]byte, 2<<16)...)
	img = with(img, edit{60, uint32(3)}, edit{64, uint64(4 << 16)},
		edit{4 << 16, snapshotEntry(0, 0, "1", "one", nil)})
	r := &counting{r: bytes.NewReader(img), fail: 4<<16 + 30}
	h, err := qcow2.ReadHeader(r, int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = qcow2.ReadSnapshots(r, int64(len(img)), h)
	if !errors.Is(err, qcow2.ErrRead) || !errors.Is(err, errBadSector) {
		t.Errorf("ReadSnapshots with a bad sector = %v, want %v", err, qcow2.ErrRead)
	}
}

func TestSnapshotThatCannotBeShown(t *testing.T) {
	testenv.Need(t, "qemu-img")
	img := plain(t, "cluster_size=64k")
	r := bytes.NewReader(img)
	h, err := qcow2.ReadHeader(r, r.Size())
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]qcow2.Snapshot{
		"misaligned":    {L1Off: 100, L1Entries: 1},
		"negative":      {L1Off: -1 << 63, L1Entries: 1},
		"too large":     {L1Off: 1 << 16, L1Entries: 4<<20 + 1},
		"negative size": {L1Off: 1 << 16, L1Entries: 1, DiskBytes: -512},
	} {
		var refused *qcow2.OpenError
		if _, err := qcow2.NewDisk(r, r.Size(), h, qcow2.DiskOptions{Snapshot: &s}); !errors.As(err,
			&refused) {
			t.Errorf("NewDisk of a snapshot that is %s = %v, want an OpenError", name, err)
		}
	}
}
