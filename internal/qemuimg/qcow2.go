// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"syscall"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// qcow2Node is what an opened qcow2 image keeps.
type qcow2Node struct {
	h    *qcow2.Header
	r    io.ReaderAt
	size int64
	// l1 is the L1 table as far as the file goes; entries beyond are zero.
	l1 []byte
	// sliceEntries is how many L2 entries qemu loads at once: no answer about block status goes
	// beyond them.
	sliceEntries int64

	snapshots *qcow2.SnapshotTable
	bitmaps   []qcow2.Bitmap
	luks      *luksHeader
	disk      *qcow2.Disk

	window   l2Window
	last     lastStatus
	prealloc tristate
}

// tristate is a question that is answered once.
type tristate int8

const (
	unknown tristate = iota
	yes
	no
)

var qcow2Options = map[string]optKind{
	"lazy-refcounts": optBool, "pass-discard-request": optBool, "pass-discard-snapshot": optBool,
	"pass-discard-other": optBool, "overlap-check": optText, "overlap-check.template": optText,
	"overlap-check.main-header": optBool, "overlap-check.active-l1": optBool,
	"overlap-check.active-l2": optBool, "overlap-check.refcount-table": optBool,
	"overlap-check.refcount-block": optBool, "overlap-check.snapshot-table": optBool,
	"overlap-check.inactive-l1": optBool, "overlap-check.inactive-l2": optBool,
	"overlap-check.bitmap-directory": optBool, "cache-size": optSize, "l2-cache-size": optSize,
	"l2-cache-entry-size": optSize, "refcount-cache-size": optSize, "cache-clean-interval": optNumber,
}

// openQcow2 opens a qcow2 image. The steps are those of qemu's qcow2_do_open in its order, as the
// first fault found is the one that gets reported.
func (g *graph) openQcow2(n *node, opts *dict, flags openFlags) *fault {
	if n.file == nil {
		return noFile()
	}
	// Whoever changes the image now would make what is read here worthless.
	unshared := n.unshared(diskio.PermWrite, diskio.PermResize)
	if err := n.file.checkLocks(!flags.noIO, unshared...); err != nil {
		return err
	}
	n.q, n.align = &qcow2Node{}, 1
	q := n.q
	q.r, q.size = n.file.bytes()
	h, hErr := qcow2.ReadHeader(q.r, q.size)
	raw, err := readRawHeader(q.r, q.size)
	if err != nil {
		return err
	}
	stage := raw.stageOf(hErr)
	if stage == inHeader {
		return headerFault(hErr)
	}
	if err := raw.checkStrict(flags.check, stage, hErr); err != nil {
		return err
	}
	n.encrypted = raw.crypt != 0
	if h != nil {
		q.h = h
		n.length = h.SizeBytes &^ (sector - 1)
		if err := q.readTables(); err != nil {
			return err
		}
	}
	encrypt, err := n.qcow2Options(opts, raw)
	if err != nil {
		return err
	}
	g.warnBitmaps(h)
	return g.finishQcow2(n, opts, qcow2Rest{flags, raw, encrypt, stage, hErr})
}

// qcow2Rest is what the second half of opening needs of the first.
type qcow2Rest struct {
	flags   openFlags
	raw     rawHeader
	encrypt *dict
	stage   headerStage
	hErr    error
}

// finishQcow2 does what comes with and behind the header extensions.
func (g *graph) finishQcow2(n *node, opts *dict, rest qcow2Rest) *fault {
	q := n.q
	if q.h == nil {
		return g.noExtensions(q, rest)
	}
	if rest.raw.crypt == qcow2.CryptLUKS && q.h.CryptLen > 0 {
		if err := g.unlock(rest.encrypt, "encrypt.", rest.flags.noIO); err != nil {
			return err
		}
		var err *fault
		r := io.NewSectionReader(q.r, int64(q.h.CryptOff), q.h.CryptLen)
		if q.luks, err = readLUKS(r, q.h.CryptLen); err != nil {
			return err
		}
	}
	if err := g.openDataFile(n, opts, rest.flags); err != nil {
		return err
	}
	if err := g.checkCrypt(n, rest); err != nil {
		return err
	}
	if rest.stage == inBackingName {
		return headerFault(rest.hErr)
	}
	n.backingFile, n.autoBacking, n.backingFormat = q.h.Backing, q.h.Backing, q.h.BackingFormat
	if err := q.readDirectories(rest.flags); err != nil {
		return err
	}
	if n.encrypted {
		n.align = sector
	}
	if n.length > maxDisk {
		return faultf("Could not refresh total sector count: File too large")
	}
	return nil
}

// maxDisk is the largest size of a disk in qemu: a multiple of 1 GiB.
const maxDisk = math.MaxInt64 &^ (1<<30 - 1)

// noExtensions is the fault of an image whose extensions cannot be used.
func (g *graph) noExtensions(q *qcow2Node, rest qcow2Rest) *fault {
	err := headerFault(rest.hErr)
	if err.msg != "Unable to open the LUKS header" {
		return err
	}
	// It lies where no file reaches. qemu learns that when it reads it, so after this:
	if err := g.unlock(rest.encrypt, "encrypt.", rest.flags.noIO); err != nil {
		return err
	}
	if off, ok := rest.raw.luksOffset(q); ok && off <= math.MaxInt64-luksHeaderBytes {
		_, err := readLUKS(strings.NewReader(""), luksHeaderBytes) // zeros
		return err
	}
	return errnoFault(syscall.EIO, "Could not read encryption header")
}

// luksOffset finds where the header extensions say that the LUKS header is.
func (h *rawHeader) luksOffset(q *qcow2Node) (uint64, bool) {
	const typeCrypt, headBytes = 0x0537be77, 8
	area := make([]byte, 1<<h.clusterBits) // which was checked
	if err := readPadded(q.r, q.size, area, 0); err != nil {
		return 0, false
	}
	be := binary.BigEndian
	for off := h.length; off+headBytes+8 <= int64(len(area)); {
		if be.Uint32(area[off:]) == typeCrypt {
			return be.Uint64(area[off+headBytes:]), true
		}
		off += headBytes + (int64(be.Uint32(area[off+4:]))+7)&^7
	}
	return 0, false
}

// readDirectories reads the tables of snapshots and of bitmaps.
func (q *qcow2Node) readDirectories(flags openFlags) *fault {
	var err error
	if !flags.check {
		if q.snapshots, err = qcow2.ReadSnapshots(q.r, q.size, q.h); err != nil {
			return snapshotFault(err, q.r, q.h)
		}
	}
	if q.bitmaps, err = qcow2.ReadBitmaps(q.r, q.size, q.h); err == nil {
		err = errors.Join(qcow2.LoadBitmaps(q.r, q.size, q.h, q.bitmaps)...) // qemu tells the first
	}
	if err != nil {
		return headerFault(err)
	}
	return nil
}

// headerFault is qemu's sentence for an image that it refuses.
func headerFault(err error) *fault {
	var oe *qcow2.OpenError
	if !errors.As(err, &oe) || oe.Qemu == "" {
		return faultf("%v", err)
	}
	if oe.Cause != nil {
		return errnoFault(oe.Cause, "%s", oe.Qemu)
	}
	return faultf("%s", oe.Qemu)
}

func snapshotFault(err error, r io.ReaderAt, h *qcow2.Header) *fault {
	f := headerFault(err)
	switch {
	case strings.HasPrefix(f.msg, "Too much extra metadata"):
		f.hint = "You can force-remove this extra metadata with qemu-img check -r all\n"
	case f.msg == "Snapshot table is too big":
		f.hint = fmt.Sprintf("You can force-remove all %d overhanging snapshots with qemu-img check "+
			"-r all\n", int(h.Snapshots)-fitting(r, h))
	}
	return f
}

// fitting counts the entries of the snapshot table that end within the longest table allowed. The
// number of entries was checked.
func fitting(r io.ReaderAt, h *qcow2.Header) int {
	be := binary.BigEndian
	p := make([]byte, 40)
	end := int64(0)
	for i := range int(h.Snapshots) {
		clear(p)
		off := (end + 7) &^ 7
		// What is past the end of the file counts as zeros.
		_, _ = r.ReadAt(p, int64(h.SnapshotsOff)+off)
		end = off + 40 + int64(be.Uint32(p[36:])) + int64(be.Uint16(p[12:])) + int64(be.Uint16(p[14:]))
		if end > qcow2.MaxSnapshotTableBytes {
			return i
		}
	}
	return int(h.Snapshots)
}

// headerStage tells where in qemu's order of opening a fault of the header lies.
type headerStage uint8

const (
	headerFine headerStage = iota
	inHeader               // the fields, up to the refcount table
	inTables               // refcount table, L1 table and virtual size
	inExtensions
	inBackingName
)

// rawHeader are fields of the header as they stand, for checks that depend on what is to be done
// with the image.
type rawHeader struct {
	version, clusterBits uint32
	crypt                qcow2.CryptMethod
	reftClusters         uint32
	snapshots            uint32
	snapshotsOff         uint64
	length               int64
}

func readRawHeader(r io.ReaderAt, size int64) (rawHeader, *fault) {
	p := make([]byte, 112)
	if n := min(size, int64(len(p))); n > 0 {
		if _, err := r.ReadAt(p[:n], 0); err != nil && !errors.Is(err, io.EOF) {
			return rawHeader{}, errnoFault(err, "Could not read qcow2 header")
		}
	}
	be := binary.BigEndian
	h := rawHeader{
		version: be.Uint32(p[4:]), clusterBits: be.Uint32(p[20:]),
		crypt: qcow2.CryptMethod(be.Uint32(p[32:])), reftClusters: be.Uint32(p[56:]),
		snapshots: be.Uint32(p[60:]), snapshotsOff: be.Uint64(p[64:]), length: 72,
	}
	if h.version == 3 {
		h.length = int64(be.Uint32(p[100:]))
	}
	return h, nil
}

// stageOf sorts an error of ReadHeader into qemu's order.
func (h *rawHeader) stageOf(err error) headerStage {
	var oe *qcow2.OpenError
	if !errors.As(err, &oe) {
		return headerFine
	}
	switch {
	case oe.Qemu == "Backing file name too long", oe.Qemu == "Could not read backing file name":
		return inBackingName
	case errors.Is(err, qcow2.ErrUnsupported), errors.Is(err, qcow2.ErrNotQcow2):
		return inHeader
	case int64(oe.Off) >= h.length && h.length >= 72 && oe.Off != 100 && oe.Off != 96:
		return inExtensions
	}
	switch oe.Off {
	case 24, 36, 40, 48:
		return inTables
	}
	return inHeader
}

// checkStrict makes the checks that qemu leaves out where the image is opened to be checked, and
// gives the fault that qemu meets first.
func (h *rawHeader) checkStrict(check bool, stage headerStage, err error) *fault {
	var oe *qcow2.OpenError
	if stage == inTables && !errors.As(err, &oe) {
		return headerFault(err)
	}
	if !check {
		if h.reftClusters == 0 {
			return faultf("Image does not contain a reference count table")
		}
		if stage == inTables && oe.Off == 48 {
			return headerFault(err)
		}
		const most = qcow2.MaxSnapshots
		switch {
		case h.snapshots > most:
			return faultf("Snapshot table too large")
		case h.snapshotsOff > math.MaxInt64-uint64(h.snapshots)*40,
			h.snapshotsOff&(1<<h.clusterBits-1) != 0:
			return faultf("Snapshot table offset invalid")
		}
	}
	if stage == inTables {
		return headerFault(err)
	}
	return nil
}

// readTables reads the L1 table, and the refcount table to see whether it can be read.
func (q *qcow2Node) readTables() *fault {
	var err error
	if q.l1, err = q.table(int64(q.h.L1Off), q.h.L1Entries*8); err != nil {
		return errnoFault(err, "Could not read L1 table")
	}
	if _, err := q.table(int64(q.h.ReftableOff), q.h.ReftableEntries()*8); err != nil {
		return errnoFault(err, "Could not initialize refcount handling")
	}
	return nil
}

// table reads a table whose length ReadHeader bounded, as far as the file goes.
func (q *qcow2Node) table(off, length int64) ([]byte, error) {
	length = min(length, max(q.size-off, 0))
	if length == 0 {
		return nil, nil
	}
	p := make([]byte, length)
	got, err := q.r.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return p[:got], nil
}

// warnBitmaps says what qemu says of bitmaps that a program changed the image behind. It ends
// without a line break.
func (g *graph) warnBitmaps(h *qcow2.Header) {
	if h == nil || h.Bitmaps == nil || h.Bitmaps.Trusted {
		return
	}
	if h.Version < 3 {
		g.s.warn("This qcow2 v2 image contains bitmaps, but they may have been modified by a program " +
			"without persistent bitmap support; so now they must all be considered inconsistent")
	} else {
		g.s.warn("a program lacking bitmap support modified this file, so all bitmaps are now " +
			"considered inconsistent")
	}
	g.s.stderr("Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.")
}

// openDataFile opens the external data file; info leaves it alone, so that it can look at images
// that nobody trusts.
func (g *graph) openDataFile(n *node, opts *dict, flags openFlags) *fault {
	wanted := n.q.h.HasDataFile()
	if flags.noIO {
		opts.take("data-file.")
		opts.del("data-file")
		return nil
	}
	req := childRequest{parent: n, options: opts, key: "data-file", role: roleData, flags: flags}
	data, err := g.openChild(req)
	if err != nil {
		return err
	}
	if name := n.q.h.DataFile; wanted && data == nil && name != "" {
		req.name = &name
		if data, err = g.openChild(req); err != nil {
			return err
		}
	}
	n.data = data
	switch {
	case wanted && data == nil:
		return faultf("'data-file' is required for this image")
	case wanted:
		return data.checkLocks(false, n.unshared(diskio.PermResize)...)
	case data != nil:
		return faultf("'data-file' can only be set for images with an external data file")
	case n.q.h.RawDataFile():
		return faultf("data-file-raw requires a data file")
	}
	n.data = n.file
	return nil
}

// checkCrypt looks whether the image can be opened without a header extension about encryption.
func (g *graph) checkCrypt(n *node, rest qcow2Rest) *fault {
	switch {
	case rest.raw.crypt == qcow2.CryptNone || n.q.luks != nil:
		return nil
	case rest.raw.crypt == qcow2.CryptAES:
		return g.unlock(rest.encrypt, "encrypt.", rest.flags.noIO)
	case rest.flags.noIO:
		// qemu-img crashes here.
		return faultf("Missing CRYPTO header for crypt method %d", rest.raw.crypt)
	}
	return faultf("Missing CRYPTO header for crypt method %d", rest.raw.crypt)
}

// unlock looks whether a key was given where one is needed. The key itself is not tried: nothing is
// decrypted here.
func (g *graph) unlock(encrypt *dict, prefix string, noIO bool) *fault {
	if noIO {
		return nil
	}
	name, ok := encrypt.text("key-secret")
	switch {
	case !ok:
		return faultf("Parameter '%skey-secret' is required for cipher", prefix)
	case !g.s.secrets[name]:
		return faultf("No secret with id '%s'", name)
	}
	return nil
}
