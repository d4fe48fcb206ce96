// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stall

import "strings"

// Class is a way of disks to deal with requests that are not answered.
type Class string

// The classes.
const (
	SCSI     Class = "scsi"
	ATA      Class = "ata"
	ISCSITCP Class = "iscsi"
	NVMe     Class = "nvme"
	Inert    Class = "inert"
	Stacked  Class = "stacked" // it has no timers of its own: what is below decides
	Unknown  Class = "unknown"
)

// Classify tells the class of a disk by the names of its driver and that of its adapter, as sysfs has
// them. For an sd whose adapter is not known it is Unknown: its timeout may do nothing at all.
func Classify(driver, host string) Class {
	driver, host = strings.ReplaceAll(driver, "-", "_"), strings.ReplaceAll(host, "-", "_")
	switch driver {
	case "virtio_blk", "vbd", "xen_blkfront", "rbd", "ubd", "uml_blkdev":
		return Inert
	case "nvme", "nvme_core":
		return NVMe
	case "dm", "md", "loop":
		return Stacked
	case "sd":
	default:
		return Unknown
	}
	switch host {
	case "":
		return Unknown
	case "virtio_scsi", "storvsc", "hv_storvsc", "storvsc_host_t":
		return Inert
	case "iscsi_tcp", "ib_iser", "iser", "bnx2i", "cxgb4i", "qedi", "be2iscsi":
		return ISCSITCP
	case "ahci", "ata_piix", "ata_generic", "sata_nv", "sata_sil", "sata_sil24", "sata_via", "sata_mv", "pata_acpi",
		"ahci_platform":
		return ATA
	}
	return SCSI
}

// Effective tells whether the timeout of a disk of this class does anything.
func (c Class) Effective() bool { return c == SCSI || c == ATA || c == ISCSITCP || c == NVMe }

func (c Class) reason() string {
	switch c {
	case Inert:
		return "its driver sets the timer anew each time it fires, or has none: a request waits until it is answered, " +
			"and the timeout has no effect whatever its value"
	case SCSI:
		return "the SCSI layer aborts and repeats a command when its timeout has passed"
	case ATA:
		return "libata resets the link when the timeout of a command has passed"
	case ISCSITCP:
		return "the timeout counts as long as the session is there; without a session replacement_timeout does"
	case NVMe:
		return "the driver aborts a request when the timeout of its queue has passed, and then resets the controller"
	case Stacked:
		return "it has no timers of its own: what it rests on decides"
	}
	return "what its driver does when a request is not answered is not known"
}
