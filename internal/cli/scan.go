// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/scan"
)

type scanOptions struct {
	lookOptions
	// host: the doctor looks at this host too, as it does where no path is named.
	host  bool
	rules string
	// document, if set, gives what is printed as JSON instead of the report alone.
	document func(*scan.Report) any
}

func newScan(s *stdio) *cobra.Command {
	var o scanOptions
	c := &cobra.Command{
		Use:   "scan [PATH...]",
		Short: "find what is wrong with the disks of this host",
		Long: `scan checks all disk images below the paths and puts what is wrong in order: the likely cause first,
with all that hangs on it, then what else is hurt; what is harmless and what was not looked at stand
at the end. Of the directories of base images that it meets (those called _base, and the storage pools of this host) it
tells which bases are needed and missing, and whether any are unprotected ("shisa base" does something about both).

Without a path it looks where images live: the storage pools and machines of libvirt, the instances
of OpenStack Nova, the usual directories of other programs and of this user, and the images that
running QEMU processes have open. It says which of these places it looked at. The doctor looks at the host then
as well ("shisa doctor"), and all that was found is ranked together: an image may be hurt because of the disk that it
lies on. With paths, --host does that.`,
		Example: `  shisa scan
  shisa scan /var/lib/nova/instances
  shisa scan --html report.html
  shisa scan --json --io-limit 50M
  shisa scan --host /srv/images`,
		Args: wantArgs(0, -1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.ready(c); err != nil {
				return err
			}
			return runScan(c.Context(), o, args, s)
		},
	}
	o.flags(c)
	c.Flags().BoolVar(&o.host, "host", false, "have the doctor look at this host, too")
	rulesFlag(c, &o.rules)
	return c
}

func runScan(ctx context.Context, o scanOptions, paths []string, s *stdio) error {
	p := newProgress(s, "scanning")
	opts := scan.Options{Check: o.options(p)}
	if err := remember(ctx, o.state, &opts.Check); err != nil {
		return err
	}
	opts.Census = censusBy("", s)
	// A user without a home has no machines there.
	opts.Home, _ = os.UserHomeDir()
	if o.host || len(paths) == 0 {
		opts.Evidence = func(ctx context.Context) (*evidence.Evidence, error) {
			return (&doctorOptions{}).gatherLive(ctx, "")
		}
		var err error
		if opts.Rules, err = userRules(o.rules); err != nil {
			return err
		}
	}
	r, err := scan.Run(ctx, paths, opts)
	if partial(ctx, err, len(r.Images)) {
		o.files.name(ctx, r.Images, o.beside(r.Images), s)
	}
	p.Done()
	if !partial(ctx, err, len(r.Images)) {
		return err
	}
	page := o.html.write(o.all, func(w io.Writer, info render.PageInfo) error { return render.ScanHTML(w, r, info) })
	r.Status, page = withPage(r.Status, page)
	var show error
	if o.json {
		doc := any(r)
		if o.document != nil {
			doc = o.document(r)
		}
		show = render.JSON(s.out, render.ScanSchema, doc)
	} else {
		show = render.Scan(s.out, r, s.style(o.all))
	}
	if err := cmp.Or(err, page, show); err != nil {
		return err
	}
	return exitWith(r.Status[0])
}
