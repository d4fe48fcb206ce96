// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hypervisor

import (
	"fmt"
	"path/filepath"
	"strings"
)

// usual adds the directories that programs use unless they are told otherwise.
func (f *finder) usual() {
	for _, u := range []struct{ path, why string }{
		{"/var/lib/libvirt/images", "the usual directory of libvirt"},
		{"/var/lib/vz/images", "the usual directory of Proxmox VE"},
		{"/var/lib/one/datastores", "the usual directory of OpenNebula"},
		{"/rhev/data-center/mnt", "the usual directory of oVirt"},
	} {
		f.add(PlaceDirectory, u.path, u.why, "")
	}
	if f.opts.Home == "" {
		return
	}
	for _, u := range []struct{ path, why string }{
		{".local/share/libvirt/images", "the usual directory of libvirt of this user"},
		{".local/share/gnome-boxes/images", "the usual directory of GNOME Boxes"},
		{".lima", "the usual directory of Lima"},
	} {
		f.add(PlaceDirectory, filepath.Join(f.opts.Home, u.path), u.why, "")
	}
}

// proxmox adds the storage of Proxmox VE (pve-storage, storage.cfg): sections "TYPE: ID" at the
// beginning of a line, and their settings "KEY VALUE" behind a space.
func (f *finder) proxmox() {
	const file = "/etc/pve/storage.cfg"
	const why = "storage of Proxmox VE"
	kind, id, path := "", "", ""
	flush := func() {
		if kind == "" {
			return
		}
		named := fmt.Sprintf("storage %q of Proxmox VE", id)
		if path == "" && (kind == "nfs" || kind == "cifs" || kind == "cephfs" || kind == "glusterfs") {
			path = "/mnt/pve/" + id
		}
		if path != "" {
			f.add(PlaceDirectory, filepath.Join(path, "images"), named, "")
		} else {
			f.remote(id, fmt.Sprintf("%s (%s)", named, kind), "")
		}
	}
	for line := range strings.Lines(string(f.read(file, why))) {
		line = strings.TrimRight(line, " \t\r\n")
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] != ' ' && line[0] != '\t' {
			flush()
			var ok bool
			if kind, id, ok = strings.Cut(line, ":"); !ok {
				kind = ""
				f.fail(file, why, fmt.Errorf("%q begins no storage", line))
			}
			id, path = strings.TrimSpace(id), ""
			continue
		}
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if key == "path" {
			path = strings.TrimSpace(value)
		}
	}
	flush()
}
