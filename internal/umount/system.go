// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"context"
	"errors"
	"fmt"

	"github.com/shisa-vm/shisa/internal/linux/probe"
)

// Kernel reads the kernel's own lists of mounts and of file systems, as *probe.Refs does.
type Kernel interface {
	// Mount gives a mount of this process's namespace by its number.
	Mount(ctx context.Context, id int) (probe.Mount, error)
	// Super gives the file system at an address, none once it is gone with all that it had.
	Super(ctx context.Context, addr uint64) ([]probe.Super, error)
}

// system is a file system as the kernel had it while it was mounted.
type system struct {
	kernel Kernel
	super  probe.Super
	why    error // nothing is known of it
}

// know finds the file system before the mount is gone by which it is found.
func (u *unmount) know(ctx context.Context) {
	if !u.o.DeviceFree {
		return
	}
	u.system.why = u.findSystem(ctx)
}

func (u *unmount) findSystem(ctx context.Context) error {
	if u.Kernel == nil {
		return errors.New("the kernel's list of file systems is not asked")
	}
	kernel, err := u.Kernel()
	if err != nil {
		return fmt.Errorf("the kernel's list of file systems cannot be read: %w", err)
	}
	m, err := kernel.Mount(ctx, u.mount.ID)
	if err != nil {
		return err
	}
	all, err := kernel.Super(ctx, m.Super)
	if err != nil {
		return err
	}
	if len(all) != 1 || all[0].Dev != u.mount.Dev {
		return fmt.Errorf("the kernel's list of file systems has not that of mount %d", u.mount.ID)
	}
	u.system.kernel, u.system.super = kernel, all[0]
	return nil
}

// alive tells whether the kernel still has the file system, mounted anywhere or not. Its address and its
// number may be those of another one by then, which has another root; with the same root as well it
// is taken for the old one, so nothing is called free that is not.
func (s *system) alive(ctx context.Context) (bool, error) {
	if s.kernel == nil {
		return false, s.why
	}
	all, err := s.kernel.Super(ctx, s.super.Addr)
	if err != nil {
		return false, err
	}
	for _, now := range all {
		if now.Dev == s.super.Dev && (now.Root == s.super.Root || now.Root == 0) {
			return true, nil
		}
	}
	return false, nil
}
