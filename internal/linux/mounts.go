// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"slices"
	"strings"
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
	mounts, _ := ParseMounts(raw) // a line that is none names no device
	for _, m := range mounts {
		if m.Dev != dev {
			continue
		}
		local := map[string][]string{
			"nfs": {"nolock", "local_lock=all", "local_lock=posix"}, "cifs": {"nobrl"}, "smb3": {"nobrl"},
			"gfs2": {"localflocks"}, "lustre": {"localflock"},
		}[m.Type]
		if m.Type == "fuse.sshfs" {
			return "sshfs", nil
		}
		for _, option := range strings.Split(m.Super, ",") {
			if slices.Contains(local, option) {
				return m.Type + " mounted with " + option, nil
			}
		}
	}
	return "", nil
}
