// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Names of the kinds of Passing.
const (
	// StatLoop asks for the status of the mount all the time, and holds it for less than a
	// microsecond each.
	StatLoop = "stat-loop"
	// OpenLoop has the mount open, MapLoop a file of it mapped that is closed, CwdLoop the mount as
	// its working directory: for 60 % of the time, from shortest to longest each.
	OpenLoop = "open-loop"
	MapLoop  = "map-loop"
	CwdLoop  = "cwd-loop"
	// RunLoop runs short programs that hold it, each of them another process.
	RunLoop = "run-loop"
	// CallLoop waits in one system call until somebody opens its Path, a named pipe, for writing: it
	// holds as a stat does, for as long as is wanted.
	CallLoop = "call-loop"
)

const (
	// Something is held from shortest to longest; short times come as often as long ones.
	shortest, longest = 50 * time.Microsecond, 5 * time.Millisecond
	// pauseShare is the pause after it, of that time: what is held is held for 60 % of the time.
	pauseShare = 2. / 3
	// absence is how long is waited where nothing can be held: it is not mounted just now.
	absence = time.Millisecond
	// longestRun ends a program that would look on for ever.
	longestRun = 20 * time.Millisecond
	// fineTimer in nanoseconds is how late a pause may end; without it that is 50 µs.
	fineTimer = 1
)

// Passing lists the kinds that hold a mount for a moment, again and again: who is in the way of one
// umount is gone at the next. The directory of their Place may be mounted and unmounted while they
// are at it. On another mount they are decoys, of whom nothing is to be told.
//
// MapLoop, RunLoop and CallLoop make a file when they are made, and hold where it is.
func Passing() []Kind {
	all := []Kind{
		{Name: StatLoop, Effect: Passes, make: statLoop},
		{Name: RunLoop, Effect: Passes, make: runLoop},
		{Name: CallLoop, Effect: Passes, make: callLoop},
	}
	for _, w := range []struct {
		name string
		way  way
	}{{OpenLoop, opening}, {MapLoop, mapping}, {CwdLoop, entering}} {
		all = append(all, Kind{Name: w.name, Effect: Passes, make: w.way.loop})
	}
	return all
}

// Pass holds a directory for moments, by the name of a kind of Passing, until Release.
func Pass(ctx context.Context, name, dir string) (*Hold, error) {
	return makeNamed(ctx, Passing(), name, dir)
}

func makeNamed(ctx context.Context, kinds []Kind, name, dir string) (*Hold, error) {
	for _, k := range kinds {
		if k.Name == name {
			return Make(ctx, k, Place{Mount: dir})
		}
	}
	return nil, fmt.Errorf("no kind of holder is called %q", name)
}

// way gets ready to hold in one way, and gives what takes hold.
type way func(c *child) (take func() (held, error), err error)

// held is what is held: by this process, or by one that it started.
type held struct {
	pid   int
	letGo func() error
}

// loop holds again and again.
func (w way) loop(c *child) error {
	take, err := w(c)
	if err != nil {
		return err
	}
	var d duty
	return c.again(func(context.Context) error {
		h, err := take()
		if err != nil {
			return err
		}
		return d.linger(h.letGo)
	})
}

// again holds on a thread of its own, again and again until the child ends. Where it cannot, nothing
// may be mounted just now.
func (c *child) again(once func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancel(context.Background())
	begun, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		// What is started here goes with its thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		begun <- unix.Prctl(unix.PR_SET_TIMERSLACK, fineTimer, 0, 0, 0)
		for ctx.Err() == nil {
			if err := once(ctx); err != nil {
				pause(absence)
			}
		}
	}()
	c.later(func() error {
		cancel()
		<-ended
		return nil
	})
	return <-begun
}

// pause does nothing for so long. time.Sleep ends later than it is told to.
func pause(d time.Duration) {
	for end := time.Now().Add(d); d > 0; d = time.Until(end) {
		t := unix.NsecToTimespec(d.Nanoseconds())
		unix.Nanosleep(&t, nil) // a signal ends it early
	}
}

// duty keeps to the share of the time that something is held. owed is the pause that is due: on a busy
// machine each pause is longer than was asked for, and the next ones are the shorter for it.
type duty struct{ owed time.Duration }

// linger has something held for a moment, lets go of it, and pauses.
func (d *duty) linger(letGo func() error) error {
	begun := time.Now()
	pause(time.Duration(float64(shortest) * math.Pow(float64(longest/shortest), rand.Float64())))
	err := letGo()
	end := time.Now()
	d.owed += time.Duration(float64(end.Sub(begun)) * pauseShare)
	pause(d.owed)
	// Who was stopped for long does not hold for long instead.
	d.owed = max(d.owed-time.Since(end), -longest)
	return err
}

func statLoop(c *child) error {
	return c.again(func(context.Context) error {
		var st unix.Stat_t
		return unix.Stat(c.Mount, &st)
	})
}

func opening(c *child) (func() (held, error), error) {
	return func() (held, error) {
		fd, err := unix.Open(c.Mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return held{os.Getpid(), func() error { return unix.Close(fd) }}, err
	}, nil
}

func mapping(c *child) (_ func() (held, error), err error) {
	c.hold.Path, err = c.file("held")
	return func() (held, error) {
		fd, err := unix.Open(c.hold.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return held{}, err
		}
		m, err := unix.Mmap(fd, 0, unix.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
		return held{os.Getpid(), func() error { return unix.Munmap(m) }}, errors.Join(err, unix.Close(fd))
	}, err
}

func entering(c *child) (func() (held, error), error) {
	return func() (held, error) {
		return held{os.Getpid(), func() error { return unix.Chdir("/") }}, unix.Chdir(c.Mount)
	}, nil
}

func runLoop(c *child) (err error) {
	if c.hold.Path, err = c.file("held"); err != nil {
		return err
	}
	programs := [][]string{{"df", c.Mount}, {"ls", c.Mount}, {"cat", c.hold.Path},
		{"sh", "-c", `cd "$0" && exec stat .`, c.Mount}, {"tail", "-f", c.hold.Path}}
	for _, p := range programs {
		if _, err := exec.LookPath(p[0]); err != nil {
			return fmt.Errorf("%w: %w", err, ErrUnavailable)
		}
	}
	return c.again(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, longestRun)
		defer cancel()
		p := programs[rand.IntN(len(programs))]
		cmd := exec.CommandContext(ctx, p[0], p[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		return cmd.Run()
	})
}

func callLoop(c *child) error {
	path, err := c.fifo()
	if err != nil {
		return err
	}
	go func() { // it goes with the process: nobody may ever come
		for {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Close(fd)
			}
			if err != nil {
				pause(absence)
			}
		}
	}()
	return nil
}
