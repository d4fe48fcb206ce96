// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleNF03 tells of NFS 4 mounts that are soft in the belief that they never hang: a request that was sent
// times out only when the connection is broken (net/sunrpc/clnt.c, RPC_TASK_NO_RETRANS_TIMEOUT).
func ruleNF03() Rule {
	r := Rule{Rule: finding.NF03, Needs: []evidence.Part{evidence.PartMounts}, Reach: Hint,
		Guard: "a soft mount that is only read does no harm", Test: "on options of mounts as kernels write them"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Mounts {
			m := &e.Mounts[i]
			if m.NFS == nil {
				continue
			}
			major, _, _ := strings.Cut(m.NFS.Vers, ".")
			n, err := strconv.Atoi(major)
			switch {
			case !m.NFS.Soft:
				out = append(out, pass(mountObject(e, i)))
			case err != nil:
				out = append(out, unknown(mountObject(e, i), "its version of NFS is not known"))
			case n >= 4:
				x := found(&r, mountObject(e, i), 0.9, "soft", m.Point+" is a soft mount of NFS 4: it hangs all the same where "+
					"the server keeps the connection, and loses writes where it does not", at(m, m.Super, ""))
				x.Remedies = []Remedy{{Text: "mount it hard; who must not wait runs in a process that can be left behind"}}
				out = append(out, fail(x))
			default:
				out = append(out, pass(mountObject(e, i)))
			}
		}
		return out
	}
	return r
}
