// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package mount shows a guest's file system at a directory of the host, read-only. There are two
// ways. [Files] serves what one of our own readers tells (a files.FS) by FUSE: no driver of the
// host's kernel ever parses a byte of the guest. [Kernel] gives the volume, with a layer in memory
// that takes all writes, to the kernel's own driver, in a mount namespace that nobody else sees.
//
// Whatever is made is written down in the state directory before, and struck off after it is gone:
// [Unmount] and [Recover] take away what a killed process left, and only what the record and the
// kernel together prove to be ours.
package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// Errors, for errors.Is.
var (
	// ErrMounted: something is mounted on the directory already, or about to be.
	ErrMounted = errors.New("already mounted")
	// ErrBusy: programs use what is mounted there.
	ErrBusy = errors.New("in use")
	// ErrNotOurs: no record in the state directory says that we mounted it.
	ErrNotOurs = errors.New("not mounted by shisa with this state directory")
	// ErrRoot: only root may do it.
	ErrRoot = errors.New("only root may do that")
)

const (
	// quiet are the flags of everything that is mounted: what is in a guest is looked at, and neither
	// run nor used as a device of the host.
	quiet = unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC
)

// Options of Files. StateDir must be set.
type Options struct {
	// StateDir is the state directory, absolute; records are in its directory mounts.
	StateDir string
	// Source is what the table of mounts shows as the device.
	Source string
	// AllowOther lets users other than the one who mounts look at it, as far as the modes and ACLs of
	// the guest's files let them. For root only. Without it no other user gets in, and for the one who
	// mounts every file is readable: the whole image is.
	AllowOther bool
	// Log gets a line for what could not be read, each once, and for what else is worth knowing. It is
	// called by several goroutines. With nil the lines are kept beside the record, and Unmount gives
	// them.
	Log func(Line)
	// Ended, if set, gives what is to be told when it was unmounted.
	Ended func() []Line
}

// Line is something that happened while a file system was shown.
type Line struct {
	About About
	Text  string
}

// About says what a line is about.
type About string

// What lines are about.
const (
	// Unread: something could not be read.
	Unread About = "unread"
	// Crashed: the reader of the guest's disk crashed, and what became of it.
	Crashed About = "crashed"
	// Changed: the text is the name of an image that was changed while it was shown.
	Changed About = "changed"
)

// teller is a file system that has something to tell beside errors.
type teller interface{ Tell(func(text string)) }

// Mounted is a file system that is being shown.
type Mounted struct {
	dir    string
	record *record
	done   chan struct{}
	end    sync.Once
	err    error // of the end
}

// Files shows a file system at an existing directory until Unmount is called, or somebody else
// unmounts it. Root mounts it itself, others with fusermount3. It gives ErrMounted and ErrRoot.
func Files(fsys files.FS, dir string, o Options) (*Mounted, error) {
	if o.AllowOther && os.Geteuid() != 0 {
		return nil, fmt.Errorf("show %s to other users: %w", dir, ErrRoot)
	}
	real, err := target(dir)
	if err != nil {
		return nil, err
	}
	m := &Mounted{dir: real, done: make(chan struct{})}
	m.record, err = begin(o.StateDir, record{Kind: kindFiles, Dir: []byte(real),
		Source: []byte(o.Source)})
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = m.record.keep
		if err := m.record.beginLog(); err != nil {
			return nil, errors.Join(fmt.Errorf("mount on %s: %w", dir, err), m.record.remove())
		}
	}
	if t, ok := fsys.(teller); ok {
		t.Tell(func(text string) { o.Log(Line{Crashed, text}) })
	}
	unread := func(text string) { o.Log(Line{Unread, text}) }
	server, err := serve(newServed(fsys, unread), real, o.Source,
		access{flags: quiet | unix.MS_RDONLY, allowOther: o.AllowOther})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount on %s: %w", dir, err), m.record.remove())
	}
	go func() {
		defer close(m.done)
		server.Wait()
		if o.Ended != nil {
			for _, line := range o.Ended() {
				o.Log(line)
			}
		}
		m.err = m.record.remove()
	}()
	if err := m.record.serves(real); err != nil {
		return nil, errors.Join(fmt.Errorf("mount on %s: %w", dir, err), m.Unmount())
	}
	return m, nil
}

// target is the directory to mount on by its one true name.
func target(dir string) (string, error) {
	real, err := filepath.Abs(dir)
	if err == nil {
		real, err = filepath.EvalSymlinks(real)
	}
	if err != nil {
		return "", fmt.Errorf("mount on %s: %w", dir, err)
	}
	st, err := os.Stat(real)
	switch {
	case err != nil:
		return "", fmt.Errorf("mount on %s: %w", dir, err)
	case !st.IsDir():
		return "", fmt.Errorf("mount on %s: %w", dir, unix.ENOTDIR)
	}
	return real, nil
}

// Dir is the directory by its one true name.
func (m *Mounted) Dir() string { return m.dir }

// Done is closed when it is unmounted and nothing is left of it.
func (m *Mounted) Done() <-chan struct{} { return m.done }

// Err is what went wrong in the end, once Done is closed.
func (m *Mounted) Err() error { return m.err }

// Unmount takes the directory down, also while programs look at it: they get an error then. It
// waits until nothing is left.
func (m *Mounted) Unmount() error {
	var err error
	m.end.Do(func() {
		select {
		case <-m.done:
			return // somebody else did
		default:
		}
		if err = unmount(m.dir, true); err != nil && notMounted(err) {
			err = nil
		}
	})
	if err != nil {
		return fmt.Errorf("unmount %s: %w", m.dir, err)
	}
	<-m.done
	return m.err
}
