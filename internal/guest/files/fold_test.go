// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package files

import "testing"

// TestFoldLatin compares names as XFS with "ascii-ci" does, byte by byte.
func TestFoldLatin(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		same bool
	}{
		{"File.TXT", "fILE.txt", true}, {"\xc4rger", "\xe4RGER", true}, {"\xd7", "\xf7", false},
		{"\xdf", "\xff", false}, {"k", "\u212a", false}, {"[", "{", false}, {"a", "ab", false},
	} {
		if got := FoldLatin.Same(tc.a, tc.b); got != tc.same {
			t.Errorf("%q and %q are the same: %v, want %v", tc.a, tc.b, got, tc.same)
		}
	}
}

// TestFoldUnsure: what letters become by the rules that are not known here may be the same name.
func TestFoldUnsure(t *testing.T) {
	for _, tc := range []struct {
		a, b         string
		same, unsure bool
	}{
		{"File", "fILE", true, false}, {"File", "other", false, false}, {"ÄRGER", "ärger", true, true},
		{"A\u0308rger", "Ärger", false, true}, {"Ärger", "other", false, false}, {"Fuß", "none", false, false}, {"Fuß", "FUSS", false, true},
		{"a\u037e\ufb03\u1fef", "A;ffi`", false, true}, {"Straße", "STRASSE", false, true},
		{"of\ufb01ce", "office", false, true}, {"so\u00adft", "soft", false, true}, {"\xff", "ÿ", false, false},
		{"\u212a", "k", true, true}, {"\ufb06ra\u1e9ee", "strasse", false, true}, {"日本", "nihon", false, false},
	} {
		if got := FoldUnicode.Same(tc.a, tc.b); got != tc.same {
			t.Errorf("%q and %q are the same: %v, want %v", tc.a, tc.b, got, tc.same)
		}
		for _, pair := range [][2]string{{tc.a, tc.b}, {tc.b, tc.a}} {
			if got := FoldUnicode.Unsure(pair[0], pair[1]); got != tc.unsure {
				t.Errorf("%q and %q may be the same: %v, want %v", pair[0], pair[1], got, tc.unsure)
			}
			if FoldNone.Unsure(pair[0], pair[1]) || FoldLatin.Unsure(pair[0], pair[1]) {
				t.Errorf("%q and %q may be the same, want that this is known", pair[0], pair[1])
			}
		}
	}
}
