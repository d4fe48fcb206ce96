// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
)

// Refs answers who refers to a mount. Several may use it at once; they wait for each other.
type Refs struct {
	mounts    mountsObjects
	refs      refsObjects
	desk      *desk // of mounts
	tasks     *desk // of refs
	cpus      int   // that may be
	uncounted error // why no counters can be read

	// What is under way is looked at by programs that are loaded when it is asked for.
	lateOnce sync.Once
	lateErr  error
	underway underwayObjects
	lateDesk *desk
}

// OpenRefs loads the programs. It matches ErrRefused where the kernel does not take them.
func OpenRefs() (*Refs, error) { return openWith(nil) }

// openWith is OpenRefs with the programs of mounts.c as edit, if not nil, makes them.
func openWith(edit func(*ebpf.CollectionSpec) error) (*Refs, error) {
	r := &Refs{}
	spec, err := loadMounts()
	if err == nil && edit != nil {
		err = edit(spec)
	}
	if err != nil {
		return nil, err
	}
	if err := load("mounts", spec, &r.mounts); err != nil {
		return nil, err
	}
	r.desk = newDesk(r.mounts.Questions, r.mounts.Pass)
	if spec, err = loadRefs(); err == nil {
		err = load("refs", spec, &r.refs)
	}
	if err != nil {
		return nil, errors.Join(err, r.mounts.Close())
	}
	r.tasks = newDesk(r.refs.Questions, r.refs.Pass)
	r.uncounted = r.findCPUs(context.Background())
	return r, nil
}

// Uncounted tells why no Mount has a Count, nil where all have.
func (r *Refs) Uncounted() error { return r.uncounted }

// Close takes the programs out of the kernel again.
func (r *Refs) Close() error {
	var late error
	if r.lateDesk != nil {
		late = errors.Join(r.lateDesk.close(), r.underway.Close())
	}
	return errors.Join(late, r.tasks.close(), r.desk.close(), r.refs.Close(), r.mounts.Close())
}

// Kind is a way of referring to a file system.
type Kind string

// The kinds. All but the last two hold one reference to the mount for each Holder.
const (
	OpenFD     Kind = "open_fd"
	OPath      Kind = "o_path"
	Cwd        Kind = "cwd"
	Root       Kind = "root"
	Exe        Kind = "exe"
	Mapping    Kind = "mapping"
	UnixSocket Kind = "unix_socket"  // bound to a name there, or connected to one that is
	InFlight   Kind = "fd_in_flight" // sent through a unix socket and not received yet
	IOUring    Kind = "io_uring"     // registered with it
	Fanotify   Kind = "fanotify"     // an event that was not read or not answered yet
	Uprobe     Kind = "uprobe"       // of a perf event or a BPF link
	Context    Kind = "mount_context"
	Namespace  Kind = "namespace" // a task in it, or a file open on it
)

// Reference is one way in which one process refers to a file system.
type Reference struct {
	Kind     Kind
	PID, TID int // as our own namespace of processes counts; TID is that of the first thread found
	FD       int // of what is open, or of what carries it: a socket, a ring, ...; -1: none
	// Holder is the address of what has the reference to Mount: an open file, a socket, the path in
	// a table of directories. What several processes or descriptors share is one reference.
	Holder       uint64
	Mount, Super uint64
	Flags        uint32 // of open(2)
	// Write tells that the file is open, or mapped, so that it can be written to. What only has the place
	// of a file or directory does not write.
	Write   bool
	Inode   uint64 // for Namespace the number of that
	Path    string // from the root of the mount's namespace; bytes as the file system has them
	Deleted bool   // no name leads to it any more
	Count   int64  // references of Mount's counter that Holder has
	Comm    string
	// Call is the number of the system call that waits, for Waits; Walks tells that it holds the place
	// which it has come to, and not an open file. On is the device number of the file system that is
	// mounted of the file, for Image.
	Call  int64
	Walks bool
	On    uint64
}

// Incomplete is the error of a scan that gives what it found, and could not look at all.
type Incomplete struct{ Unread []Unread }

// Unread is one thing that was not looked into.
type Unread struct {
	Kind    Kind // of what may be in it
	PID, FD int
	Reason  string
}

func (i *Incomplete) Error() string {
	var all []string
	for _, u := range i.Unread[:min(len(i.Unread), 3)] {
		all = append(all, fmt.Sprintf("%s of process %d, descriptor %d: %s", u.Kind, u.PID, u.FD, u.Reason))
	}
	if more := len(i.Unread) - len(all); more > 0 {
		all = append(all, fmt.Sprintf("and %d more", more))
	}
	return "look for references: not looked into: " + strings.Join(all, "; ")
}

// References gives all that refers to any mount of a super block, from processes of our namespace of
// processes and those below, and who is in, or has open, one of the mount namespaces that are
// named. With an error that is an *Incomplete it gives what it found.
//
// It takes no reference itself, follows no path and waits for no lock. What comes or goes meanwhile
// is there or not; Mount's Count tells whether anything did.
func (r *Refs) References(ctx context.Context, super uint64, namespaces ...uint64) ([]Reference,
	error) {
	if super == 0 {
		return nil, fmt.Errorf("look for references to no file system: %w", ErrNoMount)
	}
	return newSearch(r, super, namespaces).run(ctx)
}

// run looks until nothing went while it was looked at, at most maxLooks times.
func (s *search) run(ctx context.Context) ([]Reference, error) {
	for range maxLooks {
		s.lost = 0
		if err := s.look(ctx); err != nil {
			return nil, fmt.Errorf("look for references: %w", err)
		}
		if s.lost == 0 {
			break
		}
	}
	if s.deep {
		if err := s.more(ctx); err != nil {
			return nil, fmt.Errorf("look at what is under way: %w", err)
		}
	}
	if err := s.addPaths(ctx); err != nil {
		return nil, fmt.Errorf("look for references: %w", err)
	}
	if len(s.unread) > 0 {
		return s.sorted(), &Incomplete{s.unread}
	}
	return s.sorted(), nil
}
