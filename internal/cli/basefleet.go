// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/fleet"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/render"
)

func newBaseFleet(s *stdio) *cobra.Command {
	var json, all bool
	c := &cobra.Command{
		Use:   "fleet FILE...",
		Short: "put together what nodes say that share no pool",
		Long: `fleet reads what "shisa base report" printed on many nodes, and tells for each base who needs it, who has it, and where
one can be had that a node misses: a copy with the same SHA-256 is exact, one with the same name has to be proved
("shisa base adopt"). Of a node and pool that is there twice the newer report counts; where two machines have the name, or the number and
the time of the reports do not agree, all count, and it is told.

What speaks against removing a base is decided by the same rules as within one pool. A report that is incomplete, and a
node that is known and whose report is not there, leave that open: then the exit status is 4; 3 if a base is
needed and missing. It only reads.`,
		Example: `  shisa base fleet node1.json node2.json node3.json
  shisa base fleet --json reports/*.json`,
		Args: wantArgs(1, -1),
		RunE: func(c *cobra.Command, args []string) error { return runBaseFleet(c.Context(), args, json, all, s) },
	}
	jsonFlag(c, &json)
	c.Flags().BoolVar(&all, "all", false, "list everything instead of at most 20 of a kind")
	return c
}

func runBaseFleet(ctx context.Context, files []string, json, all bool, s *stdio) error {
	said := make([]fleet.Said, 0, len(files))
	for _, name := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		i, err := readInventory(name)
		if err != nil {
			return finding.WithHint(err, "make it anew on its node with: shisa base report POOL")
		}
		said = append(said, fleet.Said{File: name, Inventory: i})
	}
	r := fleet.Merge(said)
	var err error
	if json {
		err = render.JSON(s.out, render.BaseFleetSchema, r)
	} else {
		err = render.BaseFleet(s.out, r, s.style(all))
	}
	if err != nil {
		return err
	}
	return exitWith(r.Status[0])
}

// readInventory reads what a node said.
func readInventory(name string) (pool.Inventory, error) {
	f, err := diskio.Open(name)
	if err != nil {
		return pool.Inventory{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, 0, min(f.Size(), pool.MaxBytes+1)))
	if err != nil {
		return pool.Inventory{}, err
	}
	return pool.ParseInventory(name, text)
}
