// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

// Kind names what fills a volume, or the kind of a partition table. Names are those of blkid
// where it has one.
type Kind string

// The kinds that the program has a reader for, or that are treated apart from others.
const (
	Ext2  Kind = "ext2"
	Ext3  Kind = "ext3"
	Ext4  Kind = "ext4"
	XFS   Kind = "xfs"
	Btrfs Kind = "btrfs"
	// Empty: all of it was read and is zeros. Unknown: nothing is recognised, or it could not be read.
	Empty   Kind = "empty"
	Unknown Kind = "unknown"
	// Extended is the partition that holds the logical ones, BIOSBoot one for a boot loader.
	Extended   Kind = "extended"
	BIOSBoot   Kind = "bios_boot"
	Swap       Kind = "swap"
	LUKS       Kind = "crypto_LUKS"
	LVM2Member Kind = "LVM2_member"
	RAIDMember Kind = "linux_raid_member"
	// Journal is the journal of an ext3 or ext4 file system that lies elsewhere.
	Journal Kind = "jbd"
	// NotRead is an array, or a logical volume, of a kind that is not read.
	NotRead Kind = "not_read"
	VFAT    Kind = "vfat"
	ExFAT   Kind = "exfat"
	NTFS    Kind = "ntfs"
	ZFS     Kind = "zfs_member"

	bitLocker Kind = "BitLocker"
	refs      Kind = "ReFS"
)

// The kinds of partition tables.
const (
	GPT        Kind = "gpt"
	MBR        Kind = "dos"
	tabBSD     Kind = "bsd"
	tabSun     Kind = "sun"
	tabSGI     Kind = "sgi"
	tabMac     Kind = "mac"
	tabAIX     Kind = "aix"
	tabSolaris Kind = "solaris"
	tabLDM     Kind = "ldm"
)

// boot tells whether the first sector of k ends like an MBR and is none.
func (k Kind) boot() bool {
	return k == VFAT || k == ExFAT || k == NTFS || k == bitLocker || k == refs
}

// notExamined says why what is in a volume of kind k is not read, "" if it is.
func (k Kind) notExamined(version string) string {
	switch k {
	case Ext2, Ext3, Ext4, XFS, LVM2Member, RAIDMember, Empty, Extended, BIOSBoot, Swap:
		return ""
	case LUKS:
		return "encrypted (LUKS" + version + "): not read"
	case bitLocker:
		return "encrypted (BitLocker): not read"
	case Journal:
		return "the journal of a file system that is elsewhere: not read"
	case Unknown:
		return "nothing that is known begins here"
	}
	return string(k) + ": recognised, not read"
}
