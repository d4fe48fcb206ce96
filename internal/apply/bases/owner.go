// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

const (
	// baseMode is what Nova's bases have: it makes them as a user of its own, with the usual umask. Where QEMU runs as
	// another, libvirt gives it the images of a chain when a machine starts (security_dac.c of libvirt,
	// virSecurityDACSetImageLabel), but not where dynamic_ownership is off, and not on a server of NFS that gives nothing
	// to root: there the base has to be readable for all.
	baseMode fs.FileMode = 0o644
	// readOthers is the permission that every user may read.
	readOthers fs.FileMode = 0o004
	// maxPeers bounds how many bases are looked at for what is usual.
	maxPeers = 1000
)

// usual is the owner, and are the permissions, that most bases have; those of the directory and of Nova where there are
// none.
func (k *keeper) usual(ctx context.Context) (diskio.Ownership, error) {
	all, err := k.Disk.List(ctx, k.Bases, false, func(name string) bool { return !strings.HasPrefix(name, ".") })
	if err != nil {
		return diskio.Ownership{}, err
	}
	count := map[diskio.Ownership]int{}
	var most diskio.Ownership
	for _, path := range all[:min(len(all), maxPeers)] {
		n, err := k.Disk.LookAt(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !n.Mode.IsRegular() {
			continue
		}
		if err != nil {
			return most, err
		}
		o := diskio.Ownership{Mode: n.Mode.Perm(), Owner: n.Owner, Group: n.Group}
		if count[o]++; count[o] > count[most] {
			most = o
		}
	}
	if len(count) > 0 {
		return most, nil
	}
	n, err := k.Disk.LookAt(k.Bases)
	return diskio.Ownership{Mode: baseMode, Owner: n.Owner, Group: n.Group}, err
}

// likeOthers gives a file that is to be a base what the other bases have, so that whoever reads those can read it. Where
// that cannot be had, and not everybody may read it, that is told.
func (k *keeper) likeOthers(ctx context.Context, id diskio.ID, path, name string, d *pool.Done) error {
	want, err := k.usual(ctx)
	if err != nil {
		return fmt.Errorf("whose the other bases in %s are: %w", filepath.Base(k.Bases), err)
	}
	err = diskio.Give(id, path, want)
	if errors.Is(err, fs.ErrPermission) {
		if want.Mode&readOthers == 0 {
			d.Leave(name, fmt.Errorf("it is in its place, and has not the owner %d:%d and the mode %#o of the other bases: who runs "+
				"the machines may not be able to read it: %w", want.Owner, want.Group, want.Mode, err))
		}
		err = nil
	}
	return err
}
