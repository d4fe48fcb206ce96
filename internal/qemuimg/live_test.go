// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// A machine that writes all the time: what looks wrong is only on its way. qemu-img -U reports
// thousands of errors in such an image.
func testRunning(t *testing.T) {
	const size = 2 << 30
	out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "running.qcow2", fmt.Sprint(size)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	in := hold(t, "-f", "qcow2", "running.qcow2")
	stop := make(chan struct{})
	var writers sync.WaitGroup
	writers.Go(func() {
		rnd := rand.New(rand.NewPCG(1, 1))
		for {
			select {
			case <-stop:
				return
			default:
				fmt.Fprintf(in, "write -q %d 4k\n", rnd.Int64N(size/4096)*4096)
			}
		}
	})
	for range 5 {
		got := ours(t, "check", "-U", "running.qcow2")
		if got.Code != codeOK || got.Stderr != "" || !strings.HasPrefix(got.Stdout, "No errors were found on the image.\n") {
			t.Errorf("check -U of a running image = %+v, want no errors", got)
		}
	}
	close(stop)
	writers.Wait()
}
