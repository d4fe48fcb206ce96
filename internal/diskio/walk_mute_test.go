// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A name that does not answer is blind, and those beside it are looked at all the same; a directory
// full of them is given up. Slow names are waited for. The clock is one that goes on only while all
// wait, so that how long the walk waited is known exactly.
func TestWalkMuteNames(t *testing.T) {
	const timeout = 100 * time.Millisecond
	for _, tc := range []struct {
		name        string
		mute        int // names that do not answer
		slow        time.Duration
		files, lost int
		most        time.Duration // of waiting
	}{
		{"one", 1, 0, 20, 1, timeout},
		{"slow", 0, timeout - 1, 20, 0, 20 * (timeout - 1)},
		{"as many as are waited for", maxMute, 0, -1, -1, maxMute * timeout},
		{"many", 3 * maxMute, 0, -1, -1, maxMute * timeout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for i := range 20 {
				err := os.WriteFile(fmt.Sprintf("%s/file-%d", dir, i), nil, 0o600)
				if err != nil {
					t.Fatal(err)
				}
			}
			for i := range tc.mute {
				if err := os.WriteFile(fmt.Sprintf("%s/mute-%d", dir, i), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Test(t, func(t *testing.T) {
				files, lost := 0, 0
				w := NewWalker(timeout, func(kind WalkKind, path string, _ Stat, err error) error {
					switch kind {
					case WalkFile:
						files++
					case WalkBlind:
						lost++
						if !errors.Is(err, ErrTimeout) {
							t.Errorf("%s is blind by %v, want %v", filepath.Base(path), err, ErrTimeout)
						}
					}
					return nil
				})
				hang := make(chan struct{})
				w.lookAt = func(d *os.File, name string) walkName {
					time.Sleep(tc.slow)
					if strings.HasPrefix(name, "mute") {
						<-hang
					}
					return lookAt(d, name)
				}
				start := time.Now()
				if err := w.Walk(t.Context(), dir); err != nil {
					t.Fatal(err)
				}
				took := time.Since(start)
				close(hang)
				if files+lost != 20+tc.mute || lost < tc.mute {
					t.Errorf("Walk = %d files, %d blind, want %d in all", files, lost, 20+tc.mute)
				}
				if tc.files >= 0 && !cmp.Equal([]int{files, lost}, []int{tc.files, tc.lost}) {
					t.Errorf("Walk = %d files, %d blind, want %d, %d", files, lost, tc.files, tc.lost)
				}
				if took > tc.most {
					t.Errorf("Walk waited for %v, want %v at most", took, tc.most)
				}
			})
		})
	}
}
