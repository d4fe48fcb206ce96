// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/image"
)

// The formats that are treated apart.
const (
	formatRaw   = string(image.Raw)
	formatQcow2 = string(image.Qcow2)
	formatLUKS  = string(image.LUKS)
)

// knownFormat tells whether qemu has a format of that name.
func knownFormat(name string) bool {
	return slices.Contains([]image.Format{
		image.Raw, image.Qcow2, image.Qcow, image.VMDK, image.VHDX, image.VPC, image.VDI, image.QED,
		image.LUKS, image.Parallels, image.Bochs, image.Cloop, image.DMG,
	}, image.Format(name))
}

// plainFormat turns the names that stand for raw data into the one that is used here. Old images
// name the protocol as the format of their backing file.
func plainFormat(name string) string {
	if name = strings.TrimSpace(name); localProtocol(name) {
		return formatRaw
	}
	return name
}
