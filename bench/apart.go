// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

// apartCommand has the bench measure in a mount namespace of its own, where what it mounts and keeps
// busy is in nobody's way. What it found goes to its standard output.
const apartCommand = "measure-apart"

// apartPatience is how long that is given to tidy up.
const apartPatience = time.Minute

// apart is the bench there.
type apart struct {
	Shisa string // the program
	Dir   string // an empty directory
	Quick bool
	log   io.Writer
}

// apartWork is what can be measured there; the result can be written as JSON.
var apartWork = map[string]func(a *apart, ctx context.Context) (any, error){
	"kinds":   func(a *apart, ctx context.Context) (any, error) { return a.kinds(ctx) },
	"crowd":   func(a *apart, ctx context.Context) (any, error) { return a.crowd(ctx) },
	"passing": func(a *apart, ctx context.Context) (any, error) { return a.passing(ctx) },
	"lasting": func(a *apart, ctx context.Context) (any, error) { return a.lasting(ctx) },

	"doubts": func(a *apart, ctx context.Context) (any, error) { return a.doubts(ctx) },

	"catch-watch":   func(a *apart, ctx context.Context) (any, error) { return a.catchesBy(ctx, probe.Watch) },
	"catch-syscall": func(a *apart, ctx context.Context) (any, error) { return a.catchesBy(ctx, probe.Syscall) },
	"watching":      func(a *apart, ctx context.Context) (any, error) { return a.watchingCosts(ctx) },
}

// apart measures one thing there. found is a pointer to what it comes to.
func (b *bench) apart(ctx context.Context, dir, work string, found any) (err error) {
	a := apart{Shisa: b.shisa, Quick: b.quick}
	if a.Dir, err = os.MkdirTemp(dir, "apart-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(a.Dir)) }()
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var errs tail
	cmd := exec.CommandContext(ctx, self, apartCommand, work, string(text))
	cmd.Stderr = io.MultiWriter(b.log, &errs)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = apartPatience
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, found)
	}
	if err != nil {
		return fmt.Errorf("in a mount namespace of its own: %w: %s", err, bytes.TrimSpace(errs.b.Bytes()))
	}
	return nil
}

// measureApart is the bench in the mount namespace.
func measureApart(work, text string, out, log io.Writer) int {
	if err := hold.Apart(); err != nil {
		fmt.Fprintln(log, err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM,
		syscall.SIGHUP)
	defer stop()
	a := apart{log: log}
	err := json.Unmarshal([]byte(text), &a)
	do := apartWork[work]
	if err == nil && do == nil {
		err = fmt.Errorf("nothing to be measured is called %q", work)
	}
	if err == nil {
		var found any
		if found, err = do(&a, ctx); err == nil {
			err = json.NewEncoder(out).Encode(found)
		}
	}
	if err != nil {
		fmt.Fprintln(log, err)
		return 1
	}
	return 0
}

// directory makes one.
func (a *apart) directory() (string, error) { return os.MkdirTemp(a.Dir, "") }

// tmpfs mounts a file system in memory.
func tmpfs(at string) error {
	if err := syscall.Mount("shisa-bench", at, "tmpfs", 0, "size=4m"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", at, err)
	}
	return nil
}

// gone unmounts what may be mounted, whoever holds it.
func gone(at string) error {
	const detach = 2 // MNT_DETACH
	if err := syscall.Unmount(at, detach); err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("unmount %s: %w", at, err)
	}
	return nil
}
