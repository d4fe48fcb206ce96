// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// BenchmarkScan asks about a mount that hangs, on a host with many processes.
func BenchmarkScan(b *testing.B) {
	testenv.Need(b, "sh", "sleep")
	const processes = 2000
	dir := mute(b)
	c := exec.Command("sh", "-c", fmt.Sprintf("for i in $(seq %d); do sleep 10000 & done; echo made; wait", processes))
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		// All of them are in the group of the shell.
		if err := syscall.Kill(-c.Process.Pid, syscall.SIGKILL); err != nil {
			b.Error(err)
		}
		c.Wait()
	}()
	if _, err := out.Read(make([]byte, 8)); err != nil {
		b.Fatal(err)
	}
	for name, h := range hosts(b) {
		b.Run(fmt.Sprintf("%s/processes=%d", name, processes), func(b *testing.B) {
			var worst time.Duration
			for b.Loop() {
				begin := time.Now()
				if _, _, err := ask(b.Context(), h, dir); err != nil {
					b.Fatal(err)
				}
				worst = max(worst, time.Since(begin))
			}
			b.ReportMetric(float64(worst.Milliseconds()), "ms/worst")
		})
	}
}
