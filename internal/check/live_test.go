// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// qemuImg runs qemu-img.
func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	testenv.Need(t, "qemu-img")
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, out)
	}
	return string(out)
}

// pace writes and discards at random places until the test ends.
func pace(t *testing.T, in io.Writer, diskBytes int64, pause time.Duration, seed uint64) *atomic.Int64 {
	t.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() {
		close(stop)
		<-done
	})
	var n atomic.Int64
	go func() {
		defer close(done)
		rnd := rand.New(rand.NewPCG(seed, 1))
		for {
			select {
			case <-stop:
				return
			case <-time.After(pause):
			}
			for range 16 {
				length := 512 * (1 + rnd.Int64N(256))
				off := rnd.Int64N(diskBytes-length) &^ 511
				cmd := fmt.Sprintf("write -P %d %d %d", rnd.IntN(255), off, length)
				switch rnd.IntN(5) {
				case 0:
					cmd = fmt.Sprintf("discard %d %d", off&^0xfffff, 1<<20)
				case 1:
					cmd = fmt.Sprintf("write -z %d %d", off, length)
				}
				if _, err := fmt.Fprintln(in, cmd); err != nil {
					return
				}
				n.Add(1)
			}
			if rnd.IntN(4) == 0 {
				fmt.Fprintln(in, "flush")
			}
		}
	}()
	return &n
}

// On an image that is written to all the time no error is reported that is none.
func TestLiveWrites(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	rounds := 10
	if testenv.Long() {
		rounds = 100
	}
	kinds := []struct {
		name, options string
		delay         time.Duration // of a read from slow storage
	}{
		{"64k", "cluster_size=64k", 10 * time.Millisecond},
		{"4k", "cluster_size=4k", 3 * time.Millisecond},
		{"512", "cluster_size=512", 200 * time.Microsecond},
		{"2M", "cluster_size=2M", 10 * time.Millisecond},
		{"subclusters", "cluster_size=128k,extended_l2=on", 10 * time.Millisecond},
		{"lazy", "cluster_size=4k,lazy_refcounts=on", 3 * time.Millisecond},
	}
	for i, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(testenv.DiskDir(t), "a.qcow2")
			qemuImg(t, "create", "-q", "-f", "qcow2", "-o", k.options, path, "256M")
			in := qemuIO(t, "-f", "qcow2", "-d", "unmap", path)
			n := pace(t, in, 256<<20, 5*time.Millisecond, uint64(i))
			// Each kind has its share of the checks.
			again, most := 0, 0 // checks in which something looked like an error at first, and their rounds
			for i := range max(2, (rounds+len(kinds)-1)/len(kinds)) {
				time.Sleep(100 * time.Millisecond)
				r := newRunner(Options{})
				if i%2 == 1 {
					// Storage so slow that what is read first is long outdated in the end.
					r.reader = func(f *diskio.File) io.ReaderAt {
						return storage{f, func(int64) error { time.Sleep(k.delay); return nil }}
					}
				}
				rep, err := r.whole(t.Context(), []string{path})
				if err != nil {
					t.Fatal(err)
				}
				img := rep.Images[0]
				if img.Use.Rounds > 1 {
					again, most = again+1, max(most, img.Use.Rounds)
				}
				if rep.Verdict != finding.Clean || img.Use.State != UseWrite || len(img.Findings) > 0 {
					t.Fatalf("Run = %s, use %+v, %+v", strings.Join(show(rep, filepath.Dir(path)), "\n"), img.Use, img.Findings)
				}
				if len(img.Use.Holders) != 1 || !strings.Contains(img.Use.Holders[0].Command, "qemu-io") || !img.Use.Holders[0].Writing {
					t.Errorf("Holders = %+v, want qemu-io writing", img.Use.Holders)
				}
			}
			t.Logf("%d operations; %d checks saw writes under way and took up to %d rounds", n.Load(), again, most)
		})
	}
}

// An external data file that grows while we look is not too short.
func TestLiveDataFile(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	dir := testenv.DiskDir(t)
	path := filepath.Join(dir, "a.qcow2")
	data := filepath.Join(dir, "data.raw")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k,data_file="+data, path, "1G")
	if err := os.Truncate(data, 0); err != nil {
		t.Fatal(err)
	}
	in := qemuIO(t, "-f", "qcow2", path)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				fmt.Fprintf(in, "write %d 16384\nflush\n", i*16384)
			}
		}
	}()
	defer func() {
		close(stop)
		<-done
	}()
	for range 3 {
		time.Sleep(50 * time.Millisecond)
		r := newRunner(Options{Sleep: shortSleep})
		r.reader = func(f *diskio.File) io.ReaderAt {
			return storage{f, func(int64) error { time.Sleep(5 * time.Millisecond); return nil }}
		}
		rep, err := r.whole(t.Context(), []string{path})
		if err != nil {
			t.Fatal(err)
		}
		if rep.Verdict != finding.Clean {
			t.Errorf("Run = %s, %+v", strings.Join(show(rep, dir), "\n"), rep.Images[0].Findings)
		}
	}
}

// What is really wrong with a running image is found all the same.
func TestLiveErrors(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	for fault, code := range map[string]string{
		"refcount-zero": "QC04", "refcount-low": "QC02", "l2-entry-cross-link": "QC06", "l1-misaligned": "QC10",
		"l1-reserved": "QC09",
	} {
		t.Run(fault, func(t *testing.T) {
			path := filepath.Join(testenv.DiskDir(t), "a.qcow2")
			s := small("")
			s.Data, s.Snapshots, s.Rewrite = true, 1, .01
			if err := writeLab(path, s); err != nil {
				t.Fatal(err)
			}
			breakImage(t, path, fault)
			qemuIO(t, "-f", "qcow2", path)
			rep, err := Run(t.Context(), []string{path}, Options{Sleep: shortSleep})
			if err != nil {
				t.Fatal(err)
			}
			img := rep.Images[0]
			found := false
			for _, f := range img.Findings {
				found = found || f.Code == code
			}
			if !found || rep.Status[0] != finding.StatusFound || img.Use.Rounds != minRounds || img.Use.State != UseWrite {
				t.Errorf("Run = %s, use %+v, want %s", strings.Join(show(rep, filepath.Dir(path)), "\n"), img.Use, code)
			}
			if img.Counts.Leaks != 0 || img.Counts.Corruptions == 0 {
				t.Errorf("Counts = %+v, want corruptions and no leaks", img.Counts)
			}
		})
	}
}

func shortSleep(ctx context.Context, d time.Duration) error { return sleep(ctx, d/20) }

// A leak of a running image is none that anybody could tell.
func TestLiveLeak(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(testenv.DiskDir(t), "a.qcow2")
	if err := writeLab(path, leaking()); err != nil {
		t.Fatal(err)
	}
	qemuIO(t, "-f", "qcow2", path)
	rep, err := Run(t.Context(), []string{path}, Options{Sleep: shortSleep})
	if err != nil {
		t.Fatal(err)
	}
	img := rep.Images[0]
	want := []string{"leaks cannot be told while a program writes to the image"}
	if rep.Status[0] != finding.StatusClean || img.Use.Rounds != 1 || rep.Summary.Running != 1 || rep.Summary.LeakedBytes != 0 {
		t.Errorf("Run = %s, use %+v, %+v", strings.Join(show(rep, filepath.Dir(path)), "\n"), img.Use, rep.Summary)
	}
	if diff := cmp.Diff(want, img.Notes); diff != "" {
		t.Errorf("Notes (-want +got):\n%s", diff)
	}
}

// An image that changes although nobody holds it, as one that another host writes to, is examined
// until it stands still, or as one that runs.
func TestUnseenWriter(t *testing.T) {
	for _, tc := range []struct {
		name   string
		writes int // after so many reads of a table the image is written to
		state  UseState
		want   string
	}{
		{"stops", 2, UseNone, "found [3]"},
		{"goes on", 1 << 30, UseWrite, "clean [0]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(testenv.DiskDir(t), "a.qcow2")
			if err := writeLab(path, leaking()); err != nil {
				t.Fatal(err)
			}
			settle(t, path)
			r := newRunner(Options{Sleep: noSleep, Root: hostOf(t, "cron")})
			n := 0
			r.reader = func(f *diskio.File) io.ReaderAt {
				if n++; n > 1 && n <= tc.writes+1 {
					return storage{f, func(off int64) error {
						if off > 0 {
							now := time.Now()
							return os.Chtimes(path, now, now)
						}
						return nil
					}}
				}
				return f
			}
			rep, err := r.whole(t.Context(), []string{path})
			if err != nil {
				t.Fatal(err)
			}
			if got := show(rep, filepath.Dir(path)); got[0] != tc.want || rep.Images[0].Use.State != tc.state {
				t.Errorf("Run = %s, use %+v, want %s, %s", strings.Join(got, "\n"), rep.Images[0].Use, tc.want, tc.state)
			}
		})
	}
}

func TestLiveAlways(t *testing.T) {
	dir := t.TempDir()
	makeImage(t, dir+"/leak.qcow2", leaking())
	makeImage(t, dir+"/low.qcow2", small(""), "refcount-zero")
	rep, err := Run(t.Context(), []string{dir}, Options{Live: LiveAlways, Sleep: noSleep})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"found [3]", "low.qcow2 qcow2 found QC04", "leak.qcow2 qcow2 clean"}
	got := show(rep, dir)
	for i := range got {
		got[i] = strings.TrimSuffix(got[i], " QC05(note)")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Run (-want +got):\n%s", diff)
	}
}

func TestReader(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(testenv.DiskDir(t), "a.qcow2")
	makeImage(t, path, leaking())
	qemuIO(t, "-r", "-f", "qcow2", path)
	rep, err := Run(t.Context(), []string{path}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if img := rep.Images[0]; img.Use.State != UseRead || img.Verdict != finding.Found || len(img.Use.Holders) != 1 {
		t.Errorf("Run = %s, use %+v, want found and read", strings.Join(show(rep, filepath.Dir(path)), "\n"), img.Use)
	}
}

// A machine can start at any moment while its image is examined.
func TestNobodyIsKeptOut(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(testenv.DiskDir(t), "a.qcow2")
	if err := writeLab(path, small("")); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if rep, err := Run(t.Context(), []string{path}, Options{Sleep: noSleep}); err != nil || rep.Verdict != finding.Clean {
				done <- fmt.Errorf("%s, %w", rep.Verdict, err)
				return
			}
		}
	}()
	for range 20 {
		if out, err := exec.Command("qemu-io", "-f", "qcow2", "-c", "write 0 65536", path).CombinedOutput(); err != nil {
			t.Errorf("open for writing while we look: %v: %s", err, out)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func ranges(n ...int64) []finding.Range {
	var out []finding.Range
	for i := 0; i+1 < len(n); i += 2 {
		out = append(out, finding.Range{Offset: n[i], Length: n[i+1]})
	}
	return out
}

func TestRanges(t *testing.T) {
	for _, tc := range []struct {
		name               string
		a, b, joined, both []finding.Range
	}{
		{"nothing", nil, ranges(0, 5), nil, nil},
		{"same", ranges(5, 5), ranges(5, 5), ranges(5, 5), ranges(5, 5)},
		{"touching", ranges(5, 5, 0, 5), ranges(0, 10), ranges(0, 10), ranges(0, 10)},
		{"overlapping", ranges(0, 7, 5, 5, 20, 1), ranges(6, 15), ranges(0, 10, 20, 1), ranges(6, 4, 20, 1)},
		{"inside", ranges(0, 100, 10, 5), ranges(3, 4, 50, 100), ranges(0, 100), ranges(3, 4, 50, 50)},
		{"apart", ranges(0, 1, 4, 1), ranges(1, 3), ranges(0, 1, 4, 1), nil},
	} {
		j := joined(tc.a)
		if len(j) == 0 {
			j = nil
		}
		c := common(j, tc.b)
		if len(c) == 0 {
			c = nil
		}
		if diff := cmp.Diff([2][]finding.Range{tc.joined, tc.both}, [2][]finding.Range{j, c}); diff != "" {
			t.Errorf("%s: joined, common (-want +got):\n%s", tc.name, diff)
		}
	}
}

// Errors that are elsewhere each time vanish; what stays keeps its places.
func TestErrorSet(t *testing.T) {
	at := func(code, kind string, host ...int64) finding.Finding {
		f := finding.New(finding.Rule{Code: code, Severity: finding.Lost}, "x", finding.Sure, kind, "")
		f.Host, f.Count = ranges(host...), int64(len(host)/2)
		f.Evidence = []finding.Evidence{{}, {}}
		return f
	}
	first := setOf(at("QC04", "guest_data", 0, 1, 10, 1), at("QC16", "table_unreadable"), at("QC06", "shared_table", 5, 1),
		at("QC08", "metadata_twice", 7, 1))
	second := setOf(at("QC04", "guest_data", 10, 1, 20, 1), at("QC16", "table_unreadable"), at("QC08", "data_in_metadata", 7, 1))
	if !first.keep(second) {
		t.Error("keep = false, want true: it shrank")
	}
	if first.keep(second) {
		t.Error("keep again = true, want false: nothing changed")
	}
	got := first.findings([]finding.Finding{at("QC04", "guest_data", 10, 1, 30, 3), at("QC16", "table_unreadable"),
		at("QC06", "shared_table", 5, 1), at("QC08", "data_in_metadata", 7, 1)}, 0)
	if len(got) != 2 || got[0].Code != "QC04" || len(got[0].Host) != 1 || got[0].Host[0].Offset != 10 || got[1].Code != "QC16" {
		t.Errorf("findings = %+v", got)
	}
	if len(got[0].Evidence) > 0 || got[0].EvidenceCut != 2 {
		t.Errorf("findings lists %v, %d left out, want none and 2: they may be of the part that is gone",
			got[0].Evidence, got[0].EvidenceCut)
	}
}

// A program that holds no lock counts too, if it has the image open for writing.
func TestWriterWithoutLock(t *testing.T) {
	testenv.Need(t, "sleep")
	path := makeImage(t, t.TempDir()+"/a.qcow2", leaking())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sleep", "100")
	cmd.ExtraFiles = []*os.File{f}
	testenv.Start(t, cmd)
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	rep, err := Run(t.Context(), []string{path}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	img := rep.Images[0]
	want := []Holder{{PID: cmd.Process.Pid, Command: "sleep", Writing: true}}
	if diff := cmp.Diff(want, img.Use.Holders); diff != "" || img.Use.State != UseWrite || img.Verdict != finding.Clean {
		t.Errorf("Run = %s, use %+v, holders (-want +got):\n%s", img.Verdict, img.Use, diff)
	}
}

// Errors of which a round lists only a part are not taken for gone.
func TestErrorSetCut(t *testing.T) {
	f := finding.New(finding.QC04, "x", finding.Sure, "guest_data", "clusters")
	f.Host = ranges(100, 1)
	first := setOf(f)
	f.Host, f.HostCut = ranges(0, 1), 5
	if !first.keep(setOf(f)) || len(first) != 1 {
		t.Errorf("keep left %d errors, want 1, and the next round to decide", len(first))
	}
}

// A real error stays one although there was another one of its kind beside it in one round, which
// makes the text speak of several.
func TestErrorSetOneOfMany(t *testing.T) {
	at := func(text string, offs ...int64) errorSet {
		f := finding.Finding{Code: "QC02", Kind: "guest_data", Summary: text}
		for _, off := range offs {
			f.Host = append(f.Host, finding.Range{Offset: off, Length: 512})
		}
		return setOf(f)
	}
	for _, text := range [][2]string{
		{"2 corruptions were counted whose place is not known", "1 corruption was counted whose place is not known"},
		{"2 L1 entries are not cluster aligned", "L1 entry 7 is not cluster aligned"},
	} {
		s := at(text[0], 512, 4096)
		if shrunk := s.keep(at(text[1], 4096)); !shrunk || len(s) != 1 {
			t.Errorf("keep(%q after %q) = %v, %v, want the one that stayed", text[1], text[0], shrunk, s)
		}
	}
}
