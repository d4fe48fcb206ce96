// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ways

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/testenv"
)

const (
	uuidA = "aaaaaaaa-1111-4111-8111-111111111111"
	uuidB = "bbbbbbbb-2222-4222-8222-222222222222"
)

// fs makes a file system with a file of random bytes.
func (w *world) fs(name, kind, uuid string, seed uint64) {
	w.t.Helper()
	dir := w.t.TempDir()
	if err := os.WriteFile(dir+"/file", random(seed, 1024), 0o644); err != nil {
		w.t.Fatal(err)
	}
	path := w.path(name)
	switch kind {
	case "ext4":
		w.run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-U", uuid, "-d", dir, path, "16M")
	case "xfs":
		w.run("truncate", "-s", "320M", path)
		w.run("mkfs.xfs", "-q", "-m", "uuid="+uuid, path)
	}
}

// rest makes the overlay anew, on top of what is at the base's name, with small writes from the beginning on.
func (w *world) rest(size int) {
	w.t.Helper()
	disk := w.path("pool/i/disk")
	w.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", w.path("pool/_base/b"), "-F", "raw", disk)
	var args []string
	for off := 0; off < size; off += 1 << 16 {
		args = append(args, "-c", fmt.Sprintf("write -q -P 7 %d 4k", off+32<<10))
	}
	w.run("qemu-io", append(args, disk)...)
}

func (w *world) proofs(from string) map[string]Way {
	w.t.Helper()
	all := map[string]Way{}
	for _, g := range w.find(from) {
		w.t.Logf("%s: %s, volumes %s: %s", filepath.Base(g.Path), g.Proof, g.Volumes, g.Why)
		all[filepath.Base(g.Path)] = g
	}
	return all
}

// TestVolumes: another file system speaks against a candidate; the same one speaks for nothing: a wrong candidate of
// the same size and UUID is not taken for the base, whether or not the right one is there.
func TestVolumes(t *testing.T) {
	testenv.Need(t, "mkfs.ext4", "mkfs.xfs")
	w := newWorld(t)
	w.fs("pool/_base/b", "ext4", uuidA, 1)
	w.rest(8 << 20)
	w.lose()
	w.fs("from/twin", "ext4", uuidA, 2)
	w.fs("from/other", "ext4", uuidB, 1)
	got := w.proofs(w.path("from"))
	if g := got["b"]; g.Proof != SameBlocks || g.Volumes != VolumesSame {
		t.Errorf("the base is %+v, want it proved", g)
	}
	if g := got["twin"]; g.Proof != Refuted || g.Volumes != VolumesSame {
		t.Errorf("the twin is %+v, want it refuted", g)
	}
	if g := got["other"]; g.Proof != Unproved || g.Volumes != VolumesOther || !strings.Contains(g.Why, uuidB) || !strings.Contains(g.Why, uuidA) {
		t.Errorf("the other is %+v, want that its UUID is told", g)
	}
	if err := os.Remove(w.path("from/b")); err != nil {
		t.Fatal(err)
	}
	if g := w.proofs(w.path("from"))["twin"]; g.Proof != Unproved || g.Volumes != VolumesSame {
		t.Errorf("the twin alone is %+v, want it not proved", g)
	}
}

// TestVolumesUnknown: where the images hold no block with a UUID, or the candidate has no file system there, the UUIDs
// say nothing.
func TestVolumesUnknown(t *testing.T) {
	testenv.Need(t, "mkfs.ext4", "mkfs.xfs")
	for _, tc := range []struct {
		name, base, candidate string
		size                  int
		want                  Volumes
	}{
		{"not held", "ext4", "ext4", 0, VolumesUnknown},
		{"xfs", "xfs", "xfs", 1 << 20, VolumesSame},
		{"no file system in the candidate", "ext4", "", 1 << 20, VolumesUnknown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.fs("pool/_base/b", tc.base, uuidA, 1)
			w.rest(tc.size)
			if err := os.Remove(w.path("pool/_base/b")); err != nil {
				t.Fatal(err)
			}
			w.write("from/c", random(9, blocks))
			if tc.candidate != "" {
				w.fs("from/c", tc.candidate, uuidA, 1)
			}
			if g := w.proofs(w.path("from"))["c"]; g.Volumes != tc.want {
				t.Errorf("the candidate is %+v, want %s", g, tc.want)
			}
		})
	}
}

// TestRenamed: what a client of NFS keeps under a name of its own is the very file, if its inode was recorded; it gets
// the name of the base back as a link. Another file of such a name is no more than a candidate.
func TestRenamed(t *testing.T) {
	w := newWorld(t)
	o := bases.Options{Bases: w.path("pool/_base"), Node: "n"}
	if _, err := bases.Protect(t.Context(), w.census(), bases.ProtectOptions{}, o); err != nil {
		t.Fatal(err)
	}
	if _, err := bases.Unprotect(t.Context(), bases.UnprotectOptions{}, o); err != nil {
		t.Fatal(err)
	}
	renamed := w.path("pool/_base/.nfs0000000000a1b2c300000001")
	w.run("mv", w.path("pool/_base/b"), renamed)
	w.write("pool/_base/.nfs0000000000a1b2c300000002", random(2, blocks))
	got := w.proofs(w.path("from"))
	right, wrong := got[filepath.Base(renamed)], got[".nfs0000000000a1b2c300000002"]
	if right.How != Renamed || right.Proof != SameFile || wrong.Proof != Refuted {
		t.Errorf("ways = %+v, want the recorded inode alone", got)
	}
	if first := w.find(); first[0].Path != renamed {
		t.Errorf("the first way is %+v, want %s", first[0], renamed)
	}
	if _, err := bases.Adopt(t.Context(), wrong.Path, right.File, "b", bases.Proof{Why: "test"}, o); err == nil {
		t.Error("Adopt of another file than was proved succeeds")
	}
	if _, err := os.Lstat(w.path("pool/_base/b")); err == nil {
		t.Fatal("the wrong file has the name of the base")
	}
	if _, err := bases.Adopt(t.Context(), right.Path, right.File, "b", bases.Proof{Why: "test"}, o); err != nil {
		t.Fatal(err)
	}
	a, errA := os.Stat(renamed)
	b, errB := os.Stat(w.path("pool/_base/b"))
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		t.Errorf("%v, %v: the base is not a link to what was renamed", errA, errB)
	}
	// Without a record, the images on top of it tell.
	w = newWorld(t)
	w.run("mv", w.path("pool/_base/b"), w.path("pool/_base/.nfs01"))
	if g := w.proofs(w.path("from"))[".nfs01"]; g.How != Renamed || g.Proof != SameBlocks {
		t.Errorf("without a record it is %+v, want it proved by its blocks", g)
	}
}
