// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// cleanImage is a healthy image of 40 GiB.
func cleanImage(path string) check.Image {
	return check.Image{
		Path: path, Format: "qcow2", Verdict: finding.Clean, VirtualBytes: 40 * gib,
		FileBytes: 12*gib + 320<<10, AllocatedBytes: 12*gib + 192<<10, ClusterBytes: 65536,
		Checked: true, Use: check.Use{State: check.UseNone, Rounds: 1},
		Counts: qcow2.Counts{AllocatedClusters: 196608, FragmentedClusters: 983,
			TotalClusters: 655360, ImageEndOffset: 12*gib + 320<<10},
		Snapshots: []string{}, Notes: []string{}, Findings: []finding.Finding{}, Blind: []finding.Blind{},
	}
}

// lostImage has a wiped L1 entry, which explains its leaks.
func lostImage(path string) check.Image {
	img := cleanImage(path)
	img.Verdict = finding.Found
	img.Counts.Leaks = 3201
	lost := finding.New(finding.QC13, path, finding.Likely, "orphaned_l2",
		"the mapping of 512 MiB of the guest's disk was lost; its 3200 data clusters are still in the file")
	lost.Count = 1
	lost.Guest = []finding.Range{{Offset: 0x960000000, Length: 512 * mib}}
	lost.Host = []finding.Range{{Offset: 0x50000, Length: 65536}, {Offset: 0x300000000, Length: 200 * mib}}
	lost.Evidence = []finding.Evidence{
		{Source: "L1 table", Offset: 0x30258, Value: "0x0000000000000000",
			Text: "entry 75 is empty, its neighbours are not"},
		{Source: "leaked cluster", Offset: 0x50000, Value: "",
			Text: "3200 of its 3200 entries point at leaked clusters"},
	}
	leak := finding.New(finding.QC03, path, finding.Sure, "leaked", "leaked clusters waste space")
	leak.Count = 3201
	leak.Host = []finding.Range{{Offset: 0x50000, Length: 65536}, {Offset: 0x300000000, Length: 200 * mib}}
	leak.DependsOn = []string{"QC12", "QC13"}
	img.Findings = []finding.Finding{leak, lost}
	return img
}

func leakImage(path string) check.Image {
	img := cleanImage(path)
	img.Verdict = finding.Found
	img.Counts.Leaks = 4
	f := finding.New(finding.QC14, path, finding.Likely, "tail", "4 leaked clusters at the end, left by a crash")
	f.Count = 4
	f.Host = []finding.Range{{Offset: 12 * gib, Length: 4 * 65536}}
	img.Findings = []finding.Finding{f}
	return img
}

func blindImage(path string) check.Image {
	img := cleanImage(path)
	img.Verdict = finding.CannotTell
	img.Blind = []finding.Blind{{Object: path, What: "L2 table", Reason: "input/output error",
		Host: []finding.Range{{Offset: 0x50000, Length: 65536}}, Guest: []finding.Range{{Offset: gib, Length: 512 * mib}}}}
	return img
}

func runningImage(path string) check.Image {
	img := cleanImage(path)
	img.Use = check.Use{State: check.UseWrite, Rounds: 2, Holders: []check.Holder{
		{PID: 4211, Command: "/usr/bin/qemu-system-x86_64", Name: "vm-17", Writing: true}}}
	img.Notes = []string{"leaks cannot be told while a program writes to the image"}
	return img
}

func orphanImage(path, base string) check.Image {
	img := cleanImage(path)
	img.Verdict = finding.Found
	img.Backing = &check.Backing{Name: base, Path: base, Format: "qcow2", State: check.BackingMissing,
		Reason: "no such file or directory"}
	f := finding.New(finding.CH01, path, finding.Sure, "missing", "the backing file "+base+" is not there")
	f.Evidence = []finding.Evidence{{Source: "header", Offset: 0x1d8, Value: base, Text: "name of the backing file"}}
	img.Findings = []finding.Finding{f}
	return img
}

// hostileImage is named by somebody who wants to fool the reader.
func hostileImage() check.Image {
	img := lostImage("/pool/\x1b[2J\x1b[32mclean\x1b[0m\r<script>alert(1)</script>\u202e\xff.qcow2")
	img.Snapshots = []string{"\x1b]0;owned\x07"}
	img.Notes = []string{"\x1b[1mnote\r"}
	img.Backing = &check.Backing{Name: "json:{\"file\":\"</title>\"}\n", State: check.BackingNotFollowed,
		Reason: "\x1b[31mno\n"}
	img.Use = check.Use{State: check.UseRead, Rounds: 1, Reason: "a\tb",
		Holders: []check.Holder{{PID: 1, Command: "\x1b[5mqemu", Name: "\"><img src=x>"}}}
	img.Findings[1].Summary = "backing\x1b[2K \"</text><script>\""
	img.Findings[1].Snapshot = "snap\nshot"
	img.Findings[1].Evidence[0].Value = "\x00\xff"
	img.Blind = []finding.Blind{{Object: img.Path, What: "\x1b[1mL2", Reason: "x\ny"}}
	return img
}

// crowdedImage has thousands of findings of two kinds.
func crowdedImage(path string) check.Image {
	img := cleanImage(path)
	img.Verdict = finding.Found
	img.Counts.Corruptions = 3000
	for i := range int64(3000) {
		rule := finding.QC10
		if i%3 == 0 {
			rule = finding.QC11
		}
		f := finding.New(rule, path, finding.Sure, "l2_entry", fmt.Sprintf("entry %d of an L2 table cannot be right", i))
		f.Guest = []finding.Range{{Offset: i * 65536, Length: 65536}}
		f.Host = []finding.Range{{Offset: 0x50000 + 8*i, Length: 8}}
		img.Findings = append(img.Findings, f)
	}
	many := finding.New(finding.QC06, path, finding.Sure, "shared_clusters", "64 guest ranges share 32 clusters")
	for i := range int64(64) {
		many.Guest = append(many.Guest, finding.Range{Offset: i * gib, Length: 65536})
		many.Evidence = append(many.Evidence, finding.Evidence{Source: "refcount block", Offset: 0x20000 + 2*i,
			Value: "0x1", Text: "the cluster has two references"})
	}
	many.GuestCut, many.EvidenceCut = 100, 7
	img.Findings = append(img.Findings, many)
	return img
}

// reportOf makes a report as check.Run does.
func reportOf(images ...check.Image) *check.Report {
	r := &check.Report{Verdict: finding.Clean, Status: []int{0}, Paths: []string{"/pool"}, Images: images,
		Blind: []finding.Blind{}, Summary: check.Summary{Images: int64(len(images))}}
	for _, img := range images {
		switch img.Verdict {
		case finding.Found:
			r.Verdict, r.Status = finding.Found, []int{3}
			r.Summary.Found++
		case finding.CannotTell:
			if r.Verdict == finding.Clean {
				r.Verdict, r.Status = finding.CannotTell, []int{4}
			}
			r.Summary.CannotTell++
		case finding.Clean:
			r.Summary.Clean++
		}
		r.Summary.LeakedBytes += img.Counts.Leaks * img.ClusterBytes
		r.Summary.BlindSpots += int64(len(img.Blind))
	}
	return r
}

// poolReport is a directory as it is met in life.
func poolReport() *check.Report {
	vmdk := check.Image{Path: "/pool/old.vmdk", Format: "vmdk", Verdict: finding.CannotTell, VirtualBytes: -1,
		FileBytes: 3 * gib, AllocatedBytes: 3 * gib, Use: check.Use{State: check.UseNone}}
	images := []check.Image{
		cleanImage("/pool/vm-01.qcow2"), leakImage("/pool/vm-02.qcow2"), lostImage("/pool/vm-17.qcow2"),
		blindImage("/pool/vm-18.qcow2"), runningImage("/pool/vm-19.qcow2"), vmdk,
		orphanImage("/pool/vm-20.qcow2", "/pool/_base/debian-12.qcow2"),
	}
	for i := range 40 {
		images = append(images, cleanImage(fmt.Sprintf("/pool/shop/web-%02d.qcow2", i)))
	}
	r := reportOf(images...)
	r.Summary.Skipped, r.Summary.Running, r.Summary.Unchecked = 17, 1, 1
	r.Blind = []finding.Blind{{Object: "/pool/private", What: "directory", Reason: "permission denied"}}
	return r
}
