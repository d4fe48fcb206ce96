// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"context"
	"os"
	"testing"
)

// BenchmarkLook looks at the pool that SHISA_BENCH_POOL names.
func BenchmarkLook(b *testing.B) {
	dir := os.Getenv("SHISA_BENCH_POOL")
	if dir == "" {
		b.Skip("no pool")
	}
	b.ReportAllocs()
	for b.Loop() {
		c, err := Look(context.Background(), Options{Pool: dir})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(c.Counts.Overlays), "overlays")
		b.ReportMetric(float64(len(c.Gaps)), "gaps")
		b.ReportMetric(float64(len(c.All)), "bases")
	}
}
