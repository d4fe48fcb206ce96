// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/refs/ways"
)

// BaseMissingSchema is the schema of a ways.Report in JSON.
const BaseMissingSchema = "shisa.base-missing/1"

// BaseMissing writes what is missing in a pool, and how it can be brought back. at is its name as the user
// gave it.
func BaseMissing(w io.Writer, r *ways.Report, at string, s Style) error {
	o := newOut(w, s)
	switch {
	case len(r.Missing) > 0:
	case len(r.Gaps) > 0:
		o.prose("", Name(r.Bases)+": nothing that is known to be needed is missing; what was not looked at may need more")
	default:
		o.prose("", Name(r.Bases)+": nothing that is needed is missing")
	}
	for i := range r.Missing {
		m := &r.Missing[i]
		where, name, here := Word(at), Name(m.Name), filepath.Dir(m.Path) == r.Bases
		if !here {
			where, name = otherPool(m), Name(m.Path)
		}
		o.prose("", name+" is "+o.paint(red, "MISSING")+", needed by "+needs(m.NeededBy))
		for k := range m.NeededBy {
			if k == 3 && !s.All {
				o.line(fmt.Sprintf("  and %s more (--all lists them)", Count(int64(len(m.NeededBy)-k), "use", "uses")))
				break
			}
			o.prose("  ", needWords(&m.NeededBy[k]))
		}
		switch {
		case !here:
			o.prose("  ", "it is to lie in another directory than the bases of this pool, which may keep it there:")
			o.line("      $ shisa base missing ", where)
		case len(m.Ways) == 0:
			o.prose("  ", "no way back was found: look for another node's copy, and name it with --from")
		}
		for k := range m.Ways {
			o.way(&m.Ways[k], m.Name, where)
		}
	}
	o.blind(r.Gaps, "", true)
	return o.flush()
}

// otherPool names the pool of a base that is to lie in another directory, with an image that rests on it: that pool may keep
// it, and it has to come back there.
func otherPool(m *ways.Missing) string {
	dir := Word(filepath.Dir(m.Path))
	for i := range m.NeededBy {
		if u := &m.NeededBy[i]; u.How == refs.Header {
			return "--also " + Word(filepath.Dir(u.Holder)) + " " + dir
		}
	}
	return dir
}

// way is one way back with its proof and the command. at is the pool as a word of a command line.
func (o *out) way(w *ways.Way, name, at string) {
	word, color := map[ways.Proof]string{
		ways.SameFile: "the very file", ways.SameDigest: "the same content",
		ways.SameImage: "the image that it was made of", ways.SameBlocks: "proved by the images on top of it",
		ways.Unproved: "not proved", ways.Refuted: "NOT it",
	}[w.Proof], green
	switch w.Proof {
	case ways.Unproved:
		color = yellow
	case ways.Refuted:
		color = red
	}
	text := o.paint(color, word) + ": "
	if w.Path != "" {
		text += Name(w.Path) + "; "
	}
	o.prose("  - ", text+Text(w.Why))
	switch {
	case w.How == ways.Make:
		if _, known := pool.RemakeOf(name); !known {
			return
		}
		o.line("      $ shisa base adopt --make --accept-risk=remade:" + Word(name) + " --for " + Word(name) + " " + at)
	case w.Proof == ways.Refuted || w.Proof == ways.Unproved:
	case w.How == ways.Shield || w.How == ways.Quarantine:
		o.line("      $ shisa base restore " + at + " " + finding.LastWord(name))
	case w.How == ways.Image:
		o.line("      $ shisa base adopt --glance URL --for " + Word(name) + " " + at)
	case w.How == ways.Descriptor, w.How == ways.Candidate, w.How == ways.Renamed:
		o.line("      $ shisa base adopt --for " + Word(name) + " " + at + " " + Word(w.Path))
	}
}
