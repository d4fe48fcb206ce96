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

// ruleCL02 finds clusters that wait: for a node to be fenced, or for a quorum. Locks of dlm, and with them
// GFS2 on all nodes, wait as long.
func ruleCL02() Rule {
	r := Rule{Rule: finding.CL02, Needs: []evidence.Part{evidence.PartLog}, Reach: Upward,
		Guard: "a fencing that was done, and a quorum that came back, are over; where there is no sign of a cluster nothing is said",
		Test:  "on the messages of pacemaker, corosync, fenced and dlm_controld, in both orders"}
	r.Judge = func(e *evidence.Evidence) []Result {
		if !e.Cluster.Present {
			return nil
		}
		o := clusterObject(e)
		var out []Result
		for _, node := range e.Cluster.Pending {
			f := found(&r, o, 0.9, "fencing", fmt.Sprintf("%s is to be fenced, and is not yet: locks wait, and every GFS2 with them", node))
			for _, ev := range e.Log.Of("", "fence.needed", "fence.failed", "dlm.fencing") {
				f.Evidence = append(f.Evidence, said(ev))
			}
			f.seen(f.Evidence)
			f.Remedies = []Remedy{
				{Text: "make sure that the node is off, by its power, and not by asking it"},
				{Text: "only then tell the cluster", Command: "stonith_admin --confirm " + node,
					Risk: "if the node lives, both sides write, and the file system is destroyed"},
			}
			out = append(out, fail(f))
		}
		if e.Cluster.Quorum == "no" {
			f := found(&r, o, 0.9, "no_quorum", "this node's part of the cluster has no quorum: locks and services wait")
			for _, ev := range e.Log.Of("", "quorum.lost", "corosync.token") {
				f.Evidence = append(f.Evidence, said(ev))
			}
			f.seen(f.Evidence)
			f.Remedies = []Remedy{{Text: "bring nodes back, or the network between them, until more than half can speak with one another",
				Command: "corosync-quorumtool -s"}}
			out = append(out, fail(f))
		}
		if waits := keys(e.Cluster.Waiting); len(out) == 0 && len(waits) > 0 {
			f := found(&r, o, 0.8, "locks_wait", "lockspaces wait: "+strings.Join(waits, ", "))
			out = append(out, fail(f))
		}
		if len(out) == 0 {
			return []Result{pass(o)}
		}
		return joinSame(out)
	}
	return r
}

// joinSame makes one of findings of one kind.
func joinSame(all []Result) []Result {
	var out []Result
	for _, r := range all {
		i := slices.IndexFunc(out, func(x Result) bool { return x.Finding.ID == r.Finding.ID })
		if i < 0 {
			out = append(out, r)
			continue
		}
		out[i].Finding.Summary += "; " + r.Finding.Summary
	}
	return out
}

// keys gives "name: what for" of a map, in order.
func keys(m map[string]string) []string {
	var all []string
	for name, what := range m {
		all = append(all, name+": "+what)
	}
	slices.Sort(all)
	return all
}
