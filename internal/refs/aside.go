// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// want notes what a base that was set aside rests on and that is gone: it may be set aside as well. The error is that
// of ctx.
func (t *taking) want(ctx context.Context, n *named, path, name string) error {
	g, err := t.gone(ctx, path, name)
	if base := filepath.Base(g.path); err == nil && filepath.Dir(g.path) == t.c.Bases {
		t.wanted[base] = append(t.wanted[base], Reference{How: Header, Holder: n.path, Depth: 1, As: name, Since: sinceTime(n.since)})
	}
	return err
}

// aside reads the headers of bases that have no name in their directory: those in quarantine, and those that only
// their shields keep. One that comes back needs what it rests on. It comes after the sweep: a base that is renamed
// between the two keeps its shield, so that none is missed. It is no overlay that the breakers could count, and
// what is gone below it is no base that is missing: nothing that runs needs that.
func (t *taking) aside(ctx context.Context) error {
	s := t.state
	seen := map[diskio.ID]bool{}
	for i := range t.files {
		seen[t.files[i].stat.ID] = true
	}
	overlays := t.c.Looked.Overlays
	one := func(id diskio.ID, path string) error {
		if seen[id] || t.read[id] {
			return nil
		}
		seen[id] = true
		// Its header means names as they are seen from where it was.
		return t.header(ctx, named{img: imgOf(t.c.Bases, strings.TrimPrefix(path, t.c.Bases+"/")), aside: true})
	}
	for i := range s.Held {
		if err := one(s.Held[i].File, s.Held[i].Path); err != nil {
			return err
		}
	}
	for i := range s.Shields {
		if err := one(s.Shields[i].ID, s.Shields[i].Path); err != nil {
			return err
		}
	}
	t.c.Looked.Overlays = overlays
	return nil
}
