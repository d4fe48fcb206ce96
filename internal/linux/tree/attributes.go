// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package tree

import (
	"context"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// Attributes are what a file system lets nobody do with a file, whatever its mode (chattr(1)).
type Attributes struct {
	// Immutable: it cannot be changed, nor its times. AppendOnly: it can only get longer, and its times
	// cannot be set.
	Immutable, AppendOnly bool
}

// attributer is a tree that knows attributes.
type attributer interface {
	Attributes(ctx context.Context, name string) (Attributes, error)
}

// AttributesOf gives those of a file or directory. A tree that does not know them says ErrNotCollected.
func AttributesOf(ctx context.Context, t Tree, name string) (Attributes, error) {
	if a, knows := t.(attributer); knows {
		return a.Attributes(ctx, name)
	}
	return Attributes{}, &fs.PathError{Op: "attributes", Path: name, Err: fmt.Errorf("%w: nobody asked", ErrNotCollected)}
}

// Attributes asks the file system (statx(2)). Symbolic links are followed.
func (l *Local) Attributes(ctx context.Context, name string) (Attributes, error) {
	return within(ctx, l, name, func() (Attributes, error) {
		fd, _, err := l.find(name, true)
		if err != nil {
			return Attributes{}, err
		}
		defer unix.Close(fd)
		var st unix.Statx_t
		if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
			return Attributes{}, l.absentError(name, err)
		}
		if l.copied {
			return Attributes{}, &fs.PathError{Op: "attributes", Path: name, Err: fmt.Errorf("%w: files that were copied "+
				"do not keep them", ErrNotCollected)}
		}
		return Attributes{Immutable: st.Attributes&unix.STATX_ATTR_IMMUTABLE != 0,
			AppendOnly: st.Attributes&unix.STATX_ATTR_APPEND != 0}, nil
	}, nil)
}

func (o *overlay) Attributes(ctx context.Context, name string) (Attributes, error) {
	if !o.own(name) {
		return AttributesOf(ctx, o.Tree, name)
	}
	_, err := o.get(name)
	return Attributes{}, err
}

// Attributes asks, and remembers the answer in words.
func (r *Recorder) Attributes(ctx context.Context, name string) (Attributes, error) {
	a, err := AttributesOf(ctx, r.Tree, name)
	var words []string
	if a.Immutable {
		words = append(words, "immutable")
	}
	if a.AppendOnly {
		words = append(words, "append-only")
	}
	r.keep("attributes", name, []byte(strings.Join(words, " ")), nil, err)
	return a, err
}

// Attributes gives what was recorded.
func (b *bundle) Attributes(_ context.Context, name string) (Attributes, error) {
	a, err := b.get("attributes", name)
	if err != nil {
		return Attributes{}, err
	}
	words := strings.Fields(string(a.text))
	var got Attributes
	for _, w := range words {
		got.Immutable = got.Immutable || w == "immutable"
		got.AppendOnly = got.AppendOnly || w == "append-only"
	}
	return got, nil
}
