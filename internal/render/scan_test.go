// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/hypervisor"
	"github.com/shisa-vm/shisa/internal/scan"
)

// scanOf makes a scan of images, each finding being a cause of its own unless it follows from
// another one or is one of a missing base.
func scanOf(images ...check.Image) *scan.Report {
	c := reportOf(images...)
	r := &scan.Report{Verdict: c.Verdict, Status: c.Status, Images: c.Images,
		Summary: c.Summary}
	bases := map[string]int{}
	for _, img := range images {
		if b := img.Backing; b != nil {
			to := b.Path
			if to == "" {
				to = b.Name
			}
			r.Edges = append(r.Edges, scan.Edge{From: img.Path, To: to, State: b.State})
		}
		for _, f := range causesFirst(img.Findings) {
			switch {
			case len(f.DependsOn) > 0:
				last := &r.Causes[len(r.Causes)-1]
				last.Symptoms = append(last.Symptoms, f)
			case f.Code == finding.CH01.Code && bases[img.Backing.Path] > 0:
				old := &r.Causes[bases[img.Backing.Path]-1]
				old.Affects = append(old.Affects, img.Path)
				old.Findings = append(old.Findings, f)
			default:
				r.Causes = append(r.Causes, scan.Cause{Code: f.Code, Name: f.Name, Severity: f.Severity,
					Certainty: f.Certainty, Summary: f.Summary, Objects: []string{f.Object},
					Findings: []finding.Finding{f}, Next: f.Next})
				if f.Code == finding.CH01.Code {
					last := &r.Causes[len(r.Causes)-1]
					last.Objects, last.Affects = []string{img.Backing.Path}, []string{img.Path}
					last.Machines = []string{"shop-1", "shop-2"}
					bases[img.Backing.Path] = len(r.Causes)
				}
			}
		}
		r.NotLookedAt = append(r.NotLookedAt, img.Blind...)
	}
	return r
}

func overlay(path, base string, state check.BackingState) check.Image {
	img := cleanImage(path)
	img.Backing = &check.Backing{Name: base, Path: base, Format: "qcow2", State: state}
	return img
}

// hostScan is a scan of a host as it is met in life.
func hostScan() *scan.Report {
	pool := "/var/lib/libvirt/images/"
	images := []check.Image{
		cleanImage(pool + "_base/debian-12-generic-amd64.qcow2"), cleanImage(pool + "_base/rocky-9.qcow2"),
		leakImage(pool + "vm-02.qcow2"), blindImage(pool + "vm-18.qcow2"), runningImage(pool + "vm-19.qcow2"),
	}
	hurt := lostImage(pool + "vm-17.qcow2")
	hurt.Backing = &check.Backing{Path: pool + "_base/rocky-9.qcow2", State: check.BackingChecked}
	images = append(images, hurt)
	for i := range 12 {
		images = append(images,
			orphanImage(fmt.Sprintf("%sshop-%02d.qcow2", pool, i), pool+"_base/ubuntu-22.04.qcow2"),
			overlay(fmt.Sprintf("%sweb-%02d.qcow2", pool, i), pool+"_base/debian-12-generic-amd64.qcow2",
				check.BackingChecked))
	}
	top := pool + "_base/debian-12-generic-amd64.qcow2"
	for i := range 6 {
		img := overlay(fmt.Sprintf("%sdeep-%d.qcow2", pool, i), top, check.BackingChecked)
		if i == 5 {
			img = leakImage(img.Path)
			img.Backing = &check.Backing{Path: top, State: check.BackingChecked}
		}
		images, top = append(images, img), img.Path
	}
	images = append(images, overlay(pool+"elsewhere.qcow2", "/mnt/nfs/base.qcow2", check.BackingNotFollowed))
	r := scanOf(images...)
	r.Summary.Skipped = 7
	r.Places = []hypervisor.Place{
		{Path: "/var/lib/libvirt/images", Kind: hypervisor.PlaceDirectory, Why: `storage pool "default" of libvirt`,
			There: true, Readable: true},
		{Path: "/var/lib/nova/instances", Kind: hypervisor.PlaceDirectory, Why: "instances of OpenStack Nova"},
		{Path: "/var/lib/vz/images", Kind: hypervisor.PlaceDirectory, Why: "images of Proxmox VE"},
		{Path: "/srv/vm", Kind: hypervisor.PlaceDirectory, Why: `storage pool "old" of libvirt`, There: true,
			Error: "permission denied"},
	}
	r.NotLookedAt = append(r.NotLookedAt, finding.Blind{Object: "/srv/vm", What: "directory",
		Reason: "permission denied"})
	return r
}

// crowdScan has thousands of images: a base with clean overlays, one of them hurt, a missing base,
// bases with one overlay each, and a chain.
func crowdScan() *scan.Report {
	images := []check.Image{cleanImage("/pool/base.qcow2")}
	for i := range 1500 {
		images = append(images, overlay(fmt.Sprintf("/pool/vm-%04d.qcow2", i), "/pool/base.qcow2",
			check.BackingChecked))
	}
	hurt := lostImage("/pool/vm-x.qcow2")
	hurt.Backing = &check.Backing{Path: "/pool/base.qcow2", State: check.BackingChecked}
	images = append(images, hurt)
	for i := range 900 {
		images = append(images, orphanImage(fmt.Sprintf("/pool/gone-%04d.qcow2", i), "/pool/gone.qcow2"))
		base := fmt.Sprintf("/pool/b-%04d.qcow2", i)
		images = append(images, cleanImage(base), overlay(base+".over", base, check.BackingChecked))
		images = append(images, cleanImage(fmt.Sprintf("/pool/single-%04d.qcow2", i)))
	}
	below := "/pool/base.qcow2"
	for i := range 200 {
		img := overlay(fmt.Sprintf("/pool/chain-%03d.qcow2", i), below, check.BackingChecked)
		if i%50 == 49 {
			img = blindImage(img.Path)
			img.Backing = &check.Backing{Path: below, State: check.BackingChecked}
		}
		images, below = append(images, img), img.Path
	}
	return scanOf(images...)
}

func scanReports() map[string]*scan.Report {
	empty := scanOf()
	empty.Paths = []string{"/nothing/here"}
	clean := scanOf(cleanImage("/pool/vm-01.qcow2"))
	clean.Paths = []string{"/pool"}
	hostile := scanOf(hostileImage(), cleanImage("/pool/vm-01.qcow2"))
	hostile.Paths = []string{"/po\x1b[2Jol"}
	hostile.Causes[0].Machines = []string{"<b>\x1b[5m"}
	hostile.Places = []hypervisor.Place{{Path: "/x\x1b", Why: "<i>\n", Error: "\x1b]0;x\x07", There: true}}
	loop := scanOf(overlay("/pool/a.qcow2", "/pool/b.qcow2", check.BackingLoop),
		overlay("/pool/b.qcow2", "/pool/a.qcow2", check.BackingLoop),
		overlay("/pool/self.qcow2", "/pool/self.qcow2", check.BackingLoop))
	return map[string]*scan.Report{"empty": empty, "clean": clean, "hostile": hostile, "host": hostScan(),
		"loop": loop}
}

func TestScanText(t *testing.T) {
	for name, r := range scanReports() {
		for suffix, style := range map[string]Style{"": {}, "-80": {Width: 80}, "-color": {Width: 100, Color: true}} {
			if suffix == "-color" && name != "hostile" {
				continue
			}
			t.Run(name+suffix, func(t *testing.T) {
				var b strings.Builder
				if err := Scan(&b, r, style); err != nil {
					t.Fatal(err)
				}
				golden(t, "scan-"+name+suffix+".txt", b.String())
				harmlessText(t, b.String(), style)
			})
		}
	}
	if err := Scan(fullDisk{}, hostScan(), Style{}); !errors.Is(err, errFull) {
		t.Errorf("Scan on a full disk = %v, want %v", err, errFull)
	}
}
