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
	"time"

	"github.com/google/go-cmp/cmp"
)

// A name that does not answer is blind, and those beside it are looked at all the same; a directory
// full of them is given up. Slow names are waited for.
func TestWalkMuteNames(t *testing.T) {
	for _, tc := range []struct {
		name        string
		mute        int // names that do not answer
		slow        time.Duration
		files, lost int
	}{
		{"one", 1, 0, 20, 1},
		{"slow", 0, 20 * time.Millisecond, 20, 0},
		{"as many as are waited for", maxMute, 0, -1, -1},
		{"many", 3 * maxMute, 0, -1, -1},
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
			files, lost := 0, 0
			w := NewWalker(100*time.Millisecond, func(kind WalkKind, path string, _ Stat, err error) error {
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
			if took > 5*time.Second {
				t.Errorf("Walk took %v", took)
			}
		})
	}
}
