// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/jail"
)

// maxRestarts is how often a reader that crashed is started again: what makes it crash is on the disk
// still, and each start replays the journal.
const maxRestarts = 20

// Lasting is a file system that is looked at for long: a reader that crashed is started again, and
// what was asked of it is asked once more, alone. What it crashes at twice is not asked any more, and
// is an error. It may be used by several goroutines; what it calls must not ask it in turn.
type Lasting struct {
	g    *Guest
	part int
	tell func(text string)

	// calls is held by those who ask together, and alone by who starts the reader again.
	calls  sync.RWMutex
	fs     *jail.FS
	starts int  // how often it was started again
	gone   bool // that was said to be the end
	bad    map[files.Ino]error
}

// Lasting makes the file system on a volume last. The guest must not be used otherwise meanwhile, but
// for Changed, Missing and Crash.
func (g *Guest) Lasting(ctx context.Context, part int) (*Lasting, error) {
	if _, err := g.FS(ctx, part); err != nil {
		return nil, err
	}
	return &Lasting{g: g, part: part, fs: g.opened[part], bad: make(map[files.Ino]error)}, nil
}

// Tell says who is told, a line each, that the reader crashed and what became of it. It is for the
// time before anything is asked.
func (l *Lasting) Tell(tell func(text string)) { l.tell = tell }

func (l *Lasting) say(format string, args ...any) {
	if l.tell != nil {
		l.tell(fmt.Sprintf(format, args...))
	}
}

// crash gives the crash that an error stands for, nil if it is none.
func crash(err error) *jail.CrashError {
	c := new(jail.CrashError)
	if errors.As(err, &c) {
		return c
	}
	return nil
}

// ask asks the reader something about an inode, 0 for none. ask may be called twice.
func (l *Lasting) ask(ino files.Ino, ask func(*jail.FS) error) error {
	l.calls.RLock()
	starts, err := l.starts, l.bad[ino]
	if err == nil {
		err = ask(l.fs)
	}
	l.calls.RUnlock()
	if crash(err) == nil {
		return err
	}
	l.calls.Lock()
	defer l.calls.Unlock()
	if l.bad[ino] != nil || starts == l.starts && !l.again(err) {
		return err
	}
	// Others may have made it crash. Now it is asked this alone.
	err = ask(l.fs)
	if crash(err) == nil {
		return err
	}
	err = fmt.Errorf("the reader crashes at it: %w", err)
	if ino != 0 {
		l.say("inode %d: %v: it is not read any more", ino, err)
		l.bad[ino] = errors.New(err.Error()) // no crash: there is nothing to start again
	}
	l.again(err)
	return err
}

// again starts the reader again, unless that was done too often, and tells whether it could. l.calls
// is held.
func (l *Lasting) again(why error) bool {
	if l.starts == maxRestarts {
		if !l.gone {
			l.gone = true
			l.say("%v: it was started again %d times, and is not any more: nothing can be read until this is "+
				"mounted anew", why, maxRestarts)
		}
		return false
	}
	l.starts++
	fs, err := l.g.restart(context.Background(), l.part)
	if err != nil {
		l.starts, l.gone = maxRestarts, true
		l.say("%v: it could not be started again: %v: nothing can be read until this is mounted anew", why, err)
		return false
	}
	l.say("%v: it was started again", why)
	l.fs = fs
	return true
}

// restart starts the reader anew in place of one that crashed, and opens the file system on a volume,
// which must be where it was.
func (g *Guest) restart(ctx context.Context, part int) (*jail.FS, error) {
	if g.crash == nil {
		g.crash = g.jail.Crash()
	}
	if err := g.jail.Close(); err != nil {
		return nil, err
	}
	j, err := jail.Start(ctx, g.Layout.Disks)
	if err != nil {
		return nil, err
	}
	g.jail = j
	layout, err := j.Layout(ctx)
	if err != nil {
		return nil, err
	}
	was := g.Layout.Volumes[part]
	if part >= len(layout.Volumes) || layout.Volumes[part].Name != was.Name ||
		layout.Volumes[part].Start != was.Start || layout.Volumes[part].Size != was.Size {
		return nil, fmt.Errorf("part %s is not where it was", was.Name)
	}
	fs, err := j.FS(ctx, part)
	if err != nil {
		return nil, err
	}
	if old := g.opened[part].Info(); fs.Info().UUID != old.UUID || fs.Info().Root != old.Root {
		return nil, fmt.Errorf("part %s has another file system now", was.Name)
	}
	g.opened[part] = fs
	return fs, nil
}

// Info is that of files.FS.
func (l *Lasting) Info() files.Info {
	l.calls.RLock()
	defer l.calls.RUnlock()
	return l.fs.Info()
}

// View is that of files.FS: of the reader that runs now.
func (l *Lasting) View() files.View {
	l.calls.RLock()
	defer l.calls.RUnlock()
	return l.fs.View()
}

// Open is that of files.FS.
func (l *Lasting) Open(ctx context.Context, ino files.Ino) (files.File, error) {
	var f files.File
	err := l.ask(ino, func(fs *jail.FS) (err error) {
		f, err = fs.Open(ctx, ino)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &lastingFile{l, f.Stat()}, nil
}

// once calls fn for the items of a list that may begin anew: for those only that it was not called for
// yet.
func once[T any](l *Lasting, ino files.Ino, fn func(T) error, list func(*jail.FS, func(T) error) error) error {
	given := 0
	var stop error
	return l.ask(ino, func(fs *jail.FS) error {
		i := 0
		err := list(fs, func(v T) error {
			if i++; i <= given {
				return nil
			}
			given = i
			stop = fn(v)
			return stop
		})
		if stop != nil {
			return stop
		}
		return err
	})
}

// Inodes is that of files.FS.
func (l *Lasting) Inodes(ctx context.Context, fn func(*files.Stat) error) error {
	return once(l, 0, fn, func(fs *jail.FS, fn func(*files.Stat) error) error { return fs.Inodes(ctx, fn) })
}

// Owners is that of files.FS.
func (l *Lasting) Owners(ctx context.Context, ranges []files.Range, fn func(files.Owner) error) error {
	return once(l, 0, fn, func(fs *jail.FS, fn func(files.Owner) error) error { return fs.Owners(ctx, ranges, fn) })
}

var _ files.Namer = (*Lasting)(nil)

// named is what Names gives of a name.
type named struct {
	entry files.Entry
	file  files.File
	err   error
}

// Names is that of files.Namer.
func (l *Lasting) Names(ctx context.Context, dir files.Ino,
	fn func(files.Entry, files.File, error) error,
) error {
	return once(l, dir, func(n named) error {
		if n.file != nil {
			n.file = &lastingFile{l, n.file.Stat()}
		}
		return fn(n.entry, n.file, n.err)
	}, func(fs *jail.FS, fn func(named) error) error {
		return fs.Names(ctx, dir, func(e files.Entry, f files.File, err error) error {
			return fn(named{e, f, err})
		})
	})
}

// lastingFile is an inode of a Lasting.
type lastingFile struct {
	l    *Lasting
	stat *files.Stat
}

func (f *lastingFile) Stat() *files.Stat { return f.stat }

func (f *lastingFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.l.ask(f.stat.Ino, func(fs *jail.FS) (err error) {
		n, err = fs.File(f.stat).ReadAt(p, off)
		return err
	})
	return n, err
}

func (f *lastingFile) Extents(ctx context.Context, fn func(files.Extent) error) error {
	return once(f.l, f.stat.Ino, fn, func(fs *jail.FS, fn func(files.Extent) error) error {
		return fs.File(f.stat).Extents(ctx, fn)
	})
}

func (f *lastingFile) Entries(ctx context.Context, fn func(files.Entry) error) error {
	return once(f.l, f.stat.Ino, fn, func(fs *jail.FS, fn func(files.Entry) error) error {
		return fs.File(f.stat).Entries(ctx, fn)
	})
}

// attribute is what Xattrs gives.
type attribute struct {
	name  string
	value []byte
}

func (f *lastingFile) Xattrs(ctx context.Context, fn func(name string, value []byte) error) error {
	return once(f.l, f.stat.Ino, func(a attribute) error { return fn(a.name, a.value) },
		func(fs *jail.FS, fn func(attribute) error) error {
			return fs.File(f.stat).Xattrs(ctx, func(name string, value []byte) error {
				return fn(attribute{name, value})
			})
		})
}
