// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// fileBytes is how large the file of these tests is.
const fileBytes = 1 << 20

// mounted is a file system with one file, "disk", for the time of a test, and that file open.
func mounted(t *testing.T, cached bool) (*FS, *os.File) {
	t.Helper()
	testenv.NeedRoot(t)
	dir := t.TempDir()
	store := filepath.Join(dir, "store")
	if err := os.WriteFile(store, bytes.Repeat([]byte{'a'}, fileBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "fuse")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	fs, err := Mount(at, Stored{Name: "disk", Store: store, Cached: cached})
	available(t, err)
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	})
	f, err := os.OpenFile(at+"/disk", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return fs, f
}

// available ends a test for an error.
func available(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, ErrUnavailable) {
		testenv.Lacks(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// set sets a rule of the file.
func set(t *testing.T, fs *FS, text string) *Fault {
	t.Helper()
	f, err := fs.Set("disk", text)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFaults holds what each rule does to requests, and what it counts.
func TestFaults(t *testing.T) {
	fs, f := mounted(t, false)
	page := bytes.Repeat([]byte{'b'}, 4096)
	write := func(off int64) func() error {
		return func() error { _, err := f.WriteAt(page, off); return err }
	}
	read := func(off int64) func() error {
		return func() error { _, err := f.ReadAt(make([]byte, 4096), off); return err }
	}
	punch := func() error {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 8192)
	}
	statfs := func() error { return unix.Statfs(fs.Dir, new(unix.Statfs_t)) }
	for _, c := range []struct {
		rule string
		do   []func() error
		want []error // nil beyond the end
		hit  int64
	}{
		{"write eio", []func() error{read(0), write(0), f.Sync}, []error{nil, unix.EIO}, 1},
		{"write eio after=2 times=1", []func() error{write(0), write(0), write(0), write(0)},
			[]error{nil, nil, unix.EIO}, 1},
		{"write enospc after=8k", []func() error{write(0), write(0), write(0), write(0)},
			[]error{nil, nil, unix.ENOSPC, unix.ENOSPC}, 2},
		{"read edquot range=4k+4k", []func() error{read(0), read(4096), read(8192), read(8191)},
			[]error{nil, unix.EDQUOT, nil, unix.EDQUOT}, 2},
		{"fsync eio", []func() error{write(0), f.Sync}, []error{nil, unix.EIO}, 1},
		{"discard enodev", []func() error{punch, read(0)}, []error{unix.ENODEV}, 1},
		{"any etimedout", []func() error{read(0), write(0), f.Sync, punch},
			[]error{unix.ETIMEDOUT, unix.ETIMEDOUT, unix.ETIMEDOUT, unix.ETIMEDOUT}, 4},
		{"look estale", []func() error{statfs, read(0)}, []error{unix.ESTALE}, 1},
		{"write delay=1ms", []func() error{write(0)}, nil, 1},
	} {
		fault := set(t, fs, c.rule)
		for i, do := range c.do {
			var want error
			if i < len(c.want) {
				want = c.want[i]
			}
			if err := do(); !errors.Is(err, want) {
				t.Errorf("%s: call %d = %v, want %v", c.rule, i, err, want)
			}
		}
		n, err := fault.Count()
		if n.Rule == "look estale" {
			n.Hit = min(n.Hit, c.hit) // how often the kernel looks is its own affair
		}
		if err != nil || n.Hit != c.hit || n.Waiting != 0 || n.Asked < n.Hit || n.Rule == "" {
			t.Errorf("%s: Count() = %+v, %v, want %d hits", c.rule, n, err, c.hit)
		}
		if err := fault.Lift(); err != nil {
			t.Fatal(err)
		}
		for i, do := range c.do {
			if err := do(); err != nil {
				t.Errorf("%s, lifted: call %d = %v, want nil", c.rule, i, err)
			}
		}
		if _, err := fault.Count(); err == nil {
			t.Errorf("%s: a count without the rule", c.rule)
		}
	}
}

// TestBytes holds what is written and read beside the errors.
func TestBytes(t *testing.T) {
	fs, f := mounted(t, false)
	page := func(off int64) []byte {
		p := make([]byte, 4096)
		if _, err := f.ReadAt(p, off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		return p
	}
	write := func(off int64, b byte) error {
		_, err := f.WriteAt(bytes.Repeat([]byte{b}, 4096), off)
		return err
	}
	lose := set(t, fs, "write lose range=4k+4k")
	if err := errors.Join(write(0, 'b'), write(4096, 'b')); err != nil {
		t.Fatal(err)
	}
	if err := lose.Lift(); err != nil {
		t.Fatal(err)
	}
	if got := string([]byte{page(0)[7], page(4096)[7]}); got != "ba" {
		t.Errorf("after a lost write: %q, want %q", got, "ba")
	}
	flip := set(t, fs, "read flip range=0+4k")
	if p := page(0); p[0] != 'b'^1 || p[1] != 'b' || p[512] != 'b'^1 || p[513] != 'b' {
		t.Errorf("flipped: %q, want each 512th byte of b as c", p[:514])
	}
	if err := flip.Lift(); err != nil {
		t.Fatal(err)
	}
	if p := page(0); p[0] != 'b' {
		t.Errorf("lifted: %q, want b", p[:1])
	}
	// Only a hole needs space: the first page is there.
	const hole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := unix.Fallocate(int(f.Fd()), hole, 8192, 8192); err != nil {
		t.Fatal(err)
	}
	full := set(t, fs, "write enospc new after=4k")
	for i, want := range []error{nil, nil, unix.ENOSPC} {
		if err := write(4096*int64(i+1), 'c'); !errors.Is(err, want) {
			t.Errorf("write page %d = %v, want %v", i+1, err, want)
		}
	}
	if n, err := full.Count(); err != nil || n.Asked != 2 || n.Hit != 1 || n.AskedBytes != 8192 {
		t.Errorf("Count() = %+v, %v, want 2 asked, 1 hit, 8192 bytes", n, err)
	}
	if err := fs.Clear("disk"); err != nil {
		t.Fatal(err)
	}
	if err := write(12288, 'c'); err != nil {
		t.Errorf("write, cleared = %v, want nil", err)
	}
}

// TestHang holds that a request waits until its rule is lifted, and what becomes of it then.
func TestHang(t *testing.T) {
	fs, f := mounted(t, false)
	for _, with := range []unix.Errno{0, unix.EIO} {
		rule := set(t, fs, "write hang")
		done := make(chan error)
		go func() {
			_, err := f.WriteAt([]byte("x"), 0)
			done <- err
		}()
		if err := rule.Waiting(); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(make([]byte, 4096), 0); err != nil { // others go on
			t.Errorf("ReadAt() = %v while a write hangs", err)
		}
		select {
		case err := <-done:
			t.Errorf("WriteAt() = %v, want it to hang", err)
		default:
		}
		var err error
		var want error
		if with == 0 {
			err = rule.Lift()
		} else {
			err, want = rule.Fail(with), with
		}
		if got := <-done; err != nil || !errors.Is(got, want) {
			t.Errorf("lifted with %d: WriteAt() = %v, %v, want %v", with, got, err, want)
		}
	}
}

// TestOrders holds that what the child refuses comes back as an error.
func TestOrders(t *testing.T) {
	fs, f := mounted(t, false)
	if _, err := fs.Set("disk", "write never"); !errors.Is(err, ErrLanguage) {
		t.Errorf("Set(write never) = %v, want ErrLanguage", err)
	}
	_, err := fs.Set("no-such", "write eio")
	if err == nil || !strings.Contains(err.Error(), `"no-such"`) {
		t.Errorf("Set(no-such) = %v, want an error that names it", err)
	}
	for range maxRules {
		set(t, fs, "write eio")
	}
	if _, err := fs.Set("disk", "write eio"); !errors.Is(err, ErrLanguage) {
		t.Errorf("Set() of too many rules = %v, want ErrLanguage", err)
	}
	names, err := os.ReadDir(fs.Dir)
	if err != nil || len(names) != 1 || names[0].Name() != "disk" {
		t.Errorf("ReadDir() = %v, %v, want disk", names, err)
	}
	if err := os.WriteFile(fs.Dir+"/other", nil, 0o600); err == nil {
		t.Error("a file was made, want the directory to have its files only")
	}
	if err := f.Truncate(1); err == nil {
		t.Error("Truncate() = nil, want a file to keep its size")
	}
}

// TestFiles holds that a rule is about one file.
func TestFiles(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	at := dir + "/fuse"
	must(t, os.Mkdir(at, 0o755))
	var stored []Stored
	for _, name := range []string{"one", "two"} {
		store := dir + "/" + name
		must(t, os.WriteFile(store, []byte(name), 0o600))
		stored = append(stored, Stored{Name: name, Store: store, Cached: name == "two"})
	}
	fs, err := Mount(at, stored...)
	available(t, err)
	defer func() { must(t, fs.Close()) }()
	_, err = fs.Set("one", "read eio")
	must(t, err)
	if _, err := os.ReadFile(at + "/one"); !errors.Is(err, unix.EIO) {
		t.Errorf("ReadFile(one) = %v, want %v", err, unix.EIO)
	}
	if text, err := os.ReadFile(at + "/two"); err != nil || string(text) != "two" {
		t.Errorf("ReadFile(two) = %q, %v, want two", text, err)
	}
	if _, err := os.Stat(at + "/three"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Stat(three) = %v, want %v", err, os.ErrNotExist)
	}
}

// TestApart holds that nothing is mounted where others would see it.
func TestApart(t *testing.T) {
	for _, c := range []struct {
		mounts []linux.Mount
		want   bool
	}{
		{[]linux.Mount{{Point: "/"}, {Point: "/mnt", Shared: 2}}, false},
		{[]linux.Mount{{Point: "/", Master: 1}}, false},
		{[]linux.Mount{{Point: "/mnt"}, {Point: "/", Shared: 1}}, true},
	} {
		if got := passedOn(c.mounts); got != c.want {
			t.Errorf("passedOn(%+v) = %t, want %t", c.mounts, got, c.want)
		}
	}
	testenv.NeedRoot(t)
	available(t, apart())
}

// TestFrozen holds that a stopped child answers nobody, and all again when it goes on.
func TestFrozen(t *testing.T) {
	fs, f := mounted(t, false)
	if err := fs.Freeze(); err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Set("disk", "write eio"); err == nil {
		t.Error("Set() = nil while the child is frozen")
	}
	done := make(chan error)
	go func() {
		_, err := f.ReadAt(make([]byte, 4096), 0)
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("ReadAt() = %v while the child is frozen", err)
	default:
	}
	if all, err := stopped(fs.PID()); !all || err != nil {
		t.Errorf("stopped() = %t, %v of a frozen child", all, err)
	}
	if err := fs.Thaw(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("ReadAt() = %v, want nil", err)
	}
}

// TestCloseWhatever holds that Close ends it in whatever state it is.
func TestCloseWhatever(t *testing.T) {
	for name, hurt := range map[string]func(*testing.T, *FS){
		"well":   func(*testing.T, *FS) {},
		"hung":   func(t *testing.T, fs *FS) { set(t, fs, "any hang"); set(t, fs, "look hang") },
		"frozen": func(t *testing.T, fs *FS) { must(t, fs.Freeze()) },
		"killed": func(t *testing.T, fs *FS) { must(t, fs.Kill()) },
	} {
		t.Run(name, func(t *testing.T) {
			testenv.NeedRoot(t)
			dir := t.TempDir()
			store, at := dir+"/store", dir+"/fuse"
			must(t, errors.Join(os.WriteFile(store, make([]byte, 4096), 0o600), os.Mkdir(at, 0o755)))
			fs, err := Mount(at, Stored{Name: "disk", Store: store})
			available(t, err)
			f, err := os.Open(at + "/disk")
			must(t, err)
			hurt(t, fs)
			done := make(chan error)
			go func() {
				_, err := f.ReadAt(make([]byte, 1), 0)
				done <- errors.Join(err, f.Close())
			}()
			if err := fs.Close(); err != nil { // with a file open and read from
				t.Errorf("Close() = %v", err)
			}
			<-done
			text, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil || bytes.Contains(text, []byte(at)) {
				t.Errorf("still mounted (%v)", err)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
