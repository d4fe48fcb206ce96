// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/shisa-vm/shisa/internal/lab"
)

// mkimage makes an image: "mkimage a.qcow2 size=10M cluster=16 leaks=3 backing=base.qcow2".
func mkimage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: mkimage FILE [NAME=VALUE...]")
	}
	spec := lab.Spec{VirtualBytes: 10 << 20}
	for _, arg := range args[1:] {
		name, value, _ := strings.Cut(arg, "=")
		ts.Check(setSpec(&spec, name, value))
	}
	ts.Check(lab.Write(ts.MkAbs(args[0]), spec))
}

// setSpec sets one property of an image that is to be made.
func setSpec(s *lab.Spec, name, value string) (err error) {
	whole := func(to *int) { *to, err = strconv.Atoi(value) }
	long := func(to *int64) { *to, err = sizeOf(value) }
	share := func(to *float64) { *to, err = strconv.ParseFloat(value, 64) }
	switch name {
	case "size":
		long(&s.VirtualBytes)
	case "cluster":
		whole(&s.ClusterBits)
	case "refcount":
		whole(&s.RefcountBits)
	case "version":
		whole(&s.Version)
	case "snapshots":
		whole(&s.Snapshots)
	case "bitmaps":
		whole(&s.Bitmaps)
	case "fill":
		share(&s.Fill)
	case "compressed":
		share(&s.Compressed)
	case "leaks":
		long(&s.Leaks)
	case "tail":
		long(&s.TailLeaks)
	case "hole":
		long(&s.AppendHole)
	case "backing":
		s.Backing = value
	case "format":
		s.BackingFormat = value
	case "datafile":
		s.DataFile = value
	case "random":
		s.Layout = lab.Random
	case "data":
		s.Data = true
	case "zstd":
		s.Zstd = true
	case "subclusters":
		s.ExtendedL2 = true
	case "dirty":
		s.Dirty = true
	case "corrupt":
		s.Corrupt = true
	default:
		err = fmt.Errorf("mkimage knows no %q", name)
	}
	return err
}

// sizeOf reads 4096, 64K, 10M, 2G or 1T.
func sizeOf(text string) (int64, error) {
	number := strings.TrimRight(text, "KMGT")
	n, err := strconv.ParseInt(number, 0, 64)
	if unit := text[len(number):]; unit != "" {
		n <<= 10 * (1 + strings.Index("KMGT", unit))
	}
	return n, err
}

// mkchain makes a chain of overlays: "mkchain pool 200" makes 0.qcow2, which has no backing file,
// to 200.qcow2.
func mkchain(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mkchain DIR DEPTH")
	}
	depth, err := strconv.Atoi(args[1])
	ts.Check(err)
	for i := range depth + 1 {
		spec := lab.Spec{VirtualBytes: 1 << 20, Fill: -1}
		if i > 0 {
			spec.Backing, spec.BackingFormat = fmt.Sprintf("%d.qcow2", i-1), "qcow2"
		}
		ts.Check(lab.Write(filepath.Join(ts.MkAbs(args[0]), fmt.Sprintf("%d.qcow2", i)), spec))
	}
}

// mkfifo makes a FIFO, which hangs whoever opens it.
func mkfifo(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: mkfifo FILE")
	}
	ts.Check(syscall.Mkfifo(ts.MkAbs(args[0]), 0o644))
}

// poke writes bytes into a file: "poke a.qcow2 0x48 00000000000000ff".
func poke(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: poke FILE OFFSET HEX")
	}
	off, err := sizeOf(args[1])
	ts.Check(err)
	data, err := hex.DecodeString(args[2])
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_WRONLY, 0)
	ts.Check(err)
	_, err = f.WriteAt(data, off)
	ts.Check(err)
	ts.Check(f.Close())
}

// resize cuts a file, or makes it longer by a hole.
func resize(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: resize FILE SIZE")
	}
	n, err := sizeOf(args[1])
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), n))
}

// unprivileged runs a command that may do nothing but what the files' permissions allow, also where
// the tests run as root: "exits 1 unprivileged shisa check a.qcow2" by way of exits.
func unprivileged(args []string) []string {
	if os.Geteuid() != 0 {
		return args
	}
	return append([]string{"setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"}, args...)
}

// frozen requires that from here to the end of the script nothing below the directories is written,
// made or removed: looking changes nothing.
func frozen(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: frozen DIR...")
	}
	for _, arg := range args {
		dir := ts.MkAbs(arg)
		before, err := treeOf(dir)
		ts.Check(err)
		ts.Defer(func() {
			after, err := treeOf(dir)
			switch {
			case err != nil:
				ts.Fatalf("frozen %s: %v", arg, err)
			case !slices.Equal(before, after):
				ts.Fatalf("frozen %s was changed: %q, want %q", arg, after, before)
			}
		})
	}
}

// treeOf describes every file below dir: name, kind, length, times of change and bytes.
func treeOf(dir string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		text := fmt.Sprint(st.Mode(), st.Size(), st.ModTime().UnixNano())
		// Bytes only where reading is cheap: the time of the last change tells of the rest.
		if st.Mode().IsRegular() && st.Mode().Perm()&0o400 != 0 && st.Size() < 64<<20 {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %x", sha256.Sum256(data))
		}
		files[path] = text
		return nil
	})
	var list []string
	for _, path := range slices.Sorted(maps.Keys(files)) {
		list = append(list, path+" "+files[path])
	}
	return list, err
}
