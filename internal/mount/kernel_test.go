// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// world is where a kernel mount is tried.
type world struct {
	state, dir string
	out, errs  bytes.Buffer
	mu         sync.Mutex
	logged     []string
}

func newWorld(t *testing.T) *world {
	testenv.NeedRoot(t)
	testenv.Need(t, "sh", "cat", "ls")
	return &world{state: t.TempDir(), dir: t.TempDir()}
}

func (w *world) log(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logged = append(w.logged, text)
}

// run mounts a disk and runs a script that knows the directory as $1.
func (w *world) run(ctx context.Context, v Volume, script string, layerBytes int64) (int, error) {
	w.out.Reset()
	w.errs.Reset()
	return Kernel(ctx, v, w.dir, KernelOptions{StateDir: w.state, Source: "test disk", LayerBytes: layerBytes,
		Command: []string{"sh", "-c", script, "sh", w.dir}, Env: os.Environ(),
		Stdout: &w.out, Stderr: &w.errs, Log: w.log})
}

// nothingLeft requires that a state directory is as before, and that no mount and no loop device is
// left.
func nothingLeft(t *testing.T, state string, dirs ...string) {
	t.Helper()
	err := filepath.WalkDir(state, func(path string, d os.DirEntry, err error) error {
		if err == nil && path != state && path != recordsDir(state) {
			err = fmt.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, dir := range dirs {
		if e, err := top(dir); err != nil || e != nil {
			t.Errorf("mounted on %s is %+v, %v, want nothing", dir, e, err)
		}
	}
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if text, err := os.ReadFile(name); err == nil && strings.Contains(string(text), state) {
			t.Errorf("%s is left on %s", name, text)
		}
	}
}

func sha(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// crashed is a disk as it is while a file system on it is in use: what is in it is in its journal
// and not in its place.
func crashed(t *testing.T, kind string, mkfs ...string) string {
	t.Helper()
	outside := filestest.CloneDir(t, 4<<30)
	disk := filestest.Make(t, outside, 512<<20, mkfs...)
	dir, unmount := filestest.Mount(t, disk, kind)
	for i := range 200 {
		if err := os.WriteFile(fmt.Sprintf("%s/file%d", dir, i), fmt.Appendf(nil, "content %d", i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Syncfs(int(d.Fd())), d.Close()); err != nil {
		t.Fatal(err)
	}
	// Names that are only in the journal.
	for i := range 20 {
		f, err := os.Create(fmt.Sprintf("%s/late%d", dir, i))
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteString("late")
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	copied := filepath.Join(outside, "copy")
	filestest.Clone(t, disk, copied)
	unmount()
	return copied
}

// TestKernel: the kernel replays the journal of a crashed disk, a program sees what it then shows,
// and the disk stays as it was.
func TestKernel(t *testing.T) {
	for _, tc := range []struct {
		kind string
		mkfs []string
	}{
		{"ext4", []string{"mkfs.ext4", "-q", "-F", "-e", "panic", "DISK"}},
		{"xfs", []string{"mkfs.xfs", "-q", "DISK"}},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			w := newWorld(t)
			disk := crashed(t, tc.kind, tc.mkfs...)
			diskio.RequireUnchanged(t, disk)
			before := sha(t, disk)
			f, err := diskio.Open(disk)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			v := Volume{Reader: f, SizeBytes: f.Size(), Kind: tc.kind}
			status, err := w.run(t.Context(), v, `ls "$1" | wc -l; cat "$1"/late* | wc -c; cat "$1/file7"; echo
				grep " $1 " /proc/self/mountinfo; touch "$1/new"; grep -c "$1" /proc/1/mountinfo; exit 7`, 0)
			if err != nil || status != 7 {
				t.Fatalf("Kernel = %d, %v, %s, want 7", status, err, &w.errs)
			}
			want := []string{"80", "content 7", "ro,nosuid,nodev,noexec", "\n0\n"}
			for _, text := range want {
				if !strings.Contains(w.out.String(), text) {
					t.Errorf("printed is %q, want %q", &w.out, text)
				}
			}
			if !strings.Contains(w.errs.String(), "Read-only file system") {
				t.Errorf("writing to it says %q, want that it is read-only", &w.errs)
			}
			if strings.Contains(w.out.String(), "errors=panic") {
				t.Errorf("mounted as the disk wants it: %q", &w.out)
			}
			if after := sha(t, disk); after != before {
				t.Errorf("the disk has the digest %s, want %s", after, before)
			}
			nothingLeft(t, w.state, w.dir)
			// A layer that is too small says so.
			if _, err := w.run(t.Context(), v, "true", 8192); !errors.Is(err, ErrFull) {
				t.Errorf("Kernel with 8 KiB = %v, want %v", err, ErrFull)
			}
			nothingLeft(t, w.state, w.dir)
		})
	}
}

// plain is a disk that was unmounted.
func plain(t *testing.T) Volume {
	t.Helper()
	disk := filestest.Make(t, t.TempDir(), 64<<20, "mkfs.ext4", "-q", "-F", "DISK")
	f, err := diskio.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return Volume{Reader: f, SizeBytes: f.Size(), Kind: "ext4"}
}

// TestKernelProgram: what becomes of the program that is run.
func TestKernelProgram(t *testing.T) {
	w := newWorld(t)
	v := plain(t)
	for _, tc := range []struct {
		name, script string
		status       int
	}{
		{"done", "exit 0", 0},
		{"killed", "kill -9 $$", 137},
		{"leaves another behind", `cd "$1"; sleep 1 >&- 2>&- & exit 3`, 3},
		{"unmounts itself", `umount "$1"`, 0},
	} {
		status, err := w.run(t.Context(), v, tc.script, 0)
		if err != nil || status != tc.status {
			t.Errorf("%s: %d, %v, want %d", tc.name, status, err, tc.status)
		}
		nothingLeft(t, w.state, w.dir)
	}
	if len(w.logged) != 1 || !strings.Contains(w.logged[0], " (process ") {
		t.Errorf("told is %q, want who is waited for", w.logged)
	}
	_, err := Kernel(t.Context(), v, w.dir, KernelOptions{StateDir: w.state, Command: []string{"/no such program"}})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Kernel with no program = %v, want %v", err, os.ErrNotExist)
	}
	nothingLeft(t, w.state, w.dir)
	if _, err := Kernel(t.Context(), v, w.dir, KernelOptions{StateDir: w.state,
		Command: []string{w.dir + "/lost+found"}}); !errors.Is(err, os.ErrPermission) && !errors.Is(err, unix.EISDIR) {
		t.Errorf("Kernel with a program of the guest = %v, want %v", err, os.ErrPermission)
	}
	nothingLeft(t, w.state, w.dir)
	v.Kind = "btrfs"
	if _, err := w.run(t.Context(), v, "true", 0); !errors.Is(err, ErrKind) {
		t.Errorf("Kernel with btrfs = %v, want %v", err, ErrKind)
	}
	v.Kind = "xfs"
	if _, err := w.run(t.Context(), v, "true", 0); err == nil {
		t.Error("an ext4 is mounted as xfs")
	}
	nothingLeft(t, w.state, w.dir)
}

// TestKernelInterrupted: the program is told to end, and is ended if it does not.
func TestKernelInterrupted(t *testing.T) {
	w := newWorld(t)
	v := plain(t)
	ready := filepath.Join(t.TempDir(), "ready")
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		status, err := w.run(ctx, v, `trap 'exit 0' TERM; echo > `+ready+`; while :; do sleep 0.05; done`, 0)
		if err != nil || status != 0 {
			t.Errorf("Kernel = %d, %v, want 0", status, err)
		}
	})
	waitFor(t, func() bool { _, err := os.Stat(ready); return err == nil })
	// Meanwhile nobody else can mount there.
	other := newWorld(t)
	other.state, other.dir = w.state, w.dir
	if _, err := other.run(t.Context(), v, "true", 0); !errors.Is(err, ErrMounted) {
		t.Errorf("Kernel a second time = %v, want %v", err, ErrMounted)
	}
	if gone, err := Recover(w.state); err != nil || len(gone) > 0 {
		t.Errorf("Recover = %+v, %v, want nothing: its process is alive", gone, err)
	}
	cancel()
	done.Wait()
	nothingLeft(t, w.state, w.dir)
}

// TestKernelImpatient: what the program leaves behind is killed when nobody wants to wait for it.
func TestKernelImpatient(t *testing.T) {
	w := newWorld(t)
	v := plain(t)
	for _, tc := range []struct {
		name string
		end  func(cancel func(), interrupt chan os.Signal)
	}{
		{"ended", func(cancel func(), _ chan os.Signal) { cancel() }},
		{"interrupted", func(_ func(), interrupt chan os.Signal) { interrupt <- os.Interrupt }},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		interrupt := make(chan os.Signal, 1)
		interrupt <- os.Interrupt // while the program runs
		var told []string
		status, err := Kernel(ctx, v, w.dir, KernelOptions{StateDir: w.state, Interrupt: interrupt,
			Command: []string{"sh", "-c", `cd "$0"; sleep 1000 >&- 2>&- & exit 3`, w.dir}, Env: os.Environ(),
			Log: func(text string) {
				told = append(told, text)
				go tc.end(cancel, interrupt)
			}})
		cancel()
		if err != nil || status != 3 || len(told) != 1 {
			t.Errorf("%s: %d, %v, told %q, want 3", tc.name, status, err, told)
		}
		nothingLeft(t, w.state, w.dir)
	}
}

// TestKernelKeepsNothing: while the program runs, others unmount what they have, and its device is free,
// however their mounts are shared. Meanwhile nobody writes to what lies beneath; what the command names
// it sees.
func TestKernelKeepsNothing(t *testing.T) {
	v := plain(t)
	for _, tc := range []struct {
		name        string
		propagation uintptr
		told        bool // that it itself is not seen; the one that it is on never is
	}{{"private", unix.MS_PRIVATE, true}, {"shared", unix.MS_SHARED, false}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			dir, fifos := t.TempDir(), t.TempDir()
			d, err := hold.NewDisk(t.Context(), dir)
			if errors.Is(err, hold.ErrUnavailable) {
				testenv.Lacks(t, err.Error())
			} else if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}()
			ready, done := fifos+"/ready", fifos+"/done"
			err = errors.Join(unix.Mount("", dir, "", tc.propagation, ""), os.WriteFile(d.Mount+"/theirs", nil, 0o600),
				unix.Mkfifo(ready, 0o600), unix.Mkfifo(done, 0o600))
			if err != nil {
				t.Fatal(err)
			}
			var run sync.WaitGroup
			run.Go(func() {
				// The command does not name where it is.
				where := strings.TrimPrefix(d.Mount, "/")
				status, err := Kernel(t.Context(), v, w.dir, KernelOptions{StateDir: w.state, Log: w.log,
					Command: []string{"sh", "-c", `echo > "$READY"; cat "$DONE"; ls -A "/$WHERE"; touch "/$WHERE/x"`},
					Env:     append(os.Environ(), "READY="+ready, "DONE="+done, "WHERE="+where),
					Stdout:  &w.out, Stderr: &w.errs})
				if err != nil || status > 1 {
					t.Errorf("Kernel = %d, %v, %s", status, err, &w.errs)
				}
			})
			if _, err := os.ReadFile(ready); err != nil {
				t.Error(err)
			}
			if err := d.Umount(nil); err != nil {
				t.Errorf("umount(2) of somebody else = %v", err)
			}
			if free, err := d.Free(true); err != nil || !free {
				t.Errorf("the device is free: %t, %v, while the namespace lives", free, err)
			}
			if err := os.WriteFile(done, nil, 0); err != nil {
				t.Error(err)
			}
			run.Wait()
			told := slices.ContainsFunc(w.logged, func(text string) bool { return strings.Contains(text, d.Mount) })
			refused := strings.Contains(w.errs.String(), "touch: ")
			if w.out.String() != "" || told != tc.told || !refused {
				t.Errorf("the command sees %q and is refused %q, told is %q", &w.out, &w.errs, w.logged)
			}
			nothingLeft(t, w.state, w.dir)
		})
	}
}

func TestPathsIn(t *testing.T) {
	got := pathsIn(`dd of=/srv/a b/c "/x/../y";/z,'//w'>/v`)
	if want := []string{"/srv/a", "/y", "/z", "/w", "/v"}; !slices.Equal(got, want) {
		t.Errorf("pathsIn = %q, want %q", got, want)
	}
}

// TestLayer holds a layer against a plain copy that the same is written to.
func TestLayer(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	under := make([]byte, 40*pageBytes+100)
	for i := range under {
		under[i] = byte(rng.Uint32())
	}
	before, want := slices.Clone(under), slices.Clone(under)
	l := newLayer(bytes.NewReader(under), int64(len(under)), 1<<20)
	for range 500 {
		off := rng.IntN(len(want))
		p := make([]byte, rng.IntN(min(3*pageBytes, len(want)-off)+1))
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		if n, err := l.WriteAt(p, int64(off)); n != len(p) || err != nil {
			t.Fatalf("WriteAt(%d, %d) = %d, %v", len(p), off, n, err)
		}
		copy(want[off:], p)
		off = rng.IntN(len(want))
		got := make([]byte, rng.IntN(len(want)-off+500))
		n, err := l.ReadAt(got, int64(off))
		if end := min(len(got), len(want)-off); n != end || err != nil && err != io.EOF ||
			!bytes.Equal(got[:n], want[off:off+n]) {
			t.Fatalf("ReadAt(%d, %d) = %d, %v, want %d", len(got), off, n, err, end)
		}
	}
	if !bytes.Equal(under, before) {
		t.Error("what lies under the layer was changed")
	}
	small := newLayer(bytes.NewReader(under), int64(len(under)), 3*pageBytes)
	if n, err := small.WriteAt(make([]byte, 5*pageBytes), 0); n != 3*pageBytes || !errors.Is(err, ErrFull) {
		t.Errorf("WriteAt beyond the limit = %d, %v, want %d, %v", n, err, 3*pageBytes, ErrFull)
	}
	if _, err := small.WriteAt([]byte{1}, int64(len(under))); err == nil {
		t.Error("WriteAt beyond the end = no error")
	}
}
