// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

func minor(dev uint64) uint32 { return unix.Minor(dev) }

// ruleNF02 finds shares of NFS servers that are full: as their clients see them, and as the server sees the
// directories that it exports.
func ruleNF02() Rule {
	r := Rule{Rule: finding.NF02, Needs: []evidence.Part{evidence.PartMounts}, Reach: Upward,
		Guard: "a share that was full and has room again is well; one that did not answer is not told to be full",
		Test:  "on tables of mounts of clients, and on a server whose exported file system is full"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		seen := map[Object]bool{}
		for i := range e.Mounts {
			m := &e.Mounts[i]
			if m.NFS == nil || seen[shareObject(m.NFS)] {
				continue
			}
			seen[shareObject(m.NFS)] = true
			out = append(out, shareRoom(&r, m))
		}
		for _, dir := range e.Config.Exports {
			if res, concerns := exportRoom(&r, e, dir); concerns {
				out = append(out, res)
			}
		}
		return out
	}
	return r
}

// shareRoom is a share as a client sees it.
func shareRoom(r *Rule, m *evidence.Mount) Result {
	o, a := shareObject(m.NFS), m.Probe
	switch {
	case a == nil:
		return unknown(o, notAsked(m))
	case a.Hung:
		return unknown(o, "the server does not answer at "+m.Point)
	case a.StatfsErrno != 0:
		return unknown(o, "how full it is was not told")
	case a.Blocks > 0 && a.Avail == 0:
		return fail(fullShare(r, o, m.NFS.Server, fmt.Sprintf("the share that is mounted on %s is full", m.Point), Fact{
			Source: evidence.Source{Path: m.Point},
			Value:  fmt.Sprintf("0 of %d blocks of %d bytes are left", a.Blocks, a.BlockSize)}))
	case a.Inodes > 0 && a.InodesFree == 0:
		return fail(fullShare(r, o, m.NFS.Server, fmt.Sprintf("the share that is mounted on %s has no inode left", m.Point),
			Fact{Source: evidence.Source{Path: m.Point}, Value: fmt.Sprintf("0 of %d inodes are left", a.Inodes)}))
	}
	return pass(o)
}

func fullShare(r *Rule, o Object, server, text string, f Fact) *Finding {
	x := found(r, o, 0.95, "full", text+": writes there wait or fail, on every client", f)
	x.Remedies = []Remedy{
		{Text: "make room on the server " + server + "; its clients go on by themselves"},
		{Text: "look at the server itself", Command: "shisa doctor collect -o FILE",
			Risk: "on the server; then both bundles are looked at together"}}
	return x
}

// exportRoom is a directory as the server sees it that exports it. concerns is false where nothing is known
// of what it lies on: FS08 tells that.
func exportRoom(r *Rule, e *evidence.Evidence, dir string) (res Result, concerns bool) {
	i := e.MountOf(dir)
	if i < 0 || e.Mounts[i].Probe == nil || e.Mounts[i].Probe.StatfsErrno != 0 || e.Host.Name == "" {
		return res, false
	}
	m := &e.Mounts[i]
	o := shareObject(&evidence.NFS{Server: e.Host.Name, Export: dir})
	if m.Probe.Blocks == 0 || m.Probe.Avail > 0 {
		return pass(o), true
	}
	x := fullShare(r, o, e.Host.Name, fmt.Sprintf("%s, which this machine gives to others, is full (%s)", dir, m.Point), Fact{
		Source: evidence.Source{Path: m.Point}, Value: fmt.Sprintf("0 of %d blocks of %d bytes are left", m.Probe.Blocks,
			m.Probe.BlockSize)})
	x.Remedies = makeRoom(m.Point, "full")
	return fail(x), true
}
