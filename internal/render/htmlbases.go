// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"strconv"
)

// baseImages lists the directories of base images, and how those stand.
func (s *sheet) baseImages(p *page) {
	if len(s.pools) == 0 {
		return
	}
	p.el("h2", "", "Base images")
	p.start("div", "class", "card note")
	p.start("table")
	p.start("tr")
	p.el("th", "", "directory")
	for _, title := range []string{"there", "needed", "of those with a shield", "missing"} {
		p.el("th", "n", title)
	}
	p.end()
	for i, at := range s.pools {
		if i == maxRows && !s.info.All {
			p.start("tr")
			p.el("td", "soft", fmt.Sprintf("and %s (--all lists them)",
				Count(int64(len(s.pools)-i), "more directory", "more directories")))
			p.end()
			break
		}
		p.start("tr")
		p.start("td")
		p.el("code", "", Name(at.Bases))
		p.end()
		for _, n := range []int64{at.Count, at.Needed, at.Needed - at.Unprotected, at.Missing} {
			p.el("td", "n", strconv.FormatInt(n, 10))
		}
		p.end()
	}
	p.end()
	p.end()
}
