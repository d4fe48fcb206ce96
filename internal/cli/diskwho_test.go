// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
)

// TestRangesFrom reads what kernels print, and what people write.
func TestRangesFrom(t *testing.T) {
	const sector = 4711 * 512
	for name, tc := range map[string]struct {
		text, dev string
		want      []finding.Range
		others    int64
		bad       bool
	}{
		"Linux 6": {text: "[  12.3] I/O error, dev vda, sector 4711 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2\n",
			want: []finding.Range{{Offset: sector, Length: 4096}}},
		"Linux 4": {text: "kernel: blk_update_request: critical medium error, dev sda, sector 4711\r\n",
			want: []finding.Range{{Offset: sector, Length: 4096}}},
		"once more, and others": {text: "I/O error, dev vda, sector 4711 op 0x1:(WRITE)\nBuffer I/O error on dev vda2, " +
			"logical block 7, async page read\n\nI/O error, dev vda, sector 4719 op 0x1:(WRITE)\n",
			others: 1, want: []finding.Range{{Offset: sector, Length: 8192}}},
		"ranges":       {text: "0x1000+512\n 0-511 \n7\n", want: []finding.Range{{Length: 512}, {Offset: 4096, Length: 512}}},
		"nothing":      {text: "all is well\n", others: 1},
		"half a range": {text: "0x1000+\n", others: 1},
		"two disks":    {text: "I/O error, dev vda, sector 8\nI/O error, dev vdb, sector 16\n", bad: true},
		"one of two": {text: "I/O error, dev vda, sector 8\nI/O error, dev vdb, sector 16\n", dev: "vdb",
			others: 1, want: []finding.Range{{Offset: 8192, Length: 4096}}},
		"no such disk": {text: "I/O error, dev vda, sector 99999999999999999999\n", bad: true},
		"a long line":  {text: strings.Repeat("x", 1<<20), bad: true},
	} {
		got, others, err := rangesFrom(strings.NewReader(tc.text), tc.dev)
		if (err != nil) != tc.bad || err == nil && others != tc.others || err == nil && !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, %d, %v; want %v", name, got, others, err, tc.want)
		}
	}
}
