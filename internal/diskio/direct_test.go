// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// Past the page cache every read gives what it gives through it, whatever its alignment.
func TestOpenDirect(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, 3<<20+777)
	for i := range want {
		want[i] = byte(rnd.Uint32())
	}
	path := filepath.Join(testenv.DiskDir(t), "x")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	diskio.RequireUnchanged(t, path)
	f, err := diskio.OpenDirect(path)
	if errors.Is(err, unix.EINVAL) {
		testenv.Lacks(t, "a file system with O_DIRECT")
	} else if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 300 {
		off := rnd.IntN(len(want) + 10000)
		p := make([]byte, rnd.IntN(2<<20))
		if rnd.IntN(2) == 0 {
			off, p = off&^4095, p[:len(p)&^4095]
		}
		n, err := f.ReadAt(p, int64(off))
		rest := want[min(off, len(want)):]
		if len(rest) < len(p) && !errors.Is(err, io.EOF) || len(rest) >= len(p) && err != nil {
			t.Fatalf("ReadAt(%d bytes, %d) = %v", len(p), off, err)
		}
		if n != min(len(rest), len(p)) || !bytes.Equal(p[:n], rest[:n]) {
			t.Fatalf("ReadAt(%d bytes, %d) = %d bytes, want %d equal ones", len(p), off, n, min(len(rest), len(p)))
		}
	}
}
