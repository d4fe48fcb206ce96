// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// entry is a line of /proc/self/mountinfo, proc(5).
type entry struct {
	device string // "0:52"
	dir    string
	kind   string // "fuse.shisa"
}

// mounts lists what is mounted in this namespace, what was mounted last behind what it lies on.
func mounts() ([]entry, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []entry
	for line := range bytes.Lines(text) {
		// 36 35 0:52 / /mnt ro,nosuid shared:1 - fuse.shisa vm.qcow2 ro,user_id=0 (proc(5))
		head, tail, ok := strings.Cut(string(line), " - ")
		left, right := strings.Fields(head), strings.Fields(tail)
		if !ok || len(left) < 5 || len(right) < 1 {
			return nil, fmt.Errorf("/proc/self/mountinfo has the line %q", line)
		}
		all = append(all, entry{device: left[2], dir: decoded(left[4]), kind: right[0]})
	}
	return all, nil
}

// decoded puts back the bytes that the kernel writes as three octal digits.
func decoded(text string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(text)
}

// device writes the number of a device as mountinfo does.
func device(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// unmount takes a mount away; lazily also if it is in use.
func unmount(dir string, lazily bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazily {
			flags |= unix.MNT_DETACH
		}
		return unix.Unmount(dir, flags)
	}
	args := []string{"-u"}
	if lazily {
		args = append(args, "-z")
	}
	program, err := exec.LookPath("fusermount3")
	if err != nil {
		program = "/bin/fusermount3" // as when it mounted
	}
	out, err := exec.Command(program, append(args, "--", dir)...).CombinedOutput()
	switch text := strings.TrimSpace(string(out)); {
	case err == nil:
		return nil
	case strings.Contains(text, "busy"):
		return unix.EBUSY
	case text != "":
		return errors.New(text)
	}
	return fmt.Errorf("fusermount3: %w", err)
}

// notMounted reports whether an error of unmount says that nothing is mounted there.
func notMounted(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) ||
		strings.Contains(err.Error(), "not found in")
}
