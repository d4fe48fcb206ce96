// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package render turns results into text for people, JSON for programs and HTML pages.
//
// Whatever comes from a disk or a file system may have been written by an attacker: a name can hold
// escape sequences for the terminal, bytes that are no text, or markup. No string gets out of here
// as it came in; [Name], [Text], the JSON encoder and the HTML templates see to that.
package render

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/shisa-vm/shisa/internal/finding"
)

// Bytes gives a size for people: exact where it is a round one ("512 MiB"), else with three
// digits ("37.5 GiB"). Less than 0 is "unknown".
func Bytes(n int64) string {
	switch {
	case n < 0:
		return "unknown"
	case n == 1:
		return "1 byte"
	case n < 1024:
		return strconv.FormatInt(n, 10) + " bytes"
	}
	units := [...]string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	u := (bits.Len64(uint64(n)) - 1) / 10
	v := float64(n) / float64(int64(1)<<(10*u))
	// 1023.96 GiB would be shown as 1024 GiB.
	if v >= 1023.5 && u < len(units) {
		u, v = u+1, v/1024
	}
	s := strconv.FormatFloat(v, 'f', decimals(v), 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s + " " + units[u-1]
}

// decimals keeps about three digits of v.
func decimals(v float64) int {
	switch {
	case v >= 99.95:
		return 0
	case v >= 9.995:
		return 1
	}
	return 2
}

// BytesExact gives a size for people with its exact number of bytes.
func BytesExact(n int64) string {
	if n < 1024 {
		return Bytes(n)
	}
	return fmt.Sprintf("%s (%d bytes)", Bytes(n), n)
}

// Offset gives a position as it is written everywhere: in hex.
func Offset(n int64) string {
	if n < 0 {
		return "unknown"
	}
	return "0x" + strconv.FormatInt(n, 16)
}

// Place gives a position both in human terms and exactly: "37.5 GiB (0x960000000)".
func Place(n int64) string {
	if n == 0 {
		return "0"
	}
	if n < 1024 {
		return Offset(n)
	}
	return Bytes(n) + " (" + Offset(n) + ")"
}

// Range gives a range of bytes: "512 MiB at 37.5 GiB (0x960000000)".
func Range(r finding.Range) string { return Bytes(r.Length) + " at " + Place(r.Offset) }

// Count gives n things, with the plural where it belongs: "1 leak", "3201 leaks".
func Count(n int64, one, many string) string { return finding.Count(n, one, many) }

// Name gives a file's name so that it cannot harm a terminal or pass for another one: as it is
// where every character can be seen, else quoted for a shell, as in $'disk\x1b[2J.qcow2'. Either
// form can be pasted behind a command if it has no blanks.
func Name(path string) string {
	if seen(path) && !strings.HasPrefix(path, "$'") {
		return path
	}
	return "$'" + escape(path, true) + "'"
}

// Word gives an argument as it can be pasted into a command line.
func Word(arg string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			strings.ContainsRune("/._-+=:,@%", r)
	}
	switch {
	case !seen(arg) || strings.HasPrefix(arg, "$'"):
		return "$'" + escape(arg, true) + "'"
	case arg != "" && strings.TrimLeftFunc(arg, plain) == "":
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}

// Text gives a text from outside on one line, with everything that cannot be seen escaped.
func Text(s string) string {
	if seen(s) {
		return s
	}
	return escape(s, false)
}

// seen reports whether every character of s shows what it is. Control and bidirectional
// characters, odd blanks and bytes that are no UTF-8 do not.
func seen(s string) bool {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n <= 1 {
				return false
			}
		}
		if !strconv.IsPrint(r) {
			return false
		}
	}
	return true
}

// escape writes what cannot be seen in the notation that bash, C and Go share.
func escape(s string, quoted bool) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case quoted && (r == '\'' || r == '\\'):
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case strconv.IsPrint(r):
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		s = s[n:]
	}
	return b.String()
}

// columns is how many columns of a terminal s takes. It needs to be right for aligning tables
// only, so the list of wide characters is that of the common scripts and pictures.
func columns(s string) int {
	n := 0
	for _, r := range s {
		switch {
		case r < 0x300:
			n++
		case unicode.In(r, unicode.Mn, unicode.Me):
		case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3,
			r >= 0xf900 && r <= 0xfaff, r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60,
			r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
			n += 2
		default:
			n++
		}
	}
	return n
}
