// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// flagFold is FS_CASEFOLD_FL of Linux: names in a directory (chattr +F) are found in any case.
const flagFold = 0x40000000

// fold is how a guest compares the names in a directory.
type fold int

const (
	foldNone fold = iota // byte by byte
	// foldLatin: as XFS with "ascii-ci" (xfs_ascii_ci_xfrm): also what ISO 8859-1 has as letters.
	foldLatin
	// foldUnicode: as ext4 with "casefold", by the rules of Unicode 12.1. Here letters are compared one
	// by one: "SS" is not found as U+00DF, nor a letter with an accent as the two that it is made of.
	foldUnicode
)

// foldOf tells how the names in a directory are compared.
func foldOf(fs files.FS, dir *files.Stat) fold {
	features := fs.Info().Features
	switch {
	case slices.Contains(features, "ascii-ci"):
		return foldLatin
	case dir.Flags&flagFold != 0 && slices.Contains(features, "casefold"):
		return foldUnicode
	}
	return foldNone
}

// same tells whether the guest takes two names for the same.
func (f fold) same(a, b string) bool {
	switch f {
	case foldLatin:
		return latin(a) == latin(b)
	case foldUnicode: // what is no UTF-8 is compared byte by byte
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

// unsure tells whether the guest may take names for the same that are not here.
func (f fold) unsure(name string) bool {
	return f == foldUnicode && strings.ContainsFunc(name, func(r rune) bool { return r >= utf8.RuneSelf })
}
