// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/notice"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/vault"
)

// act is what an act on the bases of a directory needs.
func (o *poolOptions) act(dir string, s *stdio) (bases.Options, func(), error) {
	host := o.node
	if host == "" {
		var err error
		if host, err = os.Hostname(); err != nil {
			return bases.Options{}, nil, fmt.Errorf("the name of this host: %w", err)
		}
	}
	state, err := stateDir(o.state)
	if err != nil {
		return bases.Options{}, nil, err
	}
	receipts, err := vault.New(vault.Options{StateDir: state})
	if err != nil {
		return bases.Options{}, nil, err
	}
	bar := newProgress(s, "reading")
	return bases.Options{Bases: dir, Node: host, Receipts: receipts, Tool: "shisa " + version,
		Progress: func(what string, done, total int64) { bar.Part(filepath.Base(what), done, total) }}, bar.Done, nil
}

// newPool adds the flag that says that a directory is another pool than it was.
func newPool(c *cobra.Command, risks *[]string) {
	c.Flags().Var((*repeated)(risks), "accept-risk", "take a `RISK`: new-pool:POOL, it is not the pool that it was, and is "+
		"protected all the same")
}

// asNewPool tells whether it was said of a pool that it is a new one. The error is one of the command line.
func asNewPool(c *cobra.Command, risks []string, pool string) (bool, error) {
	for _, r := range risks {
		if r != "new-pool:"+pool {
			return false, usageError(c, "the only risk that can be taken here is new-pool:%s", pool)
		}
	}
	return len(risks) > 0, nil
}

// actError gives an error of an act its status and hint.
func actError(err error, pool string) error {
	switch {
	case errors.Is(err, bases.ErrOtherPool):
		return finding.WithHint(withStatus(finding.StatusRefused, oneLine{err}),
			"mount it; if the old pool is gone for good: shisa base protect --accept-risk=new-pool:"+render.Word(pool)+" "+
				render.Word(pool))
	case errors.Is(err, vault.ErrReceipt):
		return finding.WithHint(oneLine{err}, "keep receipts elsewhere with --state DIR")
	}
	return err
}

// did prints what an act did. What was left undone is a reason not to be sure.
func (o *poolOptions) did(d *pool.Done, s *stdio) (err error) {
	if d.Receipt != "" {
		d.Undo = "shisa undo" + stateWord(o.state) + " " + d.Receipt
	}
	if o.json {
		err = render.JSON(s.out, render.BaseDoneSchema, d)
	} else {
		err = render.BaseDone(s.out, d, render.Style{Width: s.width, Color: s.colour, All: o.all})
	}
	return err
}

func newBaseProtect(s *stdio) *cobra.Command {
	var o poolOptions
	var p bases.ProtectOptions
	var watch bool
	var risks []string
	c := &cobra.Command{
		Use:   "protect POOL",
		Short: "keep bases from being lost, whoever removes them",
		Long: `protect gives every base of a pool a shield, a second hard link beside it that takes no space: who removes the
base takes one of its two names away, and "shisa base restore" gives it back. One that is needed and gone gets its name
back here too. Bases that are needed, or may be, are touched, so that Nova's cleaner does not take them for old; and what
each base holds is recorded as digests.

It only adds, acts at once, and may be done again and again, as by a timer every 20 minutes. "shisa base unprotect"
takes the shields away.

With --watch it goes on until it is stopped: it looks at everything every ten minutes, tells who removes a base, and
gives one that is needed its name back at once. What other nodes remove from a shared directory it sees at its next
look.

A directory of its own, .shisa, beside the bases keeps all that. Nova leaves it alone.`,
		Example: `  shisa base protect /var/lib/nova/instances
  shisa base protect --no-record --keepalive 1h /var/lib/nova/instances
  shisa base protect --watch --json /var/lib/nova/instances`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if p.KeepAlive < 0 {
				return usageError(c, "--keepalive is negative")
			}
			if p.KeepAlive == 0 && o.said != nil {
				p.KeepAlive = o.said.KeepAlive
			}
			fresh, err := asNewPool(c, risks, args[0])
			if err != nil {
				return err
			}
			if watch {
				return runBaseWatch(c.Context(), o, p, fresh, args[0], s)
			}
			return runBaseProtect(c.Context(), o, p, fresh, args[0], s)
		},
	}
	o.actFlags(c)
	o.novaFlag(c)
	newPool(c, &risks)
	f := c.Flags()
	f.DurationVar(&p.KeepAlive, "keepalive", 0, "touch bases that are needed when they are older than `D` (default "+
		"6h, or 20m where Nova resized one)")
	f.BoolVar(&watch, "watch", false, "go on until stopped, and put back what somebody removes; with --json one object a line")
	f.BoolVar(&p.NoRecord, "no-record", false, "do not read the bases to record what they hold")
	return c
}

func runBaseProtect(ctx context.Context, o poolOptions, p bases.ProtectOptions, fresh bool, name string, s *stdio) error {
	c, err := o.census(ctx, name, s)
	if err != nil {
		return err
	}
	act, done, err := o.act(c.Bases, s)
	if err != nil {
		return err
	}
	act.NewPool = fresh
	d, err := bases.Protect(ctx, c, p, act)
	done()
	if err != nil {
		return actError(err, name)
	}
	if err := o.did(d, s); err != nil {
		return err
	}
	return exitWith(doneStatus(d, c))
}

// runBaseWatch protects a pool until it is stopped.
func runBaseWatch(ctx context.Context, o poolOptions, p bases.ProtectOptions, fresh bool, name string, s *stdio) (err error) {
	dir, err := refs.BasesIn(ctx, name, o.baseName, 10*time.Second)
	if err != nil {
		return err
	}
	act, done, err := o.act(dir, s)
	if err != nil {
		return err
	}
	defer done()
	act.NewPool = fresh
	w := bases.WatchOptions{Protect: p,
		Census: func(ctx context.Context) (*refs.Census, error) { return o.census(ctx, name, s) },
		Tell:   func(h pool.Happened) error { return o.tell(h, s) }}
	events, err := hearOf(dir, s)
	if err != nil {
		return err
	}
	if events != nil {
		defer func() { err = errors.Join(err, events.Close()) }()
		w.Events = events
		if err := events.Unsure(); err != nil {
			fmt.Fprintf(s.err, "shisa: of a process that ends as soon as it removed a base only the number is told: %s\n",
				render.Text(oneLine{err}.Error()))
		}
	}
	return actError(bases.Watch(ctx, w, act), name)
}

// tell prints what happened.
func (o *poolOptions) tell(h pool.Happened, s *stdio) (err error) {
	if o.json {
		err = render.JSONLine(s.out, render.BaseEventSchema, h)
	} else {
		err = render.BaseEvent(s.out, &h, render.Style{Width: s.width, Color: s.colour})
	}
	return errors.Join(err, s.flush())
}

// hearOf has the kernel tell who takes names from a directory; nil where it cannot, which is said.
func hearOf(dir string, s *stdio) (*notice.Watcher, error) {
	events, err := notice.Watch(dir, linux.Open(""))
	if errors.Is(err, notice.ErrNot) {
		fmt.Fprintf(s.err, "shisa: %s; a base that is removed comes back at the next look\n", render.Text(err.Error()))
		return nil, nil
	}
	return events, err
}

// doneStatus is what is left to be said when all was done that could be.
func doneStatus(d *pool.Done, c *refs.Census) int {
	var status []int
	if len(d.Left) > 0 {
		status = append(status, finding.StatusCannotTell)
	}
	if c != nil {
		status = append(status, c.Status...)
	}
	return finding.OrderStatus(status...)[0]
}

func newBaseUnprotect(s *stdio) *cobra.Command {
	var o poolOptions
	var u bases.UnprotectOptions
	c := &cobra.Command{
		Use:   "unprotect POOL",
		Short: "take the shields of bases away",
		Long: `unprotect takes back what protect did: each base loses its second name. A shield that is the last name of its
file stays, since a machine may need that; bring such a base back first, see "shisa base missing".

The records of what the bases hold stay, since they prove a copy: --records takes those away too of bases that are in
their place. Pins, what is in quarantine, and the audit stay. All that stays is listed with the reason.

The exit status is 5 if a shield had to stay.`,
		Example: `  shisa base unprotect /var/lib/nova/instances
  shisa base unprotect --records /var/lib/nova/instances`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error { return runBaseUnprotect(c.Context(), o, u, args[0], s) },
	}
	o.actFlags(c)
	c.Flags().BoolVar(&u.Records, "records", false, "take the records of what bases hold away too")
	return c
}

func runBaseUnprotect(ctx context.Context, o poolOptions, u bases.UnprotectOptions, name string, s *stdio) error {
	dir, err := refs.BasesIn(ctx, name, o.baseName, 0)
	if err != nil {
		return err
	}
	act, done, err := o.act(dir, s)
	if err != nil {
		return err
	}
	d, err := bases.Unprotect(ctx, u, act)
	done()
	if err != nil {
		return actError(err, name)
	}
	if err := o.did(d, s); err != nil {
		return err
	}
	if len(d.Left) > 0 {
		return exitWith(finding.StatusRefused)
	}
	return nil
}

func newBaseRestore(s *stdio) *cobra.Command {
	var o poolOptions
	var r bases.RestoreOptions
	c := &cobra.Command{
		Use:   "restore POOL NAME|ID",
		Short: "give a base that was removed or set aside its name back",
		Long: `restore gives a base that was removed or set aside its name back, from its shield or from quarantine: it is the very
same file. It is touched, so that a cleaner does not remove it again at once. Nothing is ever written over. NAME may be
the id of a quarantine.`,
		Example: `  shisa base restore /var/lib/nova/instances 7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b
  shisa base restore --as golden.old /var/lib/libvirt/images golden.qcow2`,
		Args: wantArgs(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			return runBaseRestore(c.Context(), o, r, args[0], args[1], s)
		},
	}
	o.actFlags(c)
	f := c.Flags()
	f.Uint64Var(&r.Inode, "inode", 0, "the shield with inode `N`, where there are several of that name")
	f.StringVar(&r.As, "as", "", "bring it back under another `NAME`")
	f.StringVar(&r.Why, "reason", "", "`TEXT` for the audit: why")
	return c
}

func runBaseRestore(ctx context.Context, o poolOptions, r bases.RestoreOptions, name, base string, s *stdio) error {
	dir, err := refs.BasesIn(ctx, name, o.baseName, 10*time.Second)
	if err != nil {
		return err
	}
	act, done, err := o.act(dir, s)
	if err != nil {
		return err
	}
	d, err := bases.Restore(ctx, base, r, act)
	done()
	switch {
	case errors.Is(err, bases.ErrThere):
		return finding.WithHint(withStatus(finding.StatusRefused, err), "nothing is ever written over: --as gives it another name")
	case errors.Is(err, bases.ErrSeveral):
		return finding.WithHint(withStatus(finding.StatusRefused, err), "--inode says which one is meant")
	case errors.Is(err, bases.ErrNoShield):
		return finding.WithHint(err, "shisa base scan "+render.Word(name)+" lists what is missing, and who still has it open")
	case err != nil:
		return basesError(err, name)
	}
	return o.did(d, s)
}
