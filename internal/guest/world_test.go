// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// world is a disk in a sparse file.
type world struct {
	*os.File
	size int64
}

// newWorld makes a disk of zeros.
func newWorld(t testing.TB, size int64) *world {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return &world{f, size}
}

// run starts a program, with the text as its input.
func run(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	testenv.Need(t, args[0])
	c := exec.Command(args[0], args[1:]...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mkfs makes a file system of the command on w, where DISK stands for its name.
func (w *world) mkfs(t testing.TB, command string) {
	t.Helper()
	run(t, "", strings.Fields(strings.ReplaceAll(command, "DISK", w.Name()))...)
}

// put copies the data of src to off of w and leaves its holes.
func (w *world) put(t testing.TB, src *world, off int64) {
	t.Helper()
	for _, r := range src.data(t, 0, src.size) {
		b := make([]byte, r.Length)
		if _, err := src.ReadAt(b, r.Offset); err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt(b, off+r.Offset); err != nil {
			t.Fatal(err)
		}
	}
}

// data lists what of [from, to) is no hole, in clusters of 64 KiB counted from 0.
func (w *world) data(t testing.TB, from, to int64) []finding.Range {
	t.Helper()
	var rs []finding.Range
	for at := from; at < to; {
		begin, err := unix.Seek(int(w.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && begin >= to {
			break
		}
		end, err2 := unix.Seek(int(w.Fd()), begin, unix.SEEK_HOLE)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		end = min(end, to)
		first := max(from, begin&^(64*kib-1))
		last := min(to, (end+64*kib-1)&^(64*kib-1))
		rs = append(rs, finding.Range{Offset: first - from, Length: last - first})
		at = last
	}
	return rs
}

// without is w with a range that reads as zeros or, with an error, not at all.
type without struct {
	w        io.ReaderAt
	from, to int64
	err      error
}

func (v without) ReadAt(p []byte, off int64) (int, error) {
	n, err := v.w.ReadAt(p, off)
	from, to := max(0, v.from-off), min(int64(n), v.to-off)
	if from < to {
		if v.err != nil {
			return int(from), v.err
		}
		clear(p[from:to])
	}
	return n, err
}

// piece cuts [base, base+span) out of w.
func (w *world) piece(t testing.TB, base, span int64) Piece {
	t.Helper()
	return Piece{Data: io.NewSectionReader(w, base, min(span, w.size-base)),
		Mapped: w.data(t, base, min(base+span, w.size)), SpanBytes: span, DiskBytes: w.size}
}

// share is of how many pieces the place was proved.
type share struct{ pieces, proved, independent, ambiguous, cut int }

func (s share) String() string {
	return fmt.Sprintf("%d of %d pieces proved (%d by two clusters or more), %d with ambiguous blocks, "+
		"%d cut short", s.proved, s.pieces, s.independent, s.ambiguous, s.cut)
}

// prove cuts every piece of a span that has data out of w, and wants that the proofs are true. It
// gives how many were found.
func (w *world) prove(t testing.TB, span int64) share {
	t.Helper()
	var s share
	for base := int64(0); base < w.size; base += span {
		p := w.piece(t, base, span)
		if len(p.Mapped) == 0 {
			continue
		}
		s.pieces++
		vols, _, err := Volumes(t.Context(), without{w: w, from: base, to: base + span}, w.size)
		if err != nil {
			t.Fatal(err)
		}
		ev, err := Proofs(t.Context(), vols, p)
		if err != nil {
			t.Fatal(err)
		}
		for _, proof := range ev.Proofs {
			if proof.Base != base {
				t.Errorf("Proofs(piece at %#x) = %#x: %s", base, proof.Base, proof.Text)
			}
		}
		if ev.Cut {
			s.cut++
		}
		if ev.Ambiguous > 0 {
			s.ambiguous++
		}
		if at, independent, ok := ev.Place(); ok && at == base {
			s.proved++
			if independent {
				s.independent++
			}
			if testing.Verbose() && s.proved <= 3 {
				t.Logf("span %d MiB: %s", span/mib, ev.Proofs[0].Text)
			}
		}
	}
	return s
}

// tree makes a directory with many small files and some larger ones of random-like content.
func tree(t testing.TB, dirs, files int) string {
	t.Helper()
	root := t.TempDir()
	x := uint64(88172645463325252)
	for d := range dirs {
		dir := filepath.Join(root, fmt.Sprintf("dir%04d", d))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for f := range files {
			b := make([]byte, 1000+(d*f)%20000)
			for i := range b {
				x ^= x << 13
				x ^= x >> 7
				x ^= x << 17
				b[i] = byte(x)
			}
			name := fmt.Sprintf("a file with a name of some length %04d", f)
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

// proto writes a prototype file for mkfs.xfs with the files of tree.
func proto(t testing.TB, dirs, files int) string {
	t.Helper()
	content := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(content, []byte(strings.Repeat("some text ", 3000)), 0o644); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("/dev/null\n0 0\nd--755 0 0\n")
	for d := range dirs {
		fmt.Fprintf(&b, "dir%04d d--755 0 0\n", d)
		for f := range files {
			fmt.Fprintf(&b, "file%04d ---644 0 0 %s\n", f, content)
		}
		b.WriteString("$\n")
	}
	b.WriteString("$\n")
	name := filepath.Join(t.TempDir(), "proto")
	if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}
