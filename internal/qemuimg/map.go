// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import "strconv"

// mapImage is qemu-img map.
func (s *session) mapImage(argv []string) int {
	f := &imageFlags{maxLength: -1}
	g := newGetopt(argv, "f:s:l:hU", []longOption{
		{"help", false, 'h'}, {"format", true, 'f'}, {"output", true, optOutput},
		{"object", true, optObject}, {"image-opts", false, optImageOpts}, {"force-share", false, 'U'},
		{"start-offset", true, 's'}, {"max-length", true, 'l'},
	}, s.env.Posix)
	for c := g.next(); c != optEnd; c = g.next() {
		var err error
		switch c {
		case 's':
			f.startOff, err = s.size("start offset", g.optarg)
		case 'l':
			f.maxLength, err = s.size("max length", g.optarg)
		default:
			err = s.common(f, g, c, codeFailed)
		}
		if err != nil {
			return codeOf(err)
		}
	}
	name, err := s.oneName(g)
	if err == nil {
		err = s.outputFormat(f)
	}
	if err != nil {
		return codeOf(err)
	}
	gr, n, fl := s.openImage(name, f.format, f.hasFormat, f, openFlags{})
	if fl != nil {
		s.reportOpen(name, fl)
		return codeFailed
	}
	defer n.close()
	gr.coarse = true
	return s.printMap(gr, n, f)
}

// mapEntry is a range of the disk in the output of map.
type mapEntry struct {
	start, length int64
	depth         int
	off           int64
	hasOff        bool
	file          *node // what off is in; only with hasOff
	data, zero    bool
	present       bool
}

// continues tells whether next is the same kind of range as e and follows it without a gap.
func (e *mapEntry) continues(next *mapEntry) bool {
	return e.length != 0 && e.zero == next.zero && e.data == next.data && e.depth == next.depth &&
		e.present == next.present && e.hasOff == next.hasOff && e.fileName() == next.fileName() &&
		(!e.hasOff || e.off+e.length == next.off)
}

func (e *mapEntry) fileName() string {
	if e.file == nil {
		return ""
	}
	return e.file.filename
}

func (s *session) printMap(g *graph, n *node, f *imageFlags) int {
	n.refreshName()
	m := &mapPrinter{s: s, json: f.json}
	if f.json {
		s.printf("[")
	} else {
		s.printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File")
	}
	end := n.length
	if f.maxLength != -1 {
		// The sum of two large numbers is negative in qemu too.
		end = min(f.startOff+f.maxLength, end)
	}
	cur := mapEntry{start: f.startOff}
	for cur.start+cur.length < end {
		off := cur.start + cur.length
		if s.ctx.Err() != nil {
			return codeInterrupted
		}
		next, err := g.mapEntry(n, off, end-off)
		if err != nil {
			s.report("Could not read file metadata: %s", strerror(err))
			return codeFailed
		}
		if cur.continues(&next) {
			cur.length += next.length
			continue
		}
		if cur.length > 0 {
			if !m.print(&cur, &next) {
				return codeFailed
			}
		}
		cur = next
	}
	ok := m.print(&cur, nil)
	if f.json {
		s.printf("]\n")
	}
	if !ok {
		return codeFailed
	}
	return codeOK
}

// mapEntry finds the layer that says what the disk holds at off.
func (g *graph) mapEntry(n *node, off, bytes int64) (mapEntry, error) {
	e := mapEntry{start: off}
	var st status
	for ; ; e.depth++ {
		var err error
		if st, err = g.blockStatus(n, off, bytes); err != nil {
			return e, err
		}
		bytes = st.n
		if st.flags&(isZero|isData) != 0 {
			break
		}
		if n.backing == nil {
			st.flags = 0
			break
		}
		n = n.backing
	}
	e.length, e.off, e.hasOff = bytes, st.off, st.flags&offsetValid != 0
	e.data, e.zero, e.present = st.flags&isData != 0, st.flags&isZero != 0, st.flags&allocated != 0
	if e.hasOff {
		e.file = st.file
	}
	return e, nil
}

// mapPrinter writes entries. A map may have millions, so they are put together without fmt.
type mapPrinter struct {
	s    *session
	json bool
	buf  []byte
}

// print writes e; next is the entry that follows, nil at the end. It reports whether to go on.
func (m *mapPrinter) print(e, next *mapEntry) bool {
	if m.json {
		m.printJSON(e, next != nil)
		return true
	}
	if e.data && !e.hasOff {
		m.s.report("File contains external, encrypted or compressed clusters.")
		return false
	}
	if e.data && !e.zero {
		b := m.buf[:0]
		off := int64(0)
		if e.hasOff {
			off = e.off
		}
		for _, v := range []int64{e.start, e.length, off} {
			from := len(b)
			if v != 0 {
				b = append(b, "0x"...)
			}
			b = strconv.AppendUint(b, uint64(v), 16)
			for len(b) < from+16 {
				b = append(b, ' ')
			}
		}
		b = append(append(b, e.fileName()...), '\n')
		m.write(b)
	}
	// This form does not tell zeros from what is not there, so they are joined.
	if next != nil && (!next.data || next.zero) {
		next.data, next.zero = false, true
	}
	return true
}

func (m *mapPrinter) printJSON(e *mapEntry, more bool) {
	b := append(m.buf[:0], `{ "start": `...)
	b = strconv.AppendInt(b, e.start, 10)
	b = append(b, `, "length": `...)
	b = strconv.AppendInt(b, e.length, 10)
	b = append(b, `, "depth": `...)
	b = strconv.AppendInt(b, int64(e.depth), 10)
	b = append(b, `, "present": `...)
	b = strconv.AppendBool(b, e.present)
	b = append(b, `, "zero": `...)
	b = strconv.AppendBool(b, e.zero)
	b = append(b, `, "data": `...)
	b = strconv.AppendBool(b, e.data)
	if e.hasOff {
		b = append(b, `, "offset": `...)
		b = strconv.AppendInt(b, e.off, 10)
	}
	b = append(b, '}')
	if more {
		b = append(b, ",\n"...)
	}
	m.write(b)
}

func (m *mapPrinter) write(b []byte) {
	m.buf = b
	// The writer keeps an error for the end.
	_, _ = m.s.out.Write(b)
}
