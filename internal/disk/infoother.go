// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"fmt"

	"github.com/shisa-vm/shisa/internal/image/vpc"
)

// VMDKInfo is what only vmdk images have.
type VMDKInfo struct {
	CreateType string `json:"create_type"`
	// CID changes whenever the disk is written to; ParentCID is what that of the backing file was when
	// the image was made, ffffffff without one. Both in hex.
	CID       string `json:"cid"`
	ParentCID string `json:"parent_cid"`
	// Extents are the parts of a disk that other files hold.
	Extents []ExtentInfo `json:"extents"`
}

// ExtentInfo is a part of the disk of a vmdk image.
type ExtentInfo struct {
	Type         string `json:"type"` // as the descriptor has it, for example "FLAT"
	VirtualBytes int64  `json:"virtual_bytes"`
	// FileOffset is where in a flat file the part begins, in bytes.
	FileOffset int64     `json:"file_offset"`
	File       *LinkInfo `json:"file"` // nil for a part of zeros
}

// VHDXInfo is what only vhdx images have.
type VHDXInfo struct {
	Fixed       bool  `json:"fixed"` // all blocks were allocated when the image was made
	SectorBytes int64 `json:"sector_bytes"`
	// LogInUse: the image was not closed, or is open. LogEntries of it, which rewrite LogSectors of 4 KiB,
	// are shown as if they were in their place.
	LogInUse   bool  `json:"log_in_use"`
	LogEntries int   `json:"log_entries"`
	LogSectors int64 `json:"log_sectors"`
}

// VPCInfo is what only vpc images have.
type VPCInfo struct {
	Fixed bool   `json:"fixed"` // the bytes of the disk as they are, with a footer
	Maker string `json:"maker"` // the program that made it, by the four bytes that it left
}

func (l *Layer) vmdkInfo(n *Info) {
	m := l.vmdk
	n.VMDK = &VMDKInfo{CreateType: m.CreateType, CID: fmt.Sprintf("%08x", m.CID),
		ParentCID: fmt.Sprintf("%08x", m.ParentCID), Extents: []ExtentInfo{}}
	for i := range l.Extents {
		e := &l.Extents[i]
		x := ExtentInfo{Type: e.Type, VirtualBytes: e.Length, FileOffset: int64(e.Offset)}
		if e.Name != "" {
			x.File = linkInfo(&e.Link)
		}
		n.VMDK.Extents = append(n.VMDK.Extents, x)
	}
}

func (l *Layer) vhdxInfo(n *Info) {
	log := l.vhdx.Log()
	n.VHDX = &VHDXInfo{Fixed: l.vhdx.Fixed(), SectorBytes: l.vhdx.SectorBytes(), LogInUse: log.Dirty,
		LogEntries: log.Entries, LogSectors: log.Sectors}
}

func (l *Layer) vpcInfo(n *Info) {
	n.VPC = &VPCInfo{Fixed: l.vpc.Kind() == vpc.Fixed, Maker: l.vpc.Maker()}
}
