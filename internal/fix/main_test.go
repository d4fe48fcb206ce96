// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package fix

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/guest/volume"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/jail"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
	"github.com/shisa-vm/shisa/internal/vault"
)

func TestMain(m *testing.M) {
	if uml.IsStage(os.Args) {
		os.Exit(uml.Stage())
	}
	if jail.IsChild(os.Args) {
		os.Exit(jail.Serve())
	}
	if IsChild(os.Args) {
		os.Exit(Serve(os.Args, os.Stdin, os.Stdout))
	}
	if len(os.Args) == 4 && os.Args[1] == applyArg {
		if err := applying(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	testenv.Main(m)
}

// static builds these tests as a static program: the one that runs in guests.
func static(t *testing.T) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "guest")
	c := exec.Command("go", "test", "-c", "-o", to, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build the guest's program: %v: %s", err, out)
	}
	return to
}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	testenv.Need(t, name)
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// The units of the guests of these tests.
const (
	loopUnit = UnitDir + "/nightly.service" // a file of the administrator
	packUnit = UnitDir + "/packaged.service"
	loopLink = UnitDir + "/multi-user.target.wants/nightly.service"
)

// system writes the root of a system below dir.
func system(t testing.TB, dir string) {
	t.Helper()
	for name, text := range map[string]string{
		"/etc/fstab": "", "/etc/os-release": "ID=test\n", loopUnit: "[Service]\nExecStart=/bin/reboot\n",
		"/usr/lib/systemd/system/packaged.service": "[Service]\nExecStart=/bin/true\n",
		"/usr/lib/systemd/system/packaged.timer":   "[Timer]\nOnCalendar=daily\n",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(dir+name), 0o755), os.WriteFile(dir+name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{loopLink: loopUnit, "/lib": "usr/lib",
		UnitDir + "/linked.service": "/opt/linked.service", UnitDir + "/masked.service": "/dev/null"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(dir+name), 0o755), os.Symlink(to, dir+name)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 60 {
		name := fmt.Sprintf("%s/var/lib/data/%d", dir, i)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755),
			os.WriteFile(name, bytes.Repeat([]byte{byte(i)}, i*1000), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
}

// fileSystem makes a file system with a system in it. A dirty one is as a power cut leaves it: the last names
// are in its journal alone.
func fileSystem(t *testing.T, kind string, dirty bool) string {
	t.Helper()
	mkfs := map[string][]string{"ext4": {"mkfs.ext4", "-q", "-F", "DISK"}, "xfs": {"mkfs.xfs", "-q", "DISK"},
		"btrfs": {"mkfs.btrfs", "-q", "DISK"}, "ext3": {"mkfs.ext3", "-q", "-F", "DISK"}}[kind]
	size := map[string]int64{"xfs": 320 << 20, "btrfs": 160 << 20}[kind]
	if size == 0 {
		size = 64 << 20
	}
	outside := t.TempDir()
	if dirty {
		outside = filestest.CloneDir(t, 2<<30)
	}
	name := filestest.Make(t, outside, size, mkfs...)
	dir, unmount := filestest.Mount(t, name, kind)
	system(t, dir)
	if !dirty {
		unmount()
		return name
	}
	unix.Sync()
	for i := range 10 {
		f, err := os.Create(fmt.Sprintf("%s/var/lib/late%d", dir, i))
		if err == nil {
			_, err = f.WriteString("late")
		}
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	copied := filepath.Join(outside, "copy")
	filestest.Clone(t, name, copied)
	unmount()
	return copied
}

// guest is an image in a directory of its own.
type guest struct {
	image, format string
	state         string
}

// open opens its disk.
func (g *guest) open(t *testing.T) (*disk.Chain, *volume.Layout) {
	t.Helper()
	c, err := disk.Open(t.Context(), g.image, disk.Options{Policy: disk.Policy{Follow: true}, Format: g.format})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	l, err := volume.Find(t.Context(), []volume.Disk{{Name: g.image, Data: c, Size: c.Size()}})
	if err != nil {
		t.Fatal(err)
	}
	return c, l
}

// root is the volume with the system: the last one with a file system.
func root(l *volume.Layout) int {
	found := -1
	for i, v := range l.Volumes {
		if _, ok := kinds[v.Kind]; ok {
			found = i
		}
	}
	return found
}

// plan makes a plan for the guest.
func (g *guest) plan(t *testing.T, changes []Change, o Options) (*Made, error) {
	t.Helper()
	// As the commands do: what divides the disk is read by a child without rights.
	in, err := inside.Open(t.Context(), inside.Name{Disk: g.image}, inside.Options{Policy: disk.Policy{Follow: true},
		Format: g.format})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	part := root(in.Layout)
	pieces, err := in.Pieces(t.Context(), part)
	if err != nil {
		t.Fatal(err)
	}
	f, err := diskio.Open(g.image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o.StateDir, o.Step = g.state, plan.Step{Code: finding.TM08.Code, Name: finding.TM08.Name}
	o.Log = func(text string) { t.Log(text) }
	o.Repair = repair.Options{Check: qcow2.CheckOptions{DataFileBytes: -1}}
	was := sum(t, g.image)
	m, err := Image(t.Context(), Target{Volume: in.Layout.Volumes[part], Pieces: pieces, Disk: in.Layout.Disks[0].Data, Image: f, SizeBytes: f.Size(), Format: g.format,
		Name: g.image}, changes, o)
	if sum(t, g.image) != was {
		t.Error("the plan changed the image")
	}
	if err != nil {
		return m, err
	}
	st := f.Stat()
	p := m.Plan
	p.Object.Path, p.Object.Dev, p.Object.Ino, p.Object.ModTime = g.image, st.Dev, st.Ino, st.ModTime
	if err := errors.Join(p.Seal(), p.Validate()); err != nil {
		t.Fatal(err)
	}
	return m, nil
}

// tree is what the kernel shows of the guest's system, its journal replayed.
func (g *guest) tree(t *testing.T, kind string) filestest.Tree {
	t.Helper()
	_, l := g.open(t)
	v := l.Volumes[root(l)]
	name := filepath.Join(t.TempDir(), "volume")
	f, err := os.Create(name)
	if err == nil {
		_, err = io.Copy(f, io.NewSectionReader(v, 0, v.Size))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	dir, unmount := filestest.Mount(t, name, kind)
	tree := filestest.ReadMounted(t, dir)
	unmount()
	g.sound(t, name, kind)
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	return tree
}

// sound requires that a file system is without faults, as its own tools say.
func (g *guest) sound(t *testing.T, name, kind string) {
	t.Helper()
	switch kind {
	case "xfs":
		tool(t, "xfs_repair", "-n", "-f", name)
	case "btrfs":
		tool(t, "btrfs", "check", "--readonly", name)
	default:
		tool(t, "e2fsck", "-fn", name)
	}
}

// apply carries out a plan.
func (g *guest) apply(t *testing.T, p *plan.Plan) *vault.Receipt {
	t.Helper()
	o := apply.Options{StateDir: g.state}
	if g.format == "qcow2" {
		o.Verify = func(ctx context.Context, r io.ReaderAt, size int64) error {
			return repair.Verify(ctx, r, size, p, qcow2.CheckOptions{DataFileBytes: -1})
		}
	}
	r, err := apply.Apply(t.Context(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sum(t testing.TB, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}
