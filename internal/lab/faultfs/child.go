// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
)

// childName is what the process that serves is called in argv[0].
const childName = "shisa-faultfs"

// connection is the child's end of the mount, as go-fuse takes it.
const connection = "/dev/fd/3"

// maxWriteBytes is the longest request that comes in one piece.
const maxWriteBytes = 1 << 20

// maxBackground is how many requests the kernel has under way that no process waits for. Those of a
// loop device are, and those that hang must leave room for others.
const maxBackground = 256

// setup is what a child is to serve.
type setup struct {
	Dir    string   `json:"dir"`
	Files  []Stored `json:"files"`
	Autofs bool     `json:"autofs"` // a mount point of autofs at Dir instead
}

// order is a line from the parent.
type order struct {
	Verb string     `json:"verb"` // set, lift, count
	File string     `json:"file"`
	Text string     `json:"text"`
	ID   int        `json:"id"`
	Then unix.Errno `json:"then"`
}

// reply is the line that answers it; the first one says that it is mounted.
type reply struct {
	ID          int    `json:"id"`
	Count       Count  `json:"count"`
	Error       string `json:"error"`
	Language    bool   `json:"language"`    // the error is ErrLanguage
	Unavailable bool   `json:"unavailable"` // the error is ErrUnavailable
}

// failed is the reply for an error.
func failed(err error) reply {
	return reply{Error: err.Error(), Language: errors.Is(err, ErrLanguage),
		Unavailable: lacking(err)}
}

// lacking tells whether err says that the kernel or the user's rights are short of something.
func lacking(err error) bool {
	return slices.ContainsFunc([]error{ErrUnavailable, unix.ENOSYS, unix.EPERM, unix.EACCES,
		unix.ENODEV}, func(e error) bool { return errors.Is(err, e) })
}

// IsChild reports whether this process was started by Mount and has to call Serve at once.
func IsChild(argv []string) bool {
	return len(argv) == 2 && filepath.Base(argv[0]) == childName
}

// Serve serves what this process was started for, and ends the process when its parent wants it or
// is gone. It does not return.
func Serve() {
	out := json.NewEncoder(os.Stdout)
	c, err := begin(os.Args[1])
	if err == nil {
		if err = out.Encode(reply{}); err == nil {
			err = c.obey(json.NewDecoder(os.Stdin), out)
		}
		err = errors.Join(err, c.end())
	} else {
		err = out.Encode(failed(err))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child is the process that serves, seen from inside.
type child struct {
	files   map[string]*file
	trap    *trap
	unmount func() error
}

func begin(arg string) (*child, error) {
	var s setup
	if err := json.Unmarshal([]byte(arg), &s); err != nil {
		return nil, err
	}
	c := &child{files: map[string]*file{}}
	if s.Autofs {
		return c, c.beTrap(s.Dir)
	}
	for _, f := range s.Files {
		store, err := os.OpenFile(f.Store, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		c.files[f.Name] = &file{store: store, cached: f.Cached}
	}
	return c, c.serve()
}

// serve answers on the connection that the parent made.
func (c *child) serve() error {
	if err := letGo(); err != nil {
		return err
	}
	server, err := fuse.NewServer(newDirectory(c.files), connection, &fuse.MountOptions{
		DisableXAttrs: true, DisableReadDirPlus: true, DisableSplice: true, MaxWrite: maxWriteBytes,
		MaxBackground: maxBackground, Logger: log.New(io.Discard, "", 0)})
	if err != nil {
		return err
	}
	go server.Serve() // until it is unmounted, which is the parent's, or this process ends
	c.unmount = func() error { return nil }
	return nil
}

// letGo unmounts all in the namespace of this process, which has copies of the parent's.
func letGo() error {
	mounts, err := linux.Open("").Mounts(context.Background(), 0)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		err := unix.Unmount(m.Point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		// The root stays. Others may have gone with the one that they were on.
		if err != nil && err != unix.EINVAL && err != unix.ENOENT && m.Point != "/" {
			return fmt.Errorf("let go of %s: %w", m.Point, err)
		}
	}
	return nil
}

// obey carries out orders until the parent closes its end.
func (c *child) obey(in *json.Decoder, out *json.Encoder) error {
	for {
		var o order
		if err := in.Decode(&o); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := out.Encode(c.carryOut(o)); err != nil {
			return err
		}
	}
}

func (c *child) carryOut(o order) (r reply) {
	if o.Verb == "count" && c.trap != nil {
		r.Count = Count{Rule: "autofs", Hit: c.trap.hits.Load()}
		return r
	}
	if o.Verb == "lift" && o.File == "" {
		if err := c.liftAll(); err != nil {
			return failed(err)
		}
		return r
	}
	f := c.files[o.File]
	if f == nil {
		return failed(fmt.Errorf("no file is called %q", o.File))
	}
	var err error
	switch o.Verb {
	case "set":
		r.ID, err = f.set(o.Text)
	case "lift":
		err = f.lift(o.ID, o.Then)
	case "count":
		r.Count, err = f.counted(o.ID)
	default:
		err = fmt.Errorf("no order is called %q", o.Verb)
	}
	if err != nil {
		return failed(err)
	}
	return r
}

// liftAll takes all rules away.
func (c *child) liftAll() error {
	for _, f := range c.files {
		if err := f.lift(0, 0); err != nil {
			return err
		}
	}
	return nil
}

// end lets all go on that waits, and unmounts.
func (c *child) end() error { return errors.Join(c.liftAll(), c.unmount()) }
