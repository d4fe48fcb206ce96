// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"fmt"
)

// Fast commits, by fs/ext4/fast_commit.h of Linux 6.12: at the end of the journal, what was changed
// since the last transaction, as a row of tags. Each has its kind, the length of its value, and the
// value; a tail ends a commit with the number of that transaction and a checksum.
//
//	tag  0 kind          2 length        4 value
//	head 0 features      4 transaction
//	tail 0 transaction   4 CRC32C
const (
	fastTagBytes = 4
	fastPad      = 7
	fastTail     = 8
	fastHead     = 9
)

// fastCommits counts the tags of the fast commits that a mount would replay (fs/ext4/fast_commit.c,
// ext4_fc_replay_scan). They are not replayed here: they say what the kernel did, not what the
// blocks then were, so that a replay has to do it again, allocating blocks.
func (r *recovery) fastCommits() (int, error) {
	if r.j.incompat&journalFast == 0 {
		return 0, nil
	}
	valid, tags := 0, 0
	crc := uint32(0)
	for block := r.j.fastFirst; block < r.j.total; block++ {
		b, err := r.j.read(r.ctx, block)
		if err != nil {
			return valid, err
		}
		for pos := 0; pos+fastTagBytes <= len(b); {
			kind, length := le16(b, pos), int(le16(b, pos+2))
			value := pos + fastTagBytes
			if tags == 0 && kind != fastHead || kind == 0 || kind > fastHead ||
				value+length > len(b) || kind >= fastTail && length < 8 {
				return valid, nil
			}
			tags++
			switch kind {
			case fastTail:
				crc = sum32(crc, b[pos:value+4])
				if le32(b, value) != r.end || le32(b, value+4) != crc {
					return valid, nil
				}
				valid, crc = tags, 0
			case fastHead:
				if features := le32(b, value); features != 0 {
					return valid, fmt.Errorf("fast commits have features that are not supported: 0x%x",
						features)
				}
				if le32(b, value+4) != r.end {
					return valid, nil
				}
				crc = sum32(crc, b[pos:value+length])
			default:
				crc = sum32(crc, b[pos:value+length])
			}
			pos = value + length
			if kind == fastTail || kind == fastPad {
				// The rest of the block is padding, which the tail's length says.
				continue
			}
		}
	}
	return valid, nil
}
