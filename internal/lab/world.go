// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// World is a directory with the disks of a few machines, most of them hurt. It is made for people
// who want to see what shisa says without breaking a disk of their own.
type World struct {
	Dir    string
	Images []WorldImage
}

// WorldImage is a disk of the world.
type WorldImage struct {
	Path string // below the directory of the world
	What string // what was done to it
}

const (
	worldBytes = 2 << 30 // size of a machine's disk
	worldFill  = .005    // how much of it the machine has written
	// lostBase is the base that an overlay of the world names, and that is not there.
	lostBase = "../base/5c1f0d5e1d4b4a6a9f0b7c2d8e3a6f4b91c7d2e0"
)

// worldImages are made in this order: overlays come after what they rest on.
func worldImages() []struct {
	WorldImage
	spec  Spec
	fault string
} {
	machine := func(seed uint64) Spec {
		return Spec{VirtualBytes: worldBytes, Fill: worldFill, Front: true, Data: true,
			Seed: seed, FeatureNames: true}
	}
	overlay := func(seed uint64, base, format string) Spec {
		s := machine(seed)
		s.Fill, s.EmptyTables, s.Backing, s.BackingFormat = worldFill/4, .5, base, format
		return s
	}
	leaking := overlay(3, "../base/debian-12.qcow2", "qcow2")
	leaking.Leaks = 4
	kept := machine(6)
	kept.Snapshots, kept.Rewrite = 2, worldFill/8
	return []struct {
		WorldImage
		spec  Spec
		fault string
	}{
		{WorldImage{"base/debian-12.qcow2", "a sound base image"}, machine(1), ""},
		{WorldImage{"machines/web-1.qcow2", "a sound overlay on it"},
			overlay(2, "../base/debian-12.qcow2", "qcow2"), ""},
		{WorldImage{"machines/web-2.qcow2", "another one, with 4 leaked clusters: harmless"}, leaking, ""},
		{WorldImage{"machines/mail.qcow2",
			"one entry of the L1 table was wiped: its data is there, its map is not"}, machine(4), "l1-entry-wiped"},
		{WorldImage{"machines/db.qcow2", "two programs wrote to it at once"}, machine(5), "two-writers"},
		{WorldImage{"machines/wiki.qcow2", "sound, with two snapshots inside"}, kept, ""},
		{WorldImage{"machines/build.qcow2", "its base image was removed"}, overlay(7, lostBase, "raw"), ""},
		{WorldImage{"machines/archive.qcow2", "a copy that broke off"}, machine(8), "truncated"},
	}
}

// NewWorld makes a world. dir must not exist yet; "" makes a new directory for temporary files.
// What was made before an error is removed.
func NewWorld(ctx context.Context, dir string) (*World, error) {
	w, err := NewPlace(dir)
	if err != nil {
		return nil, err
	}
	if err := w.fill(ctx); err != nil {
		return nil, errors.Join(err, w.Remove())
	}
	return w, nil
}

// NewPlace makes the directory of a world, as NewWorld does, with nothing in it.
func NewPlace(dir string) (*World, error) {
	var err error
	if dir == "" {
		dir, err = os.MkdirTemp("", "shisa-demo-")
	} else {
		err = os.Mkdir(dir, 0o755)
	}
	if err != nil {
		return nil, err
	}
	return &World{Dir: dir}, nil
}

// Remove removes the world and all that is in it.
func (w *World) Remove() error { return os.RemoveAll(w.Dir) }

func (w *World) fill(ctx context.Context) error {
	for _, d := range []string{"base", "machines", "other"} {
		if err := os.Mkdir(filepath.Join(w.Dir, d), 0o755); err != nil {
			return err
		}
	}
	faults := map[string]Fault{}
	for _, f := range Faults() {
		faults[f.Name] = f
	}
	for _, img := range worldImages() {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join(w.Dir, img.Path)
		if err := Write(path, img.spec); err != nil {
			return err
		}
		if img.fault != "" {
			if _, err := faults[img.fault].Apply(path, img.spec.Seed); err != nil {
				return err
			}
		}
		w.Images = append(w.Images, img.WorldImage)
	}
	return w.fillOther()
}

// fillOther adds what is no qcow2 image.
func (w *World) fillOther() error {
	for _, f := range []struct {
		WorldImage
		bytes int64 // length of the file
		data  []byte
	}{
		{WorldImage{"other/rescue.img", "a raw disk"}, 64 << 20, bootSector(64 << 20)},
		{WorldImage{"other/legacy.vmdk", "an image of another format"}, 64 << 10, emptyVMDK()},
		{WorldImage{"other/README.txt", "no disk at all"}, 0,
			[]byte("Disks that shisa demo made. Nothing here is worth keeping.\n")},
	} {
		path := filepath.Join(w.Dir, f.Path)
		if err := os.WriteFile(path, f.data, 0o644); err != nil {
			return err
		}
		if f.bytes > 0 {
			if err := os.Truncate(path, f.bytes); err != nil {
				return err
			}
		}
		w.Images = append(w.Images, f.WorldImage)
	}
	return nil
}

// bootSector is a partition table with one Linux partition from 1 MiB to the end.
func bootSector(size uint32) []byte {
	b := make([]byte, 512)
	p := b[446:]
	p[0], p[4] = 0x80, 0x83 // bootable, Linux
	binary.LittleEndian.PutUint32(p[8:], 2048)
	binary.LittleEndian.PutUint32(p[12:], size/512-2048)
	b[510], b[511] = 0x55, 0xaa
	return b
}

// emptyVMDK is a sparse extent of 8 MiB with nothing in it (VMware, "Virtual Disk Format 5.0",
// "Hosted Sparse Extents"); all positions are in sectors:
//
//	0 header | 1 descriptor | 21 spare directory | 22 spare table | 26 directory | 27 table
func emptyVMDK() []byte {
	const sectors = 8 << 20 / 512
	b := make([]byte, 128*512)
	le := binary.LittleEndian
	copy(b, "KDMV")
	le.PutUint32(b[4:], 1)        // version
	le.PutUint32(b[8:], 3)        // line ends can be checked; there is a spare directory
	le.PutUint64(b[12:], sectors) // capacity
	le.PutUint64(b[20:], 128)     // sectors in a grain
	le.PutUint64(b[28:], 1)       // descriptor
	le.PutUint64(b[36:], 20)      // its sectors
	le.PutUint32(b[44:], 512)     // entries of a table
	le.PutUint64(b[48:], 21)      // spare directory
	le.PutUint64(b[56:], 26)      // directory
	le.PutUint64(b[64:], 128)     // where grains begin
	copy(b[73:], "\n \r\n")
	copy(b[512:], strings.Join([]string{
		"# Disk DescriptorFile", "version=1", "CID=5e15a000", "parentCID=ffffffff",
		`createType="monolithicSparse"`, "", "# Extent description",
		fmt.Sprintf("RW %d SPARSE \"legacy.vmdk\"", sectors), "", "# The Disk Data Base", "#DDB", "",
		`ddb.virtualHWVersion = "4"`, `ddb.geometry.cylinders = "16"`, `ddb.geometry.heads = "16"`,
		`ddb.geometry.sectors = "63"`, `ddb.adapterType = "ide"`, "",
	}, "\n"))
	le.PutUint32(b[21*512:], 22)
	le.PutUint32(b[26*512:], 27)
	return b
}
