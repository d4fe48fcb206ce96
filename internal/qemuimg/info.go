// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// info is qemu-img info.
func (s *session) info(argv []string) int {
	f := &imageFlags{}
	g := newGetopt(argv, "f:hU", []longOption{
		{"help", false, 'h'}, {"format", true, 'f'}, {"output", true, optOutput},
		{"backing-chain", false, optBackingChain}, {"object", true, optObject},
		{"image-opts", false, optImageOpts}, {"force-share", false, 'U'},
	}, s.env.Posix)
	for c := g.next(); c != optEnd; c = g.next() {
		if err := s.common(f, g, c, codeFailed); err != nil {
			return codeOf(err)
		}
	}
	name, err := s.oneName(g)
	if err == nil {
		err = s.outputFormat(f)
	}
	if err != nil {
		return codeOf(err)
	}
	list, ok := s.infoList(name, f)
	if !ok {
		return codeFailed
	}
	switch {
	case !f.json:
		for i, d := range list {
			if i > 0 {
				s.printf("\n")
			}
			s.printInfo(d)
		}
	case f.chain:
		s.printf("%s\n", jsonText(anyList(list), true))
	default:
		s.printf("%s\n", jsonText(list[0], true))
	}
	return codeOK
}

func anyList(list []*dict) []any {
	all := make([]any, len(list))
	for i, d := range list {
		all[i] = d
	}
	return all
}

// infoList describes the image, and with --backing-chain those below it, each opened by itself. It
// reports what goes wrong.
func (s *session) infoList(name string, f *imageFlags) ([]*dict, bool) {
	var list []*dict
	seen := map[string]bool{}
	format, hasFormat := f.format, f.hasFormat
	flags := *f
	for {
		if seen[name] {
			s.report("Backing file '%s' creates an infinite loop.", name)
			return nil, false
		}
		seen[name] = true
		// Names that grow with each round, as that of an image on ./itself, end at this length.
		if len(list) >= maxNameBytes {
			s.report("The backing chain has more than %d images.", maxNameBytes)
			return nil, false
		}
		_, n, err := s.openImage(name, format, hasFormat, &flags, openFlags{noIO: true, noBacking: true})
		if err != nil {
			s.reportOpen(name, err)
			return nil, false
		}
		d := s.describe(n)
		n.close()
		list = append(list, d)
		// What the command line says is about the image itself.
		flags.imageOpts, hasFormat = false, false
		if !f.chain {
			return list, true
		}
		backing, hasBacking := d.text("backing-filename")
		full, hasFull := d.text("full-backing-filename")
		switch {
		case !hasBacking:
			return list, true
		case !hasFull:
			s.report("Could not determine absolute backing filename, but backing filename '%s' present",
				backing)
			return nil, false
		}
		name = full
		format, hasFormat = d.text("backing-filename-format")
	}
}

// describe is what info tells of an image, as JSON. Optional members are left out.
func (s *session) describe(n *node) *dict {
	n.refreshName()
	d := &dict{}
	d.put("filename", n.filename)
	d.put("format", n.driver)
	below := n // what raw and luks say of themselves is what is below them
	for below.q == nil && below.foreign == nil && below.file != nil {
		below = below.file
	}
	d.put("dirty-flag", below.q != nil && below.q.h.Incompatible&qcow2.IncompatDirty != 0)
	d.put("actual-size", n.allocated())
	d.put("virtual-size", n.length)
	if below.q != nil {
		d.put("cluster-size", below.q.h.ClusterSize())
	} else if below.foreign != nil && below.foreign.cluster > 0 {
		d.put("cluster-size", below.foreign.cluster)
	}
	if n.encrypted {
		d.put("encrypted", true)
	}
	if n.backingFile != "" {
		d.put("backing-filename", n.backingFile)
		if full, err := n.fullBacking(); err == nil {
			d.put("full-backing-filename", full)
		}
		if n.backingFormat != "" {
			d.put("backing-filename-format", n.backingFormat)
		}
	}
	if n.q != nil {
		if list := n.q.snapshotInfo(); len(list) > 0 {
			d.put("snapshots", list)
		}
	}
	spec := &dict{}
	switch {
	case n.q != nil:
		spec.put("type", drvQcow2)
		spec.put("data", n.q.specific(n.encrypted))
		d.put("format-specific", spec)
	case n.luks != nil:
		data := &dict{}
		n.luks.info(data)
		spec.put("type", drvLUKS)
		spec.put("data", data)
		d.put("format-specific", spec)
	case n.foreign != nil && n.foreign.specific != nil:
		spec.put("type", n.driver)
		spec.put("data", n.foreign.specific)
		d.put("format-specific", spec)
	}
	return d
}

// specific is what only qcow2 images have.
func (q *qcow2Node) specific(encrypted bool) *dict {
	h := q.h
	d := &dict{}
	v3 := h.Version >= 3
	d.put("compat", map[bool]string{false: "0.10", true: "1.1"}[v3])
	if v3 {
		if h.DataFile != "" {
			d.put("data-file", h.DataFile)
		}
		if h.HasDataFile() {
			d.put("data-file-raw", h.RawDataFile())
		}
		d.put("extended-l2", h.ExtendedL2())
		d.put("lazy-refcounts", h.Compatible&qcow2.CompatLazyRefcounts != 0)
		d.put("corrupt", h.Incompatible&qcow2.IncompatCorrupt != 0)
	}
	d.put("refcount-bits", int64(h.RefcountBits()))
	if encrypted && (q.luks != nil || h.Crypt == qcow2.CryptAES) {
		e := &dict{}
		if q.luks != nil {
			e.put("format", "luks")
			q.luks.info(e)
		} else {
			e.put("format", "aes")
		}
		d.put("encrypt", e)
	}
	if v3 && len(q.bitmaps) > 0 {
		list := []any{}
		for _, b := range q.bitmaps {
			e := &dict{}
			e.put("name", b.Name)
			e.put("granularity", int64(1)<<b.GranularityBits)
			flags := []any{}
			if b.InUse {
				flags = append(flags, "in-use")
			}
			if b.Auto {
				flags = append(flags, "auto")
			}
			e.put("flags", flags)
			list = append(list, e)
		}
		d.put("bitmaps", list)
	}
	d.put("compression-type", h.Compression.String())
	return d
}

// qemu keeps the id of a snapshot in 128 bytes and its name in 256.
const (
	maxSnapshotID   = 127
	maxSnapshotName = 255
)

// snapshotInfo lists the internal snapshots.
func (q *qcow2Node) snapshotInfo() []any {
	// With an external data file qemu knows no snapshots, whatever the table says.
	if q.snapshots == nil || q.h.HasDataFile() {
		return nil
	}
	list := []any{}
	for i := range q.snapshots.Snapshots {
		sn := &q.snapshots.Snapshots[i]
		sec, nsec := q.date(sn)
		clock := uint64(sn.VMClock)
		list = append(list, snapshotDict(snapshotRow{
			id: cut(sn.ID, maxSnapshotID), name: cut(sn.Name, maxSnapshotName), vmState: sn.VMStateBytes,
			sec: sec, nsec: nsec, clock: clock, icount: sn.ICount,
		}))
	}
	for range q.snapshots.Blank {
		list = append(list, snapshotDict(snapshotRow{icount: -1}))
	}
	return list
}

// date reads the date of a snapshot as it stands: nanoseconds may be more than a second.
func (q *qcow2Node) date(sn *qcow2.Snapshot) (sec, nsec int64) {
	var p [8]byte
	if _, err := q.r.ReadAt(p[:], int64(sn.EntryOff)+16); err != nil && !errors.Is(err, io.EOF) {
		return sn.Date.Unix(), int64(sn.Date.Nanosecond())
	}
	return int64(binary.BigEndian.Uint32(p[:])), int64(binary.BigEndian.Uint32(p[4:]))
}

func cut(s string, n int) string { return s[:min(n, len(s))] }

type snapshotRow struct {
	id, name  string
	vmState   int64
	sec, nsec int64
	clock     uint64 // nanoseconds
	icount    int64  // -1 for none
}

func snapshotDict(r snapshotRow) *dict {
	d := &dict{}
	d.put("id", r.id)
	d.put("name", r.name)
	d.put("vm-state-size", r.vmState)
	d.put("date-sec", r.sec)
	d.put("date-nsec", r.nsec)
	d.put("vm-clock-sec", int64(r.clock/1e9))
	d.put("vm-clock-nsec", int64(r.clock%1e9))
	if r.icount != -1 {
		d.put("icount", r.icount)
	}
	return d
}

// num and str are members of an object that describe made; 0 and "" where there is none.
func num(d *dict, key string) int64 {
	v, _ := d.get(key)
	n, _ := v.(int64)
	return n
}

func str(d *dict, key string) string {
	s, _ := d.text(key)
	return s
}

// printInfo writes what describe found for people.
func (s *session) printInfo(d *dict) {
	s.printf("image: %s\nfile format: %s\nvirtual size: %s (%d bytes)\ndisk size: %s\n",
		str(d, "filename"), str(d, "format"), sizeText(uint64(num(d, "virtual-size"))),
		num(d, "virtual-size"), sizeText(uint64(num(d, "actual-size"))))
	if d.has("encrypted") {
		s.printf("encrypted: yes\n")
	}
	if d.has("cluster-size") {
		s.printf("cluster_size: %d\n", num(d, "cluster-size"))
	}
	if v, _ := d.get("dirty-flag"); v == true {
		s.printf("cleanly shut down: no\n")
	}
	if backing, ok := d.text("backing-filename"); ok {
		s.printf("backing file: %s", backing)
		if full, ok := d.text("full-backing-filename"); !ok {
			s.printf(" (cannot determine actual path)")
		} else if full != backing {
			s.printf(" (actual path: %s)", full)
		}
		s.printf("\n")
		if format, ok := d.text("backing-filename-format"); ok {
			s.printf("backing file format: %s\n", format)
		}
	}
	if v, ok := d.get("snapshots"); ok {
		s.printSnapshots(v.([]any))
	}
	if v, ok := d.get("format-specific"); ok {
		s.printf("Format specific information:\n")
		data, _ := v.(*dict).get("data")
		s.printTree(1, data.(*dict))
	}
}

func (s *session) printSnapshots(list []any) {
	s.printf("Snapshot list:\n%s\n",
		snapshotLine("ID", "", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT"))
	for _, e := range list {
		sn := e.(*dict)
		clock := uint64(num(sn, "vm-clock-sec"))*1e9 + uint64(num(sn, "vm-clock-nsec"))
		icount := ""
		if sn.has("icount") {
			icount = strconv.FormatInt(num(sn, "icount"), 10)
		}
		s.printf("%s\n", snapshotLine(str(sn, "id"), " ", str(sn, "name"),
			sizeText(uint64(num(sn, "vm-state-size"))), s.date(num(sn, "date-sec")), clockText(clock),
			icount))
	}
}

// snapshotLine is a row of the snapshot list. The heading has no blank between the first columns
// and one more in each of them.
func snapshotLine(id, gap, name, size, date, clock, icount string) string {
	wide := 10 - len(gap)
	return padRight(id, wide) + gap + padRight(name, 17-len(gap)) + gap +
		padLeft(size, 8) + padLeft(date, 20) + padLeft(clock, 13) + padLeft(icount, 11)
}

// padRight and padLeft count bytes, as printf does.
func padRight(s string, n int) string { return s + strings.Repeat(" ", max(n-len(s), 0)) }
func padLeft(s string, n int) string  { return strings.Repeat(" ", max(n-len(s), 0)) + s }

func (s *session) date(sec int64) string {
	return time.Unix(sec, 0).In(s.env.Location).Format("2006-01-02 15:04:05")
}

func clockText(nsec uint64) string {
	sec := int64(nsec / 1e9)
	return fmt.Sprintf("%02d:%02d:%02d.%03d", int32(sec/3600), sec/60%60, sec%60, nsec/1e6%1000)
}

// printTree writes a JSON object as indented lines.
func (s *session) printTree(indent int, d *dict) {
	for key, v := range d.all() {
		s.printf("%s%s:", strings.Repeat("    ", indent), strings.ReplaceAll(key, "-", " "))
		s.printValue(indent, v)
	}
}

func (s *session) printValue(indent int, v any) {
	switch v := v.(type) {
	case *dict:
		s.printf("\n")
		s.printTree(indent+1, v)
	case []any:
		s.printf("\n")
		for i, e := range v {
			s.printf("%s[%d]:", strings.Repeat("    ", indent+1), i)
			s.printValue(indent+1, e)
		}
	default:
		s.printf(" %v\n", v)
	}
}
