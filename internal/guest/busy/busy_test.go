// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package busy

import (
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestChange: files of several kinds come to be, and it ends when it is told to.
func TestChange(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "busy")
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- Change(dir, rand.New(rand.NewPCG(1, 2)), stop) }()
	kinds := map[fs.FileMode]int{}
	for try := 0; kinds[0] == 0 || kinds[fs.ModeDir] < 3 || kinds[fs.ModeSymlink] == 0; try++ {
		if try == 1000 {
			t.Errorf("of each kind there are %v", kinds)
			break
		}
		time.Sleep(10 * time.Millisecond)
		clear(kinds)
		// What goes while it is looked at is not counted.
		_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err == nil {
				kinds[d.Type()]++
			}
			return nil
		})
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestChangeNowhere(t *testing.T) {
	if err := Change("/nowhere/at/all", rand.New(rand.NewPCG(1, 2)), nil); err == nil {
		t.Error("Change of a directory that cannot be made succeeded")
	}
}
