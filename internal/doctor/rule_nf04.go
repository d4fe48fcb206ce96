// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleNF04 finds disk images on mounts that lose writes, or whose locks other hosts do not see.
func ruleNF04() Rule {
	r := Rule{Rule: finding.NF04, Needs: []evidence.Part{evidence.PartMounts, evidence.PartImages}, Reach: Local,
		Guard: "mounts without images do not count; whether the server itself is async only its exports tell",
		Test:  "on tables of mounts and images"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Mounts {
			m := &e.Mounts[i]
			if m.NFS == nil || !slices.ContainsFunc(e.Images, func(x evidence.Image) bool { return x.Mount == i }) {
				continue
			}
			out = append(out, imagesOn(&r, e, i))
		}
		return out
	}
	return r
}

func imagesOn(r *Rule, e *evidence.Evidence, i int) Result {
	m := &e.Mounts[i]
	var why []string
	if m.NFS.Soft {
		why = append(why, "soft: a write that takes too long is lost, and the guest sees an error of its disk")
	}
	if m.NFS.NoLock {
		why = append(why, "without locks at the server: two hosts can run one image")
	}
	if m.NFS.Async {
		why = append(why, "async: what the server says is written may not be")
	}
	if len(why) == 0 {
		return pass(mountObject(e, i))
	}
	x := found(r, mountObject(e, i), 0.9, "unsafe", fmt.Sprintf("disk images lie on %s, which is mounted %s", m.Point,
		strings.Join(why, "; ")), at(m, m.Super, ""))
	for j := range e.Images {
		if e.Images[j].Mount == i {
			x.Affects = append(x.Affects, imageObject(e, j))
		}
	}
	x.Remedies = []Remedy{{Text: "mount it hard and with locks at the server, when no guest on it runs; export it sync",
		Risk: "other options take a umount: guests have to be off, or moved"}}
	return fail(x)
}
