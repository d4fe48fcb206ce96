// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxStacked bounds how many devices may rest on one another: disk, partition, md, dm-crypt, LVM and
// multipath are six.
const maxStacked = 16

// Block is a block device as sysfs shows it (Documentation/ABI/testing/sysfs-block of the kernel).
type Block struct {
	Name string // sda1
	Dev  uint64
	// Mapper is the name that device mapper has for it, "" for others.
	Mapper string
	// Partition is its number, 0 for a whole disk; Disk is the whole disk.
	Partition int
	Disk      string
	// Parts are the partitions of a whole disk.
	Parts []string
	// Holders are the devices that are made of it: md, device mapper, bcache.
	Holders []string
	// Served is the process that serves a network block device (nbd), 0 if there is none.
	Served int
}

// BlockOf gives the name of a device by its number. One that does not exist is fs.ErrNotExist.
func (h *Host) BlockOf(dev uint64) (string, error) {
	link := fmt.Sprintf("%s/sys/dev/block/%d:%d", h.root, unix.Major(dev), unix.Minor(dev))
	text, err := os.Readlink(link)
	if err != nil {
		return "", err
	}
	return path.Base(text), nil
}

// Block reads what sysfs tells of a device.
func (h *Host) Block(ctx context.Context, name string) (Block, error) {
	b := Block{Name: name, Disk: name}
	if name == "" || strings.ContainsAny(name, "/\x00") || name[0] == '.' {
		return b, fmt.Errorf("look at block device %q: %w", name, fs.ErrInvalid)
	}
	dir := "/sys/class/block/" + name
	text, err := h.list(ctx, dir+"/dev")
	if err != nil {
		return b, fmt.Errorf("look at block device %s: %w", name, err)
	}
	b.Dev, _ = parseDevice(strings.TrimSpace(string(text)), 10)
	names, err := h.names(ctx, dir+"/")
	if err != nil {
		return b, err
	}
	for _, n := range names {
		if strings.HasPrefix(n, name) {
			b.Parts = append(b.Parts, n)
		}
	}
	slices.Sort(b.Parts)
	for _, v := range []struct {
		file string
		take func(text string)
	}{
		{"/dm/name", func(s string) { b.Mapper = s }},
		{"/partition", func(s string) { b.Partition = count(s) }},
		{"/pid", func(s string) { b.Served = count(s) }},
	} {
		switch text, err := h.list(ctx, dir+v.file); {
		case err == nil:
			v.take(strings.TrimSpace(string(text)))
		case !vanished(err) && !errors.Is(err, unix.ENOTDIR):
			return b, err
		}
	}
	if b.Partition > 0 {
		// /sys/class/block/sda1 -> ../../devices/.../block/sda/sda1
		link, err := os.Readlink(h.root + dir)
		if err != nil {
			return b, err
		}
		b.Disk = path.Base(path.Dir(link))
	}
	holders, err := h.names(ctx, dir+"/holders")
	if err != nil && !vanished(err) {
		return b, err
	}
	for _, n := range holders {
		if n[0] != '.' {
			b.Holders = append(b.Holders, n)
		}
	}
	slices.Sort(b.Holders)
	return b, nil
}

// count reads a number that sysfs writes; what is none is 0.
func count(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// Above is a device that rests on another one: on its partition, or made of it.
type Above struct {
	Block
	// On is the device right below.
	On string
}

// Stack gives a device with all that rests on it: its partitions, and what md and device mapper make of
// any of those.
func (h *Host) Stack(ctx context.Context, name string) ([]Above, error) {
	var all []Above
	seen := map[string]bool{}
	var add func(name, on string, depth int) error
	add = func(name, on string, depth int) error {
		if seen[name] || depth > maxStacked || len(all) > maxNames {
			return nil // a device is told of once
		}
		seen[name] = true
		b, err := h.Block(ctx, name)
		if on != "" && vanished(err) {
			return nil // taken apart just now
		} else if err != nil {
			return err
		}
		all = append(all, Above{b, on})
		for _, n := range slices.Concat(b.Parts, b.Holders) {
			if err := add(n, name, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return all, add(name, "", 0)
}

// BtrfsDevices gives for each device of a btrfs all devices of the same file system: mounts name one
// of them only, and a device number that is none of theirs.
func (h *Host) BtrfsDevices(ctx context.Context) (map[string][]string, error) {
	all := map[string][]string{}
	systems, err := h.names(ctx, "/sys/fs/btrfs")
	if vanished(err) {
		return all, nil
	} else if err != nil {
		return nil, err
	}
	for _, id := range systems {
		if !strings.Contains(id, "-") {
			continue // not the name of a file system
		}
		devices, err := h.names(ctx, "/sys/fs/btrfs/"+id+"/devices")
		if vanished(err) {
			continue // unmounted just now
		} else if err != nil {
			return nil, err
		}
		devices = slices.DeleteFunc(devices, func(n string) bool { return n[0] == '.' })
		slices.Sort(devices)
		for _, d := range devices {
			all[d] = devices
		}
	}
	return all, nil
}
