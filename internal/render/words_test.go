// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/shisa-vm/shisa/internal/finding"
)

func TestBytes(t *testing.T) {
	for _, tt := range []struct {
		n    int64
		want string
	}{
		{-1, "unknown"}, {0, "0 bytes"}, {1, "1 byte"}, {1023, "1023 bytes"},
		{1024, "1 KiB"}, {1536, "1.5 KiB"}, {1025, "1 KiB"}, {1034, "1.01 KiB"},
		{65536, "64 KiB"}, {512 << 20, "512 MiB"}, {40265318400, "37.5 GiB"},
		{10<<30 - 1, "10 GiB"}, {100<<30 + 1, "100 GiB"}, {1<<40 - 1, "1 TiB"}, {1 << 40, "1 TiB"},
		{1000 << 30, "1000 GiB"}, {1023<<30 + 1<<29, "1 TiB"}, {math.MaxInt64, "8 EiB"},
	} {
		if got := Bytes(tt.n); got != tt.want {
			t.Errorf("Bytes(%d) = %q, want %q", tt.n, got, tt.want)
		}
	}
}

func TestPlaces(t *testing.T) {
	for _, tt := range []struct{ name, got, want string }{
		{"offset", Offset(0x960000000), "0x960000000"},
		{"offset not known", Offset(-1), "unknown"},
		{"place", Place(0x960000000), "37.5 GiB (0x960000000)"},
		{"place at the start", Place(0), "0"},
		{"place below a KiB", Place(104), "0x68"},
		{"range", Range(finding.Range{Offset: 0x960000000, Length: 512 << 20}),
			"512 MiB at 37.5 GiB (0x960000000)"},
		{"exact", BytesExact(40 << 30), "40 GiB (42949672960 bytes)"},
		{"exact and small", BytesExact(1023), "1023 bytes"},
		{"one", Count(1, "leak", "leaks"), "1 leak"},
		{"many", Count(3201, "leak", "leaks"), "3201 leaks"},
		{"none", Count(0, "leak", "leaks"), "0 leaks"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s = %q, want %q", tt.name, tt.got, tt.want)
		}
	}
}

func TestNameAndText(t *testing.T) {
	for _, tt := range []struct{ name, in, wantName, wantText string }{
		{"plain", "/pool/vm-17.qcow2", "/pool/vm-17.qcow2", "/pool/vm-17.qcow2"},
		{"blank", "/pool/my vm.qcow2", "/pool/my vm.qcow2", "/pool/my vm.qcow2"},
		{"letters of the world", "/pool/シーサー.qcow2", "/pool/シーサー.qcow2", "/pool/シーサー.qcow2"},
		{"clears the screen", "a\x1b[2Jb", `$'a\x1b[2Jb'`, `a\x1b[2Jb`},
		{"C1 control", "a\u009b2Jb", `$'a\u009b2Jb'`, `a\u009b2Jb`},
		{"two lines", "clean\n/etc/passwd", `$'clean\n/etc/passwd'`, `clean\n/etc/passwd`},
		{"carriage return", "bad\rok ", `$'bad\x0dok '`, `bad\x0dok `},
		{"right to left", "2woc\u202eq.exe", `$'2woc\u202eq.exe'`, `2woc\u202eq.exe`},
		{"not UTF-8", "caf\xe9", `$'caf\xe9'`, `caf\xe9`},
		{"replacement character", "caf\ufffd", "caf\ufffd", "caf\ufffd"},
		{"looks quoted", "$'x'", `$'$\'x\''`, "$'x'"},
		{"quote beside a control", "it's\x07", `$'it\'s\x07'`, `it's\x07`},
		{"above 16 bits", "\U000e0001x", `$'\U000e0001x'`, `\U000e0001x`},
		{"empty", "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Name(tt.in); got != tt.wantName {
				t.Errorf("Name(%q) = %q, want %q", tt.in, got, tt.wantName)
			}
			if got := Text(tt.in); got != tt.wantText {
				t.Errorf("Text(%q) = %q, want %q", tt.in, got, tt.wantText)
			}
		})
	}
}

func FuzzName(f *testing.F) {
	f.Add("a\x1b[2Jb")
	f.Add("\xff\u202e")
	f.Fuzz(func(t *testing.T, s string) {
		for _, got := range []string{Name(s), Text(s)} {
			if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool {
				return r < ' ' || r >= 0x7f && r < 0xa0
			}) {
				t.Errorf("Name(%q) or Text = %q, which holds control characters", s, got)
			}
		}
	})
}

func TestColumns(t *testing.T) {
	for s, want := range map[string]int{"vm-17": 5, "シーサー": 8, "e\u0301": 1, "": 0, "🦁": 2} {
		if got := columns(s); got != want {
			t.Errorf("columns(%q) = %d, want %d", s, got, want)
		}
	}
}
