// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// silentAfter is how long a node may say nothing before it counts as down. Nova looks at its images every
// forty minutes (image_cache.manager_interval).
const silentAfter = 3 * time.Hour

// ruleLC02 finds directories of base images that are shared, where nova removes what it believes to be
// unused. Nodes that are down are not asked: what only they use is removed.
func ruleLC02() Rule {
	r := Rule{Rule: finding.LC02, Needs: []evidence.Part{evidence.PartConfig}, Reach: Upward,
		Guard: "a directory of one node alone is well; with all nodes alive it is a warning",
		Test:  "on nova's settings, with the directory shared and not, and with nodes that are silent"}
	r.Judge = func(e *evidence.Evidence) []Result {
		n := e.Config.Nova
		if n == nil {
			return nil
		}
		o := Object{File, e.Label, strings.TrimSuffix(n.Instances, "/") + "/_base"}
		switch {
		case !n.RemoveUnused:
			return []Result{pass(o)}
		case !n.Shared && n.NodesUnread != "":
			return []Result{unknown(o, "whether other nodes have the directory is not known: "+n.NodesUnread)}
		case !n.Shared:
			return []Result{pass(o)}
		}
		var silent []string
		for name, at := range n.Nodes {
			if e.Now.Sub(at) > silentAfter {
				silent = append(silent, name)
			}
		}
		slices.Sort(silent)
		f := found(&r, o, 0.7, "removes_shared", fmt.Sprintf("nova removes base images that it believes to be unused from %s, which "+
			"other nodes have too", o.Name), Fact{Source: n.From, Value: "remove_unused_base_images is true, which it is unless set"})
		f.Severity = finding.Warning
		if len(silent) > 0 {
			f.Kind, f.Confidence, f.Severity = "node_silent", 0.85, finding.Danger
			f.ID = idOf(r.Code, f.Kind, o)
			f.Summary += fmt.Sprintf("; %s said nothing for hours: what only it uses is removed after %s",
				strings.Join(silent, ", "), n.MinimumAge)
			for _, name := range silent {
				f.Evidence = append(f.Evidence, Fact{Source: evidence.Source{Path: n.Instances + "/compute_nodes",
					Time: n.Nodes[name]}, Value: name})
			}
			f.seen(f.Evidence)
		}
		f.Remedies = []Remedy{
			{Text: "set remove_unused_base_images = False in [image_cache] of nova.conf on every node that has the directory, and " +
				"restart nova-compute there", Undo: "set it to True again"},
			{Text: "list which base images are used by which overlays before anything is removed by hand", Command: "shisa scan " +
				n.Instances},
		}
		return []Result{fail(f)}
	}
	return r
}
