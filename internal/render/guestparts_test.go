// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestNoted: what is said of parts stands in its column where there is room, and below where not.
func TestNoted(t *testing.T) {
	d := &GuestPartsDocument{Disks: []GuestDisk{{Path: "a", Name: "disk1", Bytes: 1 << 30},
		{Path: "b", Name: "disk2", Bytes: 1 << 20}}, Parts: []GuestPart{
		{Name: "disk1p1", Kind: "ext4", Size: 1 << 20, Start: 1 << 20, UUID: "11111111-2222-3333-4444-555555555555"},
		{Name: "disk2", Kind: "swap", Size: 1 << 20, Start: 0, NotExamined: "swap: recognised, not read"}},
		Problems: []GuestProblem{{Disk: "a", Text: "primary GPT header: there is none"}},
		Notes:    []string{"b: its copy is used"}}
	head := "disk1  a, 1 GiB\ndisk2  b, 1 MiB\n"
	end := "broken  a: primary GPT header: there is none\nnote  b: its copy is used\n"
	for _, tc := range []struct {
		width int
		want  string
	}{
		{0, `part     kind  size   start             uuid                                  note
disk1p1  ext4  1 MiB  1 MiB (0x100000)  11111111-2222-3333-4444-555555555555
disk2    swap  1 MiB  0                                                       swap: recognised, not read
`},
		{80, `part     kind  size   start             uuid
disk1p1  ext4  1 MiB  1 MiB (0x100000)  11111111-2222-3333-4444-555555555555
disk2    swap  1 MiB  0
part disk2  swap: recognised, not read
`},
		{50, `part     kind  size   start
disk1p1  ext4  1 MiB  1 MiB (0x100000)
disk2    swap  1 MiB  0
part disk2  swap: recognised, not read
`},
	} {
		var b bytes.Buffer
		if err := GuestParts(&b, d, Style{Width: tc.width}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(head+tc.want+end, b.String()); diff != "" {
			t.Errorf("GuestParts(%d columns) (-want +got)\n%s", tc.width, diff)
		}
	}
}
