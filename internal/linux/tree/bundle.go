// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package tree

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
)

// A bundle is a tar archive (POSIX.1-2001), compressed by zstd (RFC 8878), as doc/formats/bundle.md describes:
//
//	shisa-bundle.json   the index: what was asked, how it ended
//	root/proc/mounts    what was read, by its name on the machine
const (
	bundleSchema = "shisa.bundle/1"
	indexName    = "shisa-bundle.json"
	// maxBundleBytes bounds what is unpacked of a bundle, maxIndexBytes its index, maxMembers its files.
	maxBundleBytes = 1 << 30
	maxIndexBytes  = 64 << 20
	maxMembers     = 1 << 18
	// maxWindow bounds the memory that unpacking takes.
	maxWindow = 8 << 20
)

// ErrNotBundle: it is no bundle, or of a later version.
var ErrNotBundle = errors.New("is no bundle of evidence")

// index is shisa-bundle.json.
type index struct {
	Schema string `json:"schema"`
	Info
	Answers []indexed `json:"answers"`
}

// indexed is one answer. The text of a read stands in a file of the archive.
type indexed struct {
	Op      string  `json:"op"`
	Name    []byte  `json:"name"` // bytes, since names need not be UTF-8
	Outcome string  `json:"outcome,omitempty"`
	Reason  string  `json:"reason,omitempty"`
	File    string  `json:"file,omitempty"`
	Text    []byte  `json:"text,omitempty"` // of a link, or attributes in words
	Entries []entry `json:"entries,omitempty"`
}

type entry struct {
	Name  []byte      `json:"name"`
	Type  fs.FileMode `json:"type"`
	Size  int64       `json:"size_bytes"`
	Mtime time.Time   `json:"mtime"`
}

// WriteBundle writes what was recorded. clean is given each file that was read, and says what is kept of it
// and what was taken out.
func (r *Recorder) WriteBundle(w io.Writer, info Info,
	clean func(name string, text []byte) ([]byte, []LeftOut),
) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := index{Schema: bundleSchema, Info: info}
	if x.LeftOut == nil {
		x.LeftOut = []LeftOut{}
	}
	files := map[string][]byte{}
	for _, q := range r.questions() {
		a := r.answers[q]
		i := indexed{Op: q.op, Name: []byte(q.name), Outcome: a.outcome, Reason: a.reason}
		switch q.op {
		case "read":
			if a.outcome == "" || a.outcome == "cut" {
				text, out := clean(q.name, a.text)
				x.LeftOut = append(x.LeftOut, out...)
				i.File = member(q.name)
				files[i.File] = text
			}
		case "link", "attributes":
			i.Text = a.text
		case "list":
			for _, e := range a.entries {
				i.Entries = append(i.Entries, entry{[]byte(e.Name), e.Type, e.Size, e.Mtime})
			}
		}
		x.Answers = append(x.Answers, i)
	}
	return writeArchive(w, x, files)
}

// member is the name that a file has in the archive. One that is not UTF-8 cannot stand there as it is.
func member(name string) string {
	if utf8.ValidString(name) && !strings.ContainsRune(name, 0) {
		return "root" + name
	}
	return fmt.Sprintf("odd/%x", name)
}

// questions gives all that was asked, in order.
func (r *Recorder) questions() []question {
	all := make([]question, 0, len(r.answers))
	for q := range r.answers {
		all = append(all, q)
	}
	slices.SortFunc(all, func(a, b question) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.op, b.op))
	})
	return all
}

func writeArchive(w io.Writer, x index, files map[string][]byte) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(maxWindow))
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	text, err := json.Marshal(x)
	if err != nil {
		return err
	}
	put := func(name string, b []byte) error {
		err := t.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: name, Mode: 0o600,
			Size: int64(len(b)), ModTime: x.Made.Truncate(time.Second)})
		if err == nil {
			_, err = t.Write(b)
		}
		return err
	}
	err = put(indexName, text)
	for _, i := range x.Answers {
		if i.File != "" && err == nil {
			err = put(i.File, files[i.File])
		}
	}
	return errors.Join(err, t.Close(), z.Close())
}

// bundle is evidence that was collected elsewhere.
type bundle struct {
	info    Info
	answers map[question]*answer
}

// ReadBundle reads a bundle. The tree has the kind of what was recorded, but that of a running system is
// Bundle. The error is ErrNotBundle, or that of reading.
func ReadBundle(r io.Reader) (Tree, Info, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, Info{}, err
	}
	defer z.Close()
	t := tar.NewReader(io.LimitReader(z, maxBundleBytes))
	h, err := t.Next()
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, zstd.ErrMagicMismatch) &&
		!errors.Is(err, tar.ErrHeader) {
		return nil, Info{}, fmt.Errorf("read the bundle, which is cut or damaged: %w", err)
	}
	if err != nil || h.Name != indexName || h.Size > maxIndexBytes {
		return nil, Info{}, fmt.Errorf("%w: it does not begin with %s", ErrNotBundle, indexName)
	}
	var x index
	if err := json.NewDecoder(t).Decode(&x); err != nil {
		return nil, Info{}, fmt.Errorf("%w: its index: %w", ErrNotBundle, err)
	}
	if x.Schema != bundleSchema {
		return nil, Info{}, fmt.Errorf("%w: its schema is %q, want %q", ErrNotBundle, x.Schema, bundleSchema)
	}
	files := map[string][]byte{}
	for range maxMembers {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return newBundle(x, files)
		}
		if err != nil {
			return nil, x.Info, fmt.Errorf("read the bundle, which is cut or damaged: %w", err)
		}
		if files[h.Name], err = io.ReadAll(t); err != nil {
			return nil, x.Info, fmt.Errorf("read %s of the bundle, which is cut or damaged: %w", h.Name, err)
		}
	}
	return nil, x.Info, fmt.Errorf("%w: it has more than %d files", ErrNotBundle, maxMembers)
}

func newBundle(x index, files map[string][]byte) (Tree, Info, error) {
	b := &bundle{info: x.Info, answers: map[question]*answer{}}
	for _, i := range x.Answers {
		a := &answer{outcome: i.Outcome, reason: i.Reason, text: i.Text}
		if i.File != "" {
			text, there := files[i.File]
			if !there {
				return nil, x.Info, fmt.Errorf("%w: %s is not in it", ErrNotBundle, i.File)
			}
			a.text = text
		}
		for _, e := range i.Entries {
			a.entries = append(a.entries, Entry{string(e.Name), e.Type & fs.ModeType, e.Size, e.Mtime})
		}
		b.answers[question{i.Op, string(i.Name)}] = a
	}
	return b, x.Info, nil
}

// Kind is that of what was recorded, so that what a dead disk cannot have is not missed.
func (b *bundle) Kind() Kind {
	if b.info.Kind == Disk || b.info.Kind == Directory {
		return b.info.Kind
	}
	return Bundle
}

// get gives the answer that was recorded.
func (b *bundle) get(op, name string) (*answer, error) {
	a := b.answers[question{op, path.Clean(name)}]
	if a == nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: fmt.Errorf("%w: it was not asked for", ErrNotCollected)}
	}
	if a.outcome == "" {
		return a, nil
	}
	err := errors.New(a.reason)
	for _, o := range outcomes {
		if o.word == a.outcome {
			err = &recorded{o.err, a.reason}
		}
	}
	return a, &fs.PathError{Op: op, Path: name, Err: err}
}

// recorded is an error with the words that it had when it was recorded.
type recorded struct {
	is   error
	text string
}

func (r *recorded) Error() string { return r.text }
func (r *recorded) Unwrap() error { return r.is }

func (b *bundle) Read(_ context.Context, name string, limit int64) ([]byte, error) {
	a, err := b.get("read", name)
	if a == nil {
		return nil, err
	}
	if int64(len(a.text)) > limit {
		return slices.Clone(a.text[:limit]), &fs.PathError{Op: "read", Path: name, Err: ErrTooLarge}
	}
	return slices.Clone(a.text), err
}

func (b *bundle) List(_ context.Context, name string) ([]Entry, error) {
	a, err := b.get("list", name)
	if a == nil {
		return nil, err
	}
	return slices.Clone(a.entries), err
}

func (b *bundle) Link(_ context.Context, name string) (string, error) {
	a, err := b.get("link", name)
	if err != nil {
		return "", err
	}
	return string(a.text), nil
}

// Open gives a file that was read at once. What was read in parts is not in a bundle.
func (b *bundle) Open(ctx context.Context, name string) (File, error) {
	if a := b.answers[question{"open", path.Clean(name)}]; a == nil {
		text, err := b.Read(ctx, name, maxBundleBytes)
		if err != nil {
			return nil, err
		}
		return memory{bytes.NewReader(text)}, nil
	}
	_, err := b.get("open", name)
	return nil, err
}
