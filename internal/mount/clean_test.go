// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// serveFor is this program as another process that mounts: as-server HOW STATE DIR [DISK].
func serveFor(args []string) error {
	ctx := context.Background()
	how, state, dir := args[0], args[1], args[2]
	switch how {
	case "files", "background":
		m, err := Files(broken(), dir, Options{StateDir: state, Source: "broken",
			Ended: func() []Line { return []Line{{Changed, "an\nimage"}} }})
		if err != nil {
			return err
		}
		if fmt.Println("ready", os.Getpid()); how == "background" {
			if err := Ready(4); err != nil {
				return err
			}
		}
		<-m.Done()
		return m.Err()
	case "unmount":
		_, err := Unmount(ctx, state, dir)
		return err
	case "kernel":
		f, err := diskio.Open(args[3])
		if err != nil {
			return err
		}
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		_, err = Kernel(ctx, Volume{f, f.Size(), "ext4"}, dir, KernelOptions{StateDir: state,
			Command: []string{"sh", "-c", args[4]}, Env: os.Environ(), Stdout: os.Stdout, Stderr: os.Stderr})
		return err
	}
	return errors.New("how?")
}

// server is another process that mounts.
type server struct {
	*exec.Cmd
	state, dir string
}

// startServer starts one and waits until it is ready.
func startServer(t *testing.T, how string, more ...string) *server {
	t.Helper()
	testenv.NeedRoot(t)
	s := &server{state: t.TempDir(), dir: t.TempDir()}
	s.start(t, nil, how, more...)
	return s
}

func (s *server) start(t *testing.T, as *syscall.Credential, how string, more ...string) {
	t.Helper()
	s.Cmd = exec.Command("/proc/self/exe", append([]string{"as-server", how, s.state, s.dir}, more...)...)
	s.Stderr = os.Stderr
	s.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Process.Kill()
		_ = s.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.HasPrefix(line, "ready") {
		t.Fatalf("the server says %q, %v", line, err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
}

// kill ends it as kill -9 does.
func (s *server) kill(t *testing.T) {
	t.Helper()
	if err := s.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); err == nil {
		t.Fatal("it ended by itself")
	}
}

// waitFor waits until something is so; a machine that is busy may take long.
func waitFor(t *testing.T, is func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come to that")
		}
	}
}

func TestUnmount(t *testing.T) {
	s := startServer(t, "files")
	if _, err := os.ReadFile(s.dir + "/dangling"); !errors.Is(err, unix.EIO) {
		t.Errorf("read = %v, want EIO", err)
	}
	// In use it stays.
	f, err := os.Open(s.dir + "/whole")
	if err != nil {
		t.Fatal(err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	who := fmt.Sprintf("in use by %s (process %d)", bytes.TrimSpace(comm), os.Getpid())
	_, err = Unmount(t.Context(), s.state, s.dir)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), who) {
		t.Errorf("Unmount in use = %v, want %v, %s", err, ErrBusy, who)
	}
	f.Close()
	// Covered by another mount it stays, and so does the other one.
	if err := unix.Mount("cover", s.dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := Unmount(t.Context(), s.state, s.dir); err == nil || !strings.Contains(err.Error(), "tmpfs") {
		t.Errorf("Unmount under a cover = %v, want an error that names it", err)
	}
	if err := unix.Unmount(s.dir, 0); err != nil {
		t.Fatal(err)
	}
	if gone, err := Recover(s.state); err != nil || len(gone) > 0 {
		t.Errorf("Recover = %+v, %v, want nothing: its process is alive", gone, err)
	}
	if _, err := Files(odd(), s.dir, Options{StateDir: s.state}); !errors.Is(err, ErrMounted) {
		t.Errorf("Files on it = %v, want %v", err, ErrMounted)
	}
	if _, err := Unmount(t.Context(), t.TempDir(), s.dir); !errors.Is(err, ErrNotOurs) {
		t.Errorf("Unmount with another state directory = %v, want %v", err, ErrNotOurs)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(s.dir, link); err != nil {
		t.Fatal(err)
	}
	gone, err := Unmount(t.Context(), s.state, link)
	if err != nil || gone.Killed || len(gone.Log) != 2 || gone.Log[0].About != Unread ||
		!strings.Contains(gone.Log[0].Text, `"dangling"`) || gone.Log[1] != (Line{Changed, "an?image"}) {
		t.Errorf("Unmount = %+v, %v, want what could not be read, and what was told in the end", gone, err)
	}
	if err := s.Wait(); err != nil {
		t.Errorf("the process ends with %v", err)
	}
	nothingLeft(t, s.state, s.dir)
	if _, err := Unmount(t.Context(), s.state, s.dir); !errors.Is(err, ErrNotOurs) {
		t.Errorf("Unmount again = %v, want %v", err, ErrNotOurs)
	}
}

// TestUnmountedByOthers: the process ends and leaves nothing when somebody else unmounts.
func TestUnmountedByOthers(t *testing.T) {
	s := startServer(t, "files")
	if err := unix.Unmount(s.dir, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); err != nil {
		t.Errorf("the process ends with %v", err)
	}
	nothingLeft(t, s.state, s.dir)
}

// TestKilled: after kill -9 everything can be taken away, in each way there is.
func TestKilled(t *testing.T) {
	for name, clean := range map[string]func(s *server) error{
		"umount": func(s *server) error {
			gone, err := Unmount(t.Context(), s.state, s.dir)
			if err == nil && !gone.Killed {
				err = fmt.Errorf("%+v does not say that it was killed", gone)
			}
			return err
		},
		"recover": func(s *server) error {
			gone, err := Recover(s.state)
			if err == nil && (len(gone) != 1 || gone[0].Dir != s.dir) {
				err = fmt.Errorf("taken away is %+v", gone)
			}
			return err
		},
		"mount": func(s *server) error {
			m, err := Files(odd(), s.dir, Options{StateDir: s.state})
			if err != nil {
				return err
			}
			_, err = os.ReadFile(s.dir + "/one")
			return errors.Join(err, m.Unmount())
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, "files")
			s.kill(t)
			if err := unix.Statfs(s.dir, new(unix.Statfs_t)); !errors.Is(err, unix.ENOTCONN) {
				t.Errorf("statfs = %v, want %v", err, unix.ENOTCONN)
			}
			if err := clean(s); err != nil {
				t.Error(err)
			}
			nothingLeft(t, s.state, s.dir)
		})
	}
}

// TestKilledJustNow: who is being killed is waited for, and not taken for alive or for gone.
func TestKilledJustNow(t *testing.T) {
	for range 5 {
		s := startServer(t, "files")
		if err := s.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if gone, err := Recover(s.state); err != nil || len(gone) != 1 {
			// It may not have begun to end.
			waitFor(t, func() bool { gone, err = Recover(s.state); return err != nil || len(gone) == 1 })
			if err != nil {
				t.Error(err)
			}
		}
		nothingLeft(t, s.state, s.dir)
	}
}

// TestOnlyOurs: what a record does not prove to be ours stays.
func TestOnlyOurs(t *testing.T) {
	s := startServer(t, "files")
	s.kill(t)
	// Over the dead mount somebody mounts something else.
	if err := unix.Unmount(s.dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	m, err := Files(odd(), s.dir, Options{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if gone, err := Recover(s.state); err != nil || len(gone) != 1 {
		t.Errorf("Recover = %+v, %v, want the record gone", gone, err)
	}
	if _, err := os.ReadFile(s.dir + "/one"); err != nil {
		t.Errorf("what another one mounted there: %v", err)
	}
	if err := m.Unmount(); err != nil {
		t.Error(err)
	}

	covered := startServer(t, "files")
	covered.kill(t)
	// A dead directory cannot be mounted on: the cover has to be there before.
	again := startServer(t, "files")
	if err := unix.Mount("cover", again.dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	again.kill(t)
	if gone, err := Recover(again.state); err == nil || len(gone) > 0 {
		t.Errorf("Recover under a cover = %+v, %v, want an error", gone, err)
	}
	if err := unix.Unmount(again.dir, 0); err != nil {
		t.Error(err)
	}
	for _, state := range []string{covered.state, again.state} {
		if gone, err := Recover(state); err != nil || len(gone) != 1 {
			t.Errorf("Recover = %+v, %v, want one", gone, err)
		}
	}
	nothingLeft(t, covered.state, covered.dir)
	nothingLeft(t, again.state, again.dir)
}

// TestRecords: of an earlier boot, of another program with the same number, that were not finished,
// and of another version.
func TestRecords(t *testing.T) {
	state, dir := t.TempDir(), t.TempDir()
	put := func(r record) *record {
		b, err := begin(state, record{Kind: kindFiles, Dir: []byte(dir)})
		if err != nil {
			t.Fatal(err)
		}
		r.Boot, r.path = b.Boot+r.Boot, b.path
		if r.Schema == "" {
			r.Schema = schema
		}
		if err := r.write(); err != nil {
			t.Fatal(err)
		}
		return &r
	}
	for name, r := range map[string]record{
		"another boot":     {PID: os.Getpid(), Boot: "x", Kind: kindFiles},
		"another process":  {PID: os.Getpid(), Start: 1, Kind: kindKernel, Marker: "no such"},
		"no process":       {PID: 1 << 30, Kind: kindFiles},
		"of another start": {PID: 1, Start: 1 << 60, Kind: kindFiles},
	} {
		put(r)
		if gone, err := Recover(state); err != nil || len(gone) != 1 {
			t.Errorf("%s: %+v, %v, want it gone", name, gone, err)
		}
		nothingLeft(t, state)
	}
	r := put(record{Schema: "shisa.mounted/2"})
	if gone, err := Recover(state); err == nil || len(gone) > 0 {
		t.Errorf("another version: %+v, %v, want an error", gone, err)
	}
	if err := os.WriteFile(r.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if gone, err := Recover(state); err != nil || len(gone) != 1 {
		t.Errorf("an empty one: %+v, %v, want it gone", gone, err)
	}
	if err := os.WriteFile(r.path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if gone, err := Recover(state); err == nil || len(gone) > 0 {
		t.Errorf("a broken one: %+v, %v, want an error", gone, err)
	}
	if gone, err := Recover(t.TempDir()); err != nil || len(gone) > 0 {
		t.Errorf("without any: %+v, %v", gone, err)
	}
}

// TestKernelKilled: after kill -9 of the process that serves the disk, its program is killed too and
// the kernel takes the rest away; the record is struck off.
func TestKernelKilled(t *testing.T) {
	for _, tc := range []struct{ name, script string }{
		{"program", `echo ready; exec sleep 1000`},
		{"program that left another", `(echo ready; exec sleep 1000) & wait`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := plain(t)
			disk := v.Reader.(*diskio.File).Name()
			before := sha(t, disk)
			s := startServer(t, "kernel", disk, tc.script)
			all, errs := records(s.state)
			if len(all) != 1 || len(errs) > 0 {
				t.Fatalf("records are %v, %v, want one", all, errs)
			}
			r := all[0]
			if left, err := r.loops(); err != nil || len(left) != 1 || left[0] != r.Loop {
				t.Errorf("loop devices are %v, %v, want %d", left, err, r.Loop)
			}
			inside := inNamespace(r.Namespace)
			s.kill(t)
			if tc.name != "program" {
				// What was left behind keeps the device.
				_, err := Recover(s.state)
				if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "sleep (process ") {
					t.Errorf("Recover = %v, want who keeps it", err)
				}
				for _, who := range inNamespace(r.Namespace) {
					_, number, _ := strings.Cut(strings.TrimSuffix(who, ")"), "process ")
					pid, err := strconv.Atoi(number)
					if err != nil {
						t.Fatal(err)
					}
					if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
						t.Error(err)
					}
				}
			}
			waitFor(t, func() bool { return len(inNamespace(r.Namespace)) == 0 })
			if gone, err := Recover(s.state); err != nil || len(gone) != 1 {
				t.Errorf("Recover = %+v, %v, want one (in it were %q)", gone, err, inside)
			}
			nothingLeft(t, s.state, s.dir)
			if after := sha(t, disk); after != before {
				t.Error("the disk was changed")
			}
		})
	}
}

// TestBackground: a process that goes to the background serves on until it is unmounted.
func TestBackground(t *testing.T) {
	testenv.NeedRoot(t)
	state, dir := t.TempDir(), t.TempDir()
	status, err := Background(t.Context(), []string{"as-server", "background", state, dir})
	if err != nil || status != 4 {
		t.Fatalf("Background = %d, %v, want 4", status, err)
	}
	if text, err := os.ReadFile(dir + "/whole"); err != nil || string(text) != "whole" {
		t.Errorf("read = %q, %v", text, err)
	}
	r, err := readRecord(recordPath(state, dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"fd/0", "fd/1", "fd/2"} {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", r.PID, link)); err != nil || to != "/dev/null" {
			t.Errorf("%s is %s, %v, want /dev/null", link, to, err)
		}
	}
	if to, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", r.PID)); err != nil || to != "/" {
		t.Errorf("it is in %s, %v, want /", to, err)
	}
	if _, err := Unmount(t.Context(), state, dir); err != nil {
		t.Error(err)
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(r.PID, &ws, 0, nil); err != nil || ws.ExitStatus() != 0 {
		t.Errorf("it ended with %v, %v", ws, err)
	}
	nothingLeft(t, state, dir)
	// What fails before is given as it is.
	if status, err := Background(t.Context(), []string{"as-server", "files", state, dir + "/no such"}); err != nil ||
		status != 9 {
		t.Errorf("Background = %d, %v, want 9", status, err)
	}
}

// TestUser: who is not root mounts and unmounts too, with fusermount3, and sees every file.
func TestUser(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "fusermount3")
	const nobody = 65534
	as := &syscall.Credential{Uid: nobody, Gid: nobody}
	base := outside(t)
	s := &server{state: filepath.Join(base, "state"), dir: filepath.Join(base, "dir")}
	for _, dir := range []string{s.state, s.dir} {
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, nobody, nobody)); err != nil {
			t.Fatal(err)
		}
	}
	other := func(name string, args ...string) (string, error) {
		c := exec.Command(name, args...)
		c.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		out, err := c.CombinedOutput()
		return string(out), err
	}
	for _, killed := range []bool{false, true} {
		s.start(t, as, "files")
		if out, err := other("cat", s.dir+"/half/seen"); err != nil || out != "seen" {
			t.Errorf("cat = %q, %v", out, err)
		}
		if _, err := os.ReadFile(s.dir + "/whole"); !errors.Is(err, unix.EACCES) {
			t.Errorf("root reads what another user mounted: %v, want EACCES", err)
		}
		if killed {
			s.kill(t)
		}
		if out, err := other("/proc/self/exe", "as-server", "unmount", s.state, s.dir); err != nil {
			t.Errorf("unmount (killed %v): %v\n%s", killed, err, out)
		}
		if err := s.Wait(); err != nil && !killed {
			t.Errorf("the process ends with %v", err)
		}
		nothingLeft(t, s.state, s.dir)
	}
	if _, err := Files(odd(), s.dir, Options{StateDir: "relative"}); err == nil {
		t.Error("a state directory that is not absolute is taken")
	}
}
