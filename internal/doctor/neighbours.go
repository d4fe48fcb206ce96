// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
)

// neighbours gives the evidence of several machines such that each tells of its images who has them open on the
// others too. What was given is not changed.
func neighbours(all []*evidence.Evidence) []*evidence.Evidence {
	if len(all) < 2 {
		return all
	}
	users := map[string][]evidence.ImageUser{} // of all hosts, by what the image is everywhere
	for _, e := range all {
		for i := range e.Images {
			for _, name := range everywhere(e, i) {
				for _, u := range e.Images[i].Users {
					u.Host, u.Time = e.Label, e.Now
					users[name] = append(users[name], u)
				}
			}
		}
	}
	out := make([]*evidence.Evidence, len(all))
	for k, e := range all {
		own := *e
		own.Images = slices.Clone(e.Images)
		for i := range own.Images {
			x := &own.Images[i]
			x.Users = slices.Clone(x.Users)
			for _, name := range everywhere(e, i) {
				for _, u := range users[name] {
					if u.Host != e.Label && !slices.Contains(x.Users, u) {
						x.Users = append(x.Users, u)
					}
				}
			}
		}
		out[k] = &own
	}
	return out
}

// everywhere names an image such that it is the same on all hosts that have it: by its share, by its file system
// of a cluster, or by the device that it is. There is no name for what one host has alone, and where that is not
// known, and two where a server has a name and an address: others may call it by either.
func everywhere(e *evidence.Evidence, i int) []string {
	if o := imageObject(e, i); o.On == "" {
		names := []string{o.String()}
		if m := &e.Mounts[e.Images[i].Mount]; m.NFS != nil && m.NFS.Addr != "" {
			_, rest, _ := strings.Cut(o.Name, serverName(m.NFS.Server)+":")
			o.Name = serverName(m.NFS.Addr) + ":" + rest
			names = append(names, o.String())
		}
		return slices.Compact(names)
	}
	if name := deviceEverywhere(e, i); name != "" {
		return []string{name}
	}
	return nil
}

// deviceEverywhere names the device that an image is, "" if it is none, or one that may be of this host alone.
func deviceEverywhere(e *evidence.Evidence, i int) string {
	name, is := strings.CutPrefix(cmp.Or(e.Images[i].Real, e.Images[i].Path), "/dev/")
	if !is {
		return ""
	}
	name = strings.TrimPrefix(name, "mapper/")
	if group, volume, is := strings.Cut(name, "/"); is { // lvm(8), "VALID NAMES": a dash is doubled in device mapper
		name = strings.ReplaceAll(group, "-", "--") + "-" + strings.ReplaceAll(volume, "-", "--")
	}
	for k := range e.Devices {
		d := &e.Devices[k]
		if d.Name != name && (d.Mapper == "" || d.Mapper != name) {
			continue
		}
		if strings.HasPrefix(d.UUID, "LVM-") || strings.HasPrefix(d.UUID, "mpath-") {
			return d.UUID
		}
		if id := worldWide(e, d); id != "" {
			return id + " " + strconv.Itoa(d.Partition)
		}
	}
	return ""
}

// worldWide is the name that a disk has everywhere, "" where it is not known. Names that disks make up for want of
// one ("t10.") may be those of others.
func worldWide(e *evidence.Evidence, d *evidence.Device) string {
	for k := range e.Devices {
		if e.Devices[k].Name == d.Disk {
			d = &e.Devices[k]
		}
	}
	for _, kind := range []string{"naa.", "eui.", "uuid."} {
		if strings.HasPrefix(d.WWID, kind) {
			return d.WWID
		}
	}
	return ""
}
