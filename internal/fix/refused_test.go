// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package fix

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/guest/volume"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		change Change
		want   bool
	}{
		{MaskUnit("nightly.service"), true},
		{MaskUnit(`dev-disk-by\x2dlabel-x.swap`), true},
		{MaskUnit("getty@tty1.service"), true},
		{MaskUnit("a:b_c.d.timer"), true},
		{MaskUnit(strings.Repeat("a", 247) + ".service"), true},
		{MaskUnit(strings.Repeat("a", 248) + ".service"), false},
		{MaskUnit("nightly"), false},
		{MaskUnit("basic.target"), false},
		{MaskUnit("reboot.target"), false},
		{MaskUnit("-.mount"), false},
		{MaskUnit("nightly.conf"), false},
		{MaskUnit("system.slice"), false},
		{MaskUnit(".service"), false},
		{MaskUnit("@.service"), false},
		{MaskUnit("a@b@c.service"), false},
		{MaskUnit("../x.service"), false},
		{MaskUnit("a/b.service"), false},
		{MaskUnit("a b.service"), false},
		{MaskUnit("ä.service"), false},
		{MaskUnit(""), false},
		{Change{Kind: Mask, Path: "/etc/x.service"}, false},
		{Change{Kind: Mask, Path: "etc/systemd/system/x.service"}, false},
		{Change{Kind: "write", Path: UnitDir + "/x.service"}, false},
		{Change{Kind: Unlink, Path: UnitDir + "/multi-user.target.wants/x.service"}, true},
		{Change{Kind: Unlink, Path: UnitDir + "/a.service.requires/x.service"}, true},
		{Change{Kind: Unlink, Path: UnitDir + "/x.service"}, false},
		{Change{Kind: Unlink, Path: UnitDir + "/multi-user.target.d/x.service"}, false},
		{Change{Kind: Unlink, Path: UnitDir + "/.wants/x.service"}, false},
		{Change{Kind: Unlink, Path: "/usr/lib/systemd/system/a.target.wants/x.service"}, false},
		{Change{Kind: Unlink, Path: UnitDir + "/a.target.wants/../x.service"}, false},
	} {
		if err := Check([]Change{c.change}); (err == nil) != c.want || err != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("Check(%+v) = %v, want it allowed: %v", c.change, err, c.want)
		}
	}
	twice := []Change{MaskUnit("a.service"), MaskUnit("a.service")}
	for _, list := range [][]Change{nil, twice, make([]Change, maxChanges+1)} {
		if err := Check(list); !errors.Is(err, ErrRefused) {
			t.Errorf("Check of %d changes = %v, want %v", len(list), err, ErrRefused)
		}
	}
}

func TestTwin(t *testing.T) {
	for unit, want := range map[string]string{"a.service": "a.timer", "a.b.timer": "a.b.service", "a.target": "", "a": ""} {
		if got := Twin(unit); got != want {
			t.Errorf("Twin(%s) = %q, want %q", unit, got, want)
		}
	}
}

// TestTarget: volumes that are not changed.
func TestTarget(t *testing.T) {
	for _, c := range []struct {
		name   string
		volume volume.Volume
		format string
		pieces []volume.Piece
	}{
		{"encrypted", volume.Volume{Name: "1", Kind: "crypto_LUKS", NotExamined: "encrypted (LUKS2): not read"}, "raw", nil},
		{"swap", volume.Volume{Name: "1", Kind: "swap"}, "raw", nil},
		{"vmdk", volume.Volume{Name: "1", Kind: volume.Ext4}, "vmdk", nil},
		{"not whole", volume.Volume{Name: "1", Kind: volume.Ext4, Size: 4096}, "raw", nil},
		{"missing", volume.Volume{Name: "1", Kind: volume.Ext4, Size: 4096}, "raw",
			[]volume.Piece{{Length: 4096, Disk: -1, Missing: "a disk is not there"}}},
		{"two disks", volume.Volume{Name: "1", Kind: volume.Ext4, Size: 8192}, "raw",
			[]volume.Piece{{Length: 4096}, {Offset: 4096, Length: 4096, Disk: 1}}},
		{"out of order", volume.Volume{Name: "1", Kind: volume.Ext4, Size: 8192}, "raw",
			[]volume.Piece{{Offset: 4096, Length: 4096}, {Length: 4096}}},
		{"half a copy", volume.Volume{Name: "1", Kind: volume.Ext4, Size: 8192}, "raw",
			[]volume.Piece{{Length: 8192}, {Length: 4096, At: 8192, Copy: 1}}},
		{"odd copy", volume.Volume{Name: "1", Kind: volume.Ext4, Size: 8192}, "raw",
			[]volume.Piece{{Length: 8192}, {Length: 8192, At: 8192, Copy: 2}}},
	} {
		x := Target{Volume: &c.volume, Pieces: c.pieces, Format: c.format, Name: "vm"}
		_, err := Image(t.Context(), x, []Change{MaskUnit("a.service")}, Options{})
		if !errors.Is(err, ErrRefused) {
			t.Errorf("%s: Image = %v, want %v", c.name, err, ErrRefused)
		}
	}
}

// TestCopies: what is written to a mirror goes to all its copies, wherever their pieces lie.
func TestCopies(t *testing.T) {
	disk := []byte("ABCDEFGHabcdefgh")
	x := Target{Volume: &volume.Volume{Name: "md0", Kind: volume.Ext4, Size: 8}, Disk: bytes.NewReader(disk), Format: "raw",
		Pieces: []volume.Piece{{Length: 4, At: 4}, {Length: 8, At: 8, Copy: 1}, {Offset: 4, Length: 4, At: 0}}}
	if err := x.check(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if n, err := x.ReadAt(got, 1); n != 7 || err != io.EOF || string(got[:n]) != "FGHABCD" {
		t.Errorf("ReadAt = %d, %v, %q", n, err, got)
	}
	for _, w := range x.onDisk(3, []byte("123")) {
		copy(disk[w.Offset:], w.Data)
	}
	if string(disk) != "23CDEFG1abc123gh" {
		t.Errorf("the disk is %q", disk)
	}
}

// TestHear: a guest may say anything.
func TestHear(t *testing.T) {
	for _, c := range []struct {
		line string
		want error
	}{
		{`{"done":[0],"already":[1],"ended":true}`, nil},
		{`{"done":[0,1],"ended":true}`, nil},
		{`{"done":[0],"ended":true}`, ErrEngine},
		{`{"done":[0,1]}`, ErrEngine},
		{`{"done":[0,0],"ended":true}`, ErrEngine},
		{`{"done":[0,2],"ended":true}`, ErrEngine},
		{`{"done":[-1,0],"ended":true}`, ErrEngine},
		{`{"done":[0,1],"ended":true,"failed":"x"}`, ErrEngine},
		{`{"done":[0,1],"ended":true,"refused":"x"}`, ErrRefused},
		{`"x"`, ErrEngine},
		{`{`, ErrEngine},
	} {
		if _, err := hear([]byte(c.line), nil, 2); !errors.Is(err, c.want) || err == nil != (c.want == nil) {
			t.Errorf("hear(%s) = %v, want %v", c.line, err, c.want)
		}
	}
}

// below makes changes in a directory that stands for a mounted volume.
func below(t *testing.T, dir string, changes ...Change) (answer, error) {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var a answer
	err = a.makeAll(d, changes)
	return a, err
}

// TestMakeAll: nothing leads out of the volume, all changes are made or none, and what is not as was thought
// stays.
func TestMakeAll(t *testing.T) {
	dir := func(name string) string { return UnitDir + "/" + name }
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, root string) error
		changes []Change
		want    error // nil: it is made
	}{
		{"plain", nil, []Change{MaskUnit("nightly.service")}, nil},
		{"a link to /etc in the volume", func(t *testing.T, root string) error {
			return errors.Join(os.Rename(root+"/etc", root+"/real"), os.Symlink("/real", root+"/etc"))
		}, []Change{MaskUnit("nightly.service")}, nil},
		{"a way out", func(t *testing.T, root string) error {
			out := t.TempDir()
			system(t, out)
			rel, err := filepath.Rel(root, out)
			return errors.Join(err, os.RemoveAll(root+"/etc"), os.Symlink(rel+"/etc", root+"/etc"))
		}, []Change{MaskUnit("nightly.service")}, errKeep},
		{"a magic link", func(t *testing.T, root string) error {
			return errors.Join(os.RemoveAll(root+UnitDir), os.Symlink("/proc/self/cwd", root+UnitDir))
		}, []Change{MaskUnit("nightly.service")}, errKeep},
		{"units of the store", func(t *testing.T, root string) error {
			return errors.Join(os.MkdirAll(root+"/nix/store", 0o755), os.Rename(root+UnitDir, root+"/nix/store/units"),
				os.Symlink("/nix/store/units", root+UnitDir))
		}, []Change{MaskUnit("nightly.service")}, errKeep},
		{"no systemd", func(t *testing.T, root string) error { return os.RemoveAll(root + UnitDir) },
			[]Change{MaskUnit("nightly.service")}, errNoSystem},
		{"a directory", func(t *testing.T, root string) error { return os.Mkdir(root+dir("d.service"), 0o755) },
			[]Change{MaskUnit("nightly.service"), MaskUnit("d.service")}, errKeep},
		{"a pipe", func(t *testing.T, root string) error { return unix.Mkfifo(root+dir("p.service"), 0o644) },
			[]Change{MaskUnit("p.service")}, errKeep},
		{"kept before", func(t *testing.T, root string) error {
			return os.WriteFile(root+loopUnit+Aside, nil, 0o644)
		}, []Change{MaskUnit("nightly.service")}, errKeep},
		{"another link", nil, []Change{MaskUnit("linked.service"),
			{Kind: Unlink, Path: loopLink, Link: "/elsewhere"}}, errKeep},
		{"no link", func(t *testing.T, root string) error {
			return errors.Join(os.Remove(root+loopLink), os.WriteFile(root+loopLink, nil, 0o644))
		}, []Change{{Kind: Unlink, Path: loopLink}}, errKeep},
		{"outside of the units", nil, []Change{{Kind: Mask, Path: "/etc/x.service"}}, errKeep},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			system(t, root)
			if c.prepare != nil {
				if err := c.prepare(t, root); err != nil {
					t.Fatal(err)
				}
			}
			before := names(t, root)
			_, err := below(t, root, c.changes...)
			if !errors.Is(err, c.want) || err == nil != (c.want == nil) {
				t.Errorf("makeAll = %v, want %v", err, c.want)
			}
			if now := names(t, root); (now == before) != (c.want != nil) {
				t.Errorf("before\n%s\nnow\n%s", before, now)
			}
		})
	}
}

// names lists a directory with what links say.
func names(t *testing.T, root string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to, _ := os.Readlink(path)
		fmt.Fprintln(&all, path, d.Type(), to)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// TestLabel: a new link has the label of its directory.
func TestLabel(t *testing.T) {
	testenv.NeedRoot(t)
	disk := filestest.Make(t, t.TempDir(), 32<<20, "mkfs.ext4", "-q", "-F", "DISK")
	root, _ := filestest.Mount(t, disk, "ext4")
	system(t, root)
	const attr, label = "security.selinux", "system_u:object_r:systemd_unit_file_t:s0\x00"
	if err := unix.Setxattr(root+UnitDir, attr, []byte(label), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := below(t, root, MaskUnit("nightly.service")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := unix.Lgetxattr(root+loopUnit, attr, buf)
	if err != nil || string(buf[:n]) != label {
		t.Errorf("the link's label is %q, %v, want %q", buf[:max(n, 0)], err, label)
	}
}

// TestImageRefused: guests that no kernel is to change, and kernels that do not.
func TestImageRefused(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, uml.Program, "debugfs")
	self := static(t)
	mask := []Change{MaskUnit("packaged.service")}
	plain := world{"ext4", false, "raw", UML}.make(t)

	if _, err := plain.plan(t, mask, Options{Program: "/nonexistent", Self: self}); !errors.Is(err, uml.ErrUnavailable) {
		t.Errorf("without User Mode Linux: %v, want %v", err, uml.ErrUnavailable)
	}
	if _, err := plain.plan(t, mask, Options{Self: self, LayerBytes: 4096}); !errors.Is(err, ErrEngine) {
		t.Errorf("with a full layer: %v, want %v", err, ErrEngine)
	}
	if _, err := plain.plan(t, []Change{{Kind: Unlink, Path: loopLink, Link: "/elsewhere"}}, Options{Self: self}); !errors.Is(err, ErrRefused) {
		t.Errorf("another link: %v, want %v", err, ErrRefused)
	}
	tool(t, "debugfs", "-w", "-R", "ssv error_count 3", plain.image)
	for _, e := range []Engine{UML, Host} {
		if _, err := plain.plan(t, mask, Options{Self: self, Engine: e}); !errors.Is(err, ErrRefused) ||
			!strings.Contains(err.Error(), "remembers 3 errors") {
			t.Errorf("%s, a file system with errors: %v, want %v", e, err, ErrRefused)
		}
	}
	// The superblock is there, the root directory is not.
	tool(t, "debugfs", "-w", "-R", "clri <2>", plain.image)
	if _, err := plain.plan(t, mask, Options{Self: self}); !errors.Is(err, ErrEngine) {
		t.Errorf("a broken file system: %v, want %v", err, ErrEngine)
	}
}

// TestHostile: file systems whose bytes were changed at random end as a plan, or as an error that says that a kernel
// did not make the change.
func TestHostile(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, uml.Program)
	self := static(t)
	rng := rand.New(rand.NewPCG(3, 4))
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		g := world{kind, true, "raw", UML}.make(t)
		was, err := os.ReadFile(g.image)
		if err != nil {
			t.Fatal(err)
		}
		var used []int // sectors that hold something, but for the first ones: it is still called what it is
		for at := 4096; at+512 <= len(was); at += 512 {
			if !bytes.Equal(was[at:at+512], make([]byte, 512)) && !bytes.Equal(was[at:at+256], was[at+256:at+512]) {
				used = append(used, at) // and is not the content of a file of these tests
			}
		}
		planned := 0
		rounds := testenv.Rounds(1, 10, 100)
		for range rounds {
			b := bytes.Clone(was)
			for range 1 + rng.IntN(300) {
				at := used[rng.IntN(len(used))] + rng.IntN(512)
				if b[at] != 0 || rng.IntN(8) == 0 {
					b[at] ^= 1 << rng.IntN(8)
				}
			}
			if err := os.WriteFile(g.image, b, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := g.plan(t, []Change{MaskUnit("nightly.service")}, Options{Self: self})
			switch {
			case err == nil:
				planned++
			case !errors.Is(err, ErrEngine) && !errors.Is(err, ErrRefused):
				t.Errorf("%s: %v", kind, err)
			}
		}
		t.Logf("%s: of %d rounds %d ended as a plan", kind, rounds, planned)
	}
}

// TestChanged: a plan is not carried out on an image that was used since.
func TestChanged(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, uml.Program)
	g := world{"ext4", false, "raw", UML}.make(t)
	m, err := g.plan(t, []Change{MaskUnit("packaged.service")}, Options{Engine: Host})
	if err != nil {
		t.Fatal(err)
	}
	dir, unmount := filestest.Mount(t, g.image, "ext4")
	if err := os.WriteFile(dir+"/new", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	unmount()
	was := sum(t, g.image)
	if _, err := apply.Apply(t.Context(), m.Plan, apply.Options{StateDir: g.state}); !errors.Is(err, apply.ErrChanged) {
		t.Errorf("Apply = %v, want %v", err, apply.ErrChanged)
	}
	if sum(t, g.image) != was {
		t.Error("the image was changed all the same")
	}
}

// applyArg is the argument of a process that carries out a plan and is killed.
const applyArg = "apply-for-tests"

// applying is what such a process does.
func applying(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := plan.Read(f)
	if err != nil {
		return err
	}
	fmt.Println("begin")
	_, err = apply.Apply(context.Background(), p, apply.Options{StateDir: args[1]})
	return err
}

// TestKilled: kill -9 while a plan is carried out leaves an image that recover gives its old bytes, or its new
// ones.
func TestKilled(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "qemu-img")
	g := world{"xfs", true, "backing", Host}.make(t)
	was := sum(t, g.image)
	rng := rand.New(rand.NewPCG(1, 2))
	middle, rounds := 0, testenv.Rounds(6, 30, 200)
	for i := range rounds {
		m, err := g.plan(t, []Change{MaskUnit("packaged.service")}, Options{Engine: Host})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "plan.json")
		raw, err := json.Marshal(m.Plan)
		if err := errors.Join(err, os.WriteFile(file, raw, 0o600)); err != nil {
			t.Fatal(err)
		}
		c := exec.Command(os.Args[0], applyArg, file, g.state)
		out, err := c.StdoutPipe()
		if err := errors.Join(err, c.Start()); err != nil {
			t.Fatal(err)
		}
		_, err = out.Read(make([]byte, 1))
		time.Sleep(time.Duration(rng.Int64N(int64(60 * time.Millisecond))))
		if err := errors.Join(err, c.Process.Signal(syscall.SIGKILL)); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		_ = c.Wait() // it was killed
		if sum(t, g.image) != was {
			middle++
		}
		done, err := apply.Recover(t.Context(), g.image, apply.Options{StateDir: g.state})
		if err != nil {
			t.Fatalf("round %d: Recover = %+v, %v", i, done, err)
		}
		if sum(t, g.image) == was {
			continue
		}
		// It had come to its end.
		tool(t, "qemu-img", "check", "-q", g.image)
		if _, err := apply.Undo(t.Context(), g.image, m.Plan.ID, apply.Options{StateDir: g.state}); err != nil {
			t.Fatalf("round %d: Undo = %v", i, err)
		}
		if sum(t, g.image) != was {
			t.Fatalf("round %d: the image has other bytes than before", i)
		}
	}
	t.Logf("of %d rounds %d were cut off after the first write", rounds, middle)
}
