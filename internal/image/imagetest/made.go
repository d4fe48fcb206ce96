// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package imagetest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// Made is an image that qemu makes and writes to.
type Made struct {
	Format  string // as qemu calls it
	Options string // of qemu-img create, as "a=1,b=2"
	Size    string // of the disk, as qemu-img takes it
	// Scribbles is how often it is written to, Unit the size in bytes of what the format allocates.
	Scribbles int
	Unit      int64
}

// Make has qemu make the image, and gives its bytes and those of its disk. open is the Open of the
// format.
func Make[D image.Reader](t testing.TB, m Made, open func(io.ReaderAt, int64) (D, error)) (data,
	want []byte, path string) {
	t.Helper()
	testenv.Need(t, "qemu-img", "qemu-io")
	path = filepath.Join(testenv.DiskDir(t), "disk."+m.Format)
	args := []string{"create", "-q", "-f", m.Format}
	if m.Options != "" {
		args = append(args, "-o", m.Options)
	}
	Qemu(t, "", "qemu-img", append(args, path, m.Size)...)
	size := Opened(t, File(t, path), open).Size()
	if size > 0 && m.Scribbles > 0 {
		Scribble(t, rand.New(rand.NewPCG(uint64(size), 3)), path, m.Format, size, m.Unit, m.Scribbles)
	}
	return File(t, path), Content(t, path, m.Format), path
}

// File gives the bytes of a file.
func File(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Opened opens the image in data, which must be one.
func Opened[D any](t testing.TB, data []byte, open func(io.ReaderAt, int64) (D, error)) D {
	t.Helper()
	d, err := open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatalf("Open = %v", err)
	}
	return d
}

// Look does with the image in data, which may be none, whatever can be done.
func Look[D image.Reader](t *testing.T, data []byte, open func(io.ReaderAt, int64) (D, error)) {
	t.Helper()
	d, err := open(bytes.NewReader(data), int64(len(data)))
	switch {
	case err == nil:
		Walk(t, d, 2000, Broken)
	case !Refusal(err):
		t.Errorf("Open = %v", err)
	}
}

// Failed requires that an Open ended with an error of a kind that has a text in it, and reports true;
// or, where kind is nil, that it did not fail.
func Failed(t *testing.T, err, kind error, text string) bool {
	t.Helper()
	switch {
	case kind == nil && err != nil:
		t.Fatalf("Open = %v", err)
	case kind != nil && (!errors.Is(err, kind) || !strings.Contains(err.Error(), text)):
		t.Errorf("Open = %v, want %v (%q)", err, kind, text)
	}
	return kind != nil
}

// Refusal tells whether an error says that the bytes are no image, or one that is not supported.
func Refusal(err error) bool {
	return errors.Is(err, image.ErrInvalid) || errors.Is(err, image.ErrUnsupported)
}

// Broken tells whether an error says that a part of an image is damaged.
func Broken(err error) bool { return errors.Is(err, image.ErrBroken) }

// Unchanged calls fn with bytes that it must not change.
func Unchanged(t *testing.T, p []byte, fn func(t *testing.T, p []byte)) {
	t.Helper()
	before := bytes.Clone(p)
	fn(t, p)
	if !bytes.Equal(p, before) {
		t.Error("the input was changed")
	}
}
