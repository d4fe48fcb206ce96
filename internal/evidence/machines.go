// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"cmp"
	"context"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/hypervisor"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// maxMachines bounds the virtual machines of a host.
const maxMachines = 1 << 14

// Asked is /shisa/machines.json: what only asking the running system tells of its machines.
type Asked struct {
	Processes []MachineProcess `json:"processes"`
	// Images are the disks of all machines, with their chains.
	Images []Image `json:"images"`
	Gaps   []Gap   `json:"gaps"`
}

// MachineProcess is a process that runs a virtual machine.
type MachineProcess struct {
	PID     int           `json:"pid"`
	Name    string        `json:"name"`
	Command string        `json:"command"`
	Files   []MachineFile `json:"files"`
	QMP     *QMP          `json:"qmp"`
	// QMPWhy says why QEMU was not asked, or did not answer.
	QMPWhy string `json:"qmp_why"`
}

// MachineFile is a file that such a process has open.
type MachineFile struct {
	Path    string `json:"path"`
	Writing bool   `json:"writing"`
	Deleted bool   `json:"deleted"`
}

// libvirtDirs hold a document for each machine, configured and running.
var libvirtDirs = []string{"/etc/libvirt/qemu", "/run/libvirt/qemu"}

// machines reads which virtual machines there are, and their disks.
func (g *gatherer) machines(ctx context.Context) {
	var asked Asked
	if !g.own(ctx, PartImages, "machines.json", &asked) && g.t.Kind() == tree.Bundle {
		g.gap(PartImages, "", "the images of machines were not collected")
	}
	g.e.Gaps = append(g.e.Gaps, asked.Gaps...)
	domains := g.domains(ctx)
	for i := range asked.Processes {
		domains = join(domains, &asked.Processes[i])
	}
	images := asked.Images
	if len(images) == 0 && g.t.Kind() != "live" && g.t.Kind() != "bundle" {
		images = describeAll(ctx, diskPaths(domains), g.t.Open, g.t.Link, &g.e.Gaps)
	}
	for i := range images {
		images[i].Mount = g.e.MountOf(cmp.Or(images[i].Real, images[i].Path))
	}
	g.e.Images = images
	for _, d := range domains {
		m := g.machine(d)
		g.uses(&m, d)
		g.e.Machines = append(g.e.Machines, m)
	}
}

// uses tells what is configured of those who have the disks of a machine open, and that libvirt runs it with
// them where no process was seen.
func (g *gatherer) uses(m *Machine, d domain) {
	for _, i := range m.Disks {
		x := &g.e.Images[i]
		of := slices.IndexFunc(d.Disks, func(f hypervisor.DomainDisk) bool { return x.Is(f.Path) && !f.Backing })
		seen := false
		for j := range x.Users {
			if u := &x.Users[j]; u.Machine == m.Name {
				u.State, u.Shared, seen = m.State, of >= 0 && d.Disks[of].Shared, true
			}
		}
		if !seen && of >= 0 && d.State == "running" {
			x.Users = append(x.Users, ImageUser{PID: d.PID, Command: "libvirt", Machine: m.Name, State: m.State,
				Writing: !d.Disks[of].ReadOnly && d.Disks[of].Device != "cdrom", Shared: d.Disks[of].Shared,
				Document: d.from.Path})
		}
	}
}

// domain is a machine with all that is known of it so far.
type domain struct {
	hypervisor.Domain
	process *MachineProcess
	from    Source
}

// domains reads libvirt's documents: what runs, and what is configured.
func (g *gatherer) domains(ctx context.Context) []domain {
	var all []domain
	for _, dir := range libvirtDirs {
		for _, n := range g.optionalList(ctx, PartImages, dir) {
			if !strings.HasSuffix(n.Name, ".xml") || !isRegular(n) || len(all) == maxMachines {
				continue
			}
			file := path.Join(dir, n.Name)
			text := g.optional(ctx, PartImages, file)
			if text == nil {
				continue
			}
			d, err := hypervisor.ParseDomain(text)
			if err != nil {
				g.gap(PartImages, file, err.Error())
			}
			if d.Name == "" {
				continue
			}
			i := slices.IndexFunc(all, func(x domain) bool { return x.Name == d.Name })
			if i < 0 {
				all = append(all, domain{d, nil, Source{Path: file}})
			} else {
				all[i] = domain{d, nil, Source{Path: file}} // what runs counts
			}
		}
	}
	return all
}

// join takes a process for the machine that it runs, which may be none of libvirt's.
func join(all []domain, p *MachineProcess) []domain {
	i := slices.IndexFunc(all, func(d domain) bool {
		return d.PID == p.PID || p.Name != "" && d.Name == p.Name
	})
	if i < 0 {
		d := domain{from: Source{Path: "/proc"}}
		d.Name = cmp.Or(p.Name, p.Command)
		all, i = append(all, d), len(all)
	}
	all[i].process, all[i].PID = p, p.PID
	return all
}

// diskPaths are the files of all disks, each once.
func diskPaths(domains []domain) []string {
	var all []string
	for _, d := range domains {
		for _, x := range d.Disks {
			if filepath.IsAbs(x.Path) && x.Protocol == "" && x.Device != "nvram" {
				all = append(all, x.Path)
			}
		}
		if d.process != nil {
			for _, f := range d.process.Files {
				if !f.Deleted {
					all = append(all, f.Path)
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// machine makes a machine of a domain, with the indexes of its disks.
func (g *gatherer) machine(d domain) Machine {
	m := Machine{Name: d.Name, UUID: strings.ToLower(strings.TrimSpace(d.UUID)), State: "unknown", PID: d.PID,
		From: d.from}
	switch {
	case d.State != "":
		m.State = d.State
	case d.process != nil && d.process.QMP != nil:
		m.State = "running" // or what the monitor says; that a process is there alone says neither
	case strings.HasPrefix(d.from.Path, "/etc"):
		m.State = "shut off"
	}
	if p := d.process; p != nil {
		m.QMP, m.QMPWhy = p.QMP, p.QMPWhy
	}
	if m.QMP == nil && d.Reason == "ioerror" {
		m.QMP = &QMP{Status: "io-error"} // libvirt asked it, and keeps what it heard
	}
	files := []string{}
	for _, x := range d.Disks {
		if !x.Backing {
			files = append(files, x.Path)
		}
	}
	if d.process != nil && len(files) == 0 {
		for _, f := range d.process.Files {
			files = append(files, f.Path)
		}
	}
	for i := range g.e.Images {
		if slices.ContainsFunc(files, g.e.Images[i].Is) {
			m.Disks = append(m.Disks, i)
		}
	}
	return m
}
