// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// runTool runs a program of the machine.
func runTool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// qemuIO runs commands of qemu-io on an image.
func qemuIO(t *testing.T, image string, commands ...string) {
	t.Helper()
	args := []string{}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	runTool(t, "qemu-io", append(args, image)...)
}

const writesDisk = 8<<20 + 512

// writesImage makes an image named vm.qcow2 of a kind, with parts of all sorts, and gives the name.
func writesImage(t *testing.T, dir, options string, with ...string) string {
	t.Helper()
	name := filepath.Join(dir, "vm.qcow2")
	args := []string{"create", "-q", "-f", "qcow2"}
	has := func(what string) bool { return strings.Contains(strings.Join(with, " "), what) }
	if has("backing") {
		base := filepath.Join(dir, "base.qcow2")
		runTool(t, "qemu-img", "create", "-q", "-f", "qcow2", base, "7M") // shorter than the disk
		qemuIO(t, base, "write -q -P 1 0 3M", "write -q -P 2 6M 1M")
		args = append(args, "-b", base, "-F", "qcow2")
	}
	if options != "" {
		args = append(args, "-o", options)
	}
	runTool(t, "qemu-img", append(args, name, fmt.Sprint(writesDisk))...)
	qemuIO(t, name, "write -q -P 3 64k 1M", "write -q -P 4 5000k 700k", "write -q -P 9 8M 512")
	if has("compressed") {
		qemuIO(t, name, "write -q -c -P 5 2M 256k", "write -q -c -P 6 2560k 128k")
	}
	if has("zero") {
		qemuIO(t, name, "write -q -z 1M 128k", "write -q -z -u 4M 512k", "write -q -z 5100k 64k")
	}
	if has("snapshot") {
		runTool(t, "qemu-img", "snapshot", "-c", "one", name)
		qemuIO(t, name, "write -q -P 7 512k 128k")
		runTool(t, "qemu-img", "snapshot", "-c", "two", name)
		qemuIO(t, name, "write -q -P 8 600k 128k")
	}
	return name
}

// diskOf reads the whole disk of an image, or of a snapshot of it, with qemu-img.
func diskOf(t *testing.T, image, snapshot string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	args := []string{"convert", "-O", "raw"}
	if snapshot != "" {
		args = append(args, "-l", "snapshot.name="+snapshot)
	}
	runTool(t, "qemu-img", append(args, image, raw)...)
	return load(t, raw)
}

// randomWrites gives writes all over the disk.
func randomWrites(rng *rand.Rand) []repair.GuestWrite {
	var all []repair.GuestWrite
	for at := rng.Int64N(200 << 10); at < writesDisk; at += rng.Int64N(600 << 10) {
		n := min(1+rng.Int64N(90<<10), writesDisk-at)
		if rng.IntN(3) == 0 {
			n = min(n, 512)
		}
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		all = append(all, repair.GuestWrite{Offset: at, Data: data})
		at += n
	}
	return all
}

// planWrites plans writes into an image of the machine.
func planWrites(t *testing.T, name string, writes []repair.GuestWrite) (*plan.Plan, error) {
	t.Helper()
	chain, err := disk.Open(t.Context(), name, disk.Options{Policy: disk.Policy{Follow: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer chain.Close()
	b := load(t, name)
	opts := repair.Options{Name: name, Disk: io.NewSectionReader(chain, 0, writesDisk)}
	opts.Check.DataFileBytes = -1
	p, err := repair.PlanWrites(t.Context(), b, int64(len(b)), writes,
		plan.Step{Code: finding.TM08.Code, Name: finding.TM08.Name, Summary: "a test"}, opts)
	if err != nil {
		return nil, err
	}
	p.Object.Path = name
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	return p, nil
}

func TestPlanWrites(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	for i, c := range []struct {
		options string
		with    []string
	}{
		{"", nil},
		{"", []string{"zero"}},
		{"", []string{"compressed zero"}},
		{"", []string{"backing compressed zero"}},
		{"", []string{"snapshot compressed zero"}},
		{"", []string{"backing snapshot compressed zero"}},
		{"cluster_size=512", []string{"snapshot"}},
		{"cluster_size=4k,refcount_bits=1", []string{"compressed"}},
		{"cluster_size=4k,refcount_bits=64", []string{"snapshot compressed zero"}},
		{"cluster_size=2M", []string{"backing snapshot zero"}},
		{"compat=0.10", []string{"backing snapshot compressed"}},
		{"extended_l2=on,cluster_size=128k", []string{"backing snapshot zero"}},
		{"extended_l2=on", []string{"compressed zero"}},
		{"preallocation=metadata", []string{"zero"}},
		{"compression_type=zstd", []string{"compressed snapshot"}},
	} {
		t.Run(fmt.Sprint(c.options, " ", c.with), func(t *testing.T) {
			if strings.Contains(c.options, "refcount_bits=1,") && len(c.with) > 0 {
				t.Log("no snapshots with one bit")
			}
			rng := rand.New(rand.NewPCG(7, uint64(i)))
			name := writesImage(t, t.TempDir(), c.options, c.with...)
			want := diskOf(t, name, "")
			snapshots := map[string][]byte{}
			if strings.Contains(strings.Join(c.with, " "), "snapshot") {
				snapshots["one"], snapshots["two"] = diskOf(t, name, "one"), diskOf(t, name, "two")
			}
			for range 2 { // the second on what the first one left
				before := load(t, name)
				writes := randomWrites(rng)
				p, err := planWrites(t, name, writes)
				if err != nil {
					t.Fatal(err)
				}
				for _, w := range writes {
					copy(want[w.Offset:], w.Data)
				}
				if err := os.WriteFile(name, before.applied(t, p), 0o600); err != nil {
					t.Fatal(err)
				}
				runTool(t, "qemu-img", "check", "-q", name)
				if got := diskOf(t, name, ""); !bytes.Equal(got, want) {
					t.Fatalf("the disk differs from %#x on", differs(got, want))
				}
				for s, old := range snapshots {
					if got := diskOf(t, name, s); !bytes.Equal(got, old) {
						t.Errorf("snapshot %s differs from %#x on", s, differs(got, old))
					}
				}
				if p.Before.Leaks != 0 || p.After.Leaks != 0 || len(p.Remains) > 0 || len(p.Steps) == 0 {
					t.Errorf("the plan has before %+v, after %+v, remains %v, %d steps", p.Before, p.After, p.Remains,
						len(p.Steps))
				}
			}
		})
	}
}

func differs(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// TestPlanWritesSmall: what has clusters of its own is written in place, and nothing else is touched.
func TestPlanWritesSmall(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	name := writesImage(t, t.TempDir(), "")
	p, err := planWrites(t, name, []repair.GuestWrite{{Offset: 64<<10 + 100, Data: []byte("inside")}})
	if err != nil {
		t.Fatal(err)
	}
	if p.GrowsBy() != 0 || p.BytesWritten() > 512+32 || len(p.Steps) != 1 || p.Steps[0].Action != "write" {
		t.Errorf("the plan grows by %d, writes %d bytes, has the steps %+v", p.GrowsBy(), p.BytesWritten(), p.Steps)
	}
}

func TestPlanWritesRefused(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	inside := []repair.GuestWrite{{Offset: 0, Data: []byte("x")}}
	for _, c := range []struct {
		name   string
		make   func(t *testing.T, dir string) string
		writes []repair.GuestWrite
		want   error
	}{
		{"data file", func(t *testing.T, dir string) string {
			return writesImage(t, dir, "data_file="+filepath.Join(dir, "data"))
		}, inside, repair.ErrUnwritable},
		{"bitmap", func(t *testing.T, dir string) string {
			name := writesImage(t, dir, "")
			runTool(t, "qemu-img", "bitmap", "--add", name, "b0")
			return name
		}, inside, repair.ErrUnwritable},
		{"corrupt", func(t *testing.T, dir string) string {
			name := writesImage(t, dir, "")
			b := load(t, name)
			b[79] |= 2
			return save(t, name, b)
		}, inside, repair.ErrUnsound},
		{"refcount", func(t *testing.T, dir string) string {
			name := writesImage(t, dir, "")
			b := load(t, name)
			copy(b[2<<16:], make([]byte, 64)) // the first refcount block
			return save(t, name, b)
		}, inside, repair.ErrUnsound},
		{"past the end", func(t *testing.T, dir string) string { return writesImage(t, dir, "") },
			[]repair.GuestWrite{{Offset: writesDisk, Data: []byte("x")}}, repair.ErrUnwritable},
		{"out of order", func(t *testing.T, dir string) string { return writesImage(t, dir, "") },
			[]repair.GuestWrite{{Offset: 10, Data: []byte("x")}, {Offset: 10, Data: []byte("x")}}, repair.ErrUnwritable},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := c.make(t, t.TempDir())
			if _, err := planWrites(t, name, c.writes); !errors.Is(err, c.want) {
				t.Errorf("PlanWrites = %v, want %v", err, c.want)
			}
		})
	}
}

func save(t *testing.T, name string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
