// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/stall"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleBL04 finds leases that end before a disk gives up, where nothing fences the node: another one takes over,
// and what this one has queued is written when its storage is back, beside the other.
func ruleBL04() Rule {
	r := Rule{Rule: finding.BL04, Needs: []evidence.Part{evidence.PartDevices, evidence.PartCluster}, Reach: Local,
		Guard: "only where a cluster or a database with a lease is configured, and it is known that nothing fences",
		Test:  "on clusters with and without fencing, and disks that give up before and after their lease"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for _, l := range e.Limits.Leases {
			o := Object{Cluster, e.Label, l.Name}
			disks, longest := outlive(e, l)
			switch {
			case len(e.Devices) == 0 && l.Address && !l.Checked:
				out = append(out, pass(o)) // at most a note
			case len(e.Devices) == 0:
				out = append(out, unknown(o, "what the disks are attached to is not known of a machine that does not run"))
			case l.Fenced == "yes" || len(disks) == 0:
				out = append(out, pass(o))
			case l.Fenced == "":
				out = append(out, unknown(o, "whether a node that loses it is fenced was not found out"))
			default:
				out = append(out, fail(unfenced(&r, o, l, disks, longest)))
			}
		}
		return out
	}
	return r
}

// outlive are the disks that keep requests for longer than a lease lasts, and the longest such time.
func outlive(e *evidence.Evidence, l evidence.Lease) (names []string, longest time.Duration) {
	for _, d := range stallDisks(e) {
		if d.NFS != nil || len(d.FSs) == 0 {
			continue
		}
		for _, c := range stall.Cases() {
			fails := stall.FirstError(stall.Machine{HZ: e.Limits.HZ}, d, c)
			if fails.High > l.Early {
				longest = max(longest, fails.High)
				if !slices.Contains(names, d.Name) {
					names = append(names, d.Name)
				}
			}
		}
	}
	return names, longest
}

func unfenced(r *Rule, o Object, l evidence.Lease, disks []string, longest time.Duration) *Finding {
	keeps := "for ever"
	if longest < stall.Never {
		keeps = "for up to " + longest.Round(time.Second).String()
	}
	kind := "unfenced"
	if l.Address {
		kind = "address"
	}
	f := found(r, o, 0.7, kind, fmt.Sprintf("%s is lost after %s, if %s; %s keep writes %s, and nothing fences this node",
		l.Name, l.Early, l.Needs, strings.Join(disks, ", "), keeps), Fact{Source: l.From, Value: l.Early.String()})
	f.Remedies = []Remedy{
		{Text: "set up fencing: a node that has lost its part must be off, or cut from the storage, before another one takes over"},
		{Text: "see in which order things fire", Command: "shisa doctor stall"},
		{Text: "or have the disk give up before the lease does; then this node's file systems go read-only first"},
	}
	if l.Address {
		f.address(l)
	}
	return f
}

// address makes of a finding one about an address that moves, while what works behind it here goes on.
func (f *Finding) address(l evidence.Lease) {
	f.Severity = finding.Warning
	f.Summary += ": clients come to another node, and what this one was asked for before is written when its storage is back"
	f.Remedies = append([]Remedy{{Text: "have keepalived stop what writes when it gives the address up (notify_fault, notify_backup), by a way that " +
		"needs no answer of the disk"}}, f.Remedies...)
	if !l.Checked {
		f.Severity, f.Reach = finding.Note, Hint // nothing that looks at the disk decides about it
	}
}
