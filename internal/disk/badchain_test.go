// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// overlay writes an empty image of 1 MiB with that name of a backing file, as qemu-img would, but
// without looking whether the name makes sense.
func overlay(t testing.TB, path, backing, format string) {
	t.Helper()
	if err := os.WriteFile(path, overlayBytes(16, backing, format), 0o644); err != nil {
		t.Fatal(err)
	}
}

// overlayBytes is such an image with clusters of 1<<bits bytes: the header, the refcount table, a
// refcount block and the L1 table have one each.
func overlayBytes(bits int, backing, format string) []byte {
	cluster := 1 << bits
	b := make([]byte, 4*cluster)
	be := binary.BigEndian
	be.PutUint32(b, qcow2.Magic)
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], uint32(bits))
	be.PutUint64(b[24:], 1<<20)
	be.PutUint32(b[36:], uint32(max(1, 1<<20>>(2*bits-3)))) // L1 entries
	be.PutUint64(b[40:], uint64(3*cluster))
	be.PutUint64(b[48:], uint64(cluster)) // refcount table
	be.PutUint32(b[56:], 1)
	be.PutUint32(b[96:], 4)
	be.PutUint32(b[100:], 104)
	be.PutUint64(b[cluster:], uint64(2*cluster))
	for i := range 4 {
		be.PutUint16(b[2*cluster+2*i:], 1)
	}
	end := 104
	if format != "" {
		be.PutUint32(b[end:], 0xe2792aca)
		be.PutUint32(b[end+4:], uint32(len(format)))
		copy(b[end+8:], format)
		end += 8 + (len(format)+7)&^7
	}
	end += 8
	if backing != "" {
		be.PutUint64(b[8:], uint64(end))
		be.PutUint32(b[16:], uint32(len(backing)))
		copy(b[end:], backing)
	}
	return b
}

func TestOpenBadChain(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		if err := os.WriteFile(in(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("raw", strings.Repeat("x", 4096))
	write("disk.qed", "QED\x00"+strings.Repeat("\x00", 600))
	write("part.vmdk", "KDMV\x01\x00\x00\x00"+strings.Repeat("\x00", 600))
	write("disk.vhdx", "vhdxfile"+strings.Repeat("\x00", 600))
	write("disk.vhd", "conectix"+strings.Repeat("\x00", 600))
	write("empty", "")
	for _, d := range []string{"dir", "elsewhere"} {
		if err := os.Mkdir(in(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("elsewhere/base", strings.Repeat("y", 4096))
	if err := unix.Mkfifo(in("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere/gone", in("dangling")); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(outside, make([]byte, 4096), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, in("out")); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, backing, format string
		want                  error
		text                  string // part of the error
		hint                  string // part of it
	}{
		{"missing", "gone", "qcow2", ErrMissing, "gone is not there", "find the file"},
		{"dangling", "dangling", "raw", ErrMissing, "elsewhere/gone: no such file", "find the file"},
		{"itself", "itself", "qcow2", ErrLoop, "leads back into the chain", "circle"},
		{"directory", "dir", "raw", ErrUnreadable, "is a directory", ""},
		{"fifo", "fifo", "raw", ErrUnreadable, "not a regular file", ""},
		{"device", "/dev/null", "raw", ErrUnreadable, "not a regular file", ""},
		{"outside", outside, "raw", ErrNotFollowed, "outside", "--follow"},
		{"dot dot", "../../../../../../../etc/passwd", "raw", ErrNotFollowed, "outside", "--follow"},
		{"link out", "out", "raw", ErrNotFollowed, "outside", "--follow"},
		{"nbd", "nbd:localhost:10809", "raw", ErrProtocol, `protocol "nbd"`, ""},
		{"json nbd", `json:{"driver":"nbd","host":"x"}`, "", ErrProtocol, `"nbd"`, ""},
		{"json broken", "json:{", "", ErrUnreadable, "json", ""},
		{"no qcow2", "raw", "qcow2", qcow2.ErrNotQcow2, "not a qcow2 image", ""},
		{"empty as qcow2", "empty", "qcow2", qcow2.ErrNotQcow2, "", ""},
		{"unknown format", "raw", "nonsense", ErrUnknownFormat, `unknown format "nonsense"`, ""},
		{"qed", "disk.qed", "qed", ErrFormat, "format qed is recognised, but its data cannot be read", "convert"},
		{"qed probed", "disk.qed", "", ErrFormat, "format qed", "convert"},
		{"extent", "part.vmdk", "vmdk", image.ErrUnsupported, "without its descriptor", "name the descriptor"},
		{"extent probed", "part.vmdk", "", image.ErrUnsupported, "without its descriptor", "name the descriptor"},
		{"broken vhdx", "disk.vhdx", "", image.ErrInvalid, "neither of the two headers", ""},
		{"broken vpc", "disk.vhd", "vpc", image.ErrInvalid, "checksum", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := in(strings.ReplaceAll(tt.name, " ", "-") + ".qcow2")
			if tt.name == "itself" {
				path = in("itself")
			}
			overlay(t, path, tt.backing, tt.format)
			diskio.RequireUnchanged(t, path)
			c, err := Open(t.Context(), path, Options{})
			if err == nil {
				c.Close()
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Open(%s) = %v, want %v (%q)", tt.backing, err, tt.want, tt.text)
			}
			if got := finding.HintOf(err); !strings.Contains(got, tt.hint) {
				t.Errorf("Open(%s): hint %q, want %q", tt.backing, got, tt.hint)
			}
			// What can be told of the image itself is told.
			layers, err := Walk(t.Context(), path, Options{})
			if err != nil || layers[0].Format != "qcow2" || layers[0].Backing == nil || layers[0].Backing.Name != tt.backing {
				t.Errorf("Walk(%s) = %v, %v", tt.backing, layers, err)
			}
			if _, err := Open(t.Context(), path, Options{Single: true}); err != nil {
				t.Errorf("Open(%s, Single) = %v, want no error", tt.backing, err)
			}
		})
	}
}

func TestOpenNotAnImage(t *testing.T) {
	dir := tree(t, "dir/", "notqcow2")
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	bad := make([]byte, 512)
	copy(bad, "QFI\xfb\x00\x00\x00\x09")
	if err := os.WriteFile(filepath.Join(dir, "version"), bad, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, format string
		want         error
	}{
		{"gone", "", os.ErrNotExist}, {"dir", "", diskio.ErrDirectory}, {"fifo", "", diskio.ErrSpecial},
		{"notqcow2", "qcow2", qcow2.ErrNotQcow2}, {"version", "", qcow2.ErrUnsupported}, {"notqcow2", "what", ErrUnknownFormat},
	}
	for _, tt := range tests {
		_, err := Open(t.Context(), filepath.Join(dir, tt.name), Options{Format: tt.format})
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.name) {
			t.Errorf("Open(%s, format %q) = %v, want %v", tt.name, tt.format, err, tt.want)
		}
	}
	for _, name := range []string{"notqcow2", "version"} {
		if _, err := Open(t.Context(), filepath.Join(dir, name), Options{Format: "raw"}); err != nil {
			t.Errorf("Open(%s, format raw) = %v, want no error", name, err)
		}
	}
}

func TestPermission(t *testing.T) {
	if testenv.AsUser(t) {
		return
	}
	dir := t.TempDir()
	top, base := filepath.Join(dir, "top"), filepath.Join(dir, "base")
	overlay(t, top, "base", "raw")
	if err := os.WriteFile(base, make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), top, Options{})
	if !errors.Is(err, os.ErrPermission) || !errors.Is(err, ErrUnreadable) {
		t.Errorf("Open(base without permission) = %v, want %v", err, os.ErrPermission)
	}
}

// A chain of two, three ... images that runs in a circle, by names that differ each time.
func TestLoops(t *testing.T) {
	for _, n := range []int{1, 2, 3, 40} {
		dir := t.TempDir()
		for i := range n {
			overlay(t, filepath.Join(dir, fmt.Sprint(i)), fmt.Sprintf("%s%d", strings.Repeat("./", i), (i+1)%n), "qcow2")
		}
		layers, err := Walk(t.Context(), filepath.Join(dir, "0"), Options{})
		if err != nil || len(layers) != n {
			t.Fatalf("Walk(circle of %d) = %d layers, %v, want %d", n, len(layers), err, n)
		}
		if got := layers[n-1].Backing.State; got != LinkLoop {
			t.Errorf("Walk(circle of %d) ends with %s, want %s", n, got, LinkLoop)
		}
	}
}

// deep makes a chain of n images and gives the path of the top.
func deep(t testing.TB, n int) string {
	t.Helper()
	dir := t.TempDir()
	base := make([]byte, 1<<20)
	for i := range base {
		base[i] = byte(i >> 12)
	}
	if err := os.WriteFile(filepath.Join(dir, "0"), base, 0o644); err != nil {
		t.Fatal(err)
	}
	format := "raw"
	for i := 1; i < n; i++ {
		overlay(t, filepath.Join(dir, fmt.Sprint(i)), fmt.Sprint(i-1), format)
		format = "qcow2"
	}
	return filepath.Join(dir, fmt.Sprint(n-1))
}

func TestDeepChain(t *testing.T) {
	top := deep(t, 200)
	c := mustOpen(t, top, Options{})
	if len(c.Layers) != 200 {
		t.Errorf("Open(200 deep) = %d layers", len(c.Layers))
	}
	p := make([]byte, 1<<20)
	if _, err := c.ReadAt(p, 0); err != nil || p[0xabcde] != 0xab {
		t.Errorf("ReadAt(200 deep) = %#x, %v, want 0xab", p[0xabcde], err)
	}
	if got := chainMap(t, c, 0, c.Size()); len(got) != 1 || got[0].Depth != 199 || !got[0].Data {
		t.Errorf("Map(200 deep) = %v, want one entry at depth 199", got)
	}
	infos, err := Inspect(t.Context(), top, Options{})
	if err != nil || len(infos) != 200 {
		t.Errorf("Inspect(200 deep) = %d, %v", len(infos), err)
	}
}

func TestTooDeep(t *testing.T) {
	top := deep(t, MaxDepth+1)
	layers, err := Walk(t.Context(), top, Options{})
	if err != nil || len(layers) != MaxDepth || layers[MaxDepth-1].Backing.State != LinkTooDeep {
		t.Fatalf("Walk(%d deep) = %d layers, %v", MaxDepth+1, len(layers), err)
	}
	if _, err := Open(t.Context(), top, Options{}); !errors.Is(err, ErrTooDeep) {
		t.Errorf("Open(%d deep) = %v, want %v", MaxDepth+1, err, ErrTooDeep)
	}
}

func TestOpenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, deep(t, 3), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Open(cancelled) = %v, want %v", err, context.Canceled)
	}
}

// A file that cannot be read to its end says so, and everything before it is there.
func TestReadFault(t *testing.T) {
	dir := t.TempDir()
	top := filepath.Join(dir, "top")
	overlay(t, top, "base", "raw")
	if err := os.WriteFile(filepath.Join(dir, "base"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(top)
	if err != nil {
		t.Fatal(err)
	}
	// The L1 entry names a table at an odd place.
	binary.BigEndian.PutUint64(b[3*65536:], 1<<63|0x40200)
	if err := os.WriteFile(top, b, 0o644); err != nil {
		t.Fatal(err)
	}
	c := mustOpen(t, top, Options{})
	var le *LayerError
	if _, err := c.ReadAt(make([]byte, 512), 0); !errors.As(err, &le) || !errors.Is(err, qcow2.ErrEntry) || le.Depth != 0 {
		t.Errorf("ReadAt(broken L1) = %v, want a *LayerError for layer 0", err)
	}
	if err := c.Map(t.Context(), 0, c.Size(), func(*Entry) error { return nil }); !errors.Is(err, qcow2.ErrEntry) {
		t.Errorf("Map(broken L1) = %v, want %v", err, qcow2.ErrEntry)
	}
	base := mustOpen(t, filepath.Join(dir, "base"), Options{})
	_, err = Compare(t.Context(), base, c, CompareOptions{})
	var ce *CompareError
	if !errors.As(err, &ce) || ce.Disk != 1 || !ce.Mapping || ce.Offset != 0 {
		t.Errorf("Compare(broken L1) = %v, want a *CompareError of mapping disk 1 at 0", err)
	}
	if n, err := base.ReadAt(make([]byte, 10), 1<<20-5); n != 5 || err != io.EOF {
		t.Errorf("ReadAt(over the end) = %d, %v, want 5, EOF", n, err)
	}
}
