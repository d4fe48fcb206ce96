// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleLC01 finds base images that nova removed though images rest on them.
func ruleLC01() Rule {
	r := Rule{Rule: finding.LC01, Needs: []evidence.Part{evidence.PartLog, evidence.PartImages}, Reach: Upward,
		Guard: "a file that is back, and one that nothing known rests on, are no harm",
		Test:  "on all wordings of nova from 2012 to 2026, with the file gone, back, and unused"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for j := range e.Log.Events {
			ev := &e.Log.Events[j]
			if ev.Form != "nova.removed" && ev.Form != "nova.absent" {
				continue
			}
			name := ev.Fields["path"]
			o := namedImage(e, name)
			var affects []Object
			for i := range e.Images {
				if x := &e.Images[i]; x.BackingState == "missing" && namedImage(e, x.BackingPath) == o {
					affects = append(affects, imageObject(e, i))
				}
			}
			switch {
			case len(affects) == 0 && ev.Form == "nova.removed":
				out = append(out, pass(o))
			case len(affects) == 0:
				f := found(&r, o, 0.6, "said_missing", fmt.Sprintf("nova says that %s is missing and in use", name), said(ev))
				out = append(out, fail(f))
			default:
				who := ""
				if ev.Host != "" {
					who = " of " + ev.Host
				}
				f := found(&r, o, 0.95, "removed", fmt.Sprintf("nova%s removed %s, on which %d images of this machine rest", who,
					name, len(affects)), said(ev))
				f.Affects = affects
				f.Remedies = []Remedy{
					{Text: "have nova remove no more: set remove_unused_base_images = False in [image_cache] of nova.conf on " +
						"every node, and restart nova-compute"},
					{Text: "bring the very same bytes back under the same name: from another node's cache, the image service, or a " +
						"process that has the file open still", Command: "shisa holders " + name},
				}
				out = append(out, fail(f))
			}
		}
		return once(out)
	}
	return r
}
