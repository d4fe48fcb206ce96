// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
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

// digest reads only the data of a sparse file: its holes are part of the digest by their place.
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
	err = dataRanges(f, st.Size(), func(off, length int64) error {
		fmt.Fprintf(h, "%d\n", off)
		_, err := io.Copy(h, io.NewSectionReader(f, off, length))
		return err
	})
	return hex.EncodeToString(h.Sum(nil)), err
}
