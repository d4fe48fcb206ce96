// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

func bound(c *child) (err error) {
	c.hold.Path = c.Mount + "/socket"
	c.hold.FD, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Bind(c.hold.FD, &unix.SockaddrUnix{Name: c.hold.Path})
}

func boundDeleted(c *child) error {
	return errors.Join(bound(c), os.Remove(c.hold.Path))
}

// boundRelative binds a name without a directory, as programs do whose directory is deep.
func boundRelative(c *child) (err error) {
	c.hold.Path = c.Mount + "/socket"
	c.hold.FD, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Chdir(c.Mount), unix.Bind(c.hold.FD, &unix.SockaddrUnix{Name: "socket"}),
		unix.Chdir("/"))
}

// abstract binds a name that is in no file system, and looks as if it were.
func abstract(c *child) (err error) {
	c.hold.FD, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Bind(c.hold.FD, &unix.SockaddrUnix{Name: "@" + c.Mount + "/socket"})
}

// connected binds a name, listens, and connects to it.
func connected(c *child) (client int, err error) {
	if err := errors.Join(bound(c), unix.Listen(c.hold.FD, 1)); err != nil {
		return -1, err
	}
	client, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return client, unix.Connect(client, &unix.SockaddrUnix{Name: c.hold.Path})
}

// accepted has a connection to a socket that is gone, with its name: the connection has the name.
func accepted(c *child) error {
	if _, err := connected(c); err != nil {
		return err
	}
	fd, _, err := unix.Accept4(c.hold.FD, unix.SOCK_CLOEXEC)
	if err != nil {
		return err
	}
	err = errors.Join(unix.Close(c.hold.FD), os.Remove(c.hold.Path))
	c.hold.FD = fd
	return err
}

// pending does not accept a connection.
func pending(c *child) error {
	_, err := connected(c)
	return err
}

// pair makes two sockets that are connected.
func pair() (a, b int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	return fds[0], fds[1], err
}

// pass sends a descriptor over a socket, where it stays, and closes it.
func pass(over, fd int) error {
	return errors.Join(unix.Sendmsg(over, []byte{0}, unix.UnixRights(fd), nil, 0), unix.Close(fd))
}

func inFlight(c *child) error {
	from, to, err := pair()
	if err != nil {
		return err
	}
	fd, err := c.open("held", unix.O_RDWR)
	if err != nil {
		return err
	}
	c.hold.FD = to
	return pass(from, fd)
}

// inFlightOpen sends a file twice, and has it open: that is one reference.
func inFlightOpen(c *child) error {
	if err := openFD(c); err != nil {
		return err
	}
	from, _, err := pair()
	if err != nil {
		return err
	}
	rights := unix.UnixRights(c.hold.FD)
	return errors.Join(unix.Sendmsg(from, []byte{0}, rights, nil, 0),
		unix.Sendmsg(from, []byte{0}, rights, nil, 0))
}

// inFlightUnaccepted sends a file to a connection that is not accepted: the socket that has it is
// in no process' table.
func inFlightUnaccepted(c *child) (err error) {
	c.hold.FD, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	// Without a name the kernel makes one up that is in no file system, unix(7), "Autobind feature".
	if err := unix.Bind(c.hold.FD, &unix.SockaddrUnix{}); err != nil {
		return err
	}
	name, err := unix.Getsockname(c.hold.FD)
	if err != nil {
		return err
	}
	from, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Listen(c.hold.FD, 1), unix.Connect(from, name)); err != nil {
		return err
	}
	fd, err := c.open("held", unix.O_RDWR)
	if err != nil {
		return err
	}
	return errors.Join(pass(from, fd), unix.Close(from))
}

// inFlightOrphan sends a file to a socket that is itself sent: no process has that socket.
func inFlightOrphan(c *child) error {
	from, to, err := pair()
	if err != nil {
		return err
	}
	outerFrom, outerTo, err := pair()
	if err != nil {
		return err
	}
	fd, err := c.open("held", unix.O_RDWR)
	if err != nil {
		return err
	}
	c.hold.FD = outerTo
	return errors.Join(pass(from, fd), pass(outerFrom, to), unix.Close(from))
}
