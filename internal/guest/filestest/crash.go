// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/guest/busy"
)

// Crash makes a file system of a kind and takes copies of its disk while programs change what is in
// it, as a power cut would leave it. For each it calls judge with the name of the copy, and with
// what the kernel makes of a copy of that after its own replay.
func Crash(t testing.TB, kind string, sizeBytes int64, mkfs []string, copies int, seed uint64,
	judge func(copyOfDisk string, kernel Tree),
) {
	t.Helper()
	outside := CloneDir(t, 4*sizeBytes+(1<<30))
	disk := Make(t, outside, sizeBytes, mkfs...)
	dir, unmount := Mount(t, disk, kind)
	var (
		stop    = make(chan struct{})
		workers sync.WaitGroup
		failed  = make(chan error, 2)
	)
	for n := range uint64(2) {
		own := filepath.Join(dir, fmt.Sprintf("worker%d", n))
		workers.Go(func() { failed <- busy.Change(own, rand.New(rand.NewPCG(seed, n)), stop) })
	}
	rng := rand.New(rand.NewPCG(seed, 99))
	names := make([]string, copies)
	for i := range names {
		time.Sleep(time.Duration(20+rng.IntN(180)) * time.Millisecond)
		names[i] = filepath.Join(outside, fmt.Sprintf("copy%d", i))
		Clone(t, disk, names[i])
	}
	close(stop)
	workers.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			t.Fatal(err)
		}
	}
	unmount()
	for _, name := range names {
		judge(name, replayed(t, name, kind))
	}
}

// replayed is what the kernel shows of a copy of a disk.
func replayed(t testing.TB, disk, kind string) Tree {
	t.Helper()
	second := disk + ".kernel"
	Clone(t, disk, second)
	var options []string
	if kind == "xfs" {
		// The mount of another copy may live on for a moment, in somebody's namespace.
		options = append(options, "nouuid")
	}
	dir, unmount := Mount(t, second, kind, options...)
	tree := ReadMounted(t, dir)
	unmount()
	if err := os.Remove(second); err != nil {
		t.Fatal(err)
	}
	return tree
}
