// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"fmt"
	"strings"
)

// Signatures, at the places that blkid(8) of util-linux 2.40 knows (libblkid/src/superblocks),
// which is also where tools for each format put them. A magic number of two bytes counts only
// with more that must be so (the functions below).
//
// All lie in the first headBytes or the last tailBytes of a volume, and most in the first part of
// these, which is why that is read first.
const (
	quickHead = 68 << 10 // to the end of the superblock of btrfs
	quickTail = 132 << 10
	headBytes = 512 << 10 // both labels of ZFS, a reserve for LUKS2
	tailBytes = 768 << 10 // both labels of ZFS, which are aligned to 256 KiB
)

// ends is what was read of a volume: from its beginning and up to its end.
type ends struct {
	size       int64
	head, tail []byte
}

// at gives n bytes at off of the volume, nil if they were not read.
func (e *ends) at(off, n int64) []byte {
	if off >= 0 && n >= 0 && off+n <= int64(len(e.head)) {
		return e.head[off : off+n]
	}
	if in := off - (e.size - int64(len(e.tail))); in >= 0 && n >= 0 && in+n <= int64(len(e.tail)) {
		return e.tail[in : in+n]
	}
	return nil
}

// has tells whether a magic stands at off.
func (e *ends) has(off int64, magic string) bool {
	return string(e.at(off, int64(len(magic)))) == magic
}

// match is something that begins on a volume.
type match struct {
	kind                       Kind
	label, uuid, version, note string
	end                        bool // it stands at the end of the volume
}

// magic is a signature of a kind, with the places of label and UUID after the same base.
type magic struct {
	kind           Kind
	off            int64
	text           string
	uuid           int64 // offset of 16 bytes; 0: none
	label, labelTo int64 // offset and end of a text; 0: none
}

// magics lists the signatures that need no further look: those of what others build upon first.
func magics() []magic {
	const bcache = "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"
	return []magic{
		{"bcache", 4096 + 24, bcache, 4096 + 40, 4096 + 72, 4096 + 104},
		{"bcachefs", 4096 + 24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
			4096 + 56, 4096 + 72, 4096 + 104},
		{"stratis", 512 + 4, "!Stra0tis\x86\xff\x02^\x41rh", 0, 0, 0},
		{"stratis", 9*512 + 4, "!Stra0tis\x86\xff\x02^\x41rh", 0, 0, 0},
		{"vdo", 0, "dmvdo001", 0, 0, 0},
		{"LVM1_member", 0, "HM\x01\x00", 0, 0, 0},
		{"LVM1_member", 0, "HM\x02\x00", 0, 0, 0},
		{"DM_snapshot_cow", 0, "SnAp", 0, 0, 0},
		{"DM_verity_hash", 0, "verity\x00\x00", 0, 0, 0},
		{"DM_integrity", 0, "integrt\x00", 0, 0, 0},
		{"ceph_bluestore", 0, "bluestore block device", 0, 0, 0},
		{"oracleasm", 32, "ORCLDISK", 0, 72, 96},
		{bitLocker, 3, "-FVE-FS-", 0, 0, 0},
		{bitLocker, 424, "\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01", 0, 0, 0},
		{Btrfs, 65536 + 64, "_BHRfS_M", 65536 + 32, 65536 + 299, 65536 + 555},
		{XFS, 0, "XFSB", 32, 108, 120},
		{"f2fs", 1024, "\x10\x20\xf5\xf2", 1024 + 108, 0, 0},
		{NTFS, 3, "NTFS    ", 0, 0, 0},
		{ExFAT, 3, "EXFAT   ", 0, 0, 0},
		{refs, 0, "\x00\x00\x00ReFS\x00", 0, 0, 0},
		{"squashfs", 0, "hsqs", 0, 0, 0},
		{"squashfs", 0, "sqsh", 0, 0, 0},
		{"erofs", 1024, "\xe2\xe1\xf5\xe0", 1024 + 48, 1024 + 64, 1024 + 80},
		{"jfs", 32768, "JFS1", 32768 + 136, 32768 + 152, 32768 + 168},
		{"reiserfs", 65536 + 52, "ReIsErFs", 65536 + 84, 65536 + 100, 65536 + 116},
		{"reiserfs", 65536 + 52, "ReIsEr2Fs", 65536 + 84, 65536 + 100, 65536 + 116},
		{"reiserfs", 65536 + 52, "ReIsEr3Fs", 65536 + 84, 65536 + 100, 65536 + 116},
		{"reiserfs", 8192 + 52, "ReIsErFs", 8192 + 84, 8192 + 100, 8192 + 116},
		{"reiser4", 65536, "ReIsEr4", 0, 0, 0},
		{"gfs2", 65536, "\x01\x16\x19\x70\x00\x00\x00\x01", 0, 0, 0},
		{"ocfs2", 1024, "OCFSV2", 0, 0, 0},
		{"ocfs2", 2048, "OCFSV2", 0, 0, 0},
		{"ocfs2", 4096, "OCFSV2", 0, 0, 0},
		{"ocfs2", 8192, "OCFSV2", 0, 0, 0},
		{"apfs", 32, "NXSB", 72, 0, 0},
		{"hfsplus", 1024, "H+\x00\x04", 0, 0, 0},
		{"hfsplus", 1024, "HX\x00\x05", 0, 0, 0},
		{"nilfs2", 1024, "\x02\x00\x00\x00\x00\x00\x34\x34", 1024 + 152, 1024 + 168, 1024 + 248},
		{"ufs", 8192 + 1372, "\x19\x01\x54\x19", 0, 0, 0},
		{"ufs", 65536 + 1372, "\x19\x01\x54\x19", 0, 0, 0},
		{"ufs", 8192 + 1372, "\x54\x19\x01\x00", 0, 0, 0},
		{"vxfs", 1024, "\xf5\xfc\x01\xa5", 0, 0, 0},
		{"ubi", 0, "UBI#", 0, 0, 0},
		{"ubifs", 0, "\x31\x18\x10\x06", 0, 0, 0},
		{"cramfs", 0, "\x45\x3d\xcd\x28", 0, 0, 0},
		{"cramfs", 0, "\x28\xcd\x3d\x45", 0, 0, 0},
		{"romfs", 0, "-rom1fs-", 0, 0, 0},
		{"udf", 32769, "BEA01", 0, 0, 0},
		{"iso9660", 32769, "CD001", 0, 32768 + 40, 32768 + 72},
	}
}

// matches gives everything that is recognised in e, what others build upon first. Members of arrays
// and physical volumes are not among it.
func (e *ends) matches() []match {
	var found []match
	add := func(m match, ok bool) {
		for _, old := range found {
			ok = ok && old.kind != m.kind
		}
		if ok {
			found = append(found, m)
		}
	}
	add(e.endRAID())
	add(e.luks())
	for _, s := range magics() {
		if !e.has(s.off, s.text) {
			continue
		}
		m := match{kind: s.kind}
		if b := e.at(s.uuid, 16); s.uuid > 0 && b != nil {
			m.uuid = uuid(b)
		}
		if b := e.at(s.label, s.labelTo-s.label); s.label > 0 && b != nil {
			m.label = strings.TrimRight(text(b), " ")
		}
		add(e.more(m), true)
	}
	add(e.ext())
	add(e.zfs())
	add(e.swap())
	add(e.xfsLog())
	add(e.fat())
	return found
}

// more adds to m what stands elsewhere than a magic can say.
func (e *ends) more(m match) match {
	switch m.kind {
	case NTFS:
		if b := e.at(72, 8); b != nil {
			m.uuid = fmt.Sprintf("%016X", le64(b, 0))
		}
	case ExFAT:
		if b := e.at(100, 4); b != nil {
			m.uuid = fmt.Sprintf("%04X-%04X", le16(b, 2), le16(b, 0))
		}
	case "f2fs":
		if b := e.at(1024+124, 1024); b != nil {
			m.label = gptName(b)
		}
	case "gfs2":
		if b := e.at(65536, 1024); b != nil {
			m.label, m.uuid = text(b[160:224]), uuid(b[256:])
		}
	}
	return m
}

// endRAID recognises arrays of the firmware and of DRBD, which are described at the end.
func (e *ends) endRAID() (match, bool) {
	if e.size >= 64<<10 {
		for _, magic := range []string{"\x83\x74\x02\x67", "\x83\x74\x02\x6b", "\x83\x74\x02\x6d"} {
			at := e.size&^4095 - 4096
			if e.has(at+60, magic) || e.has(at+64, magic) {
				return match{kind: "drbd", end: true}, true
			}
		}
		for _, sector := range []int64{512, 4096} {
			if e.has(e.size/sector*sector-2*sector, "Intel Raid ISM Cfg Sig. ") {
				return match{kind: "isw_raid_member", end: true}, true
			}
		}
	}
	for _, at := range []int64{512, 257 * 512} {
		if e.has(e.size-at, "\xde\x11\xde\x11") {
			return match{kind: "ddf_raid_member", end: true}, true
		}
	}
	return match{}, false
}

// luks recognises LUKS, by "LUKS1 On-Disk Format Specification" 1.2.3 and "LUKS2 On-Disk Format
// Specification" 1.1.3: 0 magic, 6 version (big endian), 168 UUID, and in version 2 24 label.
// Version 2 has a second header.
func (e *ends) luks() (match, bool) {
	at := int64(0)
	note := ""
	if !e.has(0, "LUKS\xba\xbe") {
		for at = 16 << 10; !e.has(at, "SKUL\xba\xbe"); at *= 2 {
			if at > 4<<20 {
				return match{}, false
			}
		}
		note = "its first header is lost"
	}
	b := e.at(at, 208)
	if b == nil {
		return match{}, false
	}
	m := match{kind: LUKS, uuid: text(b[168:208]), version: fmt.Sprint(be16(b, 6)), note: note}
	if m.version == "2" {
		m.label = text(b[24:72])
	}
	return m, true
}

// ext recognises ext2, ext3, ext4 and their journals, by the kernel's
// Documentation/filesystems/ext4/super.rst.
func (e *ends) ext() (match, bool) {
	b := e.at(1024, 1024)
	if b == nil || le16(b, 56) != 0xef53 || le32(b, 24) > 6 || le32(b, 4) == 0 {
		return match{}, false
	}
	m := match{uuid: uuid(b[104:]), label: text(b[120:136]),
		kind: ExtKind(le32(b, 92), le32(b, 96), le32(b, 100))}
	if m.kind == Journal {
		m.note = "of an ext3 or ext4 file system"
	}
	return m, true
}

// ExtKind tells by the compatible, incompatible and read-only features of a superblock which of the
// ext file systems it is of, or [Journal].
func ExtKind(compat, incompat, ro uint32) Kind {
	const (
		journal     = 0x4  // compatible
		journalDev  = 0x8  // incompatible: it is a journal and no file system
		incompatOf3 = 0x16 // filetype, recover, meta_bg
		roOf3       = 0x7  // sparse_super, large_file, btree_dir
	)
	switch {
	case incompat&journalDev != 0:
		return Journal
	case incompat&^incompatOf3 != 0 || ro&^roOf3 != 0:
		return Ext4
	case compat&journal != 0:
		return Ext3
	}
	return Ext2
}

// swap recognises swap space, by mm/swapfile.c and include/linux/swap.h of Linux: the magic
// stands at the end of the first page, whose size the machine has chosen, 1024 version, 1036
// UUID, 1052 label.
func (e *ends) swap() (match, bool) {
	for page := int64(4096); page <= 65536; page *= 2 {
		m := match{kind: Swap, version: "1"}
		switch at := page - 10; {
		case e.has(at, "SWAPSPACE2"):
		case e.has(at, "SWAP-SPACE"):
			return match{kind: Swap, version: "0"}, true
		case e.has(at, "S1SUSPEND"), e.has(at, "S2SUSPEND"), e.has(at, "ULSUSPEND"),
			e.has(at, "LINHIB0001"):
			m.note = "hibernated: it holds the memory of a machine that is to be resumed"
		default:
			continue
		}
		if b := e.at(1024, 64); b != nil {
			m.uuid, m.label = uuid(b[12:]), text(b[28:44])
		}
		return m, true
	}
	return match{}, false
}

// xfsLog recognises the log of an XFS file system that lies elsewhere, by the head of a record in
// one of its first sectors (fs/xfs/libxfs/xfs_log_format.h).
func (e *ends) xfsLog() (match, bool) {
	for at := int64(0); at < 256<<10; at += 512 {
		b := e.at(at, 512)
		switch {
		case b == nil || string(b[:4]) == "XFSB":
			return match{}, false
		case be32(b, 0) != 0xfeedbabe:
		case be32(b, 8) == 1 || be32(b, 8) == 2:
			if format := be32(b, 300); format >= 1 && format <= 3 {
				return match{kind: "xfs_external_log", uuid: uuid(b[304:])}, true
			}
		}
	}
	return match{}, false
}

// fat recognises FAT12, FAT16 and FAT32, by "Microsoft FAT Specification" (2005), section 3:
// there is no magic number but what every boot sector has, so all numbers must fit.
func (e *ends) fat() (match, bool) {
	b := e.at(0, 512)
	if b == nil || b[510] != 0x55 || b[511] != 0xaa || b[0] != 0xeb && b[0] != 0xe9 ||
		string(b[54:62]) == "JFS     " || string(b[54:62]) == "HPFS    " {
		return match{}, false
	}
	sector, cluster, media := int64(le16(b, 11)), b[13], b[21]
	sectors := max(int64(le16(b, 19)), int64(le32(b, 32)))
	fat := int64(le16(b, 22))
	is32 := fat == 0
	if is32 {
		fat = int64(le32(b, 36))
	}
	root := (int64(le16(b, 17))*32 + max(sector, 1) - 1) / max(sector, 1)
	used := int64(le16(b, 14)) + fat*int64(b[16]) + root
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 ||
		cluster == 0 || cluster&(cluster-1) != 0 ||
		le16(b, 14) == 0 || b[16] == 0 || fat == 0 || media < 0xf8 && media != 0xf0 || used > sectors {
		return match{}, false
	}
	m := match{kind: VFAT}
	ext := b[38:] // where the extended boot record goes on
	switch clusters := (sectors - used) / int64(cluster); {
	case is32:
		m.version, ext = "FAT32", b[66:]
	case clusters < 0xff5:
		m.version = "FAT12"
	default:
		m.version = "FAT16"
	}
	if ext[0] == 0x29 || ext[0] == 0x28 {
		m.uuid = fmt.Sprintf("%04X-%04X", le16(ext, 3), le16(ext, 1))
	}
	if label := strings.TrimRight(text(ext[5:16]), " "); ext[0] == 0x29 && label != "NO NAME" {
		m.label = label
	}
	return m, true
}
