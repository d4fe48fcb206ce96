// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package code

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// smaps is what the kernel says of a program whose linker data was relocated, as far as it counts.
const smaps = `00400000-0048b000 r-xp 00000000 fe:00 10569496    /usr/bin/some program
Size:                556 kB
Rss:                 556 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
0048b000-0054f000 r--p 0008b000 fe:00 10569496    /usr/bin/some program
Size:                784 kB
Anonymous:             0 kB
0054f000-00550000 r--p 0014f000 fe:00 10569496    /usr/bin/some program
Size:                  4 kB
Anonymous:             4 kB
0054f000-00558000 rw-p 0014f000 fe:00 10569496    /usr/bin/some program
Anonymous:             0 kB
00558000-0055a000 r-xs 0014f000 fe:00 10569496    /usr/bin/some program
Anonymous:             0 kB
7f829d618000-7f829d619000 r--p 00000000 00:00 0
Anonymous:             0 kB
7f82b03b6000-7f82b03b8000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
zz-yy r-xp 00000000 fe:00 1    /usr/bin/x
Anonymous:             0 kB
`

func TestMain(m *testing.M) { testenv.Main(m) }

// some are the mappings that are there.
func some(list [maxMappings]mapping) []mapping {
	return slices.DeleteFunc(slices.Clone(list[:]), func(m mapping) bool { return m.size == 0 })
}

func TestMappings(t *testing.T) {
	want := []mapping{{0x400000, 0x8b000}, {0x48b000, 0xc4000}}
	if got := some(mappings([]byte(smaps))); !slices.Equal(got, want) {
		t.Errorf("mappings = %x, want %x", got, want)
	}
	one := "00400000-0048b000 r-xp 00000000 fe:00 1 /x\nAnonymous: 0 kB\n"
	if got := some(mappings([]byte(strings.Repeat(one, 99)))); len(got) != maxMappings {
		t.Errorf("mappings = %x, want %d at most", got, maxMappings)
	}
	for _, text := range []string{"", "\n", "Anonymous: 0 kB\n", strings.Repeat("-", 99), "1-2", "1-2 r-xp"} {
		if got := some(mappings([]byte(text))); len(got) > 0 {
			t.Errorf("mappings of %q = %x, want nothing", text, got)
		}
	}
}

// TestTrim: less of the program is in memory, and it goes on as before.
func TestTrim(t *testing.T) {
	if len(some(cut)) == 0 {
		t.Fatal("no mapping was cut at the start")
	}
	before := fileMemory(t)
	Trim()
	after := fileMemory(t)
	if after >= before {
		t.Errorf("after Trim %d KiB of files are in memory, want less than the %d before", after, before)
	}
	if got := some(mappings([]byte(smaps))); len(got) != 2 {
		t.Errorf("mappings = %x after Trim, want two", got)
	}
}

func FuzzMappings(f *testing.F) {
	f.Add([]byte(smaps))
	f.Fuzz(func(_ *testing.T, b []byte) { mappings(b) })
}

// fileMemory gives the KiB of files in the memory of this process.
func fileMemory(t *testing.T) (kib int) {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	var rss, own int
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "Rss:"); ok {
			fmt.Sscan(rest, &rss)
		}
		if rest, ok := strings.CutPrefix(line, "Anonymous:"); ok {
			fmt.Sscan(rest, &own)
		}
	}
	if rss == 0 {
		t.Fatalf("no Rss in %q", raw)
	}
	return rss - own
}
