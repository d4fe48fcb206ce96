// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"errors"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// units reads what systemd would start. A machine without any directory of units has another init: then
// there is nothing that rules could say of them.
func (g *gatherer) units(ctx context.Context) {
	set, err := units.Load(ctx, g.t)
	switch {
	case ctx.Err() != nil || tree.Missing(err):
		return
	case errors.Is(err, tree.ErrNotCollected):
		g.gap(PartUnits, "", "the units of systemd were not collected")
		return
	case err != nil:
		g.gap(PartUnits, "", Reason(err))
		return
	}
	g.e.Units = set
	for _, miss := range set.Gaps {
		g.gap(PartUnits, miss.Path, miss.Reason)
	}
}
