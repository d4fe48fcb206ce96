// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package sweep

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/lab/cutfs"
)

// State is how an image stands.
type State struct {
	// Errors and Leaks are those of qemu-img check; an image that it cannot check has more errors
	// than any other.
	Errors, Leaks int64
	// Wrong counts the guest's clusters that do not read as before the damage, Gone those whose bytes
	// are not even in the file any more, at the place where they were.
	Wrong, Gone int64
	// Between: the bytes are neither those before the repair nor those after it.
	Between bool
}

// unchecked is the number of errors of an image that cannot be checked.
const unchecked = math.MaxInt64

func (s State) String() string {
	errs := fmt.Sprintf("%d errors", s.Errors)
	if s.Errors == unchecked {
		errs = "cannot be checked"
	}
	return fmt.Sprintf("%s, %d leaks, %d clusters read wrongly, %d are gone", errs, s.Leaks, s.Wrong,
		s.Gone)
}

// piece is a cluster of the guest's data and where it lay in the sound image.
type piece struct {
	guest, host int64
}

// judge looks at images of one case.
type judge struct {
	dir     string // for files of its own
	ref     string // the guest's disk before the damage, as a raw file
	content []byte // the same
	cluster int64
	pieces  []piece
	known   map[string]State // of images by their digest
}

// newJudge reads what the sound image at path holds.
func newJudge(ctx context.Context, path, dir string, cluster int64) (*judge, error) {
	j := &judge{dir: dir, ref: filepath.Join(dir, "ref.raw"), cluster: cluster,
		known: map[string]State{}}
	exit, out, err := command(ctx,
		[]string{"qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, j.ref})
	if err != nil || exit != 0 {
		return nil, fmt.Errorf("read the sound image: exit status %d: %s: %w", exit, out, err)
	}
	if j.content, err = os.ReadFile(j.ref); err != nil {
		return nil, err
	}
	exit, out, err = command(ctx, []string{"qemu-img", "map", "--output=json", "-f", "qcow2", path})
	if err != nil || exit != 0 {
		return nil, fmt.Errorf("map the sound image: exit status %d: %s: %w", exit, out, err)
	}
	var extents []struct {
		Start, Length int64
		Data          bool
		Offset        *int64
	}
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		return nil, fmt.Errorf("map the sound image: %w", err)
	}
	for _, e := range extents {
		for n := int64(0); e.Data && e.Offset != nil && n < e.Length; n += cluster {
			j.pieces = append(j.pieces, piece{guest: e.Start + n, host: *e.Offset + n})
		}
	}
	if len(j.pieces) == 0 {
		return nil, fmt.Errorf("%s holds no data: nothing could be lost", path)
	}
	return j, nil
}

// state judges an image of a tree.
func (j *judge) state(ctx context.Context, t *cutfs.Tree, name string) (State, error) {
	key := t.Digest(name)
	if st, ok := j.known[key]; ok {
		return st, nil
	}
	if key == "" {
		return State{Errors: unchecked, Wrong: int64(len(j.pieces)), Gone: int64(len(j.pieces))}, nil
	}
	dir, err := os.MkdirTemp(j.dir, "state-")
	if err != nil {
		return State{}, err
	}
	defer os.RemoveAll(dir)
	if err := t.WriteTo(dir); err != nil {
		return State{}, err
	}
	path := filepath.Join(dir, name)
	var st State
	if st.Errors, st.Leaks, err = check(ctx, path); err != nil {
		return State{}, err
	}
	if st.Wrong, st.Gone, err = j.compare(ctx, path, dir); err != nil {
		return State{}, err
	}
	j.known[key] = st
	return st, nil
}

// check asks qemu-img.
func check(ctx context.Context, path string) (errors, leaks int64, err error) {
	exit, out, err := command(ctx, []string{"qemu-img", "check", "-f", "qcow2", "--output=json", path})
	if err != nil {
		return 0, 0, err
	}
	switch exit {
	case 0, 2, 3:
	default:
		return unchecked, 0, nil
	}
	// What it says on stderr stands before the document.
	var doc struct {
		CheckErrors int64 `json:"check-errors"`
		Corruptions int64 `json:"corruptions"`
		Leaks       int64 `json:"leaks"`
	}
	if i := bytes.LastIndex([]byte(out), []byte("\n{\n")); i >= 0 {
		out = out[i:]
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		return 0, 0, fmt.Errorf("qemu-img check --output=json: %w: %q", err, out)
	}
	return doc.CheckErrors + doc.Corruptions, doc.Leaks, nil
}

// compare counts the clusters that read wrongly, and of those the ones whose bytes are gone.
func (j *judge) compare(ctx context.Context, path, dir string) (wrong, gone int64, err error) {
	exit, _, err := command(ctx,
		[]string{"qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", path, j.ref})
	if err != nil || exit == 0 {
		return 0, 0, err
	}
	// Read as far as possible; what cannot be read at all is wrong.
	raw := filepath.Join(dir, "now.raw")
	exit, _, err = command(ctx,
		[]string{"qemu-img", "convert", "--salvage", "-f", "qcow2", "-O", "raw", path, raw})
	if err != nil {
		return 0, 0, err
	}
	var now *os.File // nil where nothing can be read
	if exit == 0 {
		if now, err = os.Open(raw); err != nil {
			return 0, 0, err
		}
		defer now.Close()
	}
	file, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer file.Close()
	got := make([]byte, j.cluster)
	for _, p := range j.pieces {
		want := j.content[p.guest:min(p.guest+j.cluster, int64(len(j.content)))]
		if now != nil && holds(now, p.guest, want, got) {
			continue
		}
		wrong++
		if !holds(file, p.host, want, got) {
			gone++
		}
	}
	return wrong, gone, nil
}

// holds tells whether a file has these bytes there. A file may have become very long.
func holds(f *os.File, off int64, want, buf []byte) bool {
	n, err := f.ReadAt(buf[:len(want)], off)
	return (err == nil || err == io.EOF) && bytes.Equal(buf[:n], want)
}
