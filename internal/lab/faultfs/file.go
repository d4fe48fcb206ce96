// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Count is what became of a rule. Requests and bytes are those that the rule is about and that no
// rule before it ended.
type Count struct {
	Rule       string `json:"rule"`
	Asked      int64  `json:"asked"`       // requests
	AskedBytes int64  `json:"asked_bytes"` // their length
	Hit        int64  `json:"hit"`         // of those, to how many it did something
	Waiting    int64  `json:"waiting"`     // of those, how many wait now
}

// ruleState is a rule that is set.
type ruleState struct {
	*rule
	id    int
	count Count // guarded by the file's mu
	// lifted is closed when the rule is taken away. then is what those that wait get: 0 is to go on.
	lifted chan struct{}
	then   unix.Errno
}

// file is one file of the file system, in the process that serves it.
type file struct {
	store  *os.File
	cached bool // by the kernel, as a file usually is

	mu    sync.Mutex
	rules []*ruleState
	last  int // the number of the last rule that was set
}

// set adds a rule and gives its number.
func (f *file) set(text string) (int, error) {
	r, err := parse(text)
	if err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.rules) == maxRules {
		return 0, fmt.Errorf("%w: %d are set already", ErrLanguage, maxRules)
	}
	f.last++
	f.rules = append(f.rules, &ruleState{rule: r, id: f.last, count: Count{Rule: r.String()},
		lifted: make(chan struct{})})
	return f.last, nil
}

// lift takes a rule away, or all of them for 0. What waits goes on, or fails with then.
func (f *file) lift(id int, then unix.Errno) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	found := false
	f.rules = slices.DeleteFunc(f.rules, func(r *ruleState) bool {
		if id != 0 && r.id != id {
			return false
		}
		r.then, found = then, true
		close(r.lifted)
		return true
	})
	if !found && id != 0 {
		return fmt.Errorf("no rule has the number %d", id)
	}
	return nil
}

// counted gives the counts of a rule.
func (f *file) counted(id int) (Count, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.rules {
		if r.id == id {
			return r.count, nil
		}
	}
	return Count{}, fmt.Errorf("no rule has the number %d", id)
}

// hits decides whether r does something to a request, and counts. The file is locked.
func (f *file) hits(r *ruleState, op Op, off, n int64) bool {
	if !r.about(op, off, n) || r.onlyNew && !f.needsSpace(off, n) {
		return false
	}
	r.count.Asked++
	r.count.AskedBytes += n
	if r.count.Asked <= r.afterRequests || r.afterBytes > 0 && r.count.AskedBytes <= r.afterBytes ||
		r.times > 0 && r.count.Hit >= r.times {
		return false
	}
	r.count.Hit++
	return true
}

// needsSpace tells whether a part of a range is a hole of the store. What cannot be told needs
// none.
func (f *file) needsSpace(off, n int64) bool {
	hole, err := unix.Seek(int(f.store.Fd()), off, unix.SEEK_HOLE)
	return errors.Is(err, unix.ENXIO) || err == nil && hole < off+n
}

// ask has a request go through the rules. It may wait. The action is that of the rule that decided,
// "" where none did; the error is what the request fails with.
func (f *file) ask(op Op, off, n int64) (string, unix.Errno) {
	f.mu.Lock()
	rules := slices.Clone(f.rules)
	f.mu.Unlock()
	for _, r := range rules {
		f.mu.Lock()
		hit := f.hits(r, op, off, n)
		waits := hit && (r.action == actHang || r.action == actDelay)
		if waits {
			r.count.Waiting++
		}
		f.mu.Unlock()
		switch {
		case waits:
			if errno := f.wait(r); errno != 0 {
				return r.action, errno
			}
		case hit:
			return r.action, errnos()[r.action] // 0 for what is lost or flipped
		}
	}
	return "", 0
}

// wait is what delay and hang do.
func (f *file) wait(r *ruleState) unix.Errno {
	var over <-chan time.Time
	if r.action == actDelay {
		timer := time.NewTimer(r.delay)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-over:
	case <-r.lifted:
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r.count.Waiting--
	return r.then
}

// readAt reads what there is up to the end of the file.
func (f *file) readAt(p []byte, off int64) (int, unix.Errno) {
	action, errno := f.ask(Read, off, int64(len(p)))
	if errno != 0 {
		return 0, errno
	}
	n, err := f.store.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return 0, errnoOf(err)
	}
	if action == actFlip {
		for i := 0; i < n; i += sectorBytes {
			p[i] ^= 1
		}
	}
	return n, 0
}

// writeAt writes all or nothing, as far as the store does.
func (f *file) writeAt(p []byte, off int64) unix.Errno {
	action, errno := f.ask(Write, off, int64(len(p)))
	if errno != 0 || action == actLose {
		return errno
	}
	_, err := f.store.WriteAt(p, off)
	return errnoOf(err)
}

// sync makes what was written last, or says that it could not.
func (f *file) sync() unix.Errno {
	if _, errno := f.ask(Fsync, 0, 0); errno != 0 {
		return errno
	}
	return errnoOf(f.store.Sync())
}

// discard makes a range a hole.
func (f *file) discard(off, n int64) unix.Errno {
	if _, errno := f.ask(Discard, off, n); errno != 0 {
		return errno
	}
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	return errnoOf(unix.Fallocate(int(f.store.Fd()), mode, off, n))
}

// errnoOf is the kernel's number in an error of a file, 0 for none.
func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return errno
	}
	return unix.EIO
}
