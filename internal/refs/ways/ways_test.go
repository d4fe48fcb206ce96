// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ways

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// world is a pool with one overlay that a guest wrote to, whose base is gone and stands as a copy in from/.
type world struct {
	t   *testing.T
	dir string
}

// random is content of a seed; other seeds share one block of ten with it.
func random(seed uint64, blocks int) []byte {
	own, common := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(0, 0))
	b := make([]byte, blocks*blockBytes)
	for i := range blocks {
		of := own
		if i%10 == 0 {
			of = common
		}
		for k := i * blockBytes; k < (i+1)*blockBytes; k += 8 {
			v := of.Uint64()
			for n := range 8 {
				b[k+n] = byte(v >> (8 * n))
			}
		}
	}
	return b
}

const blocks = 512

func newWorld(t *testing.T) *world {
	testenv.Need(t, "qemu-img", "qemu-io")
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t, dir}
	for _, d := range []string{"pool/_base", "pool/i", "from"} {
		if err := os.MkdirAll(w.path(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.write("pool/_base/b", random(1, blocks))
	w.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", w.path("pool/_base/b"), "-F", "raw", w.path("pool/i/disk"))
	// Small writes, each in a cluster of its own: the rest of the cluster comes from the base.
	var args []string
	for i := 0; i < blocks; i += 16 {
		args = append(args, "-c", fmt.Sprintf("write -q -P %d %dk 4k", i/16+1, 4*i+8))
	}
	w.run("qemu-io", append(args, w.path("pool/i/disk"))...)
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name string, b []byte) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), b, 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) run(name string, args ...string) {
	w.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		w.t.Fatalf("%s: %v: %s", name, err, out)
	}
}

func (w *world) census() *refs.Census {
	w.t.Helper()
	c, err := refs.Look(w.t.Context(), refs.Options{Pool: w.path("pool")})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// find gives the ways for the one base that is missing.
func (w *world) find(from ...string) []Way {
	w.t.Helper()
	r, err := Find(w.t.Context(), w.census(), Options{From: from})
	if err != nil || len(r.Missing) != 1 || r.Missing[0].Name != "b" {
		w.t.Fatalf("Find = %+v, %v, want that b is missing", r, err)
	}
	return r.Missing[0].Ways
}

func (w *world) lose() { w.run("mv", w.path("pool/_base/b"), w.path("from/b")) }

// TestBlocks: without a record, the images on top of the base tell the right candidate from another one of the same
// size and name.
func TestBlocks(t *testing.T) {
	w := newWorld(t)
	w.lose()
	w.write("from/sibling", random(2, blocks))
	w.write("from/short", random(1, blocks)[:blocks*blockBytes/8])
	got := w.find(w.path("from"))
	proofs := map[string]Proof{}
	for _, g := range got {
		proofs[filepath.Base(g.Path)] = g.Proof
		t.Logf("%s: %s: %s", g.Path, g.Proof, g.Why)
	}
	if proofs["b"] != SameBlocks || proofs["sibling"] != Refuted || proofs["short"] != Refuted {
		t.Errorf("proofs = %v, want b alone proved", proofs)
	}
	if filepath.Base(got[0].Path) != "b" || got[0].Share.Fraction() < 0.9 {
		t.Errorf("first = %+v, want b", got[0])
	}
	// A second copy of it is as good, and one that differs in a block is a rival.
	w.write("from/copy", random(1, blocks))
	proved := func() (n int) {
		for _, g := range w.find(w.path("from")) {
			if g.Proof == SameBlocks {
				n++
			}
		}
		return n
	}
	if got := proved(); got != 2 {
		t.Errorf("%d are proved of two copies, want both", got)
	}
	near := random(1, blocks)
	near[len(near)-1]++
	w.write("from/near", near)
	if got := proved(); got != 0 {
		t.Errorf("%d are proved beside one that is nearly the same, want none", got)
	}
}

// TestTooLittle: an overlay that holds next to nothing proves nothing.
func TestTooLittle(t *testing.T) {
	w := newWorld(t)
	w.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", w.path("pool/_base/b"), "-F", "raw", w.path("pool/i/disk"))
	w.lose()
	if got := w.find(w.path("from")); len(got) != 1 || got[0].Proof != Unproved || !strings.Contains(got[0].Why, "too few to tell") {
		t.Errorf("ways = %+v, want one that is not proved", got)
	}
}

// TestDigest: what was recorded decides, and another file of the same size is refuted.
func TestDigest(t *testing.T) {
	w := newWorld(t)
	o := bases.Options{Bases: w.path("pool/_base"), Node: "n"}
	if _, err := bases.Protect(t.Context(), w.census(), bases.ProtectOptions{}, o); err != nil {
		t.Fatal(err)
	}
	w.lose()
	got := w.find(w.path("from"))
	if len(got) != 2 || got[0].How != Shield || got[1].How != Candidate || got[1].Proof != SameDigest {
		// The candidate is the very file under another name.
		t.Errorf("ways = %+v, want the shield and the candidate with the digest", got)
	}
	w.write("from/b2", random(1, blocks))
	w.write("from/other", random(2, blocks))
	if err := os.Remove(w.path("from/b")); err != nil {
		t.Fatal(err)
	}
	got = w.find(w.path("from"))
	if len(got) != 3 || got[0].How != Shield || got[1].Proof != SameDigest || got[2].Proof != Refuted {
		t.Errorf("ways = %+v, want the shield, the copy, and that the other is not it", got)
	}
	if _, err := bases.Adopt(t.Context(), got[2].Path, got[1].File, "b", bases.Proof{Why: "test"}, o); !errors.Is(err, diskio.ErrChanged) {
		t.Errorf("Adopt of another file than was proved = %v, want %v", err, diskio.ErrChanged)
	}
	if _, err := bases.Adopt(t.Context(), got[1].Path, got[1].File, "b", bases.Proof{Why: "test"}, o); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(w.path("pool/_base/b")); err != nil || string(b) != string(random(1, blocks)) {
		t.Errorf("what was adopted is another: %v", err)
	}
	w.run("qemu-io", "-c", "read 0 2M", w.path("pool/i/disk"))
	if _, err := bases.Adopt(t.Context(), got[1].Path, got[1].File, "b", bases.Proof{Why: "test"}, o); !errors.Is(err, bases.ErrThere) {
		t.Errorf("Adopt over a file = %v, want %v", err, bases.ErrThere)
	}
}

// TestElsewhere: what the pool keeps and recorded under the name of a base that is missing in another directory is not that
// base, and does not speak against a candidate for it.
func TestElsewhere(t *testing.T) {
	w := newWorld(t)
	w.run("mv", w.path("pool/_base/b"), w.path("from/b"))
	w.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", w.path("pool/i/b"), "-F", "raw", w.path("pool/i/disk"))
	w.write("pool/_base/b", random(2, blocks))
	o := bases.Options{Bases: w.path("pool/_base"), Node: "n"}
	if _, err := bases.Protect(t.Context(), w.census(), bases.ProtectOptions{}, o); err != nil {
		t.Fatal(err)
	}
	got := w.find(w.path("from"))
	if len(got) != 1 || got[0].How != Candidate || got[0].Proof != SameBlocks {
		t.Errorf("ways = %+v, want the candidate alone, proved by its blocks", got)
	}
	r, err := Find(t.Context(), w.census(), Options{From: []string{w.path("from/b")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Proved("b", w.path("from/b")); !errors.Is(err, ErrElsewhere) {
		t.Errorf("Proved of what is to lie elsewhere = %v, want %v", err, ErrElsewhere)
	}
	if _, err := r.FormatOf("b"); !errors.Is(err, ErrElsewhere) {
		t.Errorf("FormatOf = %v, want %v", err, ErrElsewhere)
	}
	if _, err := r.Proved("c", w.path("from/b")); !errors.Is(err, ErrNotMissing) {
		t.Errorf("Proved of what nobody needs = %v, want %v", err, ErrNotMissing)
	}
}

// TestRecordedTwice: of two files that had one name nobody knows which the images were made on, so that the digest of either
// proves nothing.
func TestRecordedTwice(t *testing.T) {
	w := newWorld(t)
	o := bases.Options{Bases: w.path("pool/_base"), Node: "n"}
	protect := func() {
		if _, err := bases.Protect(t.Context(), w.census(), bases.ProtectOptions{}, o); err != nil {
			t.Fatal(err)
		}
		if _, err := bases.Unprotect(t.Context(), bases.UnprotectOptions{}, o); err != nil {
			t.Fatal(err)
		}
	}
	protect()
	w.lose() // to a file that is there, so that the next one has another inode
	w.write("pool/_base/b", random(2, blocks))
	protect()
	w.run("mv", w.path("pool/_base/b"), w.path("from/second"))
	w.write("from/other", random(3, blocks))
	got := map[string]Proof{}
	for _, way := range w.find(w.path("from")) {
		got[filepath.Base(way.Path)] = way.Proof
	}
	if d := cmp.Diff(map[string]Proof{"b": Unproved, "second": Unproved, "other": Refuted}, got); d != "" {
		t.Errorf("proofs (-want +got):\n%s", d)
	}
	// The same content twice is no contradiction.
	w.run("cp", w.path("from/second"), w.path("pool/_base/b"))
	w.run("sh", "-c", "cd "+w.path("pool/_base/.shisa/objects")+" && rm $(ls -t | tail -n 1)")
	protect()
	w.run("mv", w.path("pool/_base/b"), w.path("from/third"))
	for _, way := range w.find(w.path("from/second")) {
		if way.Proof != SameDigest {
			t.Errorf("the content of both: %+v", way)
		}
	}
}

// TestRenamedTwice: of two files that had one name and that a client of NFS keeps neither is called the very base.
func TestRenamedTwice(t *testing.T) {
	w := newWorld(t)
	o := bases.Options{Bases: w.path("pool/_base"), Node: "n"}
	for _, name := range []string{"from/first", "pool/_base/.nfs02"} {
		w.write("pool/_base/b", random(uint64(len(name)), blocks))
		if _, err := bases.Protect(t.Context(), w.census(), bases.ProtectOptions{}, o); err != nil {
			t.Fatal(err)
		}
		if _, err := bases.Unprotect(t.Context(), bases.UnprotectOptions{}, o); err != nil {
			t.Fatal(err)
		}
		w.run("mv", w.path("pool/_base/b"), w.path(name))
	}
	w.run("mv", w.path("from/first"), w.path("pool/_base/.nfs01"))
	got := w.find()
	if len(got) != 2 || got[0].How != Renamed || got[0].Proof != Unproved || got[1].Proof != Unproved {
		t.Errorf("the ways are %+v, want two that are not proved", got)
	}
}

// TestSeveralKept: of two files that shields keep and that had one name neither is called the very base.
func TestSeveralKept(t *testing.T) {
	w := newWorld(t)
	o := bases.Options{Bases: w.path("pool/_base"), Node: "n"}
	for seed := range uint64(2) {
		w.write("pool/_base/b", random(seed, blocks))
		if _, err := bases.Protect(t.Context(), w.census(), bases.ProtectOptions{}, o); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(w.path("pool/_base/b")); err != nil {
			t.Fatal(err)
		}
		got, want := w.find(), SameFile
		if seed > 0 {
			want = Unproved
		}
		if len(got) != int(seed)+1 || got[0].How != Shield || got[0].Proof != want || got[seed].Proof != want {
			t.Errorf("%d files had the name: %+v, want each %s", seed+1, got, want)
		}
	}
}

func TestRemakeOf(t *testing.T) {
	for name, want := range map[string]string{
		"swap_512":              "swap 536870912 mkswap F",
		"ephemeral_10_40d1d2c":  "ext4 10737418240 mkfs -t ext4 -F -L ephemeral0 F",
		"ephemeral_1_0706d66":   "vfat 1073741824 mkfs -t vfat -n ephemeral0 F",
		"ephemeral_1_310201b":   "xfs 1073741824 mkfs -t xfs -L ephemeral0 F",
		"ephemeral_1_fffffff":   "", // virt_mkfs
		"ephemeral_1":           "",
		"ephemeral_0_40d1d2c":   "",
		"swap_":                 "",
		"swap_0":                "",
		"swap_-1":               "",
		"swap_007":              "",
		"swap_9999999999999999": "",
		"0123":                  "",
	} {
		r, ok := pool.RemakeOf(name)
		got := ""
		if ok {
			got = fmt.Sprintf("%s %d %s", r.Kind, r.SizeBytes, strings.Join(r.Command("F"), " "))
		}
		if got != want {
			t.Errorf("RemakeOf(%q) = %q, want %q", name, got, want)
		}
		w, is := remade(name)
		if is != (name != "0123") || is && (w.Proof != Unproved || w.Why == "") {
			t.Errorf("remade(%q) = %+v, %v", name, w, is)
		}
	}
}
