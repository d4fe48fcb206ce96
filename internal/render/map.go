// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
)

// MapSchema is the schema of a MapDocument in JSON.
const MapSchema = "shisa.map/1"

// MapDocument is the document that MapJSON writes. A map may have millions of entries, so it is
// written as it is read; this struct says what there is in it, and in which order.
type MapDocument struct {
	MapHead
	Entries []MapEntry `json:"entries"`
	MapEnd
}

// MapHead is what is known before the map is read.
type MapHead struct {
	Path         string `json:"path"`
	VirtualBytes int64  `json:"virtual_bytes"`
	// Layers are the images of the chain, the place of each being the depth of its entries.
	Layers []MapLayer `json:"layers"`
}

// MapEnd is what is known at its end.
type MapEnd struct {
	Totals MapTotals `json:"totals"`
	// MissingBytes lie past the end of their file, which was cut. They are shown as what reading
	// them gives.
	MissingBytes int64 `json:"missing_bytes"`
	// Notes say what is not as it should be with the images, and did not hinder the map.
	Notes []string `json:"notes"`
	// Changed are the files of the chain that a program changed meanwhile.
	Changed []string `json:"changed"`
	// Complete: the map was read to its end; otherwise Error says where it broke off.
	Complete bool   `json:"complete"`
	Error    string `json:"error"`
	// Status lists every exit status that applies, the one that is returned first.
	Status []int `json:"status"`
}

// MapLayer is an image of the chain.
type MapLayer struct {
	Path         string `json:"path"`
	Format       string `json:"format"`
	VirtualBytes int64  `json:"virtual_bytes"`
	// DataFile is the external data file, "" without one.
	DataFile string `json:"data_file"`
	// Extents are the files that hold the disk of a vmdk image that has several.
	Extents []MapExtent `json:"extents"`
}

// MapExtent is a part of a disk that another file holds.
type MapExtent struct {
	Path   string `json:"path"` // "" for a part of zeros
	Start  int64  `json:"start"`
	Length int64  `json:"length"`
}

func mapLayer(l *disk.Layer) MapLayer {
	m := MapLayer{Path: l.Path, Format: l.Format, VirtualBytes: l.SizeBytes, Extents: []MapExtent{}}
	if l.Data != nil {
		m.DataFile = l.Data.Path
	}
	for i := range l.Extents {
		e := &l.Extents[i]
		m.Extents = append(m.Extents, MapExtent{e.Path, int64(e.Guest), e.Length})
	}
	return m
}

// MapEntry is a range of the disk.
type MapEntry struct {
	Start      int64 `json:"start"`
	Length     int64 `json:"length"`
	Depth      int   `json:"depth"`
	Present    bool  `json:"present"`
	Zero       bool  `json:"zero"`
	Data       bool  `json:"data"`
	Compressed bool  `json:"compressed"`
	// Offset is the place in the image, its data file or extent, -1 where the range has none.
	Offset int64 `json:"offset"`
}

// MapTotals are sums of bytes.
type MapTotals struct {
	Data       int64 `json:"data_bytes"`
	Compressed int64 `json:"compressed_bytes"`
	Reserved   int64 `json:"reserved_bytes"` // space is there, but nothing was written to it
	Zero       int64 `json:"zero_bytes"`
	Absent     int64 `json:"absent_bytes"` // no layer says anything: zeros too
}

func (t *MapTotals) add(e *disk.Entry) {
	switch {
	case !e.Present:
		t.Absent += e.Length
	case e.Zero && e.HasOffset:
		t.Reserved += e.Length
	case e.Zero:
		t.Zero += e.Length
	case e.Compressed:
		t.Compressed += e.Length
	default:
		t.Data += e.Length
	}
}

// mapBuffer is how much of a map is put together before it is written.
const mapBuffer = 256 << 10

// A MapRange says which part of a disk to map.
type MapRange struct {
	Start, Length int64
}

// mapEnd says how a map ended.
func mapEnd(c *disk.Chain, totals MapTotals, err error) MapEnd {
	end := MapEnd{Totals: totals, Notes: c.Notes(), Changed: c.Changed(), Complete: err == nil}
	var applies []int
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled):
		end.Error, applies = "interrupted", append(applies, finding.StatusInterrupted)
	default:
		end.Error, applies = err.Error(), append(applies, finding.StatusCannotTell)
	}
	if len(end.Changed) > 0 {
		// What seems to be missing may have been written meanwhile.
		applies = append(applies, finding.StatusRefused)
	} else if end.MissingBytes = c.Missing(); end.MissingBytes > 0 {
		applies = append(applies, finding.StatusFound)
	}
	end.Status = finding.OrderStatus(applies...)
	return end
}

// MapJSON maps a disk and writes the map as one document, while it is read. An error of mapping is
// part of what is returned; the other error is that of writing.
func MapJSON(ctx context.Context, w io.Writer, c *disk.Chain, r MapRange) (MapEnd, error) {
	b := bufio.NewWriterSize(w, mapBuffer)
	head := MapHead{Path: c.Layers[0].Path, VirtualBytes: c.Size(), Layers: []MapLayer{}}
	for i := range c.Layers {
		head.Layers = append(head.Layers, mapLayer(&c.Layers[i]))
	}
	var part bytes.Buffer
	if err := JSON(&part, MapSchema, head); err != nil {
		return MapEnd{}, err
	}
	b.Write(bytes.TrimSuffix(part.Bytes(), []byte("\n}\n")))
	b.WriteString(",\n  \"entries\": [")
	var totals MapTotals
	var line []byte
	err := c.Map(ctx, image.GuestOff(r.Start), r.Length, func(e *disk.Entry) error {
		totals.add(e)
		line = appendMapEntry(line[:0], e, line == nil)
		_, err := b.Write(line)
		return writeError(err)
	})
	if line != nil {
		b.WriteString("\n  ")
	}
	b.WriteString("],")
	if errors.Is(err, errWrite) {
		return MapEnd{}, err
	}
	end := mapEnd(c, totals, err)
	part.Reset()
	if err := JSON(&part, MapSchema, end); err != nil {
		return end, err
	}
	// The schema stands at the head already.
	_, tail, _ := bytes.Cut(part.Bytes(), []byte(","))
	b.Write(tail)
	return end, b.Flush()
}

func appendMapEntry(b []byte, e *disk.Entry, first bool) []byte {
	if !first {
		b = append(b, ',')
	}
	b = strconv.AppendInt(append(b, "\n    {\"start\": "...), int64(e.Start), 10)
	b = strconv.AppendInt(append(b, ", \"length\": "...), e.Length, 10)
	b = strconv.AppendInt(append(b, ", \"depth\": "...), int64(e.Depth), 10)
	b = strconv.AppendBool(append(b, ", \"present\": "...), e.Present)
	b = strconv.AppendBool(append(b, ", \"zero\": "...), e.Zero)
	b = strconv.AppendBool(append(b, ", \"data\": "...), e.Data)
	b = strconv.AppendBool(append(b, ", \"compressed\": "...), e.Compressed)
	b = append(b, ", \"offset\": "...)
	if e.HasOffset {
		b = strconv.AppendInt(b, int64(e.Offset), 10)
	} else {
		b = append(b, "-1"...)
	}
	return append(b, '}')
}

// errWrite marks an error of writing among those of mapping.
var errWrite = errors.New("write the map")

func writeError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errWrite, err)
}

// Map maps a disk and writes the map for people. The errors are those of MapJSON.
func Map(ctx context.Context, w io.Writer, c *disk.Chain, r MapRange, s Style) (MapEnd, error) {
	b := bufio.NewWriterSize(w, mapBuffer)
	o := &out{b, s}
	o.line(o.paint(bold, fmt.Sprintf("%-18s%-12s%-12s%-7s%s", "start", "length", "what", "layer", "place")))
	var totals MapTotals
	var line []byte
	err := c.Map(ctx, image.GuestOff(r.Start), r.Length, func(e *disk.Entry) error {
		totals.add(e)
		line = appendMapLine(line[:0], e, len(c.Layers[e.Depth].Extents) > 0)
		_, err := b.Write(line)
		return writeError(err)
	})
	if errors.Is(err, errWrite) {
		return MapEnd{}, err
	}
	end := mapEnd(c, totals, err)
	o.line()
	if len(c.Layers) > 1 || c.Layers[0].Data != nil {
		for depth, l := range c.Layers {
			text := fmt.Sprintf("layer %d: %s, %s, %s", depth, Name(l.Path), l.Format, Bytes(l.SizeBytes))
			if l.Data != nil {
				text += ", data in " + Name(l.Data.Path)
			}
			o.line(text)
		}
	}
	o.line(mapTotals(&end, c.Size()))
	return end, o.flush()
}

func mapTotals(end *MapEnd, size int64) string {
	t := end.Totals
	var parts []string
	for _, p := range []struct {
		n    int64
		what string
	}{
		{t.Data, "data"}, {t.Compressed, "compressed data"}, {t.Reserved, "reserved"}, {t.Zero, "zeros"},
		{t.Absent, "nothing"},
	} {
		if p.n > 0 {
			parts = append(parts, Bytes(p.n)+" "+p.what)
		}
	}
	text := "of " + Bytes(size) + ": " + cmp.Or(strings.Join(parts, ", "), "nothing was mapped")
	if end.MissingBytes > 0 {
		text += "\n" + Bytes(end.MissingBytes) + " of it would lie past the end of a file, which was cut: shown as it reads"
	}
	for _, note := range end.Notes {
		text += "\nnote: " + Text(note)
	}
	for _, path := range end.Changed {
		text += "\n" + Name(path) + " was written to meanwhile: the map may never have been true as a whole"
	}
	return text
}

// appendMapLine adds the line of e; extents: its layer has several files.
func appendMapLine(b []byte, e *disk.Entry, extents bool) []byte {
	pad := func(b []byte, from, width int) []byte {
		for len(b) < from+width-1 {
			b = append(b, ' ')
		}
		return append(b, ' ')
	}
	what := "data"
	switch {
	case !e.Present:
		what = "nothing"
	case e.Zero && e.HasOffset:
		what = "reserved"
	case e.Zero:
		what = "zeros"
	case e.Compressed:
		what = "compressed"
	}
	b = pad(strconv.AppendInt(append(b, "0x"...), int64(e.Start), 16), 0, 18)
	n := len(b)
	b = pad(append(b, Bytes(e.Length)...), n, 12)
	n = len(b)
	if !e.Present {
		return append(append(b, what...), '\n')
	}
	b = pad(append(b, what...), n, 12)
	n = len(b)
	b = strconv.AppendInt(b, int64(e.Depth), 10)
	if e.HasOffset {
		b = strconv.AppendInt(append(pad(b, n, 7), "0x"...), int64(e.Offset), 16)
		if extents {
			b = append(append(b, " of "...), Name(e.File)...)
		}
	}
	return append(b, '\n')
}
