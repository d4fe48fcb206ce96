// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cut

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var _ diskio.Disk = (*Disk)(nil)

// run does operations, one letter each, on the file /a, and gives the first error:
//
//	1, 2, 3  write that digit to the sector 0, 1, 2    w  write two sectors    t  truncate to 512
//	s  sync    n  make /n    r  rename /n to /m    d  sync the directory    x  remove /a
func run(t *testing.T, d *Disk, script string) error {
	t.Helper()
	f, err := d.OpenWithoutLocks("/a")
	if err != nil {
		return err
	}
	for _, op := range script {
		switch op {
		case '1', '2', '3':
			_, err = f.WriteAt(bytes.Repeat([]byte{byte(op)}, 512), int64(op-'1')*512)
		case 'w':
			_, err = f.WriteAt(bytes.Repeat([]byte{'w'}, 1024), 512)
		case 't':
			err = f.Truncate(512)
		case 's':
			err = f.Sync()
		case 'n':
			_, err = d.CreateNew("/n", 0o600)
		case 'r':
			err = d.Rename("/n", "/m")
		case 'd':
			err = d.SyncDir("/")
		case 'x':
			err = d.Remove("/a")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// found describes what may be found on a disk after a cut, sorted: the first byte of each sector of
// /a, and the other names.
func found(d *Disk) []string {
	var all []string
	for s := range d.Survivors(1) {
		text := ""
		for _, p := range s.Paths() {
			if p != "/a" {
				text += " " + p
				continue
			}
			b, _ := s.Get(p)
			for i := 0; i < len(b); i += 512 {
				text += string(b[i])
			}
		}
		all = append(all, text)
	}
	slices.Sort(all)
	return all
}

func TestSurvivors(t *testing.T) {
	for _, tc := range []struct {
		script string
		want   []string
	}{
		{"", []string{"..."}},
		{"1", []string{"...", "1.."}},
		{"1s", []string{"1.."}},
		{"1s2", []string{"1..", "12."}},
		{"12", []string{"...", ".2.", "1..", "12."}},
		{"w", []string{"...", "..w", ".w.", ".ww"}},
		{"2w", []string{"...", "..w", ".2.", ".2w", ".w.", ".ww"}},
		{"ts", []string{"."}},
		{"t", []string{".", "..."}},
		{"n", []string{"...", "... /n"}},
		{"nd", []string{"... /n"}},
		{"ndr", []string{"... /m", "... /n"}},
		{"nr", []string{"...", "... /m", "... /n"}},
		{"xd", []string{""}},
	} {
		d := New(t.Context())
		d.Put("/a", bytes.Repeat([]byte("."), 1536))
		if err := run(t, d, tc.script); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, found(d)); diff != "" {
			t.Errorf("after %q (-want +got):\n%s", tc.script, diff)
		}
	}
}

// What a sync failed to write is never sure, whatever later syncs say; a later write over it is.
func TestLimbo(t *testing.T) {
	d := New(t.Context())
	d.Put("/a", bytes.Repeat([]byte("."), 1536))
	if err := d.Fault("fsync error 1"); err != nil {
		t.Fatal(err)
	}
	if err := run(t, d, "12s"); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the sync = %v, want %v", err, syscall.EIO)
	}
	if err := run(t, d, "3s"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"..3", ".23", "1.3", "123"}, found(d)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := run(t, d, "1s"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1.3", "123"}, found(d)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What a sync failed to write may be gone from the memory of the machine.
func TestEvict(t *testing.T) {
	d := New(t.Context())
	d.Put("/a", bytes.Repeat([]byte("."), 1536))
	if err := d.Fault("fsync error 2"); err != nil {
		t.Fatal(err)
	}
	if err := run(t, d, "1s2s"); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the sync = %v, want %v", err, syscall.EIO)
	}
	if err := run(t, d, "3"); err != nil {
		t.Fatal(err)
	}
	d.Evict()
	if b, _ := d.Get("/a"); b[0] != '1' || b[512] != '.' || b[1024] != '3' {
		t.Errorf("programs see %c%c%c, want 1.3", b[0], b[512], b[1024])
	}
}

func TestSome(t *testing.T) {
	d := New(t.Context())
	d.Put("/a", bytes.Repeat([]byte("."), 1536))
	if err := run(t, d, "123"); err != nil {
		t.Fatal(err)
	}
	for most := 1; most <= 20; most++ {
		var all []string
		for s := range d.Some(1, most) {
			b, _ := s.Get("/a")
			all = append(all, fmt.Sprintf("%c%c%c", b[0], b[512], b[1024]))
		}
		if all[0] != "..." || most > 1 && all[1] != "123" || len(all) < min(most, 4) {
			t.Errorf("Some(%d) = %q", most, all)
		}
	}
}

func TestSpoilAndOwner(t *testing.T) {
	d := New(t.Context())
	d.Put("/a", bytes.Repeat([]byte("."), 1536))
	d.Spoil("/a", 600, 10)
	d.SetOwner("/a", 7)
	f, err := d.OpenForRepair("/a")
	if err != nil {
		t.Fatal(err)
	}
	if id, err := f.Identity(); err != nil || id.Owner != 7 {
		t.Errorf("Identity = %+v, %v", id, err)
	}
	b := make([]byte, 512)
	for off, want := range map[int64]error{0: nil, 88: nil, 89: syscall.EIO, 512: syscall.EIO, 610: nil} {
		if _, err := f.ReadAt(b, off); !errors.Is(err, want) {
			t.Errorf("ReadAt %d = %v, want %v", off, err, want)
		}
	}
	if _, err := f.WriteAt(b, 512); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(b, 512); err != nil {
		t.Errorf("ReadAt after the range was written = %v", err)
	}
}

func TestManyChanges(t *testing.T) {
	d := New(t.Context())
	d.Put("/a", nil)
	if err := run(t, d, strings.Repeat("1w", 20)); err != nil {
		t.Fatal(err)
	}
	n := len(found(d))
	if n < 5 || n > someRandom {
		t.Errorf("%d states, want some", n)
	}
}

func TestFaults(t *testing.T) {
	for _, tc := range []struct {
		fault, script string
		want          error
		ops           int
		content       string
	}{
		{"crash after op 2", "123", ErrCut, 2, "12."},
		{"crash after op 0", "1", ErrCut, 0, "..."},
		{"EIO on write 2", "1s23", syscall.EIO, 3, "1.."},
		{"ENOSPC on op 2", "1s", syscall.ENOSPC, 2, "1.."},
		{"short write 1", "w", syscall.ENOSPC, 1, ".w."},
		{"EIO after write 2", "1s23", syscall.EIO, 3, "12."},
		{"fsync error 2", "1s2s", syscall.EIO, 4, "12."},
		{"fsync error 1", "nd", syscall.EIO, 2, "..."},
		{"EIO on write 1; crash after op 3", "1", syscall.EIO, 1, "..."},
		{"", "123s", nil, 4, "123"},
	} {
		d := New(t.Context())
		d.Put("/a", bytes.Repeat([]byte("."), 1536))
		if err := d.Fault(tc.fault); err != nil {
			t.Fatal(err)
		}
		if err := run(t, d, tc.script); !errors.Is(err, tc.want) {
			t.Errorf("%q in %q = %v, want %v", tc.fault, tc.script, err, tc.want)
		}
		b, _ := d.Get("/a")
		got := fmt.Sprintf("%c%c%c", b[0], b[512], b[1024])
		if got != tc.content || len(d.Ops()) != tc.ops {
			t.Errorf("%q in %q: %q after %q, want %q", tc.fault, tc.script, got, d.Ops(), tc.content)
		}
	}
	for _, bad := range []string{"crash", "EPERM on write 1", "EIO on sync 1", "hang at x", "hang at 3 now"} {
		if err := New(t.Context()).Fault(bad); err == nil {
			t.Errorf("Fault(%q) is taken", bad)
		}
	}
}

func TestHang(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	d := New(ctx)
	d.Put("/a", []byte("."))
	if err := d.Fault("hang at 2"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- run(t, d, "123") }()
	select {
	case err := <-done:
		t.Errorf("nothing hung: %v", err)
	default:
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || len(d.Ops()) != 2 {
		t.Errorf("hung = %v after %q", err, d.Ops())
	}
}

func TestNamesAndLocks(t *testing.T) {
	d := New(t.Context())
	d.Put("/x/a", []byte("a"))
	if _, err := d.Open("/x/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open = %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := d.Open("/x"); !errors.Is(err, diskio.ErrDirectory) {
		t.Errorf("Open = %v, want %v", err, diskio.ErrDirectory)
	}
	if _, err := d.CreateNew("/y/a", 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CreateNew = %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := d.CreateNew("/x/a", 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("CreateNew = %v, want %v", err, fs.ErrExist)
	}
	f, err := d.OpenForRepair("/x/a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.OpenForRepair("/x/a"); !errors.Is(err, diskio.ErrInUse) {
		t.Errorf("OpenForRepair = %v, want %v", err, diskio.ErrInUse)
	}
	if err := errors.Join(f.Close(), d.MakeDir("/z/y", 0o700), d.MakeDir("/z/y", 0o700)); err != nil {
		t.Fatal(err)
	}
	if f, err = d.OpenForRepair("/x/a"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := d.List(t.Context(), "/", true, func(name string) bool { return name == "a" })
	if diff := cmp.Diff([]string{"/x/a"}, all); diff != "" || err != nil {
		t.Errorf("List: %v (-want +got):\n%s", err, diff)
	}
}
