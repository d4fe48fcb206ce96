// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"slices"
	"strings"
)

// MayHang tells of a type of file system, as mountinfo has it, that it may wait for ever for somebody
// else's answer: another machine, a cluster, a process. why names that; it is "" for file systems that
// wait for devices alone, and for those in memory.
func MayHang(fsType string) (why string) {
	switch {
	case fsType == "autofs":
		return "an automounter"
	case fsType == "fuse" || fsType == "fuseblk" || strings.HasPrefix(fsType, "fuse."):
		return "a process (FUSE)"
	case strings.HasPrefix(fsType, "nfs") && fsType != "nfsd":
		return "a server"
	case slices.Contains([]string{"cifs", "smb3", "smbfs", "9p", "virtiofs", "afs", "coda", "ncpfs", "vboxsf",
		"vmhgfs", "prl_fs"}, fsType):
		return "a server"
	case slices.Contains([]string{"gfs", "gfs2", "ocfs2", "ceph", "lustre", "glusterfs", "orangefs", "beegfs",
		"gpfs", "panfs", "mvfs"}, fsType):
		return "a cluster"
	}
	return ""
}
