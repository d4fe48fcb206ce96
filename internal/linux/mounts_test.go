// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLocalLocks(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "proc/self"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(root).LocalLocks(1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LocalLocks without a list of mounts = %v, want %v", err, fs.ErrNotExist)
	}
	const mounts = `21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
40 21 0:50 / /a\040b rw,relatime shared:2 - nfs srv:/a rw,vers=3,hard,nolock,proto=tcp,local_lock=all,addr=10.0.0.1
41 21 0:51 / /b rw - nfs srv:/b rw,vers=3,hard,proto=tcp,local_lock=none,addr=10.0.0.1
42 21 0:52 / /c rw - nfs srv:/c rw,vers=3,local_lock=posix
43 21 0:53 / /d rw - nfs srv:/d rw,vers=3,local_lock=flock
44 21 0:54 / /e rw - nfs4 srv:/e rw,vers=4.2,local_lock=none
45 21 0:55 / /f rw - cifs //srv/f rw,vers=3.1.1,nobrl
46 21 0:56 / /g rw - ext4 /dev/x rw,nolock
47 21 0:57 / /h rw - gfs2 /dev/y rw,localflocks
48 21 0:58 / /i rw - gfs2 /dev/z rw,acl
49 21 0:59 / /j rw - fuse.sshfs srv:/j rw,user_id=0
50 21 0:60 / /k rw - lustre 10.0.0.1@tcp:/k rw,localflock
a line that is none
`
	if err := os.WriteFile(filepath.Join(root, "proc/self/mountinfo"), []byte(mounts), 0o600); err != nil {
		t.Fatal(err)
	}
	for minor, want := range map[uint32]string{
		50: "nfs mounted with nolock", 51: "", 52: "nfs mounted with local_lock=posix", 53: "", 54: "",
		55: "cifs mounted with nobrl", 56: "", 99: "", 57: "gfs2 mounted with localflocks", 58: "",
		59: "sshfs", 60: "lustre mounted with localflock",
	} {
		if got, err := Open(root).LocalLocks(unix.Mkdev(0, minor)); got != want || err != nil {
			t.Errorf("LocalLocks(0:%d) = %q, %v, want %q", minor, got, err, want)
		}
	}
	if got, err := Open("").LocalLocks(1 << 40); got != "" || err != nil {
		t.Errorf("LocalLocks of the machine = %q, %v", got, err)
	}
}
