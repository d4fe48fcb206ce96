// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleIM01 finds disks of machines that are not there, or that rest on something that is not there.
func ruleIM01() Rule {
	r := Rule{Rule: finding.IM01, Needs: []evidence.Part{evidence.PartImages}, Reach: Upward,
		Guard: "names are taken relative to the image, as qemu takes them; what lies on a mount that does not answer is " +
			"not known, and not missing",
		Test: "on chains made by qemu-img: whole, with a base that is gone, and with one that is no file"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Images {
			x := &e.Images[i]
			o := imageObject(e, i)
			switch {
			case x.Gone() && isDiskOf(e, i):
				out = append(out, fail(missing(&r, e, o, x.Path, "gone", "a disk of "+owner(e, i)+" is not there")))
			case x.Gone(): // told with the overlay that rests on it
			case x.Unread != "":
				out = append(out, unknown(o, x.Unread))
			case x.BackingState == "missing":
				base := namedImage(e, x.BackingPath)
				f := missing(&r, e, base, x.Path, "base_gone", fmt.Sprintf("the base image %s is not there; %s rests on it",
					x.BackingPath, x.Path))
				f.Affects = []Object{o}
				out = append(out, fail(f))
			case x.BackingState == "unreadable":
				out = append(out, unknown(o, "its backing file "+x.BackingPath+" could not be looked at"))
			case x.BackingState == "not_followed":
				out = append(out, unknown(o, "its backing file "+x.Backing+" is no file of this machine"))
			default:
				out = append(out, pass(o))
			}
		}
		return once(out)
	}
	return r
}

func missing(r *Rule, e *evidence.Evidence, o Object, seen, kind, text string) *Finding {
	facts := []Fact{{Source: evidence.Source{Path: seen}, Value: o.Name, Text: "no file has this name"}}
	for _, ev := range e.Log.Of("", "nova.removed", "nova.absent", "libvirt.storage") {
		if ev.Fields["path"] == o.Name || namedImage(e, ev.Fields["path"]) == o {
			facts = append(facts, said(ev))
		}
	}
	f := found(r, o, 0.95, kind, text, facts...)
	f.Remedies = []Remedy{
		{Text: "do not start the machine, and do not delete or rebase the overlay: it holds all that changed"},
		{Text: "look for the file: on other machines that share the directory or cache the image, in the image service, in " +
			"backups; a process may have it open still", Command: "shisa holders " + o.Name},
		{Text: "put back the very same bytes under the same name: another image of equal size shows the guest a broken disk"},
	}
	return f
}

// isDiskOf tells whether an image is a disk of some machine itself.
func isDiskOf(e *evidence.Evidence, i int) bool { return owner(e, i) != "" }

// owner names a machine that has an image as a disk, "" for none.
func owner(e *evidence.Evidence, i int) string {
	for j := range e.Machines {
		for _, d := range e.Machines[j].Disks {
			if d == i {
				return e.Machines[j].Name
			}
		}
	}
	return ""
}

// once joins findings about one object that several images led to.
func once(all []Result) []Result {
	at := map[string]*Finding{}
	var out []Result
	for _, r := range all {
		if r.Finding == nil {
			out = append(out, r)
			continue
		}
		if f := at[r.Finding.ID]; f != nil {
			f.Affects = append(f.Affects, r.Finding.Affects...)
			f.Evidence = append(f.Evidence, r.Finding.Evidence...)
			continue
		}
		at[r.Finding.ID] = r.Finding
		out = append(out, r)
	}
	return out
}
