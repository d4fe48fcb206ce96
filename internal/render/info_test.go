// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/finding"
)

// describedWorld has one of everything that info shows.
func describedWorld() *disk.Description {
	when := time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC)
	top := disk.Info{
		Path: "vm\x1b[2J.qcow2", Format: "qcow2", FormatFrom: disk.FormatProbed, Probed: "qcow2", VirtualBytes: 10 << 30,
		FileBytes: 3<<30 + 5, AllocatedBytes: 2 << 30, ClusterBytes: 64 << 10, Modified: when, Encrypted: true,
		Encryption: &disk.Encrypted{Format: "luks", LUKS: &disk.LUKS{
			Cipher: "aes-256", CipherMode: "xts", Hash: "sha256", UUID: "1234", Slots: []disk.KeySlot{{Active: true}, {}},
		}},
		Backing:  &disk.LinkInfo{Name: "base", Path: "/p/base", Format: "raw", State: disk.LinkOK},
		DataFile: &disk.LinkInfo{Name: "data", Path: "data", State: disk.LinkMissing, Reason: "it never was"},
		Qcow2: &disk.Qcow2Info{Version: 3, Compat: "1.1", Compression: "zstd", RefcountBits: 16, ExtendedL2: true,
			Dirty: true, Corrupt: true, LazyRefcounts: true, Bitmaps: []disk.Bitmap{
				{Name: "backup", GranularityBytes: 65536, Auto: true}, {Name: "old", GranularityBytes: 512, InUse: true},
			}},
		Snapshots: []disk.Snapshot{{ID: "1", Name: "before", Date: when, VirtualBytes: 5 << 30, VMStateBytes: 1 << 20}},
		Blind:     []finding.Blind{{What: "bitmap directory", Reason: "input/output error"}},
	}
	for i := range 25 {
		top.Snapshots = append(top.Snapshots, disk.Snapshot{ID: fmt.Sprint(i + 2), Name: "nightly", Date: when, VirtualBytes: 10 << 30})
	}
	base := disk.Info{
		Path: "/p/base", Format: "raw", FormatFrom: disk.FormatHeader, Probed: "qcow2", VirtualBytes: 10 << 30,
		FileBytes: 10 << 30, AllocatedBytes: 1 << 30, Modified: when,
	}
	far := disk.Info{
		Path: "far", Format: "vmdk", FormatFrom: disk.FormatAsked, Probed: "vmdk", VirtualBytes: -1, FileBytes: 512,
		Modified: when, Backing: &disk.LinkInfo{Name: "nbd://h/x", State: disk.LinkProtocol, Reason: `protocol "nbd"`},
		DataFile: &disk.LinkInfo{Name: "/x", Path: "/x", State: disk.LinkNotFollowed, Reason: "it is outside"},
	}
	parts := disk.Info{
		Path: "parts", Format: "vmdk", FormatFrom: disk.FormatProbed, Probed: "vmdk", VirtualBytes: 5 << 30, FileBytes: 400,
		Modified: when, Backing: &disk.LinkInfo{Name: "base.vmdk", Path: "/p/base.vmdk", Format: "vmdk", State: disk.LinkOK},
		VMDK: &disk.VMDKInfo{CreateType: "vmfs", CID: "00000012", ParentCID: "fffffffe", Extents: []disk.ExtentInfo{
			{Type: "FLAT", VirtualBytes: 4 << 30, File: &disk.LinkInfo{Name: "x\n-flat.vmdk", State: disk.LinkMissing}},
			{Type: "ZERO", VirtualBytes: 1 << 30},
		}},
	}
	hyper := disk.Info{
		Path: "hyper", Format: "vhdx", FormatFrom: disk.FormatProbed, Probed: "vhdx", VirtualBytes: 5 << 30, FileBytes: 4 << 20,
		Modified: when, ClusterBytes: 32 << 20, VHDX: &disk.VHDXInfo{SectorBytes: 4096, LogInUse: true, LogEntries: 3},
		Notes: []string{"it was not closed"},
	}
	old := disk.Info{
		Path: "old", Format: "vpc", FormatFrom: disk.FormatAsked, Probed: "raw", VirtualBytes: 5 << 20, FileBytes: 5<<20 + 512,
		Modified: when, VPC: &disk.VPCInfo{Fixed: true, Maker: "q\x00\n2"},
	}
	return &disk.Description{Disks: []disk.Described{
		{Path: "parts", Chain: []disk.Info{parts}}, {Path: "hyper", Chain: []disk.Info{hyper}}, {Path: "old", Chain: []disk.Info{old}},
		{Path: top.Path, Chain: []disk.Info{top, base}}, {Path: "gone", Error: "gone is gone"},
		{Path: "far", Chain: []disk.Info{far}},
	}}
}

func TestInfo(t *testing.T) {
	for name, s := range map[string]Style{
		"info.txt": {}, "info-all.txt": {All: true}, "info-color.txt": {Color: true, Width: 60},
	} {
		var out bytes.Buffer
		if err := Info(&out, describedWorld(), s); err != nil {
			t.Fatal(err)
		}
		golden(t, name, out.String())
	}
}
