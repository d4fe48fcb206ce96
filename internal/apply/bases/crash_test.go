// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
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
	"github.com/shisa-vm/shisa/internal/lab/cutfs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// victimDir in the environment makes a test the program that is killed or stopped: in that pool, at the point that
// victimAt numbers.
const (
	victimDir = "SHISA_BASES_VICTIM"
	victimAt  = "SHISA_BASES_AT"
)

// points are before each step of an act, and before and after each change of a name.
type points struct {
	diskio.Links
	at   int
	n    int
	here func()
}

func (p *points) point() {
	if p.n++; p.n == p.at {
		p.here()
	}
}

func (p *points) step(string) error { p.point(); return nil }

func (p *points) Move(id diskio.ID, from, to string) error {
	p.point()
	defer p.point()
	return p.Links.Move(id, from, to)
}

func (p *points) Unlink(id diskio.ID, name string) error {
	p.point()
	defer p.point()
	return p.Links.Unlink(id, name)
}

func (p *points) Touch(id diskio.ID, name string, t time.Time) error {
	if filepath.Base(name) != pool.Clock {
		p.point()
	}
	return p.Links.Touch(id, name, t)
}

// story sets two bases aside, of which one is removed for good, and the other is needed and brought back.
func (f *stock) story(o Options) {
	f.t.Helper()
	p := f.plan("a", "b")
	if d, err := Quarantine(f.t.Context(), p, f.decision(), o); err != nil || len(d.Quarantined) != 2 {
		f.t.Fatalf("Quarantine = %+v, %v by %+v", d, err, p)
	}
	f.image("late", "b") // of a machine that was restored from a backup
	f.reports()
	if d, err := f.purge(o); err != nil || len(d.Purged) != 1 {
		f.t.Fatalf("Purge = %+v, %v", d, err)
	}
	if _, err := Restore(f.t.Context(), "b", RestoreOptions{}, o); err != nil {
		f.t.Fatal(err)
	}
}

// TestKilledAtEveryStep kills a program at each point of the story: no base is lost, and after recovering none has two
// names, whatever was needed has its own, and every audit holds.
func TestKilledAtEveryStep(t *testing.T) {
	if dir := os.Getenv(victimDir); dir != "" {
		f := &stock{&world{t, dir}, []string{"n1", "n2"}}
		at, err := strconv.Atoi(os.Getenv(victimAt))
		if err != nil {
			t.Fatal(err)
		}
		p := &points{Links: diskio.HostLinks(), at: at, here: func() { _ = unix.Kill(os.Getpid(), unix.SIGKILL); select {} }}
		o := f.options()
		o.Links, o.Step = p, p.step
		f.story(o)
		fmt.Printf("points %d\n", p.n)
		return
	}
	every := testenv.Rounds(2, 1, 1)
	killed := 0
	for at := 1; ; at += every {
		f := newStock(t, "a", "b", "used")
		f.image("disk", "used")
		files := f.files("a", "b", "used")
		delete(files, "a") // nobody needs it
		out, err := f.victim("^TestKilledAtEveryStep$", at).CombinedOutput()
		var exit *exec.ExitError
		switch {
		case err == nil:
			if !bytes.Contains(out, []byte("points ")) || killed == 0 {
				t.Fatalf("the victim was not killed at %d, and said\n%s", at, out)
			}
			if got := f.problems(files, true); got != nil {
				t.Errorf("to the end: %q", got)
			}
			return
		case !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL:
			t.Fatalf("at %d the victim ended with %v:\n%s", at, err, out)
		}
		killed++
		if got := f.problems(files, false); got != nil {
			t.Errorf("killed at %d: %q", at, got)
		}
		d, err := Recover(t.Context(), f.decision(), f.options())
		if err != nil || len(d.Left) > 0 {
			t.Errorf("killed at %d: Recover = %+v, %v", at, d, err)
		}
		if got := f.problems(files, true); got != nil {
			t.Errorf("killed at %d and recovered: %q", at, got)
		}
		f.wantNames(files, fmt.Sprintf("killed at %d", at))
		// Done again it does nothing.
		if d, err = Recover(t.Context(), f.decision(), f.options()); err != nil || len(d.Recovered)+len(d.Restored)+len(d.Left) > 0 {
			t.Errorf("killed at %d and recovered twice: %+v, %v", at, d, err)
		}
	}
}

// victim is this program again, to be killed or stopped in the pool.
func (f *stock) victim(test string, at int) *exec.Cmd {
	c := exec.Command("/proc/self/exe", "-test.run", test, "-test.count=1")
	c.Env = append(os.Environ(), "TMPDIR="+f.t.TempDir(), victimDir+"="+f.dir, victimAt+"="+strconv.Itoa(at))
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return c
}

// wantNames tells of bases that are needed and do not have their names.
func (f *stock) wantNames(files map[string]uint64, when string) {
	f.t.Helper()
	c, err := f.look(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	for i := range c.All {
		b := &c.All[i]
		if want := files[b.Name]; want != 0 && len(b.Uses) > 0 && b.ID == "" && b.File.Ino != want {
			f.t.Errorf("%s: %s is needed and %s, inode %d, want %d", when, b.Name, b.State, b.File.Ino, want)
		}
	}
}

// TestStoppedBeforeRename stops a program between its decision and the rename. In that moment an image comes to rest on
// the base. When the program goes on, the base is back at the end.
func TestStoppedBeforeRename(t *testing.T) {
	if dir := os.Getenv(victimDir); dir != "" {
		f := &stock{&world{t, dir}, []string{"n1", "n2"}}
		o := f.options()
		stops := 0
		o.Step = func(what string) error {
			if strings.HasPrefix(what, "rename a") && stops == 0 {
				stops++
				_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
			}
			return nil
		}
		d, err := Quarantine(t.Context(), f.plan("a"), f.decision(), o)
		fmt.Printf("set aside %d, restored %q, %v\n", len(d.Quarantined), d.Restored, err)
		return
	}
	f := newStock(t, "a", "b")
	files := f.files("a")
	c := f.victim("^TestStoppedBeforeRename$", 0)
	var out bytes.Buffer
	c.Stdout = &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	for begun := time.Now(); !stopped && time.Since(begun) < time.Minute; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		stopped = bytes.Contains(stat, []byte(") T "))
	}
	if !stopped {
		t.Errorf("the victim was not stopped")
	}
	f.image("new", "a")
	if err := c.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil || !strings.Contains(out.String(), `set aside 1, restored ["a"], <nil>`) {
		t.Errorf("the victim: %v: %s", err, out.String())
	}
	if got := f.problems(files, true); got != nil {
		t.Error(got)
	}
	f.wantNames(files, "at the end")
}

// lying is a file system whose answers do not tell what was done.
type lying struct {
	diskio.Links
	// done: it is done, and said that it was not. Otherwise it is said that it was done, and it was not.
	done bool
}

func (l lying) Move(id diskio.ID, from, to string) error {
	if !l.done {
		return nil
	}
	return errors.Join(l.Links.Move(id, from, to), fs.ErrNotExist)
}

// TestLostAnswers: what a rename says is never believed.
func TestLostAnswers(t *testing.T) {
	f := newStock(t, "a", "b")
	files := f.files("b")
	o := f.options()
	o.Links = lying{diskio.HostLinks(), true}
	f.story(o)
	if got := f.problems(files, true); got != nil {
		t.Errorf("done, and said not: %q", got)
	}
	f = newStock(t, "a", "b")
	files = f.files("a")
	o.Bases, o.Links = f.dir, lying{diskio.HostLinks(), false}
	d, err := Quarantine(t.Context(), f.plan("a"), f.decision(), o)
	if err != nil || len(d.Quarantined) > 0 || len(d.Left) != 1 || !strings.Contains(d.Left[0].Why, "has its name still") {
		t.Errorf("not done, and said so: Quarantine = %+v, %v", d, err)
	}
	if got := f.problems(files, true); got != nil {
		t.Errorf("not done, and said so: %q", got)
	}
	if e := f.files("a"); e["a"] != files["a"] {
		t.Error("a has another file")
	}
}

// TestLostAnswersOfKernel has the kernel itself tell of a rename that was done that the name is not there, as NFS does
// after it sent the call twice.
func TestLostAnswersOfKernel(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	tree, err := cutfs.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := cutfs.Mount(dir, tree)
	if errors.Is(err, cutfs.ErrUnavailable) {
		testenv.Lacks(t, "FUSE: "+err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	err = m.Do(func() error {
		from, to := filepath.Join(dir, "base"), filepath.Join(dir, "q", heldName)
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "q"), 0o755), os.WriteFile(from, []byte("base"), 0o644)); err != nil {
			return err
		}
		e, err := diskio.LookEntry(from)
		if err != nil {
			return err
		}
		m.LoseAnswers(true)
		if err := os.Rename(from, from+".x"); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the answer was not lost: %v", err)
		}
		if _, err := newKeeper(Options{Bases: dir}).move(e.ID, from+".x", to); err != nil {
			return fmt.Errorf("move = %w, want that it was done", err)
		}
		text, err := os.ReadFile(to)
		if string(text) != "base" {
			return fmt.Errorf("it holds %q, %v", text, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

const heldName = "0123456789abcdef0123456789abcdef.base"
