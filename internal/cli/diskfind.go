// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/render"
)

type diskFindOptions struct {
	guestOptions
	inside.Wanted
	kind            string
	newer, older    string
	larger, smaller byteSize
	uids, gids      []uint
	zero            bool
}

func newDiskFind(s *stdio) *cobra.Command {
	var o diskFindOptions
	c := &cobra.Command{
		Use:   "find DISK[:PART][:/PATH]",
		Short: "find files of the guest by name, time, size or owner",
		Long: `find walks over a directory of the guest with all that is below it, and gives the paths of what all
conditions hold for. Over a whole file system it also holds what has names against what is in use, so that it can tell
whether it saw all; below a directory it tells what it met.

Times are those of the last change of content: a date (2026-11-21), a time (2026-11-21T04:00:00Z), or a duration
before now (36h).`,
		Example: `  shisa disk find vm.qcow2 --name '*.log' --newer 24h
  shisa disk find vm.qcow2:/home --type f --larger 100M
  shisa disk find vm.qcow2 --uid 1000 -0 | xargs -0 -n1 echo`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.ready(time.Now()); err != nil {
				return usageErrorOf(c, err)
			}
			return runDiskFind(c.Context(), o, args[0], s)
		},
	}
	f := o.flags(c)
	o.pathFlag(f)
	f.StringVar(&o.Name, "name", "", "the last part of the path matches `PATTERN` (*, ?, [a-z])")
	f.StringVar(&o.Wanted.Path, "match", "", "the whole path matches `PATTERN`; * takes no slash")
	f.StringVar(&o.kind, "type", "", "of one `TYPE`: f file, d directory, l link, b, c, p, s")
	f.StringVar(&o.newer, "newer", "", "changed after `TIME`")
	f.StringVar(&o.older, "older", "", "changed before `TIME`")
	f.Var(&o.larger, "larger", "files of more than `SIZE` bytes")
	f.Var(&o.smaller, "smaller", "files of less than `SIZE` bytes")
	f.UintSliceVar(&o.uids, "uid", nil, "owned by the user with the number `UID` (may be repeated)")
	f.UintSliceVar(&o.gids, "gid", nil, "owned by the group with the number `GID` (may be repeated)")
	f.BoolVarP(&o.zero, "null", "0", false, "end each path with a zero byte instead of a new line")
	return c
}

// ready turns the flags into conditions.
func (o *diskFindOptions) ready(now time.Time) (err error) {
	if len(o.kind) > 1 || o.kind != "" && !strings.Contains("fdlbcps", o.kind) {
		return fmt.Errorf("--type %s, want one of f d l b c p s", o.kind)
	}
	if o.kind != "" {
		o.Type = o.kind[0]
	}
	if o.Newer, err = timeOf("--newer", o.newer, now); err != nil {
		return err
	}
	if o.Older, err = timeOf("--older", o.older, now); err != nil {
		return err
	}
	o.Larger, o.Smaller = int64(o.larger), int64(o.smaller)
	for _, id := range o.uids {
		o.UIDs = append(o.UIDs, uint32(id))
	}
	for _, id := range o.gids {
		o.GIDs = append(o.GIDs, uint32(id))
	}
	return o.Wanted.Ready()
}

// timeOf reads a time of the command line; "" is the zero time.
func timeOf(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s %q, want a date, a time as 2026-11-21T04:00:00Z or a duration as 36h",
		flag, text)
}

func runDiskFind(ctx context.Context, o diskFindOptions, arg string, s *stdio) error {
	form := render.GuestListText{Form: render.GuestNames}
	if o.zero {
		form.Form = render.GuestZero
	}
	return o.into(ctx, arg, true, func(l *look, from *files.Found) error {
		return l.list(s, o.json, form, func(each func(render.GuestEntry, inside.Level) error) (err error) {
			one := func(f *files.Found) error {
				if f.Err == nil && !o.Takes(f) {
					return nil
				}
				return each(render.NewGuestEntry(f), inside.Level{Found: f})
			}
			if from.Entry.Ino != l.fs.Info().Root {
				l.only(from, "")
				return files.Walk(ctx, l.fs, from.Entry.Ino, from.Path, one)
			}
			// Of a whole file system it can be told whether all was seen.
			l.view = new(files.View)
			_, *l.view, err = files.Survey(ctx, l.fs, one)
			return err
		})
	})
}
