// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ways

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// remade is the way back for such a base.
func remade(name string) (Way, bool) {
	w := Way{How: Make, Proof: Unproved}
	r, ok := pool.RemakeOf(name)
	switch {
	case ok && r.Kind == pool.Swap:
		w.Why = "it was swap space, of " + strconv.FormatInt(r.SizeBytes, 10) + " bytes: \"" + strings.Join(r.Command("FILE"), " ") +
			"\" makes it again, with another UUID; what was swapped out is lost only to a machine that still runs"
	case ok:
		w.Why = "it was an empty file system, of " + strconv.FormatInt(r.SizeBytes, 10) + " bytes: \"" +
			strings.Join(r.Command("FILE"), " ") + "\" makes it again, which is not the very same: the guest's file system " +
			"rests on parts of it, so have it checked on a copy first"
	case strings.HasPrefix(name, "swap_"), strings.HasPrefix(name, "ephemeral_"):
		w.Why = "it held nothing but what a program made, and the name does not tell which: see virt_mkfs in the settings of Nova"
	default:
		return w, false
	}
	return w, true
}

// Remade gives the way back for a base that held nothing of anybody's: ErrNotMissing, also for any other base, ErrElsewhere.
func (r *Report) Remade(name string) (Way, error) {
	m, err := r.missing(name)
	if err != nil {
		return Way{}, err
	}
	for _, w := range m.Ways {
		if w.How == Make {
			return w, nil
		}
	}
	return Way{}, fmt.Errorf("%s held something that no program makes again, or %w", name, ErrNotMissing)
}
