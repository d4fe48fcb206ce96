// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package files

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// flagFold is FS_CASEFOLD_FL of Linux: names in a directory (chattr +F) are found in any case.
const flagFold = 0x40000000

// Fold is how a guest compares the names in a directory.
type Fold int

const (
	// FoldNone: byte by byte.
	FoldNone Fold = iota
	// FoldLatin: as XFS with "ascii-ci" (xfs_ascii_ci_xfrm): also what ISO 8859-1 has as letters.
	FoldLatin
	// FoldUnicode: as ext4 with "casefold", by the rules of Unicode 12.1 (canonical decomposition, full
	// case folding, without what is ignored). Here letters are compared one by one: "SS" is not found as
	// U+00DF, nor a letter with an accent as the two that it is made of.
	FoldUnicode
)

// FoldOf tells how the names in a directory are compared.
func FoldOf(fs Info, dir *Stat) Fold {
	switch {
	case slices.Contains(fs.Features, "ascii-ci"):
		return FoldLatin
	case dir.Flags&flagFold != 0 && slices.Contains(fs.Features, "casefold"):
		return FoldUnicode
	}
	return FoldNone
}

// Same tells whether the guest takes two names for the same.
func (f Fold) Same(a, b string) bool {
	switch f {
	case FoldLatin:
		return latin(a) == latin(b)
	case FoldUnicode: // what is no UTF-8 is compared byte by byte
		return a == b || utf8.ValidString(a) && utf8.ValidString(b) && strings.EqualFold(a, b)
	}
	return a == b
}

// latin gives a name in lower case, a letter for each byte.
func latin(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := rune(s[i])
		if c >= 'A' && c <= 'Z' || c >= 0xc0 && c <= 0xd6 || c >= 0xd8 && c <= 0xde {
			c += 'a' - 'A'
		}
		b.WriteRune(c)
	}
	return b.String()
}

// Unsure tells whether the guest may take two names for the same that are not Same here.
func (f Fold) Unsure(a, b string) bool {
	if f != FoldUnicode || !utf8.ValidString(a) || !utf8.ValidString(b) {
		return false
	}
	plainA, plainB := ascii(a), ascii(b)
	switch {
	case plainA && plainB:
		return false
	case plainA:
		return melt(b, a)
	case plainB:
		return melt(a, b)
	}
	return true
}

func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// melt tells whether a name becomes one of ASCII when what folds to several letters, what stands for
// another one and what is ignored is taken for that (CaseFolding.txt, UnicodeData.txt and
// DerivedCoreProperties.txt of Unicode 12.1).
func melt(s, plain string) bool {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == 0xdf, r == 0x1e9e:
			b.WriteString("ss")
		case r == 0xfb05, r == 0xfb06:
			b.WriteString("st")
		case r >= 0xfb00 && r <= 0xfb04:
			b.WriteString([...]string{"ff", "fi", "fl", "ffi", "ffl"}[r-0xfb00])
		case r == 0x37e:
			b.WriteByte(';')
		case r == 0x1fef:
			b.WriteByte('`')
		case !unicode.In(r, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector):
			b.WriteRune(r)
		}
	}
	return strings.EqualFold(b.String(), plain)
}
