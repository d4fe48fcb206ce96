// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// run runs a program in dir and fails the test if that fails.
func run(t testing.TB, dir, name string, args ...string) {
	t.Helper()
	c := exec.Command(name, args...)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// output gives what a program printed and its exit status.
func output(t testing.TB, dir, name string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, errOut bytes.Buffer
	c := exec.Command(name, args...)
	c.Dir, c.Stdout, c.Stderr = dir, &out, &errOut
	if err := c.Run(); err != nil && c.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), c.ProcessState.ExitCode()
}

// randomChain makes a chain of images with real tools and gives the path of its top. Every kind of
// layer and of cluster that qemu can make occurs in some of them.
func randomChain(t *testing.T, r *rand.Rand) string {
	t.Helper()
	testenv.Need(t, "qemu-img", "qemu-io")
	dir := testenv.DiskDir(t)
	size := int64(1+r.IntN(9)) << 20
	backing, backingFormat := "", ""
	for depth := range 1 + r.IntN(4) {
		// Layers are longer or shorter than what they rest on.
		layer := max(1<<20, size+int64(r.IntN(5)-2)<<20)
		if r.IntN(3) == 0 {
			layer += int64(r.IntN(128)) * 512
		}
		name := fmt.Sprintf("%d.img", depth)
		l := layerSpec{dir: dir, name: name, size: layer, backing: backing, backingFormat: backingFormat}
		backing, backingFormat = name, l.make(t, r)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		settle(t, name)
	}
	diskio.RequireUnchanged(t, names...)
	return filepath.Join(dir, backing)
}

// settle makes the file system decide where a file's blocks are. Before, the space that it takes may
// change from one moment to the next, and what qemu says of holes depends on it.
func settle(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

type layerSpec struct {
	dir, name, backing, backingFormat string
	size                              int64
}

// make makes one image and returns its format.
func (l layerSpec) make(t *testing.T, r *rand.Rand) string {
	t.Helper()
	if l.backing == "" && r.IntN(3) == 0 {
		run(t, l.dir, "qemu-img", "create", "-q", "-f", "raw", l.name, fmt.Sprint(l.size))
		l.fill(t, r, "raw", 4096, 4096, false)
		if r.IntN(2) == 0 { // its last sector is not whole
			if err := os.Truncate(filepath.Join(l.dir, l.name), l.size-r.Int64N(100000)); err != nil {
				t.Fatal(err)
			}
		}
		return "raw"
	}
	cluster := int64(512) << r.IntN(10)
	unit := cluster
	opts := fmt.Sprintf("cluster_size=%d", cluster)
	compress := true
	switch r.IntN(8) {
	case 0, 1:
		if cluster >= 16<<10 {
			opts += ",extended_l2=on"
			unit = cluster / 32
		}
	case 2:
		opts += ",data_file=" + filepath.Join(l.dir, l.name+".data")
		compress = false
	case 3:
		opts += ",compression_type=zstd"
	case 4:
		opts += ",compat=0.10"
	case 5:
		if l.backing == "" {
			opts += ",preallocation=metadata"
		}
	}
	args := []string{"create", "-q", "-f", "qcow2", "-o", opts}
	if l.backing != "" {
		args = append(args, "-b", l.backing, "-F", l.backingFormat)
	}
	run(t, l.dir, "qemu-img", append(args, l.name, fmt.Sprint(l.size))...)
	if l.backing != "" && l.backingFormat == "qcow2" && r.IntN(4) == 0 {
		forgetFormat(t, filepath.Join(l.dir, l.name))
	}
	l.fill(t, r, "qcow2", cluster, unit, compress)
	if compress && r.IntN(3) == 0 { // there are no snapshots with a data file
		// qemu 7.2 itself marks an image as corrupt now and then; then there is no snapshot.
		if _, _, status := output(t, l.dir, "qemu-img", "snapshot", "-c", "snap", l.name); status == 0 {
			l.fill(t, r, "qcow2", cluster, unit, compress)
		}
	}
	return "qcow2"
}

// fill writes, zeroes and discards some ranges.
func (l layerSpec) fill(t *testing.T, r *rand.Rand, format string, cluster, unit int64, compress bool) {
	t.Helper()
	args := []string{"-f", format, "-d", "unmap"}
	for range 1 + r.IntN(12) {
		step := []int64{cluster, unit, 512}[r.IntN(3)]
		off := r.Int64N(l.size) / step * step
		length := min(step*(1+r.Int64N(1+min(64, l.size/step))), l.size-off) &^ 511
		if length == 0 {
			continue
		}
		cmd := fmt.Sprintf("write -q -P %d %d %d", 1+r.IntN(3), off, length)
		switch r.IntN(7) {
		case 0:
			cmd = fmt.Sprintf("write -q -z %d %d", off, length)
		case 1:
			cmd = fmt.Sprintf("write -q -z -u %d %d", off, length)
		case 2:
			cmd = fmt.Sprintf("discard -q %d %d", off, length)
		case 3:
			if off &^= cluster - 1; format == "qcow2" && compress && off+cluster <= l.size {
				cmd = fmt.Sprintf("write -q -c -P %d %d %d", 1+r.IntN(3), off, cluster)
			}
		}
		args = append(args, "-c", cmd)
	}
	// qemu does not pack a cluster that has data already: such writes fail and the others go on.
	output(t, l.dir, "qemu-io", append(args, l.name)...)
}

// forgetFormat turns the header extension that names the format of the backing file into one that
// nobody knows. qemu-img makes no image without it any more, but reads those that it once made.
func forgetFormat(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(b, []byte{0xe2, 0x79, 0x2a, 0xca})
	if i < 0 {
		t.Fatalf("%s names no format", path)
	}
	b[i] = 0x01
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// seeds are the seeds of a sweep: a few, or many with SHISA_LONG=1.
func seeds(short, long int) []uint64 {
	n := short
	if testenv.Long() {
		n = long
	}
	s := make([]uint64, n)
	for i := range s {
		s[i] = uint64(i)
	}
	return s
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x5f3759df)) }

// bytesOf is the content of the disk as qemu-img convert gives it.
func bytesOf(t *testing.T, path string, args ...string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	run(t, ".", "qemu-img", append(append([]string{"convert", "-O", "raw"}, args...), path, raw)...)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
