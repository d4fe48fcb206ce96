// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cutfs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lie is a wrong answer to a change of a name: a rename, a link or an unlink. A client of NFS is told ENOENT of a
// rename that was done, and EEXIST of a link, when it had to send its call twice, and EIO when it gave up waiting; a server
// that answers before it has stored anything says that what it then forgets was done.
type Lie struct {
	// Done: the change is made all the same.
	Done bool
	// Errno is what is answered, 0 for success.
	Errno unix.Errno
}

// lies are the wrong answers of a directory.
type lies struct {
	lie Lie
	// on: there are any. at is the number of the change that is answered wrongly, 0 for all; names are the changes of
	// names since.
	on        bool
	at, names int
	told      []string
}

// rename makes a change of a name, unless the answer is a lie and nothing is done.
func (f *files) rename(c change) fuse.Status {
	l := &f.lies
	l.names++
	if !l.on || l.at != 0 && l.at != l.names || f.disk.cut {
		return f.change(c)
	}
	l.told = append(l.told, c.String())
	if l.lie.Done {
		if st := f.change(c); !st.Ok() {
			return st
		}
	}
	return fuse.Status(l.lie.Errno)
}

// LieAt answers the k-th change of a name from now on wrongly, or all of them for 0. Changes that cannot be made are not
// counted: what they are told is true.
func (f *FS) LieAt(k int, l Lie) {
	f.files.mu.Lock()
	defer f.files.mu.Unlock()
	f.files.lies = lies{lie: l, on: true, at: k}
}

// Names is how many changes of names there were since LieAt, or since it was mounted.
func (f *FS) Names() int {
	f.files.mu.Lock()
	defer f.files.mu.Unlock()
	return f.files.lies.names
}

// Told are the changes that were answered wrongly.
func (f *FS) Told() []string {
	f.files.mu.Lock()
	defer f.files.mu.Unlock()
	return append([]string{}, f.files.lies.told...)
}
