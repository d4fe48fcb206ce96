// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/render"
)

func newBaseRestore(s *stdio) *cobra.Command {
	var o poolOptions
	var r bases.RestoreOptions
	var kept bool
	c := &cobra.Command{
		Use:   "restore POOL NAME|ID...",
		Short: "give bases that were removed or set aside their names back",
		Long: `restore gives bases that were removed or set aside their names back, from their shields or from quarantine: they are
the very same files. They are touched, so that a cleaner does not remove them again at once. Nothing is ever written
over. NAME may be the id of a quarantine.

With --kept all bases get their names back that only shields keep, whether anybody needs them or not: "shisa base scan"
tells how much space they take, and "shisa base plan" which of them may be set aside without that.

The exit status is 5 if a base did not get its name back.`,
		Example: `  shisa base restore /var/lib/nova/instances 7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b
  shisa base restore --as golden.old /var/lib/libvirt/images golden.qcow2
  shisa base restore --kept /var/lib/nova/instances`,
		Args: wantArgs(1, -1),
		RunE: func(c *cobra.Command, args []string) error {
			names := args[1:]
			switch {
			case kept && (len(names) > 0 || r.As != "" || r.Inode != 0):
				return usageError(c, "--kept takes no NAME, --as or --inode: it is about all that only shields keep")
			case !kept && len(names) == 0:
				return usageError(c, "which base? want: shisa base restore POOL NAME, or --kept")
			case len(names) > 1 && (r.As != "" || r.Inode != 0):
				return usageError(c, "--as and --inode are for one NAME")
			}
			return o.change(c.Context(), s, finding.StatusRefused, func(ctx context.Context, act bases.Options) (*pool.Done, error) {
				if kept {
					return bases.RestoreKept(ctx, r.Why, act)
				}
				d, err := bases.RestoreAll(ctx, names, r, act)
				return d, o.restoreError(err)
			})
		},
	}
	o.actFlags(c)
	o.completePool(c, -1, keptBases)
	f := c.Flags()
	f.BoolVar(&kept, "kept", false, "all bases that only shields keep, instead of a NAME")
	f.Uint64Var(&r.Inode, "inode", 0, "the file with inode `N`, where several had that name")
	f.StringVar(&r.As, "as", "", "bring it back under another `NAME`")
	f.StringVar(&r.Why, "reason", "", "`TEXT` for the audit: why")
	return c
}

// restoreError gives an error of bringing back one base its status and hint.
func (o *poolOptions) restoreError(err error) error {
	switch {
	case errors.Is(err, bases.ErrThere):
		return finding.WithHint(withStatus(finding.StatusRefused, err), "nothing is ever written over: --as gives it another name")
	case errors.Is(err, bases.ErrSeveral):
		return finding.WithHint(withStatus(finding.StatusRefused, err), "--inode says which one is meant")
	case errors.Is(err, bases.ErrNoShield):
		return finding.WithHint(err, "shisa base missing "+render.Word(o.pool)+" lists what is gone, and how it can come back")
	}
	return err
}
