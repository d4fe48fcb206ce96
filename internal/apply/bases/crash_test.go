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
	"slices"
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

func (p *points) Aside(id diskio.ID, from, to string) error {
	p.point()
	defer p.point()
	return p.Links.Aside(id, from, to)
}

func (p *points) Link(id diskio.ID, from, to string) error {
	p.point()
	defer p.point()
	return p.Links.Link(id, from, to)
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
	killed(t, testenv.Rounds(2, 1, 1), func(f *stock) { f.image("disk", "used") }, func(f *stock, o Options) { f.story(o) })
}

// TestUndoKilledAtEveryStep is the same for names that are taken back: one of a base that came from its shield, one that
// came from quarantine under another name, and one of a copy.
func TestUndoKilledAtEveryStep(t *testing.T) {
	killed(t, testenv.Rounds(2, 1, 1), func(f *stock) {
		o := f.receipts()
		f.quarantine("b")
		f.remove("used")
		f.write("../candidate", "a copy")
		st, err := diskio.Look(f.path("../candidate"))
		if err != nil {
			t.Fatal(err)
		}
		_, err1 := Restore(t.Context(), "used", RestoreOptions{}, o)
		_, err2 := Restore(t.Context(), "b", RestoreOptions{As: "as"}, o)
		_, err3 := Adopt(t.Context(), f.path("../candidate"), st.ID, "copied", Proof{Why: "test"}, o)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
	}, func(f *stock, o Options) {
		o.Receipts = f.receipts().Receipts
		all, err := o.Receipts.BaseReceipts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			r, err := Undo(t.Context(), r.ID, UndoOptions{Census: f.look, Needed: func(string) bool { return true }}, o)
			if err != nil || len(InForce(r)) > 0 && r.Act != "protect" {
				t.Fatalf("Undo = %+v, %v", r, err)
			}
		}
	})
}

// killed runs a story again and again, each time killed every points later, and once to its end.
func killed(t *testing.T, every int, before func(*stock), story func(*stock, Options)) {
	if dir := os.Getenv(victimDir); dir != "" {
		f := &stock{&world{t, dir}, []string{"n1", "n2"}}
		at, err := strconv.Atoi(os.Getenv(victimAt))
		if err != nil {
			t.Fatal(err)
		}
		p := &points{Links: diskio.HostLinks(), at: at, here: func() { _ = unix.Kill(os.Getpid(), unix.SIGKILL); select {} }}
		o := f.options()
		o.Links, o.Step = p, p.step
		story(f, o)
		fmt.Printf("points %d\n", p.n)
		return
	}
	killed := 0
	for at := 1; ; at += every {
		f := newStock(t, "a", "b", "used")
		files := f.files("a", "b", "used")
		delete(files, "a") // nobody needs it
		before(f)
		out, err := f.victim("^"+t.Name()+"$", at).CombinedOutput()
		var exit *exec.ExitError
		switch {
		case err == nil:
			if !bytes.Contains(out, []byte("points ")) || killed == 0 {
				t.Fatalf("the victim was not killed at %d, and said\n%s", at, out)
			}
			if got := f.problems(files, true); got != nil {
				t.Errorf("to the end: %q", got)
			}
			f.wantKept(files, "to the end")
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
		f.wantKept(files, fmt.Sprintf("killed at %d", at))
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

// wantKept tells of files that have no name at all any more.
func (f *stock) wantKept(files map[string]uint64, when string) {
	f.t.Helper()
	s := f.state()
	for name, ino := range files {
		e, err := diskio.LookEntry(f.path(name))
		if err == nil && e.Ino == ino || slices.ContainsFunc(s.Held, func(h pool.Held) bool { return h.File.Ino == ino }) ||
			slices.ContainsFunc(s.Shields, func(h pool.Shield) bool { return h.ID.Ino == ino }) {
			continue
		}
		f.t.Errorf("%s: nothing keeps %s, inode %d", when, name, ino)
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
	stopped, ended := false, false
	for ; !stopped && !ended; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		stopped, ended = bytes.Contains(stat, []byte(") T ")), bytes.Contains(stat, []byte(") Z "))
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

func (l lying) Aside(id diskio.ID, from, to string) error {
	if !l.done {
		return nil
	}
	return errors.Join(l.Links.Aside(id, from, to), fs.ErrNotExist)
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

// TestLostAnswersOfKernel has the kernel itself answer wrongly: what counts is where the file is then. ENOENT of a
// rename that was done, and EEXIST of a link, are what NFS tells who sent the call twice.
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
	from, to := filepath.Join(dir, "base"), filepath.Join(dir, heldName)
	changes := map[string]func(id diskio.ID) error{
		"link":          func(id diskio.ID) error { return diskio.HostLinks().Link(id, from, to) },
		"move":          func(id diskio.ID) error { return diskio.HostLinks().Move(id, from, to) },
		"move and look": func(id diskio.ID) error { _, err := newKeeper(Options{Bases: dir}).move(id, from, to); return err },
		"unlink":        func(id diskio.ID) error { return diskio.HostLinks().Unlink(id, from) },
		"rename":        func(diskio.ID) error { return diskio.Host().Rename(from, to) },
		"remove":        func(diskio.ID) error { return diskio.Host().Remove(from) },
	}
	err = m.Do(func() error {
		for _, lie := range []cutfs.Lie{{Done: true, Errno: unix.ENOENT}, {Done: true, Errno: unix.EEXIST},
			{Done: true, Errno: unix.EIO}, {Errno: unix.EIO}, {}} {
			for what, change := range changes {
				if err := os.WriteFile(from, []byte("base"), 0o644); err != nil {
					return err
				}
				e, err := diskio.LookEntry(from)
				if err != nil {
					return err
				}
				m.LieAt(1, lie)
				err = change(e.ID)
				if told := m.Told(); (err == nil) != lie.Done || len(told) != 1 {
					t.Errorf("%s, done: %v, and said %v: %v after %q", what, lie.Done, lie.Errno, err, told)
				}
				m.LieAt(-1, lie)
				_ = os.Remove(from)
				_ = os.Remove(to)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

const heldName = "0123456789abcdef0123456789abcdef.base"
