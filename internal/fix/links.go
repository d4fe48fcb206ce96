// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package fix

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux/units"
)

// starting are the settings by which a unit has another one started.
var starting = [...]string{"Wants", "Requires", "BindsTo", "Upholds"}

// Unlinks gives the changes that take away all links of the administrator by which a unit is started with
// others, as "systemctl disable" would. Its timer stays, and starts it. The error is ErrRefused where something
// else starts it too, which would go on, or where no link does.
func Unlinks(s *units.Set, unit string) ([]Change, error) {
	var all []Change
	is := func(name string) bool {
		u := s.Unit(name)
		return name == unit || u != nil && u.Name == unit
	}
	first := cmp.Or(s.Default, "default.target")
	reached := s.Reached(first)
	for _, u := range s.Units {
		if u.State == units.Masked {
			continue // it starts nothing
		}
		for _, l := range u.Links {
			if !is(l.To) {
				continue
			}
			c := Change{Kind: Unlink, Path: l.Source.Path}
			if err := c.check(); err != nil {
				return nil, fmt.Errorf("%w: %s is started by %s, which is not the administrator's: mask it", ErrRefused, unit,
					l.Source.Path)
			}
			all = append(all, c)
		}
		if u.Name != first && reached[u.Name] == nil {
			continue // nothing starts it, so it starts nothing
		}
		for _, key := range starting {
			for _, set := range u.All("Unit", key) {
				if slices.ContainsFunc(strings.Fields(set.Value), is) {
					return nil, fmt.Errorf("%w: %s is started by %s= in %s too, and would be without the links: mask it", ErrRefused,
						unit, key, set.From.Path)
				}
			}
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: no link starts %s: mask it", ErrRefused, unit)
	}
	slices.SortFunc(all, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return slices.Compact(all), nil
}
