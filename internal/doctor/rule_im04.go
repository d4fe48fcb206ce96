// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleIM04 finds images that several write to at one time.
func ruleIM04() Rule {
	r := Rule{Rule: finding.IM04, Needs: []evidence.Part{evidence.PartImages}, Reach: Upward,
		Guard: "two processes of one machine, as during a migration to the same host, are told with that doubt",
		Test:  "on images with one writer, two, and one writer with readers"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Images {
			x := &e.Images[i]
			if x.Unread != "" || len(x.Users) == 0 {
				continue
			}
			o := imageObject(e, i)
			var names []string
			machines := map[string]bool{}
			for _, u := range x.Users {
				if u.Writing {
					names = append(names, strings.TrimSpace(fmt.Sprintf("%s [%d] %s", u.Command, u.PID, u.Host)))
					machines[u.Machine] = true
				}
			}
			if len(names) < 2 {
				out = append(out, pass(o))
				continue
			}
			f := found(&r, o, 0.9, "two_writers", fmt.Sprintf("%d programs write to %s: %s", len(names), x.Path,
				strings.Join(names, ", ")), Fact{Source: x.From, Value: strings.Join(names, ", ")})
			if len(machines) == 1 {
				f.Confidence = 0.5
				f.Summary += "; they run one machine, which may be moving"
			}
			f.Remedies = []Remedy{
				{Text: "stop all but one of them at once, the one that was started last first: both believe to be alone, and write " +
					"over what the other one wrote"},
				{Text: "then see what is hurt", Command: "shisa check " + x.Path},
			}
			out = append(out, fail(f))
		}
		return out
	}
	return r
}
