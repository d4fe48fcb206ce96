// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
)

// A T is the part of testing.T that RequireUnchanged needs.
type T interface {
	Helper()
	Errorf(format string, args ...any)
	Cleanup(func())
}

// RequireUnchanged makes the test fail if, at its end, the bytes, length or modification time of
// the files are not what they are now.
func RequireUnchanged(t T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		before, err := digest(path)
		if err != nil {
			t.Errorf("digest before the test: %v", err)
			continue
		}
		t.Cleanup(func() {
			after, err := digest(path)
			if err != nil {
				t.Errorf("digest after the test: %v", err)
			} else if after != before {
				t.Errorf("%s was changed: %s, want %s", path, after, before)
			}
		})
	}
}

// digestBlock is what a digest tells apart: no file system has finer holes.
const digestBlock = 4096

// digest is over the length, the modification time, and all blocks that are not zero, with their
// places. It reads only what the file system says is data; where that begins and ends is not part
// of the digest, for it changes when the kernel writes a file back.
func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d %d\n", st.Size(), st.ModTime().UnixNano())
	buf, zero, done := make([]byte, 64*digestBlock), make([]byte, digestBlock), int64(0)
	err = dataRanges(f, st.Size(), func(off, length int64) error {
		end := off + length
		for off = max(off&^(digestBlock-1), done); off < end; off = done {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), (end-off+digestBlock-1)&^(digestBlock-1))], off)
			if err != nil && err != io.EOF {
				return err
			}
			if n == 0 {
				return io.ErrUnexpectedEOF // it became shorter
			}
			for i := 0; i < n; i += digestBlock {
				if block := buf[i:min(i+digestBlock, n)]; !bytes.Equal(block, zero[:len(block)]) {
					fmt.Fprintf(h, "%d\n", off+int64(i))
					h.Write(block)
				}
			}
			done = (off + int64(n) + digestBlock - 1) &^ (digestBlock - 1)
		}
		return nil
	})
	return hex.EncodeToString(h.Sum(nil)), err
}
