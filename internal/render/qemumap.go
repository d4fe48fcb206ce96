// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/image"
)

// ErrNoPlace: the text form of qemu-img map has no way to show data that has no place of its own.
var ErrNoPlace = errors.New("the map holds compressed or encrypted data, which this form cannot show")

// QemuMapJSON maps a disk and writes what qemu-img map --output=json prints.
func QemuMapJSON(ctx context.Context, w io.Writer, c *disk.Chain, r MapRange) error {
	j := qemuJSON{b: make([]byte, 0, mapBuffer+maxEntryBytes), w: w}
	j.b = append(j.b, '[')
	err := c.Map(ctx, image.GuestOff(r.Start), r.Length, j.entry)
	if err != nil {
		// What was mapped is worth having, but must not pass for the whole: no bracket closes it.
		return errors.Join(err, j.flush())
	}
	if !j.any {
		// qemu prints one entry in any case.
		if err := j.entry(&disk.Entry{Start: image.GuestOff(r.Start)}); err != nil {
			return err
		}
	}
	j.b = append(j.b, "]\n"...)
	return j.flush()
}

// maxEntryBytes is more than an entry takes.
const maxEntryBytes = 256

// qemuJSON writes entries as JSON. They come by the million, so it does without fmt and reflection,
// and keeps the text of a length that repeats itself.
type qemuJSON struct {
	w      io.Writer
	b      []byte
	any    bool
	length int64
	text   []byte
}

func (j *qemuJSON) flush() error {
	_, err := j.w.Write(j.b)
	j.b = j.b[:0]
	return writeError(err)
}

func (j *qemuJSON) entry(e *disk.Entry) error {
	b := j.b
	if j.any {
		b = append(b, ",\n{ \"start\": "...)
	} else {
		b = append(b, "{ \"start\": "...)
		j.any, j.text = true, strconv.AppendInt(nil, e.Length, 10)
		j.length = e.Length
	}
	b = strconv.AppendInt(b, int64(e.Start), 10)
	b = append(b, ", \"length\": "...)
	if e.Length != j.length {
		j.length, j.text = e.Length, strconv.AppendInt(j.text[:0], e.Length, 10)
	}
	b = append(b, j.text...)
	b = append(b, ", \"depth\": "...)
	b = strconv.AppendInt(b, int64(e.Depth), 10)
	b = append(b, flagsJSON[flagsOf(e)]...)
	if e.HasOffset {
		b = append(b, ", \"offset\": "...)
		b = strconv.AppendInt(b, int64(e.Offset), 10)
	}
	j.b = append(b, '}')
	if len(j.b) >= mapBuffer {
		return j.flush()
	}
	return nil
}

// flagsJSON are the texts of the eight combinations of flags.
var flagsJSON = [8]string{
	", \"present\": false, \"zero\": false, \"data\": false",
	", \"present\": true, \"zero\": false, \"data\": false",
	", \"present\": false, \"zero\": true, \"data\": false",
	", \"present\": true, \"zero\": true, \"data\": false",
	", \"present\": false, \"zero\": false, \"data\": true",
	", \"present\": true, \"zero\": false, \"data\": true",
	", \"present\": false, \"zero\": true, \"data\": true",
	", \"present\": true, \"zero\": true, \"data\": true",
}

func flagsOf(e *disk.Entry) int {
	n := 0
	if e.Present {
		n = 1
	}
	if e.Zero {
		n |= 2
	}
	if e.Data {
		n |= 4
	}
	return n
}

// QemuMap maps a disk and writes what qemu-img map prints: the data only. The error is ErrNoPlace
// where the disk has data that this form cannot show.
func QemuMap(ctx context.Context, w io.Writer, c *disk.Chain, r MapRange) error {
	o := newOut(w, Style{})
	fmt.Fprintf(o.w, "%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File")
	err := c.Map(ctx, image.GuestOff(r.Start), r.Length, func(e *disk.Entry) error {
		if e.Data && !e.HasOffset {
			return ErrNoPlace
		}
		if !e.Data || e.Zero {
			return nil
		}
		_, err := fmt.Fprintf(o.w, "%-16s%-16s%-16s%s\n", cHex(int64(e.Start)), cHex(e.Length),
			cHex(int64(e.Offset)), e.File)
		return writeError(err)
	})
	return errors.Join(err, o.flush())
}

// cHex is %#x of C, which has no prefix for zero.
func cHex(n int64) string {
	if n == 0 {
		return "0"
	}
	return Offset(n)
}
