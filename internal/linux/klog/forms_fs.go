// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package klog

import "github.com/shisa-vm/shisa/internal/finding"

const (
	lost    = finding.Lost
	danger  = finding.Danger
	warning = finding.Warning
	note    = finding.Note
)

func form(name string, severity finding.Severity, patterns ...string) Form {
	return Form{name, severity, patterns}
}

// ext4Forms are those of fs/ext4, fs/jbd2 and fs/buffer.c, and of the older ext2 and ext3.
func ext4Forms() []Form {
	return []Form{
		form("ext4.abort", danger, "Aborting journal on device {device^}."),
		form("ext4.error", danger,
			"EXT4-fs error (device {device}): {function}:{line#}:< inode #{inode#}:>< block {block#}:>"+
				"< comm {comm~}:>< path {path~}:> {text~}",
			"EXT4-fs error (device {device}) in {function}:{line#}: {text~}",
			"EXT4-fs error (device {device}): {text~}",
			"EXT3-fs error (device {device}): {function}: {text~}",
			"EXT3-fs error (device {device}) in {function}: {text~}",
			"EXT2-fs ({device}): error: {function}: {text~}"),
		form("ext4.ro", danger,
			"EXT4-fs ({device}): Remounting filesystem read-only",
			"EXT3-fs ({device}): error: remounting filesystem read-only",
			"EXT2-fs ({device}): error: remounting filesystem read-only"),
		form("ext4.sbwrite", danger,
			"EXT4-fs ({device}): I/O error while writing superblock",
			"EXT4-fs ({device}): previous I/O error to superblock detected",
			"EXT3-fs ({device}): error: I/O error while writing superblock"),
		form("ext4.dataloss", lost,
			"EXT4-fs ({device}): failed to convert unwritten extents to written extents -- potential data "+
				"loss!  (inode {inode#},< offset {offset#}, size {size#},> error {errno#})",
			"EXT4-fs ({device}): error restoring inline_data for inode -- potential data loss! "+
				"(inode {inode#}, error {errno#})"),
		form("ext4.delalloc", lost,
			"EXT4-fs ({device}): Delayed block allocation failed for inode {inode#} at logical offset "+
				"{block#} with max blocks {blocks#} with error {errno#}",
			"EXT4-fs ({device}): This should not happen!! Data will be lost"),
		form("ext4.endbio", lost,
			"EXT4-fs warning (device {device}): ext4_end_bio:{line#}: I/O error {errno#} writing to inode "+
				"{inode#} (offset {offset#} size {size#} starting block {block#})",
			"EXT4-fs warning (device {device}): ext4_end_bio:{line#}: I/O error {errno#} writing to inode "+
				"{inode#} starting block {block#})"),
		form("ext4.count", note, "EXT4-fs ({device}): error count since last fsck: {count#}"),
		form("ext4.first", note, "EXT4-fs ({device}): initial error at time {time#}: {function}:{line#}"+
			"<: inode {inode#}><: block {block#}>"),
		form("ext4.last", note, "EXT4-fs ({device}): last error at time {time#}: {function}:{line#}"+
			"<: inode {inode#}><: block {block#}>"),
		form("ext4.warning", warning,
			"EXT4-fs warning (device {device}): {function}:{line#}:< inode #{inode#}:>< comm {comm~}:> {text~}"),
		form("ext4.unclean", warning,
			"EXT4-fs ({device}): warning: mounting fs with errors, running e2fsck is recommended",
			"EXT4-fs ({device}): warning: mounting unchecked fs, running e2fsck is recommended"),
		form("ext4.mountfail", warning,
			"EXT4-fs ({device}): error loading journal",
			"EXT4-fs ({device}): no journal found",
			"EXT4-fs ({device}): unable to read superblock",
			"EXT4-fs ({device}): bad geometry: {text~}",
			"EXT4-fs ({device}): VFS: {text~}"),
		form("ext4.shutdown", note, "EXT4-fs ({device}): shut down requested ({mode#})"),
		form("ext4.recovered", note, "EXT4-fs ({device}): recovery complete"),
		form("ext4.mounted", note,
			"EXT4-fs ({device}): mounted filesystem {uuid} {mode} with{text~}",
			"EXT4-fs ({device}): mounted filesystem {uuid} with{text~}", // 6.2
			"EXT4-fs ({device}): mounted filesystem with{text~}"),
		form("ext4.remounted", note, "EXT4-fs ({device}): re-mounted{text~}"),
		form("ext4.unmounted", note, "EXT4-fs ({device}): unmounting filesystem< {uuid}>."),
		form("ext4.note", note, "EXT4-fs ({device}): {text~}", "EXT3-fs ({device}): {text~}",
			"EXT2-fs ({device}): {text~}"),
		form("jbd2.sb", danger,
			"JBD2: I/O error when updating journal superblock for {device^}.",
			"JBD2: Error {errno#} detected when updating journal superblock for {device^}.",
			"JBD2: previous I/O error detected for journal superblock update for {device^}."),
		form("jbd2.flush", danger, "JBD2: Detected IO errors< {errno#}> while flushing file data on {device^}"),
		form("jbd2.dirty", warning, "JBD2: Spotted dirty metadata buffer (dev = {device}, blocknr = {block#}). "+
			"There's a risk of filesystem corruption in case of system crash."),
		form("jbd2.recovery", warning,
			"JBD2: recovery failed", "JBD2: journal recovery failed", "JBD2: journal checksum error",
			"JBD2: IO error {errno#} recovering block {block#} in log", "JBD2: Invalid checksum {text~}"),
		form("buf.io", warning,
			"Buffer I/O error on dev {device}, logical block {block#}<, {text~}>",
			"Buffer I/O error on device {device}, logical block {block#}<, {text~}>",
			"lost page write due to I/O error on {device}"),
	}
}

// xfsForms are those of fs/xfs and fs/iomap.
func xfsForms() []Form {
	return []Form{
		form("xfs.user", note,
			"XFS ({device}): User initiated shutdown received.< Shutting down filesystem>",
			"XFS ({device}): {reason~} ({flags}) detected at xfs_fs_goingdown{~} ({file}:{line#}).  "+
				"Shutting down filesystem."),
		form("xfs.shutdown", danger,
			"XFS ({device}): {reason~} ({flags}) detected at {where~} ({file}:{line#}).  "+
				"Shutting down filesystem.",
			"XFS ({device}): Filesystem has been shut down due to {reason~} ({flags}).",
			"XFS ({device}): {reason~}  Shutting down filesystem",
			"XFS ({device}): {reason~} Shutting down filesystem"),
		form("xfs.force", note, "XFS ({device}): xfs_do_force_shutdown({flags}) called from line {line#} "+
			"of file {file}.  Return address = {address}"),
		form("xfs.rectify", note,
			"XFS ({device}): Please unmount the filesystem and rectify the problem(s)<.>",
			"XFS ({device}): Please umount the filesystem and rectify the problem(s)"),
		form("xfs.logio", danger, "XFS ({device}): log I/O error {errno#}"),
		form("xfs.metaio", warning,
			`XFS ({device}): metadata I/O error in "{function~}" at daddr {daddr} len {length#} error {errno#}`,
			`XFS ({device}): metadata I/O error: block {daddr} ("{function~}") error {errno#} numblks {length#}`),
		form("xfs.retry", warning,
			"XFS ({device}): Failing async write on buffer block {daddr}. Retrying async write."),
		form("xfs.permanent", danger,
			"XFS ({device}): Corruption Alert: Buffer at daddr {daddr} had permanent write failures!",
			"XFS ({device}): Corruption Alert: Buffer at block {daddr} had permanent write failures!"),
		form("xfs.corrupt", danger,
			"XFS ({device}): Corruption detected. Unmount and run xfs_repair",
			"XFS ({device}): Metadata corruption detected at {where~}, {text~}",
			"XFS ({device}): Metadata CRC error detected at {where~}, {text~}",
			"XFS ({device}): Corruption warning: {text~}",
			"XFS ({device}): Internal error {text~} at line {line#} of file {file}.  Caller {where~}"),
		form("xfs.repair", note, "XFS ({device}): Unmount and run xfs_repair"),
		form("xfs.writeback", lost,
			"{device}: writeback error on inode {inode#}, offset {offset#}, sector {sector#}",
			"XFS ({device}): writeback error on inode {inode#}, offset {offset#}, sector {sector#}",
			"XFS ({device}): writeback error on sector {sector#}"),
		form("xfs.memory", warning,
			"XFS: {comm*}({pid#}) possible memory allocation deadlock {text~}"),
		form("xfs.mounted", note,
			"XFS ({device}): Mounting V{version#} {text~}", "XFS ({device}): Ending clean mount",
			"XFS ({device}): Ending recovery (logdev: {logdev})"),
		form("xfs.recovering", note, "XFS ({device}): Starting recovery (logdev: {logdev})"),
		form("xfs.unmounted", note, "XFS ({device}): Unmounting Filesystem< {uuid}>"),
		form("xfs.note", note, "XFS ({device}): {text~}"),
	}
}

// btrfsForms are those of fs/btrfs.
func btrfsForms() []Form {
	// Kernels before 6.3 have a colon before the state.
	const dev = " (device {device}<:>< state {state}>)"
	return []Form{
		form("btrfs.ro", danger, "BTRFS info"+dev+": forced readonly", "BTRFS: info"+dev+": forced readonly"),
		form("btrfs.abort", danger,
			"BTRFS error"+dev+": Transaction aborted (error {errno#})",
			"BTRFS: Transaction aborted (error {errno#})",
			"BTRFS warning"+dev+": Skipping commit of aborted transaction."),
		form("btrfs.error", danger,
			"BTRFS: error"+dev+" in {function}:{line#}: errno={errno#} {text~}",
			"BTRFS error"+dev+" in {function}:{line#}: errno={errno#} {text~}"),
		form("btrfs.dev", warning,
			"BTRFS error (device {filesystem}<:>< state {state}>): bdev {device} errs: wr {write#}, rd {read#}, "+
				"flush {flush#}, corrupt {corrupt#}, gen {gen#}",
			"BTRFS: bdev {device} errs: wr {write#}, rd {read#}, flush {flush#}, corrupt {corrupt#}, gen {gen#}"),
		form("btrfs.stats", note,
			"BTRFS info (device {filesystem}<:>< state {state}>): bdev {device} errs: wr {write#}, rd {read#}, "+
				"flush {flush#}, corrupt {corrupt#}, gen {gen#}"),
		form("btrfs.csum", danger,
			"BTRFS warning"+dev+": csum failed root {root#} ino {inode#} off {offset#} {text~}",
			"BTRFS info"+dev+": csum failed ino {inode#} off {offset#} csum {text~}",
			"BTRFS warning"+dev+": csum failed ino {inode#} off {offset#} csum {text~}"),
		form("btrfs.lostwrite", warning,
			"BTRFS warning"+dev+": lost page write due to IO error on {path}< ({errno#})>"),
		form("btrfs.corrupt", danger,
			"BTRFS critical"+dev+": corrupt {text~}",
			"BTRFS error"+dev+": parent transid verify failed on {text~}",
			"BTRFS error"+dev+": bad tree block {text~}",
			"BTRFS warning"+dev+": checksum verify failed on {text~}",
			"BTRFS warning"+dev+": {member} checksum verify failed on {text~}"),
		form("btrfs.mountfail", warning, "BTRFS error"+dev+": open_ctree failed<: {errno#}>",
			"BTRFS: open_ctree failed"),
		form("btrfs.mounted", note, "BTRFS info (device {device}): first mount of filesystem {uuid}"),
		form("btrfs.unmounted", note, "BTRFS info"+dev+": last unmount of filesystem {uuid}"),
		form("btrfs.fault", warning, "BTRFS error"+dev+": {text~}", "BTRFS critical"+dev+": {text~}",
			"BTRFS warning"+dev+": {text~}"),
		form("btrfs.note", note, "BTRFS info"+dev+": {text~}",
			"BTRFS: device {how} {id} devid {devid#} transid {transid#} {device}< {text~}>"),
	}
}

// clusterForms are those of fs/gfs2 and fs/dlm. Kernels up to 3.10 write the first letters large, some
// messages of later ones do both.
func clusterForms() []Form {
	both := func(name string, severity finding.Severity, texts ...string) Form {
		f := Form{Name: name, Severity: severity}
		for _, t := range texts {
			f.Patterns = append(f.Patterns, "GFS2: fsid={device}: "+t, "gfs2: fsid={device}: "+t)
		}
		return f
	}
	return []Form{
		both("gfs2.withdraw", danger,
			"about to withdraw this file system", "withdrawn", "File system withdrawn",
			"telling LM to unmount",
			"<GFS2: fsid={~}: >error {errno#}: withdrawing the file system to prevent further damage."),
		both("gfs2.fatal", danger, "fatal: {text~}", "fatal assertion failed"),
		both("gfs2.journal", danger, "Error {errno#} writing to journal, jid={journal#}"),
		both("gfs2.recovery", note, "jid={journal#}: {text~}"),
		both("gfs2.note", note, "{text~}"),
		form("dlm.node", note, "dlm: closing connection to node {node#}"),
		form("dlm.note", note, "dlm: {lockspace}: {text~}", "dlm: {text~}"),
	}
}
