// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// fakeRepairer plans in earnest, and writes without any care.
type fakeRepairer struct {
	// change alters the plan; nil leaves it.
	change    func(p *plan.Plan)
	planErr   error
	applyErr  error
	undoPath  string
	jobs      []RepairJob
	carryOuts int
}

func (f *fakeRepairer) Plan(ctx context.Context, j RepairJob) (*plan.Plan, error) {
	f.jobs = append(f.jobs, j)
	if f.planErr != nil {
		return nil, f.planErr
	}
	opts := repair.Options{Name: j.Path, Reclaim: true, Check: j.Check}
	if j.Leaks {
		opts.Only = []string{finding.QC03.Code, finding.QC14.Code}
	}
	p, err := repair.Plan(ctx, j.File, j.File.Size(), opts)
	if err == nil && f.change != nil {
		f.change(p)
	}
	return p, err
}

func (f *fakeRepairer) Apply(_ context.Context, p *plan.Plan, _ qcow2.CheckOptions) (string, error) {
	f.carryOuts++
	if f.applyErr != nil {
		return "", f.applyErr
	}
	data, err := os.ReadFile("x.qcow2")
	if err != nil {
		return "", err
	}
	data = append(data, make([]byte, p.GrowsBy())...)
	for _, w := range p.Writes {
		copy(data[w.Offset:], w.New)
	}
	return f.undoPath, os.WriteFile("x.qcow2", data, 0o600)
}

// nothingToRepair never finds anything.
type nothingToRepair struct{}

func (nothingToRepair) Plan(context.Context, RepairJob) (*plan.Plan, error) {
	return &plan.Plan{}, nil
}

func (nothingToRepair) Apply(context.Context, *plan.Plan, qcow2.CheckOptions) (string, error) {
	return "", errors.New("there is nothing to apply")
}

// withRepairer runs this package with a repairer.
func withRepairer(t *testing.T, r Repairer, args ...string) outcome {
	t.Helper()
	var out, errOut bytes.Buffer
	env := Env{Stdout: &out, Stderr: &errOut, Version: "test", Repairer: r}
	code := Run(t.Context(), env, append([]string{"qemu-img"}, args...))
	return outcome{code, out.String(), errOut.String()}
}

// leaky makes x.qcow2 with three leaks.
func leaky(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := lab.Write("x.qcow2", lab.Spec{VirtualBytes: 1 << 20, TailLeaks: 3}); err != nil {
		t.Fatal(err)
	}
}

const (
	leakLines = "Leaked cluster 21 refcount=1 reference=0\nLeaked cluster 22 refcount=1 reference=0\n" +
		"Leaked cluster 23 refcount=1 reference=0\n"
	mendLines = "Repairing cluster 21 refcount=1 reference=0\nRepairing cluster 22 refcount=1 reference=0\n" +
		"Repairing cluster 23 refcount=1 reference=0\n"
	mendedText = "The following inconsistencies were found and repaired:\n\n    3 leaked clusters\n" +
		"    0 corruptions\n\nDouble checking the fixed image now...\n" +
		"No errors were found on the image.\n16/16 = 100.00% allocated, 0.00% fragmented, 0.00% compressed " +
		"clusters\nImage end offset: 1376256\n"
	leftText = "\n3 leaked clusters were found on the image.\nThis means waste of disk space, but no harm " +
		"to data.\n16/16 = 100.00% allocated, 0.00% fragmented, 0.00% compressed clusters\n" +
		"Image end offset: 1572864\n"
	undoLine = "shisa: what was changed can be taken back: \"shisa undo\" with /there/x.undo\n"
)

// inUse is an image that somebody uses in a way.
func inUse(change func(s *diskio.LockState)) error {
	e := &diskio.InUseError{Path: "x.qcow2"}
	change(&e.State)
	return e
}

func TestRepairTexts(t *testing.T) {
	const open = "qemu-img: Could not open 'x.qcow2': "
	asks := "Is another process using the image [x.qcow2]?\n"
	found := func(sev finding.Severity, r finding.Rule, next string, n int64) finding.Finding {
		return finding.Finding{Code: r.Code, Name: r.Name, Severity: sev, Next: next, Count: n}
	}
	nothing := func(more ...finding.Finding) func(p *plan.Plan) {
		return func(p *plan.Plan) {
			p.Writes, p.SizeAfterBytes, p.After, p.Remains = nil, p.Object.SizeBytes, p.Before, more
		}
	}
	for _, c := range []struct {
		name string
		args string
		fake fakeRepairer
		want outcome
		runs int
	}{
		{"leaks", "-r leaks", fakeRepairer{}, outcome{0, mendedText, leakLines + mendLines + undoLine}, 1},
		{"all", "-r all", fakeRepairer{}, outcome{0, mendedText, leakLines + mendLines + undoLine}, 1},
		{"quiet", "-q -r all", fakeRepairer{}, outcome{0, "", leakLines + mendLines + undoLine}, 1},
		{"nothing is freed", "-r leaks", fakeRepairer{change: nothing(
			found(finding.Waste, finding.QC03, "nobody knows\x1b[31m", 2), found(finding.Waste, finding.QC03, "", 1),
			found(finding.Note, finding.QC14, "a note", 1), found(finding.Danger, finding.QC02, "an error", 1))},
			outcome{3, leftText, leakLines + leakLines +
				"shisa: left as it is: QC03 qcow2-leak (3): \"nobody knows\\x1b[31m\"\n"}, 0},
		{"nothing is mended", "-r all", fakeRepairer{change: func(p *plan.Plan) {
			nothing(found(finding.Danger, finding.QC02, "an error", 1))(p)
			p.Hurt = []plan.Hurt{{Kind: "mixed", Guest: make([]finding.Range, 2)}, {Kind: "lost", Guest: make([]finding.Range, 1)}}
		}}, outcome{3, leftText, leakLines + leakLines + "shisa: left as it is: QC02 qcow2-refcount-low (1): an error\n" +
			"shisa: the tables are not all: 1 guest ranges lost their data, and 2 share clusters with others, " +
			"so at most one of each group holds its own; \"shisa check\" names them\n"}, 0},
		{"a writer", "-r all", fakeRepairer{planErr: inUse(func(s *diskio.LockState) { s.Used[diskio.PermWrite] = true })},
			outcome{1, "", open + "Failed to get shared \"write\" lock\n" + asks}, 0},
		{"nobody may write", "-r all", fakeRepairer{applyErr: inUse(func(s *diskio.LockState) { s.NotShared[diskio.PermWrite] = true })},
			outcome{1, "", leakLines + mendLines + open + "Failed to get \"write\" lock\n" + asks}, 1},
		{"a reader", "-r all", fakeRepairer{applyErr: inUse(func(s *diskio.LockState) { s.Used[0] = true })},
			outcome{1, "", leakLines + mendLines + "shisa: x.qcow2 is in use by another program " +
				"(used: consistent read; not shared: ); nothing is repaired while somebody reads it\n"}, 1},
		{"unfinished", "-r all", fakeRepairer{planErr: finding.WithHint(errors.New("an earlier change\nwas left"), "shisa recover x.qcow2")},
			outcome{1, "", "shisa: \"an earlier change\\nwas left\"\nqemu-img: Check failed\nshisa: shisa recover x.qcow2\n"}, 0},
		{"no room", "-r leaks", fakeRepairer{applyErr: fmt.Errorf("write the undo file: %w", syscall.ENOSPC)},
			outcome{1, "", leakLines + mendLines + "shisa: write the undo file: no space left on device\n" +
				"qemu-img: Check failed: No space left on device\n"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaky(t)
			c.fake.undoPath = "/there/x.undo"
			got := withRepairer(t, &c.fake, append(append([]string{"check"}, strings.Fields(c.args)...), "x.qcow2")...)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("check %s (-want +got):\n%s", c.args, diff)
			}
			if c.fake.carryOuts != c.runs {
				t.Errorf("check %s carried %d plans out, want %d", c.args, c.fake.carryOuts, c.runs)
			}
			if j := c.fake.jobs; len(j) != 1 || j[0].Path != "x.qcow2" || j[0].Leaks != strings.Contains(c.args, "leaks") {
				t.Errorf("check %s asked for %+v", c.args, j)
			}
		})
	}
}

// TestRepairJSON pins what both counts are called and where they stand.
func TestRepairJSON(t *testing.T) {
	leaky(t)
	got := withRepairer(t, &fakeRepairer{}, "check", "-r", "leaks", "--output=json", "x.qcow2")
	want := `{
    "image-end-offset": 1376256,
    "total-clusters": 16,
    "check-errors": 0,
    "leaks-fixed": 3,
    "allocated-clusters": 16,
    "filename": "x.qcow2",
    "format": "qcow2"
}
`
	if got.Code != 0 || got.Stdout != want {
		t.Errorf("check -r leaks --output=json = %d\n%swant 0\n%s", got.Code, got.Stdout, want)
	}
}

// TestRepairOfUnreadable: where qemu-img gives up nothing is changed.
func TestRepairOfUnreadable(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := lab.Write("x.qcow2", lab.Spec{VirtualBytes: 1 << 20, TailLeaks: 3}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("x.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	// The refcount of the header becomes 0: -r leaks wants a new refcount structure then.
	block := bigEndian64(data, int64(bigEndian64(data, 48)))
	data[block], data[block+1] = 0, 0
	if err := os.WriteFile("x.qcow2", data, 0o600); err != nil {
		t.Fatal(err)
	}
	fake := &fakeRepairer{}
	got := withRepairer(t, fake, "check", "-r", "leaks", "x.qcow2")
	want := outcome{1, "", "ERROR cluster 0 refcount=0 reference=1\n" + leakLines +
		"ERROR need to rebuild refcount structures\nshisa: the check could not be finished, so nothing was changed; " +
		"\"shisa repair\" may mend more\nqemu-img: Check failed: Input/output error\n"}
	if diff := cmp.Diff(want, got); diff != "" || fake.carryOuts != 0 {
		t.Errorf("check -r leaks carried %d plans out, want none (-want +got):\n%s", fake.carryOuts, diff)
	}
}

func bigEndian64(p []byte, off int64) uint64 {
	v := uint64(0)
	for _, b := range p[off : off+8] {
		v = v<<8 | uint64(b)
	}
	return v
}

// TestRepairOpens holds the command lines of check -r against qemu-img: what is refused, and how.
func TestRepairOpens(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	t.Chdir(testenv.DiskDir(t))
	raw := append([]byte("some data"), make([]byte, 1<<20-9)...)
	for name, data := range map[string][]byte{"raw.img": raw, "base.img": raw, "tiny": []byte("x"), "empty": nil} {
		writeFile(t, name, data)
	}
	if err := os.Mkdir("dir", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"create -q -f qcow2 a.qcow2 1M", "create -q -f qcow2 -o compat=0.10 v2.qcow2 1M",
		"create -q -f qcow2 -o data_file=d.raw d.qcow2 1M", "create -q -f qcow2 -b base.img -F raw over.qcow2",
		"create -q -f qcow2 -u -b gone -F raw orphan.qcow2 1M", "create -q -f vmdk x.vmdk 1M",
		"create -q -f vdi x.vdi 1M", "create -q -f vpc x.vpc 1M", "create -q -f qcow x.qcow 1M",
	} {
		if out, err := exec.CommandContext(t.Context(), "qemu-img", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %s: %v\n%s", line, err, out)
		}
	}
	for _, line := range []string{
		"a.qcow2", "-f qcow2 a.qcow2", "-q a.qcow2", "--output=json a.qcow2", "-T none a.qcow2", "-T foo a.qcow2",
		"v2.qcow2", "d.qcow2", "over.qcow2", "orphan.qcow2", "raw.img", "-f raw raw.img", "-f raw a.qcow2", "tiny",
		"empty", "x.vmdk", "x.vdi", "x.vpc", "x.qcow", "nothing", "dir", "-f raw dir", "-U a.qcow2", "-U raw.img",
		"-U nothing", "-p a.qcow2", "-f qcow2 raw.img", "-f foo a.qcow2", "a.qcow2 v2.qcow2", "",
		"--image-opts driver=qcow2,file.filename=a.qcow2", "--image-opts driver=raw,file.filename=raw.img",
		"--image-opts driver=qcow2,file.filename=a.qcow2,read-only=on",
		"--image-opts driver=qcow2,file.filename=a.qcow2,read-only=off",
		"--image-opts driver=qcow2,file.filename=a.qcow2,file.read-only=on",
		"--image-opts driver=qcow2,file.filename=a.qcow2,force-share=on",
		"--image-opts driver=qcow2,file.filename=a.qcow2,force-share=on,read-only=on",
		"--image-opts driver=qcow2,file.filename=a.qcow2,file.force-share=on",
		"--image-opts driver=raw,file.filename=raw.img,read-only=on", "--image-opts -f raw driver=raw,file.filename=raw.img",
		`json:{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"}}`,
		`json:{"file":{"driver":"file","filename":"raw.img"}}`,
		"--object secret,id=s,data=x a.qcow2", "--object secret a.qcow2", "--output=xml a.qcow2",
	} {
		sameRepair(t, line)
	}
	for _, c := range []struct{ hold, lines string }{
		{"-f qcow2 a.qcow2", "a.qcow2;-f raw a.qcow2"}, {"-r -f qcow2 a.qcow2", "a.qcow2;-f raw a.qcow2"},
		{"-r -U -f qcow2 a.qcow2", "a.qcow2"}, {"-f raw a.qcow2", "a.qcow2;-f raw a.qcow2"},
		{"-r -f raw a.qcow2", "a.qcow2"}, {"-f raw base.img", "over.qcow2"}, {"-f raw d.raw", "d.qcow2"},
		{"-f raw raw.img", "raw.img;--image-opts driver=raw,size=512,file.filename=raw.img"},
		{"-f qcow2 a.qcow2", "--image-opts driver=qcow2,file.driver=file,file.filename=a.qcow2,file.locking=off"},
	} {
		t.Run("hold "+c.hold, func(t *testing.T) {
			hold(t, strings.Fields(c.hold)...)
			for line := range strings.SplitSeq(c.lines, ";") {
				sameRepair(t, line)
			}
		})
	}
}

// sameRepair holds check -r all of sound images against qemu-img.
func sameRepair(t *testing.T, line string) {
	t.Helper()
	args := append([]string{"check", "-r", "all"}, strings.Fields(line)...)
	want := realQemu(t, ".", args...)
	if diff := cmp.Diff(want, withRepairer(t, nothingToRepair{}, args...)); diff != "" {
		t.Errorf("qemu-img check -r all %s (-want +got):\n%s", line, diff)
	}
}

// TestRepairPartOfFile: an image that is not a file of its own is left alone.
func TestRepairPartOfFile(t *testing.T) {
	leaky(t)
	name := "driver=qcow2,file.driver=raw,file.file.filename=x.qcow2"
	fake := &fakeRepairer{}
	got := withRepairer(t, fake, "check", "-r", "all", "--image-opts", name)
	want := outcome{1, "", "qemu-img: check -r: '" + name + "' is a part of another image or file, and this program repairs files only\n"}
	if diff := cmp.Diff(want, got); diff != "" || len(fake.jobs) > 0 {
		t.Errorf("check -r asked for %d plans, want none (-want +got):\n%s", len(fake.jobs), diff)
	}
}

// TestAfterwards: what a plan leaves reads as if it were carried out, at every place.
func TestAfterwards(t *testing.T) {
	old := []byte("0123456789abcdef")
	p := &plan.Plan{SizeAfterBytes: 24, Writes: []plan.Write{
		{Phase: plan.New, Offset: 18, New: plan.Bytes("XYZ")}, {Phase: plan.Point, Offset: 4, New: plan.Bytes("PQ")},
		{Phase: plan.Switch, Offset: 0, New: plan.Bytes("SW")}}}
	want := "SW23PQ6789abcdef\x00\x00XYZ\x00\x00\x00"
	a := newAfterwards(bytes.NewReader(old), int64(len(old)), p)
	for off := range 26 {
		for n := range 28 {
			buf := bytes.Repeat([]byte{'?'}, n)
			got, err := a.ReadAt(buf, int64(off))
			whole := min(n, max(0, len(want)-off))
			if got != whole || string(buf[:got]) != want[min(off, len(want)):][:whole] || (err != nil) != (whole < n) {
				t.Fatalf("ReadAt(%d bytes, %d) = %d, %q, %v, want %q", n, off, got, buf[:got], err, want[min(off, len(want)):])
			}
		}
	}
}
