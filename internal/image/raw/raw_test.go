// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package raw_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/imagetest"
	"github.com/shisa-vm/shisa/internal/image/raw"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// sparse writes a file of size bytes with data at some places.
func sparse(t *testing.T, size int64, data map[int64]int) (path string, want []byte) {
	t.Helper()
	path = filepath.Join(testenv.DiskDir(t), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	want = make([]byte, (size+511)&^511)
	for off, n := range data {
		b := bytes.Repeat([]byte{byte(off>>12) | 1}, n)
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], b)
	}
	return path, want
}

func open(t *testing.T, path string) *diskio.File {
	t.Helper()
	diskio.RequireUnchanged(t, path)
	f, err := diskio.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestConformance(t *testing.T) {
	for name, c := range map[string]struct {
		size int64
		data map[int64]int
	}{
		"empty":           {0, nil},
		"one byte":        {1, map[int64]int{0: 1}},
		"all data":        {300_000, map[int64]int{0: 300_000}},
		"all hole":        {1 << 20, nil},
		"odd end":         {1<<20 + 777, map[int64]int{0: 4096, 1 << 20: 777}},
		"odd end in hole": {1<<20 + 777, map[int64]int{0: 4096}},
		"many": {4 << 20, map[int64]int{4096: 4096, 16384: 8192, 1 << 20: 100_000,
			3<<20 + 512: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			path, want := sparse(t, c.size, c.data)
			f := open(t, path)
			t.Run("holes", func(t *testing.T) {
				imagetest.Run(t, func(*testing.T) (image.Reader,
					[]byte) {
					return raw.New(f, f.Size(), f), want
				})
			})
			t.Run("no holes", func(t *testing.T) {
				imagetest.Run(t, func(*testing.T) (image.Reader,
					[]byte) {
					return raw.New(f, f.Size(), nil), want
				})
			})
		})
	}
}

func TestMapHoles(t *testing.T) {
	path, _ := sparse(t, 1<<20+100, map[int64]int{64 << 10: 4096})
	f := open(t, path)
	var got []image.Extent
	err := raw.New(f, f.Size(), f).Map(t.Context(), 0, 1<<40, func(e image.Extent) error {
		got = append(got, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []image.Extent{
		{Guest: 0, Length: 64 << 10, Kind: image.Zero, Host: 0, HasHost: true},
		{Guest: 64 << 10, Length: 4096, Kind: image.Data, Host: 64 << 10, HasHost: true},
		{Guest: 68 << 10, Length: 1<<20 + 512 - 68<<10, Kind: image.Zero, Host: 68 << 10,
			HasHost: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Map (-want +got):\n%s", diff)
	}
}

// touching gives ranges of data as some file systems do: cut in pieces.
type touching struct{}

func (touching) Data(_ context.Context, off, length int64, fn func(off, length int64) error) error {
	for _, r := range []struct{ from, to int64 }{{0, 4096}, {4096, 8192}, {12288, 16384},
		{16384, 20480}} {
		from, to := max(off, r.from), min(off+length, r.to)
		if from >= to {
			continue
		}
		if err := fn(from, to-from); err != nil {
			return err
		}
	}
	return nil
}

func TestMapJoinsTouchingData(t *testing.T) {
	d := raw.New(bytes.NewReader(make([]byte, 20480)), 20480, touching{})
	imagetest.Run(t, func(*testing.T) (image.Reader, []byte) { return d, make([]byte, 20480) })
}

// broken cannot be read from a place on.
type broken struct{}

var errBroken = errors.New("bad sector")

func (broken) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > 1000 {
		return int(max(0, 1000-off)), errBroken
	}
	return len(p), nil
}

func (broken) Data(context.Context, int64, int64, func(off, length int64) error) error {
	return errBroken
}

func TestErrors(t *testing.T) {
	d := raw.New(broken{}, 4096, broken{})
	if n, err := d.ReadAt(make([]byte, 2000), 500); n != 500 || !errors.Is(err, errBroken) {
		t.Errorf("ReadAt over a bad sector = %d, %v, want 500, %v", n, err, errBroken)
	}
	if err := d.Map(t.Context(), 0, 4096, func(image.Extent) error { return nil }); !errors.Is(err,
		errBroken) {
		t.Errorf("Map of a file whose holes cannot be told = %v, want %v", err, errBroken)
	}
}

// A file that became shorter since its size was taken.
func TestShrunk(t *testing.T) {
	d := raw.New(bytes.NewReader(bytes.Repeat([]byte{7}, 1000)), 4096, nil)
	got := bytes.Repeat([]byte{9}, 4096)
	if n, err := d.ReadAt(got, 0); n != 4096 || err != nil {
		t.Fatalf("ReadAt(4096 bytes) = %d, %v, want 4096", n, err)
	}
	imagetest.Equal(t, "ReadAt", got, append(bytes.Repeat([]byte{7}, 1000), make([]byte, 3096)...))
}
