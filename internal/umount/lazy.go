// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/holders"
)

// lazy detaches the mount (umount2(2), MNT_DETACH). It leaves the tree at once, and the file system
// lives until the last one lets go: written to where nobody sees it, on a device that looks free. So
// it is refused while anybody may write.
func (u *unmount) lazy(ctx context.Context) (*Result, error) {
	if !mayUnmount() {
		return nil, u.failed(ctx, unix.EPERM) // no risk that is accepted helps
	}
	if err := u.scan(ctx); err != nil {
		return nil, err
	}
	if why := unsafe(u.r.Report); why != "" && !u.o.AcceptLazy {
		return nil, finding.WithHint(
			fmt.Errorf("detach %s: %w: %s", u.mount.Point, ErrRefused, why),
			"let go of it first (shisa holders "+finding.Word(u.mount.Point)+" says who), or accept that it is "+
				"written to unseen: --accept-risk="+Risk+":"+u.mount.Point)
	}
	u.know(ctx)
	u.begin()
	u.r.Tries = 1
	if err := u.call(ctx, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
		return nil, u.failed(ctx, err)
	}
	u.r.State = Detached
	if u.o.DeviceFree {
		if err := u.device(ctx); err != nil {
			return nil, err
		}
	}
	if u.r.Undo != "" {
		u.r.Notes = append(u.r.Notes, "until the last one lets go, mounting the device again gives the same "+
			"file system with the same open files")
	}
	return u.done(), nil
}

// mayUnmount tells whether this process may call umount(2) at all. Where that is not known the call itself tells.
func mayUnmount() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return true
	}
	return sets[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// Risk is the name under which detaching is accepted for a path while somebody may write.
const Risk = "lazy"

// unsafe says why detaching may lose what is written, "" where nobody may write. Of whom that is not
// known may.
func unsafe(r *holders.Report) string {
	switch {
	case r == nil:
		return "who holds it could not be looked at"
	case !r.Audit.Read:
		return "whether somebody holds it cannot be told: " + r.Audit.Reason
	case r.Audit.Unexplained != 0:
		return fmt.Sprintf("references that nobody explains: %d, and whoever has them may write", r.Audit.Unexplained)
	}
	for _, h := range r.Holders {
		if h.Writing != nil && !*h.Writing {
			continue
		}
		who := fmt.Sprintf("process %d (%s)", h.Process.PID, h.Process.Comm)
		if h.Process.PID == 0 {
			who = "the kernel"
		}
		if h.Writing == nil {
			return fmt.Sprintf("whether %s writes to it is not known: %s of %s", who, h.Kind, h.Path)
		}
		return fmt.Sprintf("%s may write to it: %s of %s", who, h.Kind, h.Path)
	}
	if n := r.Audit.Writers; n != 0 {
		return fmt.Sprintf("the kernel counts writers that nobody explains: %d", n)
	}
	return ""
}
