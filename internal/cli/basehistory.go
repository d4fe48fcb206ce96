// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/blame"
	"github.com/shisa-vm/shisa/internal/render"
)

func newBaseHistory(s *stdio) *cobra.Command {
	var o poolOptions
	var logs string
	c := &cobra.Command{
		Use:   "history POOL NAME",
		Short: "tell what happened to a base image, and when",
		Long: `history lists what is known to have happened to one base, in the order of time: what shisa did, which the audit of
the pool has, who removed it while "shisa base protect --watch" looked on, and what Nova wrote into its logs when it
removed it. It only reads.

The logs are the journal of this host and those below /var/log, with those that were rotated away and packed. With
--logs they are all files below DIR, whatever they are called: DIR/NODE/... of each machine, or those of a central
syslog.

The exit status is 4 if anything could not be read, or if the audit was changed.`,
		Example: `  shisa base history /var/lib/nova/instances 7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b
  shisa base history --logs /srv/syslog /var/lib/nova/instances 7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b`,
		Args: wantArgs(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := o.history(c.Context(), args[1], logs)
			if err != nil {
				return err
			}
			return o.told(h, render.BaseHistory, s)
		},
	}
	o.historyFlags(c, &logs)
	o.completePool(c, 1, anyBase)
	return c
}

func newBaseBlame(s *stdio) *cobra.Command {
	var o poolOptions
	var logs string
	c := &cobra.Command{
		Use:   "blame POOL NAME",
		Short: "tell who removed a base image last",
		Long: `blame tells in a sentence who removed one base last, on which machine and when, and how sure that is: certain where
the kernel told of it, likely where a program wrote that it removes this very file, possible where the line names
another directory, or where the times of several machines cannot be told apart. It looks where "shisa base history"
does. It only reads.

The exit status is 3 if the base is gone and somebody is known to have removed it, 4 if nobody is, or if anything could
not be read, and 0 if the base is in its place.`,
		Example: `  shisa base blame /var/lib/nova/instances 7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b
  shisa base blame --logs /srv/syslog /var/lib/nova/instances 7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b`,
		Args: wantArgs(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := o.history(c.Context(), args[1], logs)
			if err != nil {
				return err
			}
			h.Accuse()
			return o.told(h, render.BaseBlame, s)
		},
	}
	o.historyFlags(c, &logs)
	o.completePool(c, 1, anyBase)
	return c
}

func (o *poolOptions) historyFlags(c *cobra.Command, logs *string) {
	f := c.Flags()
	jsonFlag(c, &o.json)
	f.StringVar(&o.baseName, "base-name", "_base", "the directory of bases in POOL is called `NAME`")
	f.BoolVar(&o.all, "all", false, "list everything instead of at most 20 of a kind")
	o.configFlag(c)
	f.StringVar(logs, "logs", "", "read the logs below `DIR` instead of those of this host")
	complete(c, map[string]cobra.CompletionFunc{"logs": directories})
}

// history reads what is known of a base.
func (o *poolOptions) history(ctx context.Context, name, logs string) (h *blame.History, err error) {
	dir, err := refs.BasesIn(ctx, o.pool, o.baseName, 0)
	if err != nil {
		return nil, err
	}
	b := blame.Options{Bases: dir, Name: filepath.Base(name), LogDir: logs, Collected: logs != "", Now: time.Now()}
	if b.Node, err = o.thisNode(); err != nil {
		return nil, err
	}
	open := tree.OpenLive
	if logs != "" {
		open = func(ctx context.Context) (*tree.Local, error) { return tree.OpenDirectory(ctx, logs) }
	}
	t, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	b.Logs = t
	return blame.Find(ctx, b)
}

// told writes a history.
func (o *poolOptions) told(h *blame.History, text func(w io.Writer, h *blame.History, s render.Style) error, s *stdio) error {
	var err error
	if o.json {
		err = render.JSON(s.out, render.BaseHistorySchema, h)
	} else {
		err = text(s.out, h, s.style(o.all))
	}
	if err != nil {
		return err
	}
	return exitWith(h.Status[0])
}
