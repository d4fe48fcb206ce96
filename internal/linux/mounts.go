// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMountBytes bounds the list of mounts that is read: a host of containers has thousands.
const maxMountBytes = 64 << 20

// LocalLocks tells of a network file system, by its device number, that keeps the locks of files on
// this host, so that other hosts do not see them: an NFS mounted with nolock or local_lock (nfs(5)),
// an SMB share mounted with nobrl (mount.cifs(8)), a GFS2 with localflocks (gfs2(5)), a Lustre with
// localflock (mount.lustre(8)), and sshfs, whose protocol has no locks. why names the option; "" where
// locks go to the server, and for all other file systems.
func (h *Host) LocalLocks(dev uint64) (why string, err error) {
	raw, err := readSome(h.root+"/proc/self/mountinfo", maxMountBytes)
	if err != nil {
		return "", err
	}
	want := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	for line := range bytes.Lines(raw) {
		// 36 35 0:52 / /mnt rw,relatime shared:1 - nfs server:/export rw,vers=3,nolock (proc(5))
		head, tail, ok := strings.Cut(string(line), " - ")
		mount, fs := strings.Fields(head), strings.Fields(tail)
		if !ok || len(mount) < 6 || len(fs) < 3 || mount[2] != want {
			continue
		}
		local := map[string][]string{
			"nfs": {"nolock", "local_lock=all", "local_lock=posix"}, "cifs": {"nobrl"}, "smb3": {"nobrl"},
			"gfs2": {"localflocks"}, "lustre": {"localflock"},
		}[fs[0]]
		if fs[0] == "fuse.sshfs" {
			return "sshfs", nil
		}
		for _, option := range strings.Split(fs[2], ",") {
			if slices.Contains(local, option) {
				return fs[0] + " mounted with " + option, nil
			}
		}
	}
	return "", nil
}
