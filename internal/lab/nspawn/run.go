// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package nspawn

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/vm"
)

const (
	// maxConsole is how much is kept of a console, in bytes.
	maxConsole = 64 << 10
	// exitReboot is what systemd-nspawn ends with when its guest wants to be booted again:
	// systemd-nspawn(1), --keep-unit; EXIT_FORCE_RESTART of its source.
	exitReboot = 133
)

// idleLooks is how often in turn a guest has to be seen idle before it is believed to stay: on a busy machine
// what was due long ago may still wait for a processor.
const idleLooks = 5

// spawn boots the guest. All that the guest says of itself goes to a socket (sd_notify(3)).
const spawn = `exec systemd-nspawn --quiet --register=no --keep-unit --private-network --console=read-only \
	--link-journal=no --resolv-conf=off --timezone=off --notify-ready=yes --machine=guest \
	--directory="$MERGED" $OPTIONS --boot -- "$@" </dev/null`

// Boot boots a world until it stays, goes off, or has been booted as often as the limits say. The
// outcome has to be closed. The error is that it could not be booted, or did not come up in time.
func (r *Root) Boot(ctx context.Context, w World, limits Limits) (o *Outcome, err error) {
	if limits.Boots <= 0 || limits.Hold <= 0 || limits.Wall <= 0 {
		return nil, errors.New("boot a world: the limits are not set")
	}
	l, err := r.prepare(ctx, w)
	if err != nil {
		return nil, err
	}
	o = &Outcome{layers: l}
	defer func() {
		if err != nil {
			err, o = errors.Join(err, o.Close()), nil
		}
	}()
	for n := range limits.Boots {
		if w.Forgets && n > 0 {
			if err := l.forget(); err != nil {
				return o, err
			}
		}
		b, cpu, err := l.boot(ctx, &w, n, limits)
		o.CPU += cpu
		if err != nil {
			return o, fmt.Errorf("boot %d of a world: %w; its console ends with\n%s", n, err, b.Console)
		}
		o.Boots = append(o.Boots, b)
		if b.End != Rebooted && b.End != Cut {
			break
		}
	}
	return o, nil
}

// boot boots once.
func (l *layers) boot(ctx context.Context, w *World, n int, limits Limits) (b Boot, cpu time.Duration, err error) {
	name := prefix + strconv.Itoa(os.Getpid()) + "-" + rand.Text()
	g, err := newGroups(name)
	if err != nil {
		return b, 0, err
	}
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "@" + name, Net: "unixgram"})
	if err != nil {
		return b, 0, errors.Join(err, g.remove())
	}
	var options []string
	for _, dir := range w.ReadOnly {
		options = append(options, "--bind-ro=+"+dir+":"+dir)
	}
	ctx, cancel := context.WithTimeout(ctx, limits.Wall)
	defer cancel()
	c, err := l.child(ctx, spawn, "NOTIFY_SOCKET=@"+name, "OPTIONS="+strings.Join(options, " "),
		"GROUPS_OF="+strings.Join(g, " "))
	if err == nil {
		c.Args = append(append(c.Args, "sh"), w.Arguments...)
		err = b.watch(ctx, c, ready, g, n, limits)
	}
	cpu = g.cpu()
	return b, cpu, errors.Join(err, ready.Close(), g.remove())
}

// watch runs a boot and sees how it ends.
func (b *Boot) watch(ctx context.Context, c *exec.Cmd, ready *net.UnixConn, g groups, n int, limits Limits) error {
	console := vm.Tail{Max: maxConsole}
	c.Stdout, c.Stderr = &console, &console
	up := make(chan struct{})
	heard := make(chan struct{})
	go func() { defer close(heard); listen(ready, up) }()
	b.Began = time.Now()
	started, ended := start(c)
	err := <-started
	if err == nil {
		err = b.wait(c, g, up, ended, n, limits)
	}
	b.Ended, b.Console = time.Now(), string(console.Bytes())
	if ctx.Err() != nil {
		err = fmt.Errorf("it was not done after %v: %w", b.Ended.Sub(b.Began).Round(time.Second), ctx.Err())
	}
	ready.SetReadDeadline(time.Now())
	<-heard
	return err
}

// listen closes up when the guest says that all was started.
func listen(ready *net.UnixConn, up chan<- struct{}) {
	told := false
	for b := make([]byte, 4096); ; {
		n, err := ready.Read(b)
		if err != nil {
			return
		}
		for line := range strings.SplitSeq(string(b[:n]), "\n") {
			if line == "READY=1" && !told {
				told = true
				close(up)
			}
		}
	}
}

// wait waits for a boot's end, and ends it when its time has come.
func (b *Boot) wait(c *exec.Cmd, g groups, up <-chan struct{}, ended <-chan error, n int, limits Limits) error {
	hold, cut := limits.Cut[n]
	switch {
	case cut:
	case n == 0 && limits.First > 0:
		hold = limits.First
	default:
		hold = limits.Hold
	}
	var held <-chan time.Time
	idle := 0
	for {
		select {
		case <-up:
			b.Up, b.UpAt, up = true, time.Now(), nil
			held = time.After(hold)
		case <-held:
			if idle++; !cut && time.Since(b.UpAt) < hold+patience {
				if g.busy() {
					idle = 0
				}
				if idle < idleLooks {
					held = time.After(hold / (4 * idleLooks))
					continue
				}
			}
			b.End, held = Stayed, nil
			signal := syscall.SIGKILL
			if cut {
				b.End = Cut
			} else if limits.Shutdown {
				signal = syscall.SIGTERM // systemd-nspawn has the guest halt then
			}
			if err := syscall.Kill(c.Process.Pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		case err := <-ended:
			return b.ended(err)
		}
	}
}

// ended tells how a boot ended.
func (b *Boot) ended(err error) error {
	exit := new(exec.ExitError)
	switch {
	case b.End != "":
		return nil // we ended it
	case err == nil:
		b.End = Off
	case errors.As(err, &exit) && exit.ExitCode() == exitReboot:
		b.End = Rebooted
	default:
		return fmt.Errorf("systemd-nspawn: %w", err)
	}
	return nil
}

// Write writes the file system as the last boot left it to dir, which must be empty or not there.
func (o *Outcome) Write(ctx context.Context, dir string) error { return o.layers.copyOut(ctx, dir) }

// Path is where a file is that the guest wrote; it is not there if the guest did not write it.
func (o *Outcome) Path(name string) string { return filepath.Join(o.layers.upper, name) }

// Journal is the directory of the guest's journals.
func (o *Outcome) Journal() string { return o.Path("/var/log/journal") }

// Close takes away what is kept of a world.
func (o *Outcome) Close() error { return os.RemoveAll(o.layers.temp) }
