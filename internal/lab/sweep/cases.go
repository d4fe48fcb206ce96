// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package sweep

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
)

// imageName is the image in the directory that loses power.
const imageName = "image.qcow2"

// Case is a broken image and what is asked of the programs.
type Case struct {
	Name string
	// QemuImg are the arguments of qemu-img, Shisa those of shisa, each with the image's path where
	// "{}" stands and the directory's where "{dir}" does. No QemuImg: it cannot do it.
	QemuImg, Shisa []string
	// Result is the new file that a repair makes, "" where it mends the image in place.
	Result string

	spec  lab.Spec
	wreck func(f *os.File, h *qcow2.Header) error
}

func (c Case) result() string {
	if c.Result != "" {
		return c.Result
	}
	return imageName
}

// clusterBits: small clusters give many tables in a small file.
const clusterBits = 10

// Cases lists all cases.
func Cases() []Case {
	disk := lab.Spec{VirtualBytes: 4 << 20, ClusterBits: clusterBits, Fill: .7, Data: true}
	snapshot, leaks := disk, disk
	snapshot.Snapshots, snapshot.Rewrite = 1, .1
	leaks.Leaks, leaks.TailLeaks = 150, 20
	all, ours := []string{"check", "-q", "-r", "all", "{}"}, []string{"repair", "--apply", "{}"}
	return []Case{
		{Name: "refcount table broken", QemuImg: all, Shisa: ours, spec: disk, wreck: breakReftable},
		{Name: "no refcount table", QemuImg: all, Shisa: ours, spec: disk, wreck: dropReftable},
		{Name: "refcounts raised in place", QemuImg: all, Shisa: ours, spec: snapshot,
			wreck: lowerRefcounts},
		{Name: "leaks reclaimed", QemuImg: []string{"check", "-q", "-r", "leaks", "{}"},
			Shisa: []string{"repair", "--apply", "--reclaim", "{}"}, spec: leaks},
		{Name: "L1 entry wiped", QemuImg: all, Shisa: ours, spec: disk, wreck: wipeL1},
		{Name: "header rebuilt", Result: "rebuilt.qcow2", spec: disk, wreck: wipeHeader,
			Shisa: []string{"repair", "--apply", "--rebuild-header", "{dir}/rebuilt.qcow2", "--size", "4M",
				"--backing", "", "{}"}},
	}
}

// make makes the broken image in world, and who judges it; the judge's files are in dir.
func (c Case) make(ctx context.Context, world, dir string) (*judge, error) {
	path := filepath.Join(world, imageName)
	if err := lab.Write(path, c.spec); err != nil {
		return nil, err
	}
	j, err := newJudge(ctx, path, dir, 1<<clusterBits)
	if err != nil || c.wreck == nil {
		return j, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	h, err := qcow2.ReadHeader(f, size)
	if err != nil {
		return nil, err
	}
	if err := c.wreck(f, h); err != nil {
		return nil, fmt.Errorf("break the image: %w", err)
	}
	return j, nil
}

// change64 changes the number at off.
func change64(f *os.File, off int64, change func(uint64) uint64) error {
	var p [8]byte
	if _, err := f.ReadAt(p[:], off); err != nil {
		return err
	}
	binary.BigEndian.PutUint64(p[:], change(binary.BigEndian.Uint64(p[:])))
	_, err := f.WriteAt(p[:], off)
	return err
}

// breakReftable lets the table forget its second block.
func breakReftable(f *os.File, h *qcow2.Header) error {
	return change64(f, int64(h.ReftableOff)+8, func(uint64) uint64 { return 0 })
}

func dropReftable(f *os.File, _ *qcow2.Header) error {
	_, err := f.WriteAt(make([]byte, 12), 48) // refcount_table_offset, refcount_table_clusters
	return err
}

// lowerRefcounts makes every third refcount of 2 a 1.
func lowerRefcounts(f *os.File, h *qcow2.Header) error {
	table := make([]byte, h.ReftableEntries()*8)
	if _, err := f.ReadAt(table, int64(h.ReftableOff)); err != nil {
		return err
	}
	block := make([]byte, h.ClusterSize())
	lowered, seen := 0, 0
	for ; len(table) > 0; table = table[8:] {
		off := int64(binary.BigEndian.Uint64(table))
		if off == 0 {
			continue
		}
		if _, err := f.ReadAt(block, off); err != nil {
			return err
		}
		for i := 0; i < len(block); i += 2 {
			if binary.BigEndian.Uint16(block[i:]) != 2 {
				continue
			}
			if seen++; seen%3 == 0 {
				block[i+1] = 1
				lowered++
			}
		}
		if _, err := f.WriteAt(block, off); err != nil {
			return err
		}
	}
	if lowered == 0 {
		return errors.New("no refcount is 2")
	}
	return nil
}

func wipeL1(f *os.File, h *qcow2.Header) error {
	return change64(f, int64(h.L1Off)+8, func(uint64) uint64 { return 0 })
}

func wipeHeader(f *os.File, _ *qcow2.Header) error {
	p := make([]byte, 512)
	for i := range p {
		p[i] = byte(i*37 + 11)
	}
	_, err := f.WriteAt(p, 0)
	return err
}
