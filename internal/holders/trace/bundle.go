// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
)

// File is a piece of evidence, to be written by who may write.
type File struct {
	Name string
	Data []byte
}

// Tables gives the tables of mounts as they are now: of this process, and of a failed umount's caller
// if that has another. It is for the moment of the failure.
func Tables(ctx context.Context, host *linux.Host, f Failure) []File {
	own, err := host.Mounts(ctx, 0)
	files := []File{{"mounts.txt", table(own, err)}}
	if pid := f.Umount.Process.PID; pid > 0 {
		theirs, err := host.Mounts(ctx, pid)
		files = append(files, File{fmt.Sprintf("mounts-%d.txt", pid), table(theirs, err)})
	}
	return files
}

// table writes mounts in the order of the kernel.
func table(mounts []linux.Mount, err error) []byte {
	var b bytes.Buffer
	if err != nil {
		fmt.Fprintf(&b, "# %v\n", err)
	}
	for _, m := range mounts {
		fmt.Fprintf(&b, "%d %d %s %q %q %s shared:%d master:%d %s %q %s\n", m.ID, m.Parent, device(m.Dev), m.Root,
			m.Point, m.Options, m.Shared, m.Master, m.Type, m.Source, m.Super)
	}
	return b.Bytes()
}

// Bundle gives the evidence of a failure: itself, its stacks for people, and what was kept of its
// moment.
func Bundle(f Failure, moment []File) ([]File, error) {
	doc, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write down the failed umount of %s: %w", f.Mount.Path, err)
	}
	files := []File{{"failure.json", append(doc, '\n')}, {"stacks.txt", stacks(f)}}
	return append(files, moment...), nil
}

// stacks writes the stacks of all who are named, one frame a line.
func stacks(f Failure) []byte {
	var b bytes.Buffer
	frames := func(what string, all []holders.Frame) {
		if len(all) == 0 {
			return
		}
		fmt.Fprintf(&b, "  %s:\n", what)
		for _, x := range all {
			fmt.Fprintf(&b, "    %s\n", x)
		}
	}
	fmt.Fprintf(&b, "umount of %q by %q (%d)\n", f.Mount.Path, f.Umount.Process.Comm, f.Umount.Process.PID)
	frames("user", f.Umount.UserStack)
	for _, h := range f.Holders {
		fmt.Fprintf(&b, "\n%s %q (%d), %s %q, %s(%s)\n", h.Certainty, h.Process.Comm, h.Process.PID, h.Kind, h.Path,
			h.Syscall, strings.Join(h.Args, ", "))
		frames("kernel", h.KernelStack)
		frames("user", h.UserStack)
	}
	return b.Bytes()
}
