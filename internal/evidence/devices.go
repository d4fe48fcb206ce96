// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// maxDevices bounds the block devices that are looked at; a host of thousands of machines has some
// thousand.
const maxDevices = 1 << 14

// What sysfs says of a block device (Documentation/ABI/stable/sysfs-block, testing/sysfs-block-device and
// testing/sysfs-class-scsi_disk of the kernel):
//
//	/sys/class/block/sda1 -> ../../devices/pci0000:00/.../host2/target2:0:0/2:0:0:0/block/sda/sda1
//	/sys/class/block/sda/device -> ../../../2:0:0:0       vendor, model, state, timeout, eh_timeout
//	/sys/class/block/sda/device/driver -> .../bus/scsi/drivers/sd
//	/sys/class/scsi_host/host2/proc_name                  the driver of the adapter
//	/sys/class/scsi_disk/2:0:0:0/max_retries
//	/sys/class/block/loop0/loop/backing_file
//	/sys/class/block/md0/md/array_state

const classBlock = "/sys/class/block"

// devices reads all block devices.
func (g *gatherer) devices(ctx context.Context) {
	if g.t.Kind() == tree.Disk {
		return // they are those of a machine that runs
	}
	names, err := g.t.List(ctx, classBlock)
	if err != nil {
		if !tree.Missing(err) {
			g.gap(PartDevices, "", Reason(err))
		}
		return
	}
	if len(names) > maxDevices {
		g.gap(PartDevices, classBlock, strconv.Itoa(len(names)-maxDevices)+" devices are too many to look at")
		names = names[:maxDevices]
	}
	for _, n := range names {
		if ctx.Err() != nil {
			return
		}
		if d, ok := g.device(ctx, n.Name); ok {
			g.e.Devices = append(g.e.Devices, d)
		}
	}
	g.partitions()
}

// device reads one device; not ok is a device that has no medium, as a loop device without a file.
func (g *gatherer) device(ctx context.Context, name string) (Device, bool) {
	dir := classBlock + "/" + name
	d := Device{Block: linux.Block{Name: name, Disk: name}, MaxRetries: -2, Timeouts: -1, Errors: -1,
		From: Source{Path: dir}}
	word := func(file string) string {
		return g.optionalWord(ctx, PartDevices, dir+"/"+file)
	}
	d.SizeBytes = 512 * number(word("size"), 0) // in sectors of 512 bytes, whatever the device's are
	if d.SizeBytes == 0 && (strings.HasPrefix(name, "loop") || strings.HasPrefix(name, "nbd") ||
		strings.HasPrefix(name, "ram") || strings.HasPrefix(name, "zram")) {
		return d, false
	}
	major, minor, _ := strings.Cut(word("dev"), ":")
	d.Dev = unix.Mkdev(uint32(number(major, 0)), uint32(number(minor, 0)))
	d.Partition = int(number(word("partition"), 0))
	d.ReadOnly = word("ro") == "1"
	d.InFlight = inFlight(word("inflight"))
	if d.Partition > 0 {
		return d, true
	}
	d.Removable, d.Rotational = word("removable") == "1", word("queue/rotational") == "1"
	d.Serial, d.WWID = g.serial(ctx, &d, dir), word("wwid")
	d.Mapper, d.UUID, d.Backing = word("dm/name"), word("dm/uuid"), word("loop/backing_file")
	for _, s := range g.optionalList(ctx, PartDevices, dir+"/slaves") {
		d.On = append(d.On, s.Name)
	}
	g.onBus(ctx, &d, dir)
	g.array(ctx, &d, dir)
	return d, true
}

// serial reads the number that a disk has. The file of virtio's in sysfs asks the disk itself each time (virtblk_get_id
// in drivers/block/virtio_blk.c), and nobody who waits for that can be ended; what udev noted of it when it came asks nobody.
func (g *gatherer) serial(ctx context.Context, d *Device, dir string) string {
	if g.driver(ctx, dir+"/device/driver") != "virtio_blk" {
		return g.optionalWord(ctx, PartDevices, dir+"/serial")
	}
	file := fmt.Sprintf("/run/udev/data/b%d:%d", unix.Major(d.Dev), unix.Minor(d.Dev))
	for line := range strings.Lines(string(g.optional(ctx, PartDevices, file))) {
		if value, is := strings.CutPrefix(line, "E:ID_SERIAL="); is {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// onBus reads what the device is behind the block layer: SCSI, NVMe, virtio or something else.
func (g *gatherer) onBus(ctx context.Context, d *Device, dir string) {
	word := func(file string) string {
		return g.optionalWord(ctx, PartDevices, dir+"/device/"+file)
	}
	d.Driver = g.driver(ctx, dir+"/device/driver")
	if d.Driver == "" && strings.HasPrefix(d.Name, "nvme") {
		d.Driver = "nvme"
	}
	d.Vendor, d.Model = word("vendor"), word("model")
	if strings.HasPrefix(d.Vendor, "0x") {
		d.Vendor = "" // virtio's is the number of a bus
	}
	d.State = word("state")
	if d.State == "" && d.Driver == "nvme" {
		d.State = g.nvmeState(ctx, dir+"/device")
	}
	d.Timeout = time.Duration(number(word("timeout"), 0)) * time.Second
	d.EHTimeout = time.Duration(number(word("eh_timeout"), 0)) * time.Second
	d.Timeouts, d.Errors = hexNumber(word("iotmo_cnt")), hexNumber(word("ioerr_cnt"))
	if d.WWID == "" {
		d.WWID = word("wwid")
	}
	target, err := g.t.Link(ctx, dir+"/device")
	if err != nil {
		return
	}
	address := path.Base(target) // H:C:T:L for SCSI
	host, _, scsi := strings.Cut(address, ":")
	if !scsi {
		if d.Driver == "nvme" {
			d.Timeout = g.nvmeTimeout(ctx, dir)
		}
		return
	}
	d.HostDriver = g.optionalWord(ctx, PartDevices, "/sys/class/scsi_host/host"+host+"/proc_name")
	if d.HostDriver == "<NULL>" || d.HostDriver == "(null)" {
		d.HostDriver = ""
	}
	d.MaxRetries = int(number(g.optionalWord(ctx, PartDevices, "/sys/class/scsi_disk/"+address+"/max_retries"), -2))
}

// nvmeState is that of a namespace that several controllers may lead to (drivers/nvme/host/multipath.c of Linux):
// its device is a subsystem, with a link for each controller. One that is live is enough.
func (g *gatherer) nvmeState(ctx context.Context, dir string) string {
	state := ""
	for _, n := range g.optionalList(ctx, PartDevices, dir) {
		if number(strings.TrimPrefix(n.Name, "nvme"), -1) < 0 {
			continue
		}
		if s := g.optionalWord(ctx, PartDevices, dir+"/"+n.Name+"/state"); s == "live" || state == "" {
			state = s
		}
	}
	return state
}

// nvmeTimeout is that of the queue, in milliseconds there.
func (g *gatherer) nvmeTimeout(ctx context.Context, dir string) time.Duration {
	return time.Duration(number(g.optionalWord(ctx, PartDevices, dir+"/queue/io_timeout"), 0)) * time.Millisecond
}

// driver gives the last part of a link to a driver, "" where there is none.
func (g *gatherer) driver(ctx context.Context, link string) string {
	target, err := g.t.Link(ctx, link)
	if err != nil {
		g.unread(PartDevices, link, err)
		return ""
	}
	return path.Base(target)
}

// array reads the state of an md device (Documentation/admin-guide/md.rst, "MD devices in sysfs").
func (g *gatherer) array(ctx context.Context, d *Device, dir string) {
	level := g.optionalWord(ctx, PartDevices, dir+"/md/level")
	if level == "" {
		return
	}
	word := func(file string) string {
		return g.optionalWord(ctx, PartDevices, dir+"/md/"+file)
	}
	a := &Array{Level: level, State: word("array_state"), Action: word("sync_action"),
		Wanted: int(number(strings.Fields(word("raid_disks") + " 0")[0], 0))}
	for _, m := range g.optionalList(ctx, PartDevices, dir+"/md") {
		name, ok := strings.CutPrefix(m.Name, "dev-")
		if !ok {
			continue
		}
		state := strings.Split(word(m.Name+"/state"), ",")
		switch {
		case slices.Contains(state, "faulty"):
			a.Failed = append(a.Failed, name)
		case slices.Contains(state, "in_sync"):
			a.Active++
		}
	}
	d.Array = a
}

// partitions finds the disk of each partition: the longest device whose name it begins with, as
// "nvme0n1" of "nvme0n1p2".
func (g *gatherer) partitions() {
	for i := range g.e.Devices {
		d := &g.e.Devices[i]
		if d.Partition == 0 {
			continue
		}
		d.Disk = ""
		for j := range g.e.Devices {
			disk := &g.e.Devices[j]
			if disk.Partition == 0 && strings.HasPrefix(d.Name, disk.Name) && len(disk.Name) > len(d.Disk) {
				d.Disk = disk.Name
			}
		}
		if k := slices.IndexFunc(g.e.Devices, func(x Device) bool { return x.Name == d.Disk }); k >= 0 {
			g.e.Devices[k].Parts = append(g.e.Devices[k].Parts, d.Name)
		}
	}
}

// multipath finds the paths of multipath devices: a device of device mapper that several SCSI disks with
// one name of theirs are below. What is queued stands in the kernel's table, which needs an ioctl, and
// otherwise in the configuration.
func (g *gatherer) multipath(ctx context.Context) {
	state := map[string]string{}
	for _, d := range g.e.Devices {
		state[d.Name] = d.State
	}
	for i := range g.e.Devices {
		d := &g.e.Devices[i]
		if !strings.HasPrefix(d.UUID, "mpath-") {
			continue
		}
		d.Paths = &Multipath{}
		for _, low := range d.On {
			if s := state[low]; s == "running" || s == "live" {
				d.Paths.Active++
			} else {
				d.Paths.Failed++
			}
		}
		d.Paths.NoPathRetry = g.e.Config.Multipath["no_path_retry"].Value
		d.Paths.Queue = d.Paths.NoPathRetry == "queue"
	}
	g.mapped(ctx) // mapper.go
}

// number reads a decimal number, or gives none.
func number(text string, none int64) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return none
	}
	return n
}

// hexNumber reads a counter of SCSI, "0x1f"; -1 if there is none.
func hexNumber(text string) int64 {
	n, err := strconv.ParseInt(strings.TrimPrefix(text, "0x"), 16, 64)
	if err != nil || text == "" {
		return -1
	}
	return n
}

// inFlight adds the reads and writes that are under way.
func inFlight(text string) int64 {
	n := int64(0)
	for _, f := range strings.Fields(text) {
		n += number(f, 0)
	}
	return n
}

// isRegular tells whether a name in a directory is a file that can be read.
func isRegular(e tree.Entry) bool { return e.Type&fs.ModeType == 0 || e.Type&fs.ModeSymlink != 0 }
