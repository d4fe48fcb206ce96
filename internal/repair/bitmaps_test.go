// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// bitmapped is an image of qemu with two bitmaps whose tables have four entries each, and the bitmaps.
func bitmapped(t *testing.T) (string, memory, []qcow2.Bitmap) {
	t.Helper()
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "a.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "8G")
	run(t, "qemu-img", "bitmap", "--add", "-g", "4k", path, "one")
	run(t, "qemu-img", "bitmap", "--add", "-g", "4k", path, "and two")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write 0 1M", "-c", "write 2G 1M", "-c", "write 4G 1M", "-c", "write 6G 1M", path)
	b := load(t, path)
	_, h := l1Slots(t, b)
	list, err := qcow2.ReadBitmaps(b, int64(len(b)), h)
	if err != nil || len(list) != 2 {
		t.Fatalf("%d bitmaps, %v", len(list), err)
	}
	return path, b, list
}

// TestBitmapInUse: a bitmap that was not saved is left as it is, for the others are good; what the plan
// advises can be done.
func TestBitmapInUse(t *testing.T) {
	path, b, list := bitmapped(t)
	binary.BigEndian.PutUint32(b[list[1].EntryOff+12:], list[1].Flags|1)
	p := makePlan(t, b, repair.Options{})
	if !p.Empty() || len(p.Remains) != 1 || !strings.Contains(p.Remains[0].Next, `qemu-img bitmap --remove IMAGE "and two"`) {
		t.Errorf("%v, %+v; want nothing but advice", actions(p), p.Remains)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-img", "bitmap", "--remove", path, "and two")
	if p := makePlan(t, load(t, path), repair.Options{}); p.After.Verdict != finding.Clean {
		t.Errorf("after the advice: %+v", p.Remains)
	}
}

// TestBitmapBroken: because of a broken bitmap qemu opens nothing. All are marked as invalid; what they
// take is known as theirs, and freed on request.
func TestBitmapBroken(t *testing.T) {
	path, sound, list := bitmapped(t)
	b := slices.Clone(sound)
	at := int64(list[0].TableOff)
	binary.BigEndian.PutUint64(b[at:], word(b, at)|0x200)
	if status, _ := qemuCheck(t, b); status != 1 {
		t.Fatalf("qemu-img check exits with %d, want that it gives up", status)
	}
	p := makePlan(t, b, repair.Options{})
	after := b.applied(t, p)
	if status, text := qemuCheck(t, after); status != 3 || fmt.Sprint(actions(p)) != "[QC17 clear]" {
		t.Errorf("%v; qemu-img check exits with %d, want 3:\n%s", actions(p), status, text)
	}
	// The clusters of the one that can be read go; the broken one may name anything.
	p = makePlan(t, b, repair.Options{Reclaim: true})
	if got := fmt.Sprint(actions(p)); got != "[QC03 reclaim QC17 clear]" || p.Steps[0].Count != 6 {
		t.Errorf("%s, %+v", got, p.Steps)
	}

	b = slices.Clone(sound)
	binary.BigEndian.PutUint64(b[88:], 0) // as a program does that does not know them
	p = makePlan(t, b, repair.Options{})
	if !p.Empty() || slices.ContainsFunc(p.Remains, func(f finding.Finding) bool { return f.Code == "QC13" || f.Code == "QC14" }) {
		t.Errorf("%v, %+v; want leaks of bitmaps only", actions(p), p.Remains)
	}
	after = b.applied(t, makePlan(t, b, repair.Options{Leaks: true}))
	if err := os.WriteFile(path, after, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-io", "-f", "qcow2", "-c", "write 1G 1M", path)
	if status, text := qemuCheck(t, load(t, path)); status != 0 {
		t.Errorf("qemu-img check exits with %d:\n%s", status, text)
	}
}
