// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package jail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/guest/volume"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if IsChild(os.Args) {
		os.Exit(Serve())
	}
	if os.Getenv(confinedEnv) == "1" {
		os.Exit(breakOut())
	}
	if os.Getenv(parentEnv) == "1" {
		os.Exit(beParent())
	}
	if err := hold.Apart(); err != nil { // or other tests' namespaces keep what is mounted here
		fmt.Fprintln(os.Stderr, err)
	}
	testenv.Main(m)
}

// start starts a jail for one disk.
func start(t *testing.T, data io.ReaderAt, size int64) *Jail {
	t.Helper()
	j, err := Start(t.Context(), []volume.Disk{{Name: "disk", Data: data, Size: size}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j
}

// TestSame reads a real file system through the jail: all must be as the kernel shows it.
func TestSame(t *testing.T) {
	for _, tc := range []struct {
		kind string
		mkfs []string
		fill filestest.Fill
	}{
		{"ext4", []string{"mkfs.ext4", "-q", "-F", "DISK"}, filestest.Fill{ACLs: true}},
		{"xfs", []string{"mkfs.xfs", "-q", "DISK"}, filestest.Fill{ACLs: true}},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			disk := filestest.Make(t, t.TempDir(), 512<<20, tc.mkfs...)
			dir, unmount := filestest.Mount(t, disk, tc.kind)
			filestest.Populate(t, dir, tc.fill)
			f, err := os.Open(disk)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			unmount() // gives back what was reserved beyond the ends of files
			dir, unmount = filestest.Mount(t, disk, tc.kind)
			want := filestest.ReadMounted(t, dir)
			unmount()
			j := start(t, f, 512<<20)
			l, err := j.Layout(t.Context())
			if err != nil || len(l.Volumes) != 1 || string(l.Volumes[0].Kind) != tc.kind {
				t.Fatalf("Layout = %+v, %v; want one %s", l, err, tc.kind)
			}
			fs, err := j.FS(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			got, view, err := filestest.ReadView(t.Context(), fs)
			if err != nil || view.State == files.Incomplete {
				t.Fatalf("%v, %+v", err, view)
			}
			for _, line := range filestest.Differences(got, want, filestest.Loose{}) {
				t.Error(line)
			}
			testNames(t, fs)
			if tc.kind == "ext4" {
				testOwners(t, fs)
			}
		})
	}
}

// testNames compares the entries of a large directory with what is behind them with single calls.
func testNames(t *testing.T, fs *FS) {
	t.Helper()
	root, err := fs.Open(t.Context(), fs.Info().Root)
	if err != nil {
		t.Fatal(err)
	}
	var big files.Ino
	if err := root.Entries(t.Context(), func(e files.Entry) error {
		if e.Name == "big" {
			big = e.Ino
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	n := 0
	err = fs.Names(t.Context(), big, func(e files.Entry, f files.File, err error) error {
		n++
		if e.Name == "." || e.Name == ".." {
			return nil
		}
		if err != nil {
			return err
		}
		if one, err := fs.Open(t.Context(), e.Ino); err != nil || *one.Stat() != *f.Stat() {
			t.Errorf("%s: %+v, %v; want %+v", e.Name, one, err, f.Stat())
		}
		return nil
	})
	if err != nil || n != 2002 {
		t.Errorf("%d names, %v; want 2002", n, err)
	}
	// A list that is left before its end is forgotten, and the jail goes on.
	stop := errors.New("enough")
	for range 3 {
		if err := fs.Names(t.Context(), big, func(files.Entry, files.File, error) error {
			return stop
		}); !errors.Is(err, stop) {
			t.Errorf("Names = %v, want %v", err, stop)
		}
	}
}

// testOwners asks for the whole volume: all of it must be told.
func testOwners(t *testing.T, fs *FS) {
	t.Helper()
	at := int64(0)
	err := fs.Owners(t.Context(), []files.Range{{Length: 512 << 20}}, func(o files.Owner) error {
		if o.Range.Offset > at {
			t.Errorf("nothing is said of %d to %d", at, o.Range.Offset)
		}
		at = max(at, o.Range.Offset+o.Range.Length)
		return nil
	})
	if err != nil || at != 512<<20 {
		t.Errorf("Owners ended at %d: %v", at, err)
	}
}

// TestConfined has a child try what it must not be able to do.
func TestConfined(t *testing.T) {
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), confinedEnv+"=1")
	out, err := c.CombinedOutput()
	if err != nil || string(out) != "tried\n" {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestThreads has a child that may make so many threads and no more.
func TestThreads(t *testing.T) {
	j := start(t, bytes.NewReader(make([]byte, 4096)), 4096)
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", j.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	most := regexp.MustCompile(`(?m)^Max processes +([0-9]+) +([0-9]+) `).FindStringSubmatch(string(limits))
	if most == nil {
		t.Fatalf("a child may have any number of threads:\n%s", limits)
	}
	for _, text := range most[1:] {
		if n, err := strconv.Atoi(text); err != nil || n > maxThreads {
			t.Errorf("a child may have %s threads, want at most %d", text, maxThreads)
		}
	}
}

// confinedEnv makes a test program try to break out.
const confinedEnv = "SHISA_TEST_CONFINED"

// mapping asks for memory of a kind.
func mapping(kind int) error {
	_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, kind|unix.MAP_ANON)
	return err
}

// breakOut tries what a child must not be able to do, and prints what it could.
func breakOut() int {
	if err := drop(MemoryBytes); err != nil {
		fmt.Println(err)
		return 1
	}
	for what, try := range map[string]func() error{
		"open":   func() error { _, err := os.Open("/etc/passwd"); return err },
		"create": func() error { return os.WriteFile("/tmp/shisa-jail", nil, 0o600) },
		"socket": func() error { _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
		"exec":   func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"fork":   func() error { return exec.Command("/bin/true").Run() },
		"kill":   func() error { return unix.Kill(os.Getppid(), 0) },
		"ptrace": func() error { return unix.PtraceAttach(1) },
		"setuid": func() error { _, _, e := unix.RawSyscall(unix.SYS_SETUID, 0, 0, 0); return e },
		"tgkill": func() error { return unix.Tgkill(os.Getppid(), os.Getppid(), 0) },
		"owner":  func() error { _, err := unix.FcntlInt(1, unix.F_SETOWN, os.Getppid()); return err },
		"shrink": func() error { return unix.Ftruncate(1, 0) },
		"shared": func() error { return mapping(unix.MAP_SHARED) },
		"stack":  func() error { return mapping(unix.MAP_PRIVATE | unix.MAP_GROWSDOWN) },
		"x32":    func() error { _, _, e := unix.RawSyscall(bitsX32|unix.SYS_GETPID, 0, 0, 0); return e },
	} {
		// It is the filter that says no, not that this user may not.
		if err := try(); !errors.Is(err, unix.ENOSYS) {
			fmt.Println(what, "is allowed:", err)
		}
	}
	if os.Geteuid() == 0 {
		fmt.Println("it is user", os.Geteuid())
	}
	fmt.Println("tried")
	return 0
}

// stuck is a disk whose reads end when it is told so.
type stuck chan struct{}

func (s stuck) ReadAt(p []byte, _ int64) (int, error) {
	<-s
	clear(p)
	return len(p), nil
}

// TestChildDies ends the child under a call, cancels a call, and closes the jail under one.
func TestChildDies(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(j *Jail, cancel context.CancelFunc)
		want func(error) bool
	}{
		{"killed", func(j *Jail, _ context.CancelFunc) { _ = unix.Kill(j.cmd.Process.Pid, unix.SIGKILL) },
			func(err error) bool { c := new(CrashError); return errors.As(err, &c) && c.How == "signal: killed" }},
		{"panics", func(j *Jail, _ context.CancelFunc) { _ = unix.Kill(j.cmd.Process.Pid, unix.SIGQUIT) },
			func(err error) bool {
				c := new(CrashError)
				return errors.As(err, &c) && strings.Contains(c.Words, "SIGQUIT")
			}},
		{"cancelled", func(_ *Jail, cancel context.CancelFunc) { cancel() },
			func(err error) bool { return errors.Is(err, context.Canceled) }},
		{"closed", func(j *Jail, _ context.CancelFunc) { go j.end(ErrClosed) },
			func(err error) bool { return errors.Is(err, ErrClosed) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			disk := make(stuck)
			j := start(t, disk, 1<<30)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			failed := make(chan error, 1)
			go func() { _, err := j.Layout(ctx); failed <- err }()
			for j.reading.Load() == 0 {
				select {
				case err := <-failed:
					t.Fatalf("Layout = %v before it read", err)
				case <-time.After(time.Millisecond):
				}
			}
			tc.do(j, cancel)
			// The read of the disk has not ended: nobody waits for it.
			if err := <-failed; !tc.want(err) {
				t.Errorf("Layout = %v", err)
			}
			close(disk)
			if _, err := j.FS(t.Context(), 0); err == nil {
				t.Error("a call after the end gives no error")
			}
		})
	}
}

// TestOpensOnlyWhatIsRead asks for volumes without a reader.
func TestOpensOnlyWhatIsRead(t *testing.T) {
	j := start(t, bytes.NewReader(make([]byte, 1<<20)), 1<<20)
	if _, err := j.FS(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "not examined: empty") {
		t.Errorf("FS of an empty disk: %v", err)
	}
	if _, err := j.FS(t.Context(), 7); err == nil {
		t.Error("FS of a volume that is not there gives no error")
	}
}
