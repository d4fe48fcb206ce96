// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// What a parent says to a child that takes turns.
const (
	orderTake  = 't'
	orderLetGo = 'g'
)

// Turns holds a mount when it is told to, and stands still until it is told to let go: what is between
// the two met a holder, however busy the machine is.
type Turns struct{ *Hold }

// TakeTurns gets ready to hold a directory in the way of a kind of Passing, all of which but StatLoop
// can wait. Release ends it.
func TakeTurns(ctx context.Context, name, dir string) (*Turns, error) {
	h, err := makeNamed(ctx, turning(), name+turnsName, dir)
	if err != nil {
		return nil, err
	}
	return &Turns{h}, nil
}

// turnsName ends the names of the kinds that take turns.
const turnsName = "-in-turns"

func turning() []Kind {
	var all []Kind
	for _, w := range []struct {
		name string
		way  way
	}{{OpenLoop, opening}, {MapLoop, mapping}, {CwdLoop, entering}, {RunLoop, running}, {CallLoop, calling}} {
		all = append(all, Kind{Name: w.name + turnsName, Effect: Passes, make: w.way.turns})
	}
	return all
}

// Take returns once the directory is held, with the process that holds it.
func (t *Turns) Take(ctx context.Context) (pid int, err error) {
	h, err := t.say(ctx, orderTake)
	if err != nil {
		return 0, fmt.Errorf("take %s: %w", t.Kind.Name, err)
	}
	return h.PID, nil
}

// LetGo returns once it is not held any more.
func (t *Turns) LetGo(ctx context.Context) error {
	if _, err := t.say(ctx, orderLetGo); err != nil {
		return fmt.Errorf("let go of %s: %w", t.Kind.Name, err)
	}
	return nil
}

func (t *Turns) say(ctx context.Context, order byte) (*Hold, error) {
	if _, err := t.process.life.Write([]byte{order}); err != nil {
		return nil, err
	}
	return t.process.listen(ctx)
}

// turns holds when the parent says so.
func (w way) turns(c *child) error {
	take, err := w(c)
	if err != nil {
		return err
	}
	var now held
	c.order = func(b byte) report {
		var err error
		switch {
		case b == orderTake && now.letGo == nil:
			now, err = take()
		case b == orderLetGo && now.letGo != nil:
			err = now.letGo()
			now = held{}
		default:
			err = fmt.Errorf("out of turn: %q", b)
		}
		return reportOf(Hold{PID: now.pid, FD: -1}, err)
	}
	return nil
}

// calling waits in one system call, as callLoop does.
func calling(c *child) (func() (held, error), error) {
	path, err := c.fifo()
	return func() (held, error) {
		done := make(chan error, 1)
		_, err := stuck(unix.SYS_OPENAT, func() error {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Close(fd)
			}
			done <- err
			return err
		})
		return held{os.Getpid(), func() error {
			fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return errors.Join(<-done, unix.Close(fd))
		}}, err
	}, err
}

// running starts a program for each turn, by turns one that is in the directory and one that has a
// file of it open.
func running(c *child) (_ func() (held, error), err error) {
	scripts := []string{`cd "$0" && echo && read x; :`, `exec 3<"$0/held" && echo && read x; :`}
	if _, err := exec.LookPath("sh"); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrUnavailable)
	}
	c.hold.Path, err = c.file("held")
	turn := 0
	return func() (held, error) {
		turn++
		cmd := exec.Command("sh", "-c", scripts[turn%len(scripts)], c.Mount)
		in, inErr := cmd.StdinPipe()
		out, outErr := cmd.StdoutPipe()
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it ends with its input
		if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
			return held{}, err
		}
		if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
			return held{}, errors.Join(err, in.Close(), cmd.Wait())
		}
		return held{cmd.Process.Pid, func() error { return errors.Join(in.Close(), cmd.Wait()) }}, nil
	}, err
}
