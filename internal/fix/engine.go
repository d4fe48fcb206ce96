// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package fix

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/shisa-vm/shisa/internal/mount"
	"github.com/shisa-vm/shisa/internal/uml"
)

// maxWords is how much of a kernel's messages an error has.
const maxWords = 2000

// collected is given what a kernel wrote to the volume, in order.
type collected = func(off int64, p []byte) error

// throughUML has the change made in User Mode Linux.
func throughUML(ctx context.Context, t *Target, seen *seen, q request, o Options, to collected,
) (a *answer, err error) {
	if _, err := uml.Find(o.Program); err != nil {
		return nil, err
	}
	self := o.Self
	if self == "" {
		if self, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	raw, err := json.Marshal(&q)
	if err != nil {
		return nil, err
	}
	d, err := mount.ServeDisk(seen, t.Volume.Size, mount.DiskOptions{StateDir: o.StateDir, Source: t.Name,
		LayerBytes: o.LayerBytes, Everybody: os.Geteuid() == 0, Log: o.Log})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	r, err := uml.Run(ctx, uml.Options{Program: o.Program, Init: "/init", Args: []string{firstArg},
		Files: []uml.File{{Name: "init", Path: self}, {Name: requestPath[1:], Content: raw}},
		Disks: []uml.Disk{{Path: d.Path()}}})
	switch {
	case err == nil:
	case ctx.Err() != nil, errors.Is(err, uml.ErrUnavailable), errors.Is(err, uml.ErrConfine):
		return nil, err
	default: // what is on the disk may be why
		return nil, fmt.Errorf("%w: %w; its console ends with: %s", ErrEngine, err, end(r.Console))
	}
	if len(r.Lines) != 1 {
		return nil, fmt.Errorf("%w: the guest ended and said nothing; its console ends with: %s", ErrEngine, end(r.Console))
	}
	a, err = hear(r.Lines[0], r.Console, len(q.Changes))
	if err != nil || len(a.Done) == 0 {
		return a, err
	}
	if err := d.Close(); err != nil {
		return nil, err
	}
	return a, d.Changed(to)
}

// throughHost has it made by the driver of this host's kernel.
func throughHost(ctx context.Context, t *Target, seen *seen, q request, o Options, to collected,
) (a *answer, err error) {
	self := o.Self
	if self == "" {
		if self, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	raw, err := json.Marshal(&q)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "shisa-fix-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	var said, words bytes.Buffer
	v := mount.Volume{Reader: seen, SizeBytes: t.Volume.Size, Kind: string(t.Volume.Kind)}
	status, err := mount.Kernel(ctx, v, dir, mount.KernelOptions{StateDir: o.StateDir, Source: t.Name,
		LayerBytes: o.LayerBytes, Command: []string{self, changeArg, dir}, Env: os.Environ(),
		Stdin: bytes.NewReader(raw), Stdout: &said, Stderr: &words, Changed: to, Log: o.Log})
	if errors.Is(err, mount.ErrKind) {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if err != nil {
		return nil, err
	}
	if status != 0 {
		return nil, fmt.Errorf("%w: the program in the mount ended with %d: %s", ErrEngine, status, end(words.Bytes()))
	}
	return hear(said.Bytes(), words.Bytes(), len(q.Changes))
}

// hear understands what a guest answered. It may have been taken over, so nothing of it is believed that
// could not be true: what it wrote is a plan that a person reads.
func hear(line, console []byte, changes int) (*answer, error) {
	a := new(answer)
	if err := json.Unmarshal(line, a); err != nil {
		return nil, fmt.Errorf("%w: it said %.200q: %w", ErrEngine, line, err)
	}
	seen := map[int]bool{}
	for _, i := range append(append([]int{}, a.Done...), a.Already...) {
		if i < 0 || i >= changes || seen[i] {
			return nil, fmt.Errorf("%w: it said %.200q", ErrEngine, line)
		}
		seen[i] = true
	}
	switch {
	case a.Refused != "":
		return nil, fmt.Errorf("%w: %s", ErrRefused, a.Refused)
	case a.Failed != "" || !a.Ended || len(seen) != changes:
		return nil, fmt.Errorf("%w: %s; its console ends with: %s", ErrEngine,
			cmp.Or(a.Failed, "it did not come to its end"), end(console))
	}
	return a, nil
}

// end is the end of what a kernel said.
func end(words []byte) []byte { return bytes.TrimSpace(words[max(0, len(words)-maxWords):]) }
