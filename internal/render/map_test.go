// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// mapped are disks whose maps have every kind of entry.
func mapped(t *testing.T) map[string]*disk.Chain {
	t.Helper()
	dir := testenv.DiskDir(t)
	t.Chdir(dir) // where qemu looks for a data file without a directory
	chains := map[string]*disk.Chain{}
	var names []string
	for name, spec := range map[string]lab.Spec{
		"empty":   {VirtualBytes: 8 << 20, Fill: -1},
		"random":  {VirtualBytes: 16 << 20, Layout: lab.Random, Fill: 0.5, ZeroPlain: 0.1, ZeroAlloc: 0.1, Data: true},
		"packed":  {VirtualBytes: 8 << 20, Compressed: 0.5, Fill: 0.7, Data: true},
		"sub":     {VirtualBytes: 8 << 20, ExtendedL2: true, Partial: 0.5, Fill: 0.7, ClusterBits: 16, Data: true},
		"top":     {VirtualBytes: 24 << 20, Fill: 0.3, Backing: "random", BackingFormat: "qcow2", Data: true},
		"data":    {VirtualBytes: 8 << 20, Fill: 0.5, DataFile: "data.raw"},
		"caf\xe9": {VirtualBytes: 1 << 20},
	} {
		if err := lab.Write(filepath.Join(dir, name), spec); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		diskio.RequireUnchanged(t, path)
		c, err := disk.Open(t.Context(), path, disk.Options{Policy: disk.Policy{Follow: true}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
		chains[name] = c
	}
	return chains
}

// The document that is written piece by piece is the one that its struct describes.
func TestMapJSONIsItsStruct(t *testing.T) {
	for name, c := range mapped(t) {
		for _, r := range []MapRange{{0, c.Size()}, {70000, 300000}, {c.Size(), 1}, {0, 0}} {
			var got, want bytes.Buffer
			end, err := MapJSON(t.Context(), &got, c, r)
			if err != nil {
				t.Fatalf("MapJSON(%q) = %v", name, err)
			}
			doc := MapDocument{MapEnd: end}
			doc.Path, doc.VirtualBytes = c.Layers[0].Path, c.Size()
			for _, l := range c.Layers {
				m := MapLayer{Path: l.Path, Format: l.Format, VirtualBytes: l.SizeBytes, Extents: []MapExtent{}}
				if l.Data != nil {
					m.DataFile = l.Data.Path
				}
				doc.Layers = append(doc.Layers, m)
			}
			doc.Entries = entriesOf(t, c, r)
			if err := JSON(&want, MapSchema, doc); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(parse(t, want.Bytes()), parse(t, got.Bytes())); diff != "" {
				t.Errorf("MapJSON(%q, %v) is not its struct (-struct +written):\n%s", name, r, diff)
			}
		}
	}
}

func entriesOf(t *testing.T, c *disk.Chain, r MapRange) []MapEntry {
	t.Helper()
	var out []MapEntry
	err := c.Map(t.Context(), image.GuestOff(r.Start), r.Length, func(e *disk.Entry) error {
		m := MapEntry{int64(e.Start), e.Length, e.Depth, e.Present, e.Zero, e.Data, e.Compressed, -1}
		if e.HasOffset {
			m.Offset = int64(e.Offset)
		}
		out = append(out, m)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func parse(t *testing.T, b []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in\n%s", err, b)
	}
	return v
}

func TestMapAsQemu(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for name, c := range mapped(t) {
		var out bytes.Buffer
		path := c.Layers[0].Path
		if err := QemuMapJSON(t.Context(), &out, c, MapRange{0, c.Size()}); err != nil {
			t.Fatal(err)
		}
		want, err := exec.Command("qemu-img", "map", "--output=json", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), out.String()); diff != "" {
			t.Errorf("QemuMapJSON(%q) differs from qemu-img (-qemu +shisa):\n%s", name, diff)
		}
		out.Reset()
		err = QemuMap(t.Context(), &out, c, MapRange{0, c.Size()})
		want, wantErr := exec.Command("qemu-img", "map", path).Output()
		if diff := cmp.Diff(string(want), out.String()); diff != "" || (err != nil) != (wantErr != nil) {
			t.Errorf("QemuMap(%q) = %v, qemu-img %v, and differs (-qemu +shisa):\n%s", name, err, wantErr, diff)
		}
	}
}

func TestMapText(t *testing.T) {
	for name, c := range mapped(t) {
		var out bytes.Buffer
		end, err := Map(t.Context(), &out, c, MapRange{0, c.Size()}, Style{})
		if err != nil || !end.Complete {
			t.Fatalf("Map(%q) = %+v, %v", name, end, err)
		}
		sum := end.Totals.Data + end.Totals.Compressed + end.Totals.Reserved + end.Totals.Zero + end.Totals.Absent
		if sum != c.Size() {
			t.Errorf("Map(%q): totals of %d bytes, want %d", name, sum, c.Size())
		}
		if want := len(entriesOf(t, c, MapRange{0, c.Size()})); strings.Count(out.String(), "\n0x") != want {
			t.Errorf("Map(%q) = %d ranges, want %d", name, strings.Count(out.String(), "\n0x"), want)
		}
	}
}

// full takes so many bytes and then no more.
type full int

var errNoSpace = errors.New("no space")

func (f *full) Write(p []byte) (int, error) {
	if *f -= full(len(p)); *f < 0 {
		return 0, errNoSpace
	}
	return len(p), nil
}

func TestMapCannotBeWritten(t *testing.T) {
	c := mapped(t)["random"]
	r := MapRange{0, c.Size()}
	for _, n := range []full{0, 100} {
		if _, err := MapJSON(t.Context(), new(n), c, r); !errors.Is(err, errNoSpace) {
			t.Errorf("MapJSON(full disk) = %v, want %v", err, errNoSpace)
		}
		if _, err := Map(t.Context(), new(n), c, r, Style{}); !errors.Is(err, errNoSpace) {
			t.Errorf("Map(full disk) = %v, want %v", err, errNoSpace)
		}
		if err := QemuMapJSON(t.Context(), new(n), c, r); !errors.Is(err, errNoSpace) {
			t.Errorf("QemuMapJSON(full disk) = %v, want %v", err, errNoSpace)
		}
	}
}

func TestMapInterrupted(t *testing.T) {
	c := mapped(t)["random"]
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out bytes.Buffer
	end, err := MapJSON(ctx, &out, c, MapRange{0, c.Size()})
	if err != nil || end.Complete || end.Status[0] != 130 {
		t.Errorf("MapJSON(interrupted) = %+v, %v, want status 130", end, err)
	}
	if doc := parse(t, out.Bytes()).(map[string]any); doc["complete"] != false || doc["error"] != "interrupted" {
		t.Errorf("MapJSON(interrupted) wrote %s", out.String())
	}
}
