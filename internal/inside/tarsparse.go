// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// Files with holes, by the manual of GNU tar 1.34, "PAX Format, Version 1.0": records of the extended
// header tell the name and the size, and before the content stands, in whole blocks of 512 bytes, how
// many pieces there are, then the place and the length of each, a decimal number a line.
const (
	// sparseLeast is how many bytes of holes make it worth while.
	sparseLeast = 64 << 10
	// maxSpans bounds the pieces of a file that are told apart; where there are more, the smallest
	// holes become zeros.
	maxSpans = 64 << 10
	tarBlock = 512
	// sparseMark stands where "GNU.sparse." is to stand: archive/tar leaves out records of that name.
	sparseMark, sparseRecord = "GNU_sparse.", "GNU.sparse."
)

// span is a piece of a file.
type span struct{ off, length int64 }

// spans is where the content of a file lies: holes shorter than least are taken for content.
type spans struct {
	list  []span
	least int64
}

func (s *spans) add(off, length int64) error {
	if n := len(s.list); n > 0 {
		if last := &s.list[n-1]; off-(last.off+last.length) < s.least {
			last.length = off + length - last.off
			return nil
		}
	}
	s.list = append(s.list, span{off, length})
	for len(s.list) == maxSpans {
		old := s.list
		s.list, s.least = s.list[:0], 2*s.least
		for _, o := range old { // one at a time, behind what is read
			if n := len(s.list); n > 0 && o.off-(s.list[n-1].off+s.list[n-1].length) < s.least {
				s.list[n-1].length = o.off + o.length - s.list[n-1].off
				continue
			}
			s.list = append(s.list, o)
		}
	}
	return nil
}

// sum is how long all of them are.
func (s *spans) sum() int64 {
	n := int64(0)
	for _, p := range s.list {
		n += p.length
	}
	return n
}

// spans gives where the content of a file lies. What could not be told is noted as lost.
func (t *archiver) spans(f *files.Found) (*spans, error) {
	s := &spans{least: 1}
	err := pieces(t.ctx, f.File, s.add)
	if t.ctx.Err() != nil {
		return nil, t.ctx.Err()
	}
	if err != nil {
		at := int64(0)
		if n := len(s.list); n > 0 {
			at = s.list[n-1].off + s.list[n-1].length
		}
		t.lost(f.Path, fmt.Errorf("at %d, zeros from there on: %w", at, err))
	}
	return s, nil
}

// sparse writes a regular file whose holes are left out.
func (t *archiver) sparse(f *files.Found, h *tar.Header, s *spans) error {
	// GNU tar takes the end of the last piece for that of the file.
	if n := len(s.list); n == 0 || s.list[n-1].off+s.list[n-1].length < h.Size {
		s.list = append(s.list, span{off: h.Size})
	}
	text := strconv.AppendInt(nil, int64(len(s.list)), 10)
	for _, p := range s.list {
		text = append(strconv.AppendInt(append(text, '\n'), p.off, 10), '\n')
		text = strconv.AppendInt(text, p.length, 10)
	}
	text = padded(append(text, '\n'))
	length := s.sum()
	head, err := sparseHeader(h, int64(len(text))+length)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	if err := t.w.Flush(); err != nil {
		return err
	}
	for _, b := range [][]byte{head, text} {
		if _, err := t.out.Write(b); err != nil {
			return err
		}
	}
	for _, p := range s.list {
		if err := t.content(t.out, f, p); err != nil {
			return err
		}
	}
	_, err = t.out.Write(make([]byte, (tarBlock-length%tarBlock)%tarBlock))
	return err
}

func padded(b []byte) []byte { return append(b, make([]byte, (tarBlock-len(b)%tarBlock)%tarBlock)...) }

// sparseHeader gives the headers of a file with holes, of which size bytes are in the archive.
func sparseHeader(h *tar.Header, size int64) ([]byte, error) {
	inner := *h
	// Who does not know of holes gets a name that says so, and not a file that looks whole.
	inner.Name = path.Join(path.Dir(h.Name), "GNUSparseFile.0", path.Base(h.Name))
	inner.Size = size
	inner.PAXRecords = map[string]string{sparseMark + "major": "1", sparseMark + "minor": "0",
		sparseMark + "name": h.Name, sparseMark + "realsize": strconv.FormatInt(h.Size, 10)}
	maps.Copy(inner.PAXRecords, h.PAXRecords)
	var buf bytes.Buffer
	if err := tar.NewWriter(&buf).WriteHeader(&inner); err != nil {
		return nil, err
	}
	// The records come in the order of their names, behind a block; each begins with its length.
	all := buf.Bytes()
	rest, marked := all[min(tarBlock, len(all)):], 0
	for len(rest) > 0 {
		number, after, found := bytes.Cut(rest, []byte{' '})
		n, err := strconv.Atoi(string(number))
		if !found || err != nil || n > len(rest) {
			break // behind the last record
		}
		if strings.HasPrefix(string(after[:min(len(after), len(sparseMark))]), sparseMark) {
			copy(after, sparseRecord)
			marked++
		}
		rest = rest[n:]
	}
	if marked != 4 {
		return nil, errors.New("the headers of a file with holes are not as they should be")
	}
	return all, nil
}
