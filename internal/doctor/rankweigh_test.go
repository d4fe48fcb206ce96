// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"math"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
)

// seenAt is a rule of which each finding was there at a time.
func seenAt(r Rule, at time.Time) Rule {
	judge := r.Judge
	r.Judge = func(e *evidence.Evidence) []Result {
		out := judge(e)
		for i := range out {
			if out[i].Finding != nil {
				out[i].Finding.FirstSeen = at
			}
		}
		return out
	}
	return r
}

// TestWeights holds each term of the table in doctor.md, on a disk with a file system that is mounted twice:
// the score of what is wrong with the disk, worked out by hand. All confidences are 0.9.
func TestWeights(t *testing.T) {
	disk, fs := Object{Device, "m", "sdb"}, Object{FileSystem, "m", "sdb"}
	a, b := Object{Mount, "m", "/a"}, Object{Mount, "m", "/b"}
	one := func(o Object, outcome Outcome) map[Object]Outcome { return map[Object]Outcome{o: outcome} }
	bad := saying("BL01", Upward, finding.Danger, one(disk, Fail))
	hurt := func(code string) Rule { return saying(code, Upward, finding.Danger, one(fs, Fail)) }
	mounts := func(outcome Outcome) Rule {
		return saying("NF01", Upward, finding.Danger, map[Object]Outcome{a: outcome, b: outcome})
	}
	for _, c := range []struct {
		name  string
		rules []Rule
		want  float64
	}{
		{"itself", []Rule{bad}, 0.81},
		{"a warning", []Rule{saying("BL01", Upward, finding.Warning, one(disk, Fail))}, 0.54},
		{"a hint", []Rule{saying("BL01", Hint, finding.Danger, one(disk, Fail)), hurt("FS01")}, 0.081},
		{"local", []Rule{saying("BL01", Local, finding.Danger, one(disk, Fail)), hurt("FS01")}, 0.81},
		{"explains", []Rule{bad, hurt("FS01")}, 1.71},
		{"was there before", []Rule{seenAt(bad, noon), seenAt(hurt("FS01"), noon.Add(-3*time.Minute))}, -0.69},
		{"as good as at once", []Rule{seenAt(bad, noon), seenAt(hurt("FS01"), noon.Add(-time.Minute))}, 1.71},
		{"came later", []Rule{seenAt(bad, noon), seenAt(hurt("FS01"), noon.Add(time.Hour))}, 1.71},
		{"one of them at a time that is not known", []Rule{seenAt(bad, noon), hurt("FS01")}, 1.71},
		{"what comes from nothing below", []Rule{bad, hurt("FS09")}, 0.81},
		{"a leak above", []Rule{bad, saying("IM03", Hint, finding.Waste, one(fs, Fail))}, 0.81},
		{"one that is well", []Rule{bad, saying("NF01", Upward, finding.Danger, one(a, Pass))}, 0.18},
		{"what rests on something hurt is not called well", []Rule{bad, hurt("FS01"), mounts(Pass)}, 1.71},
		{"what cannot be told is not well", []Rule{bad, mounts(Unknown)}, 0.81},
		{"nor if it can be told in part", []Rule{bad, mounts(Pass), saying("FS08", Upward, finding.Danger,
			map[Object]Outcome{a: Unknown, b: Unknown})}, 0.81},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &evidence.Evidence{Label: "m", Host: evidence.Host{Name: "m"}, Now: noon,
				Mounts: []evidence.Mount{{Mount: linux.Mount{Point: "/a", Type: "xfs"}, Own: true},
					{Mount: linux.Mount{Point: "/b", Type: "xfs"}, Own: true}},
				FSs:     []evidence.FS{{Type: "xfs", Device: "sdb", Mounts: []int{0, 1}}},
				Devices: []evidence.Device{{Block: linux.Block{Name: "sdb"}}}}
			rep := Examine([]*evidence.Evidence{e}, c.rules)
			for _, x := range rep.Causes {
				if x.Object == disk {
					if math.Abs(x.Score-c.want) > 1e-9 {
						t.Errorf("the score is %v, want %v: %+v", x.Score, c.want, x.Terms)
					}
					return
				}
			}
			t.Errorf("Examine does not weigh %s\n%s", disk, sums(rep))
		})
	}
}
