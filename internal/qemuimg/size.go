// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
)

// sizeText is a number of bytes with three digits and a binary unit, as qemu rounds it: the next
// unit begins at 1000 of the smaller one.
func sizeText(n uint64) string {
	_, exp := math.Frexp(float64(n) / (1000.0 / 1024.0))
	unit := max(exp-1, 0) / 10
	// The same as printf's %0.3g, which may give 1e+03 as well.
	digits := strconv.FormatFloat(float64(n)/float64(uint64(1)<<(10*unit)), 'g', 3, 64)
	return fmt.Sprintf("%s %sB", digits, []string{"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"}[unit])
}

// Errors of parseSize.
var (
	errSizeInvalid = errors.New("not a size")
	errSizeRange   = errors.New("size out of range")
)

// parseSize reads a number of bytes with an optional unit (b, k, M, G, T, P, E; factor 1024), as
// qemu does: decimal with a fraction where a unit follows, or hexadecimal. hexUnit reports a unit
// behind a hexadecimal number, for which qemu prints a warning.
func parseSize(text string) (n uint64, hexUnit bool, err error) {
	s := strings.TrimLeft(text, " \t\n\v\f\r")
	negative := strings.HasPrefix(s, "-")
	if negative || strings.HasPrefix(s, "+") {
		s = s[1:]
	}
	whole, rest, over := leadingNumber(s, 10)
	switch {
	case rest == s, negative && !over:
		return 0, false, errSizeInvalid
	case over:
		return 0, false, tooLarge(rest)
	}
	var fraction uint64 // of 1<<64
	hex := false
	switch {
	case whole == 0 && rest != "" && (rest[0] == 'x' || rest[0] == 'X'):
		digits := rest[1:]
		whole, rest, over = leadingNumber(digits, 16)
		if rest == digits || strings.HasPrefix(rest, ".") {
			return 0, false, errSizeInvalid
		}
		if over {
			return 0, false, tooLarge(rest)
		}
		hex = true
	case strings.HasPrefix(rest, "."):
		if fraction, rest, err = leadingFraction(rest); err != nil {
			return 0, false, err
		}
	}
	shift := 0
	if rest != "" {
		if i := strings.IndexByte("BKMGTPE", rest[0]&^0x20); i >= 0 {
			shift, hexUnit, rest = 10*i, hex, rest[1:]
		}
	}
	if shift == 0 && fraction != 0 || rest != "" {
		return 0, hexUnit, errSizeInvalid
	}
	hi, lo := bits.Mul64(whole, 1<<shift)
	whole2, fraction2 := bits.Mul64(fraction, 1<<shift)
	lo, carry := bits.Add64(lo, whole2, 0)
	lo, carry2 := bits.Add64(lo, fraction2>>63, 0)
	if hi+carry+carry2 != 0 {
		return 0, hexUnit, errSizeRange
	}
	return lo, hexUnit, nil
}

// tooLarge: qemu stops at a number that is too large, and then finds what follows it strange.
func tooLarge(rest string) error {
	if rest != "" {
		return errSizeInvalid
	}
	return errSizeRange
}

// leadingNumber reads digits as strtoull does; over is set where they exceed 64 bits.
func leadingNumber(s string, base uint64) (n uint64, rest string, over bool) {
	for rest = s; rest != ""; rest = rest[1:] {
		d := strings.IndexByte("0123456789abcdef", rest[0]|0x20)
		if rest[0] >= '0' && rest[0] <= '9' {
			d = int(rest[0] - '0')
		}
		if d < 0 || uint64(d) >= base {
			break
		}
		hi, lo := bits.Mul64(n, base)
		lo, carry := bits.Add64(lo, uint64(d), 0)
		n, over = lo, over || hi+carry != 0
	}
	return n, rest, over
}

// leadingFraction reads a point and the digits behind it, of which there may be none.
func leadingFraction(s string) (fraction uint64, rest string, err error) {
	n := 1
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	digits := n
	// An E is a unit, unless it begins an exponent.
	if n+1 < len(s) && s[n]|0x20 == 'e' && digits > 1 {
		exp := s[n+1:]
		exp = strings.TrimLeft(exp[:1], "+-") + exp[1:]
		if exp != "" && exp[0] >= '0' && exp[0] <= '9' {
			return 0, s, errSizeInvalid
		}
	}
	if digits == 1 {
		return 0, s[1:], nil
	}
	f, err := strconv.ParseFloat("0"+s[:n], 64)
	if err != nil {
		return 0, s, errSizeInvalid
	}
	if f >= 1 { // .99999999999999999999 overflows in qemu
		return 0, s[n:], nil
	}
	return uint64(f * (1 << 63) * 2), s[n:], nil
}
