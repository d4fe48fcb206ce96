// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux"
)

// A list of open files is used for ten times as long as it took, and says that it is not new.
func TestCensusShare(t *testing.T) {
	now, step := time.Unix(1000, 0), time.Duration(0)
	c := censor{host: linux.Open(t.TempDir()), now: func() time.Time {
		now = now.Add(step)
		return now
	}}
	ask := func(since time.Duration) (begun time.Time, fresh bool) {
		t.Helper()
		// The root has no /proc, which is an error each time.
		if _, fresh, err := c.at(t.Context(), now.Add(since)); err == nil {
			t.Fatal("at gives no error without /proc")
		} else {
			return c.begun, fresh
		}
		return
	}
	step = time.Second
	first, _ := ask(0) // takes a second
	step = 0
	now = now.Add(5 * time.Second)
	if begun, fresh := ask(0); begun != first || fresh {
		t.Errorf("at 5 s after a list that took 1 s = list of %v, fresh %v, want the first, not fresh", begun, fresh)
	}
	if begun, fresh := ask(-time.Hour); begun != first || !fresh {
		t.Errorf("at for a list of the last hour = list of %v, fresh %v, want the first, fresh", begun, fresh)
	}
	now = now.Add(5 * time.Second)
	if begun, fresh := ask(0); begun == first || !fresh {
		t.Errorf("at 11 s after a list that took 1 s = list of %v, fresh %v, want a new one", begun, fresh)
	}
}
