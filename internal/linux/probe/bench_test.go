// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"fmt"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// BenchmarkScan looks once at a machine with many processes: who refers to a file system that few
// have to do with, and who to the one that all programs are on. It gives CPU time beside wall time.
func BenchmarkScan(b *testing.B) {
	const processes = 2000
	testenv.NeedRoot(b)
	for range processes {
		c := exec.Command("sleep", "inf")
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		defer func() {
			c.Process.Kill()
			c.Wait()
		}()
	}
	dir := tmpfs(b)
	b.Run(fmt.Sprintf("processes=%d/open", processes), func(b *testing.B) {
		begin := cpu(b)
		for b.Loop() {
			r, err := OpenRefs()
			if err != nil {
				b.Fatal(err)
			}
			if err := r.Close(); err != nil {
				b.Fatal(err)
			}
		}
		reportCPU(b, begin)
	})
	r := openRefs(b)
	for name, point := range map[string]string{"idle": dir, "root": "/"} {
		m := find(b, r, point)
		b.Run(fmt.Sprintf("processes=%d/of=%s", processes, name), func(b *testing.B) {
			n := 0
			begin := cpu(b)
			for b.Loop() {
				if _, err := r.MountsOf(b.Context(), m.Super); err != nil {
					b.Fatal(err)
				}
				refs, err := r.References(b.Context(), m.Super)
				if err != nil {
					b.Fatal(err)
				}
				n = len(refs)
			}
			reportCPU(b, begin)
			b.ReportMetric(float64(n), "references")
		})
	}
}

// cpu is the CPU time of this process so far, with what the kernel did for it.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func reportCPU(b *testing.B, begin time.Duration) {
	b.ReportMetric(float64(cpu(b)-begin)/float64(time.Millisecond)/float64(b.N), "cpu-ms/op")
}
