// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"os"
	"testing"

	"github.com/shisa-vm/shisa/internal/linux/journal/journaltest"
)

// BenchmarkEntries reads 20,000 entries of each form, all of them and those of the kernel.
func BenchmarkEntries(b *testing.B) {
	for _, form := range journaltest.Forms() {
		path := made(b, form, journaltest.Stream{N: 20_000})
		for name, o := range map[string]Options{
			"all": {}, "kernel": {Match: []string{"_TRANSPORT=kernel"}, Fields: []string{"MESSAGE"}},
		} {
			b.Run("form="+form.Name+"/want="+name, func(b *testing.B) {
				b.ReportAllocs()
				file, err := os.Open(path)
				if err != nil {
					b.Fatal(err)
				}
				defer file.Close()
				st, err := file.Stat()
				if err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					f, err := Open(file, st.Size())
					if err != nil {
						b.Fatal(err)
					}
					n := 0
					if _, err := f.Entries(b.Context(), o, func(*Entry) error { n++; return nil }); err != nil || n < 6000 {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
}
