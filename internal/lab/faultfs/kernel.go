// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settling is how long a mount may be busy for others' sake: who looks at it holds it for
// microseconds, or until it has a processor again.
const settling = time.Minute

// until waits for something to become so.
func until(so func() (bool, error)) error {
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		ok, err := so()
		if ok || err != nil {
			return err
		}
		if time.Now().After(end) {
			return errors.New("waited in vain")
		}
	}
}

// takeDown unmounts all that is mounted at a directory, by force if it must.
func takeDown(at string) error {
	for end := time.Now().Add(settling); ; time.Sleep(time.Millisecond) {
		err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == unix.EINVAL || err == unix.ENOENT:
			return nil // nothing is mounted there any more
		case err == unix.EBUSY && time.Now().Before(end):
		case err != nil:
			return errors.Join(fmt.Errorf("unmount %s: %w", at, err),
				unix.Unmount(at, unix.UMOUNT_NOFOLLOW|unix.MNT_FORCE|unix.MNT_DETACH))
		}
	}
}

// stopped tells whether all threads of a process are.
func stopped(pid int) (bool, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return false, err
	}
	for _, task := range tasks {
		state, err := stateOf(task)
		if err != nil && !errors.Is(err, os.ErrNotExist) || err == nil && state != 'T' {
			return false, err
		}
	}
	return len(tasks) > 0, nil
}

// stateOf is the letter of a task's state: the third word of proc(5), /proc/pid/stat.
func stateOf(task string) (byte, error) {
	text, err := os.ReadFile(task + "/stat")
	if err != nil {
		return 0, err
	}
	i := strings.LastIndexByte(string(text), ')') // a name may have anything in it
	if i < 0 || i+2 >= len(text) {
		return 0, fmt.Errorf("%s/stat is %.80q", task, text)
	}
	return text[i+2], nil
}
