// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/render"
)

// completeTimeout is how long one name is waited for while somebody types.
const completeTimeout = time.Second

// words are what can be typed, each with what is said of it, "" for nothing.
type words map[string]string

// completePool has the first argument of c be completed as a directory, and those after it, of which there are at most
// more, by what the pool has.
func (o *poolOptions) completePool(c *cobra.Command, more int, by func(dir string, s *pool.State) words) {
	c.ValidArgsFunction = func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		switch {
		case len(args) == 0:
			return directories(c, args, word)
		case len(args) > more && more >= 0:
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return o.suggest(c.Context(), args, by), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlag has a flag of c be completed by what the pool has.
func (o *poolOptions) completeFlag(c *cobra.Command, flag string, by func(dir string, s *pool.State) words) {
	complete(c, map[string]cobra.CompletionFunc{
		flag: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return o.suggest(c.Context(), args, by), cobra.ShellCompDirectiveNoFileComp
		}})
}

// suggest gives what can follow args, the first of which is the pool. Who only presses a key is told of no error.
func (o *poolOptions) suggest(ctx context.Context, args []string, by func(dir string, s *pool.State) words) (all []string) {
	if len(args) == 0 {
		return nil
	}
	p := *o
	if p.pool = args[0]; p.configure(ctx) != nil {
		return nil
	}
	dir, err := refs.BasesIn(ctx, p.pool, p.baseName, completeTimeout)
	if err != nil {
		return nil
	}
	s, err := pool.Read(ctx, dir, completeTimeout)
	if err != nil {
		return nil
	}
	have := by(dir, s)
	for _, word := range slices.Sorted(maps.Keys(have)) {
		if slices.Contains(args[1:], word) || render.Text(word) != word {
			continue // it was given already, or nobody could type it
		}
		if what := have[word]; what != "" {
			word += "\t" + render.Text(what)
		}
		all = append(all, word)
	}
	return all
}

// liveBases are the files in the directory of the bases.
func liveBases(dir string, _ *pool.State) words {
	all := words{}
	sweep := diskio.Sweep{Workers: 1, Timeout: completeTimeout, Enter: func(string) bool { return false },
		File: func(_ int, f *diskio.Swept) { all[f.Name] = "" }}
	_ = sweep.Run(context.Background(), []string{dir}) // what could not be listed is not offered
	return all
}

// anyBase are all bases that the pool knows of, those that are gone too.
func anyBase(dir string, s *pool.State) words {
	all := goneBases(dir, s)
	maps.Copy(all, liveBases(dir, s))
	return all
}

// goneBases are those that were recorded or shielded, and have no name any more.
func goneBases(dir string, s *pool.State) words {
	all := words{}
	for _, o := range s.Objects {
		all[o.Name] = "it is gone"
	}
	for _, h := range s.Shields {
		all[h.Name] = "it is gone"
	}
	for name := range liveBases(dir, s) {
		delete(all, name)
	}
	return all
}

// keptBases are those that restore can bring back.
func keptBases(_ string, s *pool.State) words {
	all := heldBases("", s)
	for _, h := range s.Held {
		all[h.Name] = "in quarantine"
	}
	for _, h := range s.Alone() {
		all[h.Name] = "its shield has it"
	}
	return all
}

// heldBases are the ids of what is in quarantine.
func heldBases(_ string, s *pool.State) words {
	all := words{}
	for _, h := range s.Held {
		all[h.ID] = h.Name + ", in quarantine since " + h.Since.Format(time.DateOnly)
	}
	return all
}

// plannedBases are those that a plan can be about.
func plannedBases(dir string, s *pool.State) words {
	all := liveBases(dir, s)
	for _, h := range s.Alone() {
		all[h.Name] = "its shield has it"
	}
	maps.Copy(all, heldBases(dir, s))
	return all
}

// pinnedBases are the names and ids of pins.
func pinnedBases(_ string, s *pool.State) words {
	all := words{}
	for _, p := range s.Pins {
		all[p.Name], all[p.ID] = "all its pins", p.Name+": "+p.Reason
	}
	return all
}

// nodesAre are the nodes of a pool that were retired, or not.
func nodesAre(retired bool) func(string, *pool.State) words {
	return func(_ string, s *pool.State) words {
		all := words{}
		for _, n := range s.Nodes() {
			if n.Away() == retired {
				all[n.Name] = ""
			}
		}
		return all
	}
}
