// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// Only what says that there are no locks is ErrNoLocks, which a user may accept: storage that fails
// is none.
func TestLockError(t *testing.T) {
	for errno, want := range map[error]bool{
		unix.ENOLCK: true, unix.EINVAL: true, unix.EOPNOTSUPP: true, unix.ENOSYS: true,
		unix.EIO: false, unix.ESTALE: false, unix.EBADF: false, unix.ETIMEDOUT: false,
	} {
		err := lockError(fmt.Errorf("lock: %w", errno))
		if errors.Is(err, ErrNoLocks) != want || !errors.Is(err, errno) {
			t.Errorf("lockError(%v) = %v, is ErrNoLocks: %v, want %v", errno, err, !want, want)
		}
	}
}
