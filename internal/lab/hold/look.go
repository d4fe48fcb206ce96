// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Looker is a program that is asked who keeps a disk busy.
type Looker struct {
	Name string
	// Look asks it while h is there, and gives its answer in a word or two.
	Look func(ctx context.Context, d *Disk, h *Hold) (string, error)
}

// What a Looker is said to have answered.
const (
	Named  = "yes"   // it names the process that does it
	Blamed = "yes+"  // it names it too, and does not say that it keeps no umount from succeeding
	Missed = "no"    // it does not
	Silent = "-"     // there is nobody to be named, and it names nobody
	Wrong  = "wrong" // it names a process that does no harm
)

// Fuser is fuser(1) of psmisc, as it is usually asked.
func Fuser() Looker {
	return looker("fuser", func(at string, _ Effect) []string { return []string{"-m", at} })
}

// Lsof is lsof(8), as it is usually asked.
func Lsof() Looker {
	return looker("lsof", func(at string, e Effect) []string {
		if e == Hides { // +f is for what is mounted
			return []string{"-w", "-t", at}
		}
		return []string{"-w", "-t", "+f", "--", at}
	})
}

// looker is a program that prints the numbers of processes, and ends with 1 where there are none.
func looker(name string, args func(at string, e Effect) []string) Looker {
	return Looker{name, func(ctx context.Context, d *Disk, h *Hold) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		about := d.Mount
		if h.Kind.Effect == Hides {
			about = d.Device // nothing is mounted there to be asked about
		}
		cmd := exec.CommandContext(ctx, name, args(about, h.Kind.Effect)...)
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
			return "", fmt.Errorf("ask %s about %s: %w", name, about, err)
		}
		return verdict(h, strings.Fields(string(out))), nil
	}}
}

// verdict says what an answer that is a list of processes is worth.
func verdict(h *Hold, pids []string) string {
	switch named := h.PID != 0 && slices.Contains(pids, strconv.Itoa(h.PID)); {
	case h.Kind.Effect == Harmless && named:
		return Wrong
	case h.Kind.Effect == Harmless:
		return Silent
	case named && h.Kind.Effect == Pins:
		return Blamed
	case named:
		return Named
	}
	return Missed
}

// Row is what became of one kind.
type Row struct {
	Kind Kind
	// Umount is the answer of umount(2), Free whether the device could be had for itself afterwards.
	Umount error
	Free   bool
	// Said has the answers of those who were asked, in their order.
	Said []string
}

// Measure makes a disk at dir, an existing directory, keeps it busy in one way, asks everybody
// about it, and then the kernel. Release must bring everything back: that it does not is an error.
func Measure(ctx context.Context, k Kind, dir string, ask ...Looker) (Row, error) {
	d, err := NewDisk(ctx, dir)
	if err != nil {
		return Row{}, err
	}
	row, err := d.measure(ctx, k, ask)
	return row, errors.Join(err, d.Close())
}

func (d *Disk) measure(ctx context.Context, k Kind, ask []Looker) (Row, error) {
	row := Row{Kind: k}
	h, err := Make(ctx, k, d.Place)
	if err != nil {
		return row, err
	}
	for _, l := range ask {
		said, askErr := l.Look(ctx, d, h)
		row.Said = append(row.Said, said)
		err = errors.Join(err, askErr)
	}
	row.Umount = d.Umount(k.Effect.Errno())
	free, freeErr := d.Free(k.Effect == Harmless)
	row.Free = free
	if err = errors.Join(err, freeErr, h.Release()); err != nil {
		return row, err
	}
	if row.Umount == unix.EBUSY {
		if err := d.Umount(nil); err != nil {
			return row, fmt.Errorf("unmount %s, released from %s: %w", d.Mount, k.Name, err)
		}
	}
	if free, err := d.Free(true); err != nil || !free {
		return row, errors.Join(err, fmt.Errorf("%s is busy after the release of %s", d.Device, k.Name))
	}
	return row, nil
}

// True reports whether the kernel did what the kind is said to do.
func (r Row) True() bool {
	return r.Umount == r.Kind.Effect.Errno() && r.Free == (r.Kind.Effect == Harmless)
}

// String is the row on one line.
func (r Row) String() string { return strings.Join(r.Cells(), ", ") }

// Cells are the row's cells in a table: kind, umount(2), the device afterwards, and the answers.
func (r Row) Cells() []string {
	umount, device := "OK", "busy"
	switch {
	case r.Umount == unix.EBUSY:
		umount = "EBUSY"
	case r.Umount == unix.EINVAL:
		umount = "not mounted"
	case r.Umount != nil:
		umount = r.Umount.Error()
	}
	if r.Free {
		device = "free"
	}
	return append([]string{r.Kind.Name, umount, device}, r.Said...)
}
