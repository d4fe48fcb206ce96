// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journaltest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Record is an entry as journalctl exports it.
type Record struct {
	// Cursor has the numbers of the entry: those of its row and in it, its boot and times, and the
	// hash of its fields.
	Cursor              string
	Realtime, Monotonic int64 // microseconds
	Fields              []Pair
}

// Pair is a field. Fields of the name _BOOT_ID are exported once, and not among the others.
type Pair struct {
	Name  string
	Value []byte
}

// Digest is the hash of records.
type Digest struct {
	N int
	h [sha256.Size]byte
}

// Add adds a record: all that it has, with lengths.
func (d *Digest) Add(r *Record) {
	h := sha256.New()
	h.Write(d.h[:])
	fmt.Fprintf(h, "%s\n%d %d %d\n", r.Cursor, r.Realtime, r.Monotonic, len(r.Fields))
	for _, f := range r.Fields {
		fmt.Fprintf(h, "%s %d\n", f.Name, len(f.Value))
		h.Write(f.Value)
	}
	h.Sum(d.h[:0])
	d.N++
}

func (d *Digest) String() string {
	return fmt.Sprintf("%d records, %s", d.N, hex.EncodeToString(d.h[:8]))
}

// maxValue bounds what Parse takes for one value.
const maxValue = 64 << 20

// Parse reads the export format (JOURNAL_EXPORT_FORMATS.md, "Journal Export Format") and hands each
// record to fn, which must not keep it.
func Parse(in io.Reader, fn func(*Record) error) error {
	r := bufio.NewReaderSize(in, 64<<10)
	var rec Record
	var held []byte
	for {
		line, err := r.ReadSlice('\n')
		var long []byte
		for err == bufio.ErrBufferFull {
			long = append(long, line...)
			line, err = r.ReadSlice('\n')
		}
		if long != nil {
			line = append(long, line...)
		}
		if err == io.EOF && len(line) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read an exported record: %w", err)
		}
		line = line[:len(line)-1]
		if len(line) == 0 {
			if err := fn(&rec); err != nil {
				return err
			}
			rec, held = Record{Fields: rec.Fields[:0]}, held[:0]
			continue
		}
		name, value, text := bytes.Cut(line, []byte("="))
		pair := Pair{Name: string(name)}
		start := len(held)
		if text {
			held = append(held, value...)
		} else if held, err = binaryValue(r, held); err != nil {
			return err
		}
		pair.Value = held[start:len(held):len(held)]
		rec.add(pair)
	}
}

func binaryValue(r io.Reader, held []byte) ([]byte, error) {
	var size [8]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return held, err
	}
	n := binary.LittleEndian.Uint64(size[:])
	if n > maxValue {
		return held, fmt.Errorf("a value of %d bytes", n)
	}
	start := len(held)
	held = append(held, make([]byte, n+1)...)
	_, err := io.ReadFull(r, held[start:])
	return held[:start+int(n)], err
}

func (r *Record) add(p Pair) {
	number := func() int64 {
		n, _ := strconv.ParseInt(string(p.Value), 10, 64)
		return n
	}
	switch {
	case p.Name == "__CURSOR":
		r.Cursor = string(p.Value)
	case p.Name == "__REALTIME_TIMESTAMP":
		r.Realtime = number()
	case p.Name == "__MONOTONIC_TIMESTAMP":
		r.Monotonic = number()
	case p.Name == "_BOOT_ID", strings.HasPrefix(p.Name, "__"):
	default:
		r.Fields = append(r.Fields, p)
	}
}
