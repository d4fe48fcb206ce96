// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package plan

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/zlib"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Errors of reading a plan, for errors.Is.
var (
	// ErrNotPlan: the document is no plan, or breaks the rules of one.
	ErrNotPlan = errors.New("not a plan")
	// ErrEdited: the plan was changed after it was saved.
	ErrEdited = errors.New("the plan was changed since it was saved")
	// ErrNewer: the plan was made by a newer program.
	ErrNewer = errors.New("made by a newer version of shisa")
)

const (
	// MaxDocumentBytes bounds a plan's JSON.
	MaxDocumentBytes = 1 << 30
	// MaxWriteBytes bounds one write; a plan has many.
	MaxWriteBytes = 64 << 20
	// maxPlainBytes: longer strings of bytes are compressed.
	maxPlainBytes = 64
	// maxPathBytes is the longest name that Linux opens.
	maxPathBytes = 4096
)

// Bytes are raw bytes. In JSON they are a string: "hex:" and hexadecimal digits, or "zlib:", the
// length, ":" and zlib data in base64.
type Bytes []byte

// MarshalText is encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) {
	if len(b) <= maxPlainBytes {
		return []byte("hex:" + hex.EncodeToString(b)), nil
	}
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "zlib:%d:%s", len(b), base64.StdEncoding.EncodeToString(z.Bytes())), nil
}

// UnmarshalText is encoding.TextUnmarshaler.
func (b *Bytes) UnmarshalText(text []byte) error {
	s := string(text)
	if digits, ok := strings.CutPrefix(s, "hex:"); ok {
		p, err := hex.DecodeString(digits)
		*b = p
		return err
	}
	rest, ok := strings.CutPrefix(s, "zlib:")
	length, data, ok2 := strings.Cut(rest, ":")
	n, err := strconv.ParseInt(length, 10, 64)
	if !ok || !ok2 || err != nil || n < 0 || n > MaxWriteBytes {
		return fmt.Errorf("%w: bytes that begin %.20q", ErrNotPlan, s)
	}
	z, err := zlib.NewReader(base64.NewDecoder(base64.StdEncoding, strings.NewReader(data)))
	if err != nil {
		return fmt.Errorf("%w: compressed bytes: %w", ErrNotPlan, err)
	}
	// One byte more than it says tells whether it is too long; the buffer grows with what comes.
	var out bytes.Buffer
	if _, err := io.Copy(&out, io.LimitReader(z, n+1)); err != nil {
		return fmt.Errorf("%w: compressed bytes: %w", ErrNotPlan, err)
	}
	if int64(out.Len()) != n {
		return fmt.Errorf("%w: %d compressed bytes, said to be %d", ErrNotPlan, out.Len(), n)
	}
	*b = out.Bytes()
	return nil
}

// Digest is the SHA-256 of what the plan says, in hexadecimal. An approval is bound to it. How its
// document is laid out and compressed does not count.
func (p *Plan) Digest() (string, error) {
	q := *p
	q.SHA256, q.Writes, q.Fence = "", nil, nil
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(&q); err != nil {
		return "", fmt.Errorf("digest of the plan: %w", err)
	}
	// A plan may have hundreds of thousands of writes, so they go in as they are.
	w := bufio.NewWriterSize(h, 64<<10) // writing to a digest has no error
	var head [8 + 8 + 8]byte
	put := func(name string, off int64, old, now []byte) {
		binary.BigEndian.PutUint64(head[:], uint64(off))
		binary.BigEndian.PutUint64(head[8:], uint64(len(old)))
		binary.BigEndian.PutUint64(head[16:], uint64(len(now)))
		w.WriteString(name)
		w.WriteByte(0)
		w.Write(head[:])
		w.Write(old)
		w.Write(now)
	}
	if f := p.Fence; f != nil {
		put("fence", f.Offset, f.Old, f.New)
	}
	for i := range p.Writes {
		x := &p.Writes[i]
		put(string(x.Phase), x.Offset, x.Old, x.New)
	}
	if err := w.Flush(); err != nil {
		return "", fmt.Errorf("digest of the plan: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Seal makes the plan ready to be saved: Read refuses a document that was changed since. Texts become
// UTF-8, times whole seconds and lists that are nil empty ones, as a document has them.
func (p *Plan) Seal() error {
	p.tidy()
	sum, err := p.Digest()
	p.SHA256 = sum
	return err
}

// Read reads the JSON document of a sealed plan and checks it. The errors are ErrNotPlan, ErrEdited,
// ErrNewer, and those of r.
func Read(r io.Reader) (*Plan, error) {
	raw, head, err := readHead(r)
	if err != nil {
		return nil, err
	}
	return decodePlan(raw, head)
}

// readHead reads a document, and gives its schema.
func readHead(r io.Reader) (raw []byte, schema string, err error) {
	raw, err = io.ReadAll(io.LimitReader(r, MaxDocumentBytes+1))
	if err != nil {
		return nil, "", fmt.Errorf("read the plan: %w", err)
	}
	if len(raw) > MaxDocumentBytes {
		return nil, "", fmt.Errorf("%w: longer than %d bytes", ErrNotPlan, MaxDocumentBytes)
	}
	var head struct {
		Schema string `json:"schema"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrNotPlan, err)
	}
	return raw, head.Schema, nil
}

// knows refuses a document of another schema than want, which is of version 1.
func knows(schema, want string) error {
	name, version, _ := strings.Cut(schema, "/")
	known, _, _ := strings.Cut(want, "/")
	n, err := strconv.Atoi(version)
	switch {
	case name != known || err != nil || n < 1:
		return fmt.Errorf("%w: its schema is %q, want %q", ErrNotPlan, schema, want)
	case n > 1:
		return fmt.Errorf("%w: its schema is %q, this one knows %q", ErrNewer, schema, want)
	}
	return nil
}

// decodeStrict decodes one document. A field that is not known may be a change that is not known.
func decodeStrict(raw []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return fmt.Errorf("%w: %w", ErrNotPlan, err)
	}
	if d.More() {
		return fmt.Errorf("%w: more follows after its end", ErrNotPlan)
	}
	return nil
}

func decodePlan(raw []byte, schema string) (*Plan, error) {
	if err := knows(schema, Schema); err != nil {
		return nil, err
	}
	p := new(Plan)
	if err := decodeStrict(raw, p); err != nil {
		return nil, err
	}
	p.tidy()
	sum, err := p.Digest()
	if err != nil {
		return nil, err
	}
	if sum != p.SHA256 {
		return nil, fmt.Errorf("%w: its SHA-256 is %s, and it says %.64q", ErrEdited, sum, p.SHA256)
	}
	return p, p.Validate()
}

// Validate checks what carrying out a plan relies on. Its error is ErrNotPlan.
func (p *Plan) Validate() error {
	if id, err := hex.DecodeString(p.ID); err != nil || len(id) != 16 {
		return fmt.Errorf("%w: its name is %.40q, want 32 hexadecimal digits", ErrNotPlan, p.ID)
	}
	o := p.Object
	switch {
	case !strings.HasPrefix(o.Path, "/") || len(o.Path) > maxPathBytes:
		return fmt.Errorf("%w: the file's path %.80q is not absolute", ErrNotPlan, o.Path)
	case o.SizeBytes < 0 || p.SizeAfterBytes < o.SizeBytes:
		return fmt.Errorf("%w: the file would become shorter (%d bytes, %d before)", ErrNotPlan,
			p.SizeAfterBytes, o.SizeBytes)
	}
	for _, list := range [][]Digest{p.Relies, p.Below} {
		for _, d := range list {
			if d.Offset < 0 || d.Length < 0 || d.Offset+d.Length < 0 {
				return fmt.Errorf("%w: it relies on %d bytes at %#x", ErrNotPlan, d.Length, d.Offset)
			}
		}
	}
	if err := p.validateFence(); err != nil {
		return err
	}
	return p.validateWrites()
}

func (p *Plan) validateFence() error {
	f := p.Fence
	if f == nil {
		return nil
	}
	if f.Offset < 0 || len(f.Old) == 0 || len(f.Old) != len(f.New) ||
		f.Offset > SectorBytes-int64(len(f.New)) {
		return fmt.Errorf("%w: its fence is not in the first sector", ErrNotPlan)
	}
	if n := len(p.Writes); n > 0 {
		w := p.Writes[n-1]
		if w.Phase != Switch || w.Offset > f.Offset || w.End() < f.Offset+int64(len(f.New)) {
			return fmt.Errorf("%w: nothing ends its fence", ErrNotPlan)
		}
	}
	return nil
}

func (p *Plan) validateWrites() error {
	order := Phases()
	at := 0
	ranges := make([]span, 0, len(p.Writes))
	for i := range p.Writes {
		w := &p.Writes[i]
		no := slices.Index(order, w.Phase)
		inside := min(int64(len(w.New)), max(0, p.Object.SizeBytes-w.Offset))
		switch {
		case no < at:
			return fmt.Errorf("%w: write %d, of phase %q, comes too late", ErrNotPlan, i, w.Phase)
		case len(w.New) == 0 || len(w.New) > MaxWriteBytes || w.Offset < 0 || w.End() < 0:
			return fmt.Errorf("%w: write %d has %d bytes at %#x", ErrNotPlan, i, len(w.New), w.Offset)
		case w.End() > p.SizeAfterBytes:
			return fmt.Errorf("%w: write %d ends past the file's new end", ErrNotPlan, i)
		case int64(len(w.Old)) != inside:
			return fmt.Errorf("%w: write %d at %#x replaces %d bytes, has %d of them", ErrNotPlan, i,
				w.Offset, inside, len(w.Old))
		case w.Phase == New && inside > 0:
			return fmt.Errorf("%w: write %d at %#x is no new space", ErrNotPlan, i, w.Offset)
		case (w.Phase == Switch) != (w.Offset < SectorBytes):
			return fmt.Errorf("%w: write %d at %#x is in phase %q", ErrNotPlan, i, w.Offset, w.Phase)
		case w.Phase == Switch && w.End() > SectorBytes:
			return fmt.Errorf("%w: write %d goes beyond the first sector", ErrNotPlan, i)
		}
		at = no
		ranges = append(ranges, span{w.Offset, w.End()})
	}
	slices.SortFunc(ranges, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	for i := 1; i < len(ranges); i++ {
		if ranges[i].from < ranges[i-1].end {
			return fmt.Errorf("%w: two writes at %#x", ErrNotPlan, ranges[i].from)
		}
	}
	return nil
}

// span is a range of bytes.
type span struct{ from, end int64 }
