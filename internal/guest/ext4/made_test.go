// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// made makes a file system from a directory, without a mount, and runs commands of debugfs in it.
func made(t testing.TB, sizeBytes int64, mkfs string, commands ...string) string {
	t.Helper()
	testenv.Need(t, "debugfs")
	from := t.TempDir()
	fillSmall(t, from)
	args := append([]string{"mkfs.ext4", "-q", "-F", "-d", from}, strings.Fields(mkfs)...)
	disk := filestest.Make(t, t.TempDir(), sizeBytes, append(args, "DISK")...)
	if len(commands) > 0 {
		debugfs(t, disk, commands...)
	}
	return disk
}

// debugfs runs commands that may write, and gives what they print.
func debugfs(t testing.TB, disk string, commands ...string) string {
	t.Helper()
	c := exec.Command("debugfs", "-w", "-f", "-", disk)
	c.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	return string(out)
}

// patch changes bytes of a disk.
func patch(t testing.TB, disk string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(b, at)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestBlocksOf64K reads blocks that no kernel here mounts; debugfs is the judge.
func TestBlocksOf64K(t *testing.T) {
	for _, mkfs := range []string{"-b 65536", "-b 16384 -O ^metadata_csum",
		"-b 4096 -O casefold,verity -E encoding=utf8"} {
		t.Run(mkfs, func(t *testing.T) {
			disk := made(t, 512*mib, mkfs)
			fs := openDisk(t, disk)
			to := t.TempDir()
			debugfs(t, disk, fmt.Sprintf("rdump / %s", to))
			tree, view, err := filestest.ReadView(t.Context(), fs)
			if err != nil || view.State != files.Clean || len(view.Problems) > 0 {
				t.Fatalf("%v, view is %+v", err, view)
			}
			want := filestest.ReadMounted(t, to)
			for name, w := range want {
				got := tree[name]
				if got.Content != w.Content || got.Stat.Mode&files.TypeMask != w.Stat.Mode&files.TypeMask {
					t.Errorf("%s is %o %q, want %o %q", name, got.Stat.Mode, got.Content, w.Stat.Mode, w.Content)
				}
			}
			if len(tree) != len(want) {
				t.Errorf("%d names, want %d", len(tree), len(want))
			}
		})
	}
}

// TestCopies reads file systems whose first superblock or descriptors are gone.
func TestCopies(t *testing.T) {
	for _, tc := range []struct {
		name, mkfs string
		at, length int64
		text       string
	}{
		{"superblock", "-b 4096 -g 4096", 1024, 1024, "the copy of group 1 is used"},
		{"superblock-1k", "-b 1024 -g 8192", 1024, 1024, "the copy of group 1 is used"},
		{"superblock-checksum", "-b 4096", 1024 + 1020, 4, "superblock: checksum"},
		{"descriptors", "-b 4096 -g 4096", 4096, 100, "descriptor of group 0"},
		{"descriptors-meta_bg", "-b 1024 -O meta_bg,^resize_inode", 2048, 1024, "descriptor of group 0"},
		{"descriptors-no-csum", "-b 4096 -g 4096 -O ^metadata_csum", 4096, 12, "descriptor of group 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "superblock" || tc.name == "descriptors-no-csum" || tc.name == "descriptors" {
				tc.mkfs = strings.ReplaceAll(tc.mkfs, " -g 4096", "")
			}
			disk := made(t, 300*mib, tc.mkfs)
			want, _, err := filestest.ReadView(t.Context(), openDisk(t, disk))
			if err != nil {
				t.Fatal(err)
			}
			patch(t, disk, tc.at, make([]byte, tc.length))
			fs := openDisk(t, disk)
			got, view, err := filestest.ReadView(t.Context(), fs)
			if err != nil {
				t.Fatal(err)
			}
			if view.State != files.Incomplete || !strings.Contains(fmt.Sprint(view.Problems), tc.text) {
				t.Errorf("the view is %s: %+v, want %q", view.State, view.Problems, tc.text)
			}
			for _, line := range filestest.Differences(got, want, filestest.Loose{}) {
				t.Error(line)
			}
		})
	}
}

// TestCopyDiffers: where no checksum guards a descriptor, its copy tells that it was changed.
func TestCopyDiffers(t *testing.T) {
	disk := made(t, 64*mib, "-b 1024 -O ^metadata_csum")
	table := openDisk(t, disk).groups[0].table
	patch(t, disk, 2048+8, []byte{byte(table + 1), byte((table + 1) >> 8)})
	if view := openDisk(t, disk).View(); view.State != files.Incomplete ||
		!strings.Contains(fmt.Sprint(view.Problems), "in its copy at") {
		t.Errorf("the view is %+v", view)
	}
}

// TestResized reads a file system that was made larger, and smaller again.
func TestResized(t *testing.T) {
	testenv.Need(t, "resize2fs")
	for _, mkfs := range []string{"-b 1024", "-b 1024 -O meta_bg,^resize_inode,^metadata_csum",
		"-b 4096 -O ^resize_inode,^flex_bg"} {
		t.Run(mkfs, func(t *testing.T) {
			disk := made(t, 30*mib, mkfs)
			want, _, err := filestest.ReadView(t.Context(), openDisk(t, disk))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(disk, 700*mib); err != nil {
				t.Fatal(err)
			}
			for _, size := range []string{"700M", "100M"} {
				out, err := exec.Command("resize2fs", "-f", disk, size).CombinedOutput()
				if err != nil {
					t.Fatalf("resize2fs: %v %s", err, out)
				}
				fs := openDisk(t, disk)
				got, view, err := filestest.ReadView(t.Context(), fs)
				if err != nil || view.State != files.Clean || len(view.Problems) > 0 {
					t.Errorf("at %s: %v, the view is %+v", size, err, view)
				}
				for _, line := range filestest.Differences(got, want, filestest.Loose{}) {
					t.Error(line)
				}
				for _, o := range allOwners(t, fs, []files.Range{{Length: 700 * mib}}, 700*mib) {
					if o.Use == files.UseUnknown {
						t.Errorf("at %s: nobody has %+v", size, o)
					}
				}
			}
		})
	}
}

// TestHoleInMap reads a file one of whose extents leads nowhere: what it is for is an error, and
// the rest is as before.
func TestHoleInMap(t *testing.T) {
	disk := made(t, 16*mib, "-b 1024 -O ^metadata_csum")
	fs := openDisk(t, disk)
	n := named(t, fs, "/fragmented")
	want := make([]byte, n.stat.Size)
	if _, err := n.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, n)
	const broken = 20 // of the extents in the block
	patch(t, disk, leaf*1024+12*(broken+1)+6, []byte{1})
	fs = openDisk(t, disk)
	n = named(t, fs, "/fragmented")
	got := make([]byte, len(want))
	if k, err := n.ReadAt(got, 0); err == nil {
		t.Errorf("ReadAt of all = %d, nil", k)
	}
	bad := 0
	for off := int64(0); off < n.stat.Size; off += 1024 {
		piece := got[:min(1024, n.stat.Size-off)]
		if _, err := n.ReadAt(piece, off); err != nil {
			bad++
		} else if !bytes.Equal(piece, want[off:off+int64(len(piece))]) {
			t.Errorf("0x%x differs", off)
		}
	}
	if bad != 1 || fs.View().State != files.Incomplete {
		t.Errorf("%d blocks cannot be read, want 1; the view is %s", bad, fs.View().State)
	}
}

// TestSaid looks for what a view has to say of file systems that are not whole.
func TestSaid(t *testing.T) {
	for _, tc := range []struct {
		name, mkfs string
		commands   []string
		state      files.State
		text       string
	}{
		{"errors", "", []string{"ssv state 3", "ssv error_count 7"}, files.Clean, "7 errors"},
		{"not-unmounted", "-O ^has_journal", []string{"ssv state 0"}, files.Incomplete,
			"was not unmounted"},
		{"journal-elsewhere", "-O has_journal", []string{"ssv journal_inum 0", "ssv journal_dev 0x801",
			"feature +needs_recovery"}, files.Incomplete, "on another device"},
		{"journal-lost", "", []string{"clri <8>", "ssv jnl_backup_type 0", "feature +needs_recovery"},
			files.Incomplete, "not replayed"},
		{"unused", "", []string{"freei <20>"}, files.Incomplete, "not in use"},
		{"no-links", "", []string{"sif <20> links_count 0"}, files.Incomplete, "no links"},
		{"no-name", "", []string{"unlink /short"}, files.Incomplete, "have no name"},
		{"slash", "-O ^metadata_csum,^dir_index", nil, files.Incomplete, "cannot be"},
		{"loop", "", []string{"ln /dir1 /dir2/again"}, files.Incomplete, "lead back"},
		{"encrypted", "-O encrypt", []string{"sif /dir1 flags 0x80800"}, files.Incomplete, "encrypted"},
		{"orphan", "", []string{"unlink /short", "sif <ORPHAN> links_count 0", "ssv last_orphan ORPHAN"},
			files.Clean, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			disk := made(t, 16*mib, tc.mkfs+" -b 1024")
			root, err := openDisk(t, disk).open(t.Context(), rootIno)
			if err != nil {
				t.Fatal(err)
			}
			var ino files.Ino
			if err := root.Entries(t.Context(), func(e files.Entry) error {
				if e.Name == "short" {
					ino = e.Ino
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if len(tc.commands) > 0 {
				debugfs(t, disk, strings.ReplaceAll(strings.Join(tc.commands, "\n"), "ORPHAN", fmt.Sprint(ino)))
			}
			if tc.name == "slash" {
				b, err := os.ReadFile(disk)
				if err != nil {
					t.Fatal(err)
				}
				patch(t, disk, int64(bytes.Index(b, []byte("\x05\x07short"))), []byte("\x05\x07sh/rt"))
			}
			fs := openDisk(t, disk)
			count, view, err := files.Survey(t.Context(), fs, nil)
			if err != nil {
				t.Fatal(err)
			}
			if view.State != tc.state || !strings.Contains(fmt.Sprint(view.Problems), tc.text) {
				t.Errorf("the view is %s: %+v, want %s with %q", view.State, view.Problems, tc.state, tc.text)
			}
			if tc.name == "orphan" && count.Orphans != 1 {
				t.Errorf("%d orphans, want 1", count.Orphans)
			}
		})
	}
}

// TestRefused: what is not ext, or has features that are not known, is not read.
func TestRefused(t *testing.T) {
	disk := made(t, 16*mib, "-b 1024 -O ^metadata_csum")
	patch(t, disk, 1024+96+3, []byte{0x40})
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Open(t.Context(), f, 16*mib); !errors.Is(err, ErrUnsupported) ||
		!strings.Contains(err.Error(), "FEATURE_I30") {
		t.Errorf("Open = %v, want ErrUnsupported with FEATURE_I30", err)
	}
	for _, size := range []int{0, 1, 1024, 2047, 2048, 100_000} {
		zeros := bytes.NewReader(make([]byte, size))
		if _, err := Open(t.Context(), zeros, int64(size)); err == nil {
			t.Errorf("Open of %d zeros = nil", size)
		}
	}
	if _, err := Open(t.Context(), broken{}, 16*mib); !errors.Is(err, errBroken) {
		t.Errorf("Open of what cannot be read = %v", err)
	}
}

var errBroken = errors.New("broken")

// broken is a volume that cannot be read.
type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errBroken }

// torn is a volume of which a part cannot be read.
type torn struct {
	io.ReaderAt
	from, to int64
}

func (v torn) ReadAt(p []byte, off int64) (int, error) {
	if off < v.to && off+int64(len(p)) > v.from {
		return 0, errBroken
	}
	return v.ReaderAt.ReadAt(p, off)
}

// TestTorn reads a volume of which a block cannot be read.
func TestTorn(t *testing.T) {
	disk := made(t, 8*mib, "-b 1024 -N 1000 -O ^has_journal")
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	whole := openDisk(t, disk)
	want, _, err := filestest.ReadView(t.Context(), whole)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := whole.Owners(t.Context(), []files.Range{{Length: 8 * mib}}, func(o files.Owner) error {
		if n++; o.Use == files.UseFree || o.Use == files.UseOutside || o.Ino != rootIno && n%19 != 0 {
			return nil
		}
		v := torn{f, o.Range.Offset, o.Range.Offset + 1024}
		fs, err := Open(t.Context(), v, 8*mib)
		if err != nil {
			return nil
		}
		got, view, err := filestest.ReadView(t.Context(), fs)
		if err != nil {
			return err
		}
		d := filestest.Differences(got, want, filestest.Loose{})
		if len(d) > 0 && view.State != files.Incomplete {
			t.Errorf("0x%x (%s %s): the view is %s, and %s", o.Range.Offset, o.Use, o.What, view.State, d[0])
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestSeed reads a file system whose checksums do not follow from its UUID any more.
func TestSeed(t *testing.T) {
	testenv.Need(t, "tune2fs")
	disk := made(t, 16*mib, "-b 1024 -O metadata_csum_seed")
	if out, err := exec.Command("tune2fs", "-U", "random", disk).CombinedOutput(); err != nil {
		t.Fatalf("tune2fs: %v %s", err, out)
	}
	count, view, err := files.Survey(t.Context(), openDisk(t, disk), nil)
	if err != nil || view.State != files.Clean || count.Names < 100 {
		t.Errorf("%d names, %v, the view is %+v", count.Names, err, view)
	}
}

// TestRecord holds what a file system says of itself against what debugfs wrote there.
func TestRecord(t *testing.T) {
	disk := made(t, 16*mib, "-b 1024 -e remount-ro -m 5 -O 64bit,metadata_csum")
	debugfs(t, disk, strings.Join([]string{"ssv state 2", "ssv error_count 7",
		"ssv first_error_time @1700000001", "ssv first_error_ino 12", "ssv first_error_block 1234",
		"ssv first_error_func ext4_first", "ssv first_error_line 77",
		"ssv last_error_time @1700000002", "ssv last_error_ino 13", "ssv last_error_block 5678",
		"ssv last_error_func ext4_last", "ssv last_error_line 88",
		"ssv lastcheck @1600000000", "ssv mkfs_time @1500000000", "ssv mtime @1650000000",
		"ssv last_mounted /srv/data", "feature +needs_recovery"}, "\n"))
	got := openDisk(t, disk).Info().Record
	if got.Written < 1700000000 {
		t.Errorf("written at %d, want the present", got.Written)
	}
	got.Written = 0
	want := files.Record{Dirty: true, State: "errors", OnError: "remount-ro", Errors: 7,
		First: files.Fault{Time: 1700000001, Ino: 12, Block: 1234, Func: "ext4_first", Line: 77},
		Last:  files.Fault{Time: 1700000002, Ino: 13, Block: 5678, Func: "ext4_last", Line: 88},
		Made:  1500000000, Mounted: 1650000000, Checked: 1600000000, ReservedBytes: 819 << 10, At: "/srv/data"}
	if got != want {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	if r := openDisk(t, made(t, 16*mib, "-b 1024 -e continue")).Info().Record; r.State != "clean" || r.Dirty ||
		r.OnError != "continue" || r.Errors != 0 || r.First.Time != 0 {
		t.Errorf("a new one: %+v", r)
	}
}
