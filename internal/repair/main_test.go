// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// memory is an image in memory to which a plan can be applied.
type memory []byte

func (b memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(b).ReadAt(p, off)
}

// load reads an image.
func load(t *testing.T, path string) memory {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// applied gives the image after a plan. Every byte that the plan replaces must be what it says.
func (b memory) applied(t *testing.T, p *plan.Plan) memory {
	t.Helper()
	out := append(memory(nil), b...)
	out = append(out, make([]byte, p.SizeAfterBytes-int64(len(b)))...)
	for _, w := range p.Writes {
		if end := min(w.End(), int64(len(b))); w.Offset < end && !bytes.Equal(b[w.Offset:end], w.Old) {
			t.Fatalf("the plan says that %x stands at %#x, there is %x", w.Old, w.Offset, b[w.Offset:end])
		}
		copy(out[w.Offset:], w.New)
	}
	return out
}

// makePlan plans the repair of an image in memory.
func makePlan(t *testing.T, b memory, opts repair.Options) *plan.Plan {
	t.Helper()
	opts.Check.DataFileBytes = -1
	p, err := repair.Plan(context.Background(), b, int64(len(b)), opts)
	if err != nil {
		t.Fatal(err)
	}
	p.Object.Path = "/image.qcow2"
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	return p
}

// checked is what a check of an image says.
func checked(t *testing.T, b memory) *qcow2.Result {
	t.Helper()
	r, err := qcow2.Check(context.Background(), b, int64(len(b)), qcow2.CheckOptions{DataFileBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// make writes an image of the lab and gives its bytes.
func build(t *testing.T, s lab.Spec) (string, memory) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.qcow2")
	if err := lab.Write(path, s); err != nil {
		t.Fatal(err)
	}
	return path, load(t, path)
}

// qemuCheck gives qemu-img's exit status and text for an image in memory.
func qemuCheck(t *testing.T, b memory) (int, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "judged.qcow2")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	out, err := exec.Command("qemu-img", "check", "-f", "qcow2", path).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, string(out)
	case errors.As(err, &exit):
		return exit.ExitCode(), string(out)
	}
	t.Fatal(err)
	return 0, ""
}

// view reads what the guest sees, one cluster at a time; nil for a cluster that cannot be read.
func view(t *testing.T, b memory) [][]byte {
	t.Helper()
	h, err := qcow2.ReadHeader(b, int64(len(b)))
	if err != nil {
		return nil
	}
	d, err := qcow2.NewDisk(b, int64(len(b)), h, qcow2.DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var list [][]byte
	cs := h.ClusterSize()
	for off := int64(0); off < d.Size(); off += cs {
		p := make([]byte, min(cs, d.Size()-off))
		if _, err := d.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			p = nil
		}
		list = append(list, p)
	}
	return list
}
