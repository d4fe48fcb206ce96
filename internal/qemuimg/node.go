// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"io"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// Names of the drivers that exist here.
const (
	drvFile   = "file"
	drvDevice = "host_device"
	drvRaw    = "raw"
	drvQcow2  = "qcow2"
	drvLUKS   = "luks"
)

// protocols are qemu's drivers for where bytes are stored, formats those for what they mean. They
// are named so that "unknown" can be told from "not read by this program".
var (
	protocols = []string{
		"blkdebug", "blklogwrites", "blkverify", "copy-before-write", "copy-on-read", "compress",
		drvFile, "ftp", "ftps", "gluster", "host_cdrom", drvDevice, "http", "https", "iscsi", "iser",
		"nbd", "nfs", "null-aio", "null-co", "nvme", "preallocate", "quorum", "rbd", "replication",
		"snapshot-access", "ssh", "throttle", "vvfat",
	}
	formats = []string{
		"bochs", "cloop", "dmg", drvLUKS, "parallels", "qcow", drvQcow2, "qed", drvRaw, "vdi", "vhdx",
		"vmdk", "vpc",
	}
	// schemes are protocols by the word before the colon of a file name; the others are named as
	// their driver.
	schemes = []string{
		"blkdebug", "blkverify", drvFile, "ftp", "ftps", "gluster", "gluster+tcp", "gluster+unix",
		"gluster+rdma", "host_cdrom", drvDevice, "http", "https", "iscsi", "iser", "nbd", "nbd+tcp",
		"nbd+unix", "nbds", "nfs", "null-aio", "null-co", "nvme", "rbd", "ssh", "fat",
	}
	// checkable are formats that qemu can check and this program cannot.
	checkable = []string{"parallels", "qed", "vdi", "vhdx", "vmdk"}
	// unmendable are those of them that qemu cannot repair: check -r has no check for them.
	unmendable = []string{"vdi", "vmdk"}
)

// node is a node of qemu's block graph: a file, or a format on top of one.
type node struct {
	g      *graph
	driver string
	// options are those in effect, without the ones of children.
	options *dict
	// filename is what messages call the node; exact is "" where it is a json: name.
	filename, exact string

	file    *node // all but protocols
	backing *node
	data    *node // external data file of qcow2; file where there is none

	// backingFile is as the header has it. autoBacking is the same, until the file is opened: then
	// it is the opened node's name.
	backingFile, autoBacking, backingFormat string

	direct, forceShare, locking, noIO, probed bool
	// writable: the node is to be changed, or what is above it.
	writable bool

	// length in bytes, a multiple of 512. align is what the driver wants block status for.
	length, align int64

	f     *diskio.File
	holes holeCache
	raw   rawState
	q     *qcow2Node
	luks  *luksHeader
	// foreign is what info knows of an image whose data cannot be read here.
	foreign *foreign
	// encrypted: the guest's bytes cannot be had without a key.
	encrypted bool
	// readChecked: it was asked whether others allow a consistent read.
	readChecked bool
	// signaled: a corruption was reported; qemu reports one for each node.
	signaled bool
}

// rawState is the part of the file that a raw image covers.
type rawState struct {
	offset, size int64
	hasSize      bool
}

const (
	sector = 512
	// maxNameBytes is the room that qemu has for a file name, with the zero at its end.
	maxNameBytes = 4096
)

func roundUp(n, to int64) int64 { return (n + to - 1) &^ (to - 1) }

func isProtocol(driver string) bool {
	return driver == drvFile || driver == drvDevice
}

// bytes gives what the node holds and its exact length. What lies past the end reads as zeros in
// qemu; the reader ends there.
func (n *node) bytes() (io.ReaderAt, int64) {
	if n.f != nil {
		return n.f, n.f.Size()
	}
	if n.driver != drvRaw {
		return &guest{n}, n.length
	}
	r, size := n.file.bytes()
	if n.raw.offset == 0 && !n.raw.hasSize {
		return r, size
	}
	part := max(min(n.raw.size, size-n.raw.offset), 0)
	return io.NewSectionReader(r, n.raw.offset, part), part
}

// children are the nodes below n, each once.
func (n *node) children() []*node {
	var list []*node
	for _, c := range []*node{n.file, n.data, n.backing} {
		if c != nil && (c != n.file || len(list) == 0) {
			list = append(list, c)
		}
	}
	return list
}

// close closes the files of n and of all below it.
func (n *node) close() {
	if n == nil {
		return
	}
	for _, c := range n.children() {
		c.close()
	}
	if n.f != nil {
		// Nothing was written: a failing close has nothing to lose.
		_ = n.f.Close()
		n.f = nil
	}
}

// allocated is the space on the host's file systems that n takes without its backing file.
func (n *node) allocated() int64 {
	if n.f != nil {
		return n.f.Stat().AllocatedBytes
	}
	sum := n.file.allocated()
	if n.data != nil && n.data != n.file {
		sum += n.data.allocated()
	}
	return sum
}

// strongOptions are those that change what a node holds, so that its file's name does not tell all.
func strongOptions(driver string) []string {
	switch driver {
	case drvRaw:
		return []string{"offset", "size"}
	case drvQcow2:
		return []string{"encrypt.key-secret"}
	case drvLUKS:
		return []string{"key-secret"}
	}
	return nil
}

// refreshName works out the name of n as qemu does: that of its file, or a json: name where options
// make it another image than the file's name would give.
func (n *node) refreshName() {
	if isProtocol(n.driver) {
		n.filename = n.exact
		return
	}
	for _, c := range n.children() {
		c.refreshName()
	}
	strong := false
	for _, key := range strongOptions(n.driver) {
		strong = strong || n.options.has(key)
	}
	n.exact = ""
	if n.file.exact != "" && isProtocol(n.file.driver) && !strong && !n.backingOverridden() {
		n.exact = n.file.exact
		n.filename = n.exact
		return
	}
	n.filename = "json:" + jsonText(n.fullOptions(), false)
	if len(n.filename) >= maxNameBytes {
		n.filename = n.filename[:maxNameBytes-4] + "..."
	}
}

// backingOverridden: the header's backing file is not the one in use.
func (n *node) backingOverridden() bool {
	switch {
	case n.noIO:
		return false
	case n.backing != nil:
		return n.autoBacking != n.backing.filename
	}
	return n.autoBacking != ""
}

// fullOptions are options by which the same node could be opened.
func (n *node) fullOptions() *dict {
	d := &dict{}
	for _, key := range append([]string{"driver", "filename"}, strongOptions(n.driver)...) {
		if v, ok := n.options.get(key); ok {
			d.put(key, v)
		}
	}
	d.putDefault("driver", n.driver)
	if n.file != nil {
		d.put("file", n.file.fullOptions())
	}
	if n.data != nil && n.data != n.file {
		d.put("data-file", n.data.fullOptions())
	}
	if n.file != nil && n.backingOverridden() {
		if n.backing != nil {
			d.put("backing", n.backing.fullOptions())
		} else {
			d.put("backing", nil)
		}
	}
	return d
}

// hasScheme tells whether a file name begins with "protocol:".
func hasScheme(name string) bool {
	i := strings.IndexAny(name, ":/")
	return i >= 0 && name[i] == ':'
}

// directory is what relative names in n's header are put behind.
func (n *node) directory() (string, *fault) {
	p := n
	for p.file != nil {
		p = p.file
	}
	if p.exact == "" {
		return "", faultf("Cannot generate a base directory for %s nodes", p.driver)
	}
	// qemu keeps a scheme, as in "file:name".
	keep := strings.LastIndexByte(p.exact, '/') + 1
	if hasScheme(p.exact) {
		keep = max(keep, strings.IndexByte(p.exact, ':')+1)
	}
	return p.exact[:keep], nil
}

// fullBacking is the name of the backing file as n's directory completes it; "" where n has none.
func (n *node) fullBacking() (string, *fault) {
	name := n.backingFile
	if name == "" || hasScheme(name) || name[0] == '/' {
		return name, nil
	}
	dir, err := n.directory()
	if err != nil {
		return "", err
	}
	return dir + name, nil
}
