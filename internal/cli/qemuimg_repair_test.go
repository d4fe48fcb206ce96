// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// qimage is the bytes of a qcow2 image, for breaking it.
type qimage []byte

func (q qimage) u32(off uint64) uint64 { return uint64(binary.BigEndian.Uint32(q[off:])) }
func (q qimage) u64(off uint64) uint64 { return binary.BigEndian.Uint64(q[off:]) }

func (q qimage) put(off, v uint64) { binary.BigEndian.PutUint64(q[off:], v) }

const qOffset = 0x00fffffffffffe00

func (q qimage) cluster() uint64 { return 1 << q.u32(20) }

// l1 and reftable are where the tables begin.
func (q qimage) l1() uint64       { return q.u64(40) }
func (q qimage) reftable() uint64 { return q.u64(48) }

// l2 is where entry i of the first L2 table lies.
func (q qimage) l2(i uint64) uint64 { return q.u64(q.l1())&qOffset + 8*i }

// data is the cluster that entry i names.
func (q qimage) data(i uint64) uint64 { return q.u64(q.l2(i)) & qOffset / q.cluster() }

// ref is where the refcount of a cluster lies; it has 16 bits.
func (q qimage) ref(cluster uint64) uint64 {
	return q.u64(q.reftable()) + 2*cluster
}

func (q qimage) setRef(cluster uint64, n uint16) {
	binary.BigEndian.PutUint16(q[q.ref(cluster):], n)
}

// end is the number of clusters of the file.
func (q qimage) end() uint64 { return (uint64(len(q)) + q.cluster() - 1) / q.cluster() }

// grow adds clusters to the end, filled with b.
func (q qimage) grow(n int, b byte) qimage {
	q = append(q, make([]byte, q.end()*q.cluster()-uint64(len(q)))...)
	return append(q, bytes.Repeat([]byte{b}, n*int(q.cluster()))...)
}

// mended is a fault, and what is different between both repairs of it; "" where nothing is.
type mended struct {
	name   string
	base   string // the image that is broken
	fault  func(q qimage) qimage
	leaks  string // why -r leaks differs
	all    string // why -r all differs
	noText bool   // the differing text is not looked at
}

func inPlace(fn func(q qimage)) func(qimage) qimage {
	return func(q qimage) qimage {
		fn(q)
		return q
	}
}

var mendedFaults = []mended{
	{name: "sound", base: "base", fault: inPlace(func(qimage) {})},
	{name: "leaks-zero", base: "base", fault: func(q qimage) qimage {
		q = q.grow(3, 0)
		for c := range uint64(3) {
			q.setRef(q.end()-1-c, 1)
		}
		return q
	}},
	{name: "leak-tail-data", base: "base", fault: func(q qimage) qimage {
		q = q.grow(2, 7)
		q.setRef(q.end()-1, 1)
		q.setRef(q.end()-2, 3)
		return q
	}},
	{name: "refcount-high", base: "base", fault: inPlace(func(q qimage) { q.setRef(q.data(2), 5) })},
	{name: "refcount-high-flag", base: "base", fault: inPlace(func(q qimage) {
		q.setRef(q.data(2), 2)
		q.put(q.l2(2), q.u64(q.l2(2))&^(1<<63))
	})},
	{name: "refcount-low", base: "snap", fault: inPlace(func(q qimage) {
		q.setRef(q.data(1), 1)
		q.setRef(q.data(3), 1)
	})},
	{name: "refcount-low-flags", base: "snap", fault: inPlace(func(q qimage) {
		for i := range uint64(4) {
			q.setRef(q.data(i), 1)
			q.put(q.l2(i), q.u64(q.l2(i))|1<<63)
		}
		q.put(q.l1(), q.u64(q.l1())|1<<63)
	})},
	{name: "refcount-zero", base: "base", fault: inPlace(func(q qimage) {
		q.setRef(q.data(1), 0)
		q.setRef(q.data(5), 0)
	})},
	{name: "copied", base: "base", fault: inPlace(func(q qimage) {
		q.put(q.l2(1), q.u64(q.l2(1))&^(1<<63))
		q.put(q.l2(4), q.u64(q.l2(4))&^(1<<63))
		q.put(q.l1(), q.u64(q.l1())&^(1<<63))
	})},
	{name: "copied-and-leak", base: "base", fault: func(q qimage) qimage {
		q = q.grow(2, 0)
		q.setRef(q.end()-1, 1)
		q.put(q.l2(1), q.u64(q.l2(1))&^(1<<63))
		return q
	}},
	{name: "copied-and-low", base: "snap", fault: inPlace(func(q qimage) {
		q.setRef(q.data(1), 1)
		q.put(q.l2(0), q.u64(q.l2(0))|1<<63)
	})},
	{name: "dirty", base: "base", fault: inPlace(func(q qimage) { q.put(72, 1) })},
	{name: "corrupt", base: "base", fault: inPlace(func(q qimage) { q.put(72, 2) })},
	{name: "dirty-leak", base: "base", fault: func(q qimage) qimage {
		q = q.grow(2, 0)
		q.setRef(q.end()-1, 1)
		q.put(72, 1)
		return q
	}},
	{name: "dirty-low", base: "snap", fault: inPlace(func(q qimage) {
		q.put(72, 3)
		q.setRef(q.data(1), 1)
	})},
	{name: "prealloc-misaligned", base: "zeros", fault: inPlace(func(q qimage) {
		q.put(q.l2(0), q.u64(q.l2(0))+512)
		q.put(q.l2(1), q.u64(q.l2(1))+1024)
	})},
	{name: "reftable-nowhere", base: "base", fault: inPlace(func(q qimage) { q.put(48, 1<<30) })},
	{name: "reftable-empty", base: "base", fault: inPlace(func(q qimage) { q.put(q.reftable(), 0) })},
	{name: "reftable-reserved", base: "base", fault: inPlace(func(q qimage) {
		q.put(q.reftable(), q.u64(q.reftable())|4)
	})},
	{name: "reftable-misaligned", base: "base", fault: inPlace(func(q qimage) {
		q.put(q.reftable(), q.u64(q.reftable())+512)
	})},
	{name: "reftable-outside", base: "base", fault: inPlace(func(q qimage) {
		q.put(q.reftable(), q.end()*q.cluster()+5*q.cluster())
	})},
	{name: "refblock-shared", base: "base", fault: inPlace(func(q qimage) { q.put(q.reftable(), q.l1()) })},
	{name: "refblock-wiped", base: "base", fault: inPlace(func(q qimage) {
		b := q.u64(q.reftable())
		clear(q[b : b+q.cluster()])
	})},
	{name: "v2-copied", base: "v2", fault: inPlace(func(q qimage) {
		q.put(q.l2(1), q.u64(q.l2(1))&^(1<<63))
	})},
	{name: "v2-leak", base: "v2", fault: func(q qimage) qimage {
		q = q.grow(2, 0)
		q.setRef(q.end()-1, 1)
		return q
	}},
	{name: "v2-low", base: "v2snap", fault: inPlace(func(q qimage) { q.setRef(q.data(1), 1) })},
	{name: "v2-zero", base: "v2", fault: inPlace(func(q qimage) { q.setRef(q.data(1), 0) })},
	{name: "data-file", base: "data", fault: inPlace(func(q qimage) {
		q.put(q.l2(1), q.u64(q.l2(1))&^(1<<63))
	})},
	{name: "snapshot-incomplete", base: "v2snap", fault: inPlace(func(q qimage) {
		binary.BigEndian.PutUint32(q[4:], 3)
		binary.BigEndian.PutUint32(q[96:], 4)
		binary.BigEndian.PutUint32(q[100:], 104)
	})},
	{name: "l1-reserved", base: "base", fault: inPlace(func(q qimage) { q.put(q.l1(), q.u64(q.l1())|1<<60) })},
	{name: "l2-reserved", base: "base", fault: inPlace(func(q qimage) { q.put(q.l2(1), q.u64(q.l2(1))|1<<57) })},
	{name: "l2-past", base: "base", fault: inPlace(func(q qimage) { q.put(q.l2(1), q.u64(q.l2(1))|1<<40) })},
	{name: "l2-misaligned", base: "base", fault: inPlace(func(q qimage) { q.put(q.l2(1), q.u64(q.l2(1))|512) })},
	{name: "l2-shared", base: "base", fault: inPlace(func(q qimage) { q.put(q.l2(1), q.u64(q.l2(2))) })},
	{name: "leak-data-middle", base: "base", fault: func(q qimage) qimage {
		q.put(q.l2(3), 0)
		return q
	}},
	{name: "l1-wiped", base: "base", fault: inPlace(func(q qimage) { q.put(q.l1(), 0) })},
	{name: "bitmap-bad", base: "bitmap", fault: inPlace(func(q qimage) {
		i := bytes.Index(q[:q.cluster()], []byte{0x23, 0x85, 0x28, 0x75})
		dir := q.u64(uint64(i) + 8 + 16)
		q[q.u64(dir)] = 0xff
	})},
}

// bases makes sound images.
func bases(t *testing.T, dir string) {
	t.Helper()
	for _, line := range []string{
		"qemu-img create -q -f qcow2 base 4M", "qemu-io -f qcow2 -c write_-P_1_0_1M base",
		"qemu-img create -q -f qcow2 snap 4M", "qemu-io -f qcow2 -c write_-P_2_0_1M snap",
		"qemu-img snapshot -c one snap", "qemu-io -f qcow2 -c write_-P_3_512k_128k snap",
		"qemu-img create -q -f qcow2 zeros 4M", "qemu-io -f qcow2 -c write_-P_2_0_1M -c write_-z_0_128k zeros",
		"qemu-img create -q -f qcow2 -o compat=0.10 v2 4M", "qemu-io -f qcow2 -c write_-P_1_0_1M v2",
		"qemu-img create -q -f qcow2 -o compat=0.10 v2snap 4M", "qemu-io -f qcow2 -c write_-P_1_0_1M v2snap",
		"qemu-img snapshot -c one v2snap", "qemu-io -f qcow2 -c write_-P_3_512k_128k v2snap",
		"qemu-img create -q -f qcow2 -o data_file=data.raw data 4M", "qemu-io -f qcow2 -c write_-P_1_0_1M data",
		"qemu-img create -q -f qcow2 bitmap 4M", "qemu-img bitmap --add bitmap one",
		"qemu-io -f qcow2 -c write_-P_1_0_1M bitmap",
	} {
		argv := strings.Fields(line)
		for i := range argv {
			if i > 1 && argv[i-1] == "-c" && argv[0] == "qemu-io" {
				argv[i] = strings.ReplaceAll(argv[i], "_", " ")
			}
		}
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", argv, err, out)
		}
	}
}

type qresult struct {
	code        int
	out, errOut string
}

func runReal(t *testing.T, args ...string) qresult {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "qemu-img", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return qresult{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

func runOurs(t *testing.T, args ...string) qresult {
	t.Helper()
	var out, errOut bytes.Buffer
	code := RunQemuImg(t.Context(), append([]string{"qemu-img"}, args...), strings.NewReader(""), &out, &errOut)
	return qresult{code, out.String(), errOut.String()}
}

var ownLines = regexp.MustCompile(`(?m)^shisa: .*\n`)

func TestExplore(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	dir := testenv.DiskDir(t)
	t.Chdir(dir)
	t.Setenv("SHISA_STATE", filepath.Join(dir, "state"))
	bases(t, dir)
	for _, c := range mendedFaults {
		b, err := os.ReadFile(c.base)
		if err != nil {
			t.Fatal(err)
		}
		broken := c.fault(slices.Clone(b))
		for _, mode := range []string{"leaks", "all"} {
			var got [2]qresult
			for i, run := range []func(*testing.T, ...string) qresult{runReal, runOurs} {
				if err := os.WriteFile("x.qcow2", broken, 0o600); err != nil {
					t.Fatal(err)
				}
				got[i] = run(t, "check", "-f", "qcow2", "-r", mode, "x.qcow2")
				if err := os.Rename("x.qcow2", fmt.Sprint("result", i)); err != nil {
					t.Fatal(err)
				}
				undo, _ := filepath.Glob("*undo*")
				for _, u := range undo {
					os.Remove(u)
				}
			}
			strip := got[1]
			strip.errOut = ownLines.ReplaceAllString(strip.errOut, "")
			again := runReal(t, "check", "-f", "qcow2", "result1")
			cmp := runReal(t, "compare", "-f", "qcow2", "-F", "qcow2", "result0", "result1")
			if strip == got[0] {
				fmt.Printf("=== %s -r %s: SAME (%d)  after: %d compare: %d %s\n", c.name, mode, got[0].code, again.code, cmp.code,
					strings.Join(ownLines.FindAllString(got[1].errOut, -1), ""))
				continue
			}
			fmt.Printf("=== %s -r %s: DIFFERENT after %d compare %d\n--- qemu %d\n%s%s--- ours %d\n%s%s\n", c.name, mode, again.code, cmp.code,
				got[0].code, got[0].errOut, got[0].out, got[1].code, got[1].errOut, got[1].out)
		}
	}
}
