// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// jsonText writes v as qemu does: pretty with four blanks for each level, or on one line.
func jsonText(v any, pretty bool) string {
	w := &jsonWriter{pretty: pretty}
	w.value(v)
	return w.b.String()
}

type jsonWriter struct {
	b      strings.Builder
	pretty bool
	depth  int
}

func (w *jsonWriter) value(v any) {
	switch v := v.(type) {
	case nil:
		w.b.WriteString("null")
	case string:
		w.text(v)
	case bool:
		w.b.WriteString(strconv.FormatBool(v))
	case int64:
		w.b.WriteString(strconv.FormatInt(v, 10))
	case uint64:
		w.b.WriteString(strconv.FormatUint(v, 10))
	case float64:
		w.b.WriteString(strconv.FormatFloat(v, 'g', 17, 64))
	case []any:
		w.container('[', ']', func() {
			for i, e := range v {
				w.separate(i)
				w.value(e)
			}
		})
	case *dict:
		w.container('{', '}', func() {
			i := 0
			for key, e := range v.all() {
				w.separate(i)
				w.text(key)
				w.b.WriteString(": ")
				w.value(e)
				i++
			}
		})
	}
}

func (w *jsonWriter) container(open, end byte, body func()) {
	w.b.WriteByte(open)
	w.depth++
	body()
	w.depth--
	w.newline()
	w.b.WriteByte(end)
}

// separate stands before element i of a container.
func (w *jsonWriter) separate(i int) {
	if i > 0 {
		w.b.WriteByte(',')
		if !w.pretty {
			w.b.WriteByte(' ')
		}
	}
	w.newline()
}

func (w *jsonWriter) newline() {
	if w.pretty {
		w.b.WriteByte('\n')
		for range w.depth {
			w.b.WriteString("    ")
		}
	}
}

// text writes a string in ASCII. What is not UTF-8 becomes U+FFFD.
func (w *jsonWriter) text(s string) {
	w.b.WriteByte('"')
	for s != "" {
		cp, n := codepoint(s)
		s = s[n:]
		switch {
		case cp == '"' || cp == '\\':
			w.b.WriteByte('\\')
			w.b.WriteByte(byte(cp))
		case cp >= 0x20 && cp < 0x7f:
			w.b.WriteByte(byte(cp))
		case cp > 0xffff:
			hi, lo := 0xd800+(cp-0x10000)>>10, 0xdc00+(cp-0x10000)&0x3ff
			fmt.Fprintf(&w.b, `\u%04X\u%04X`, hi, lo)
		default:
			if i := strings.IndexRune("\b\f\n\r\t", cp); i >= 0 {
				w.b.WriteByte('\\')
				w.b.WriteByte("bfnrt"[i])
				break
			}
			fmt.Fprintf(&w.b, `\u%04X`, cp)
		}
	}
	w.b.WriteByte('"')
}

// codepoint decodes the first character of s as qemu does: "modified UTF-8", in which C0 80 is zero,
// and a sequence that is cut short or not a character counts as one U+FFFD.
func codepoint(s string) (cp rune, n int) {
	c := s[0]
	if c < 0x80 {
		return rune(c), 1
	}
	if c >= 0xfe || c&0x40 == 0 {
		return utf8.RuneError, 1
	}
	want, mask := 0, byte(0x80)
	for ; c&mask != 0; mask >>= 1 {
		want++
	}
	cp = rune(c & (mask - 1))
	for n = 1; n < want; n++ {
		if n >= len(s) || s[n]&0xc0 != 0x80 {
			return utf8.RuneError, n
		}
		cp = cp<<6 | rune(s[n]&0x3f)
	}
	shortest := [...]rune{0x80, 0x800, 0x10000, 0x200000, 0x4000000}[want-2]
	switch {
	case cp < 0 || cp > utf8.MaxRune,
		cp >= 0xfdd0 && cp <= 0xfdef, cp&0xfffe == 0xfffe,
		cp >= 0xd800 && cp <= 0xdfff,
		cp < shortest && !(cp == 0 && want == 2):
		return utf8.RuneError, n
	}
	return cp, n
}
