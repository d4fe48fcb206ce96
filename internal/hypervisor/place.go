// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package hypervisor knows where the disk images of virtual machines live on a host: storage pools
// and domains of libvirt, the instances of OpenStack Nova, the usual directories of other
// programs, and what running QEMU processes have open.
package hypervisor

// PlaceKind says what a place is.
type PlaceKind string

// The kinds of places.
const (
	PlaceConfig    PlaceKind = "config"    // a file or directory that names other places
	PlaceDirectory PlaceKind = "directory" // holds images
	PlaceImage     PlaceKind = "image"     // is an image
	PlaceProcess   PlaceKind = "process"   // a running program that was asked for its images
	PlaceRemote    PlaceKind = "remote"    // holds images, but not as files of this host
)

// Place is somewhere that images may live, whether or not it is there.
type Place struct {
	Path    string    `json:"path"`
	PathB64 string    `json:"path_b64,omitempty"` // where the path is not UTF-8
	Kind    PlaceKind `json:"kind"`
	// Why says who names the place, for example `storage pool "vms" of libvirt`.
	Why string `json:"why"`
	// Machine is the virtual machine that uses the place, "" if none is known.
	Machine string `json:"machine"`
	There   bool   `json:"there"`
	// Readable: what is there could be looked at.
	Readable bool `json:"readable"`
	// Error says why it could not be read, or what in it was not understood; "" if all is well.
	Error string `json:"error"`
}
