// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSetting bounds the value of a setting, in bytes.
const maxSetting = 4096

// ErrNoSetting: a path is no setting of the kernel, for errors.Is.
var ErrNoSetting = errors.New("is no setting of the kernel in sysfs")

// Settings are settings of the kernel that runs, as files of sysfs hold them. They are gone when the
// machine starts again.
type Settings interface {
	// ReadSetting gives a value without its end of line. A setting that is not there is fs.ErrNotExist.
	ReadSetting(path string) (string, error)
	// WriteSetting sets a value. The kernel may take another one than it was given: who sets it reads it
	// back.
	WriteSetting(path, value string) error
}

// KernelSettings are those of the machine that the program runs on.
func KernelSettings() Settings { return kernelSettings{} }

type kernelSettings struct{}

func (kernelSettings) ReadSetting(path string) (string, error) {
	f, err := openSetting(path, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSetting+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	if len(b) > maxSetting {
		return "", fmt.Errorf("read %s: more than %d bytes", path, maxSetting)
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

func (kernelSettings) WriteSetting(path, value string) error {
	f, err := openSetting(path, unix.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value + "\n")
	return errors.Join(err, f.Close())
}

// openSetting opens a regular file of sysfs, and nothing else: not by a link, and not what is only mounted there.
func openSetting(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	var on unix.Statfs_t
	var is unix.Stat_t
	err = errors.Join(unix.Fstatfs(fd, &on), unix.Fstat(fd, &is))
	if err == nil && (on.Type != unix.SYSFS_MAGIC || is.Mode&unix.S_IFMT != unix.S_IFREG) {
		err = fmt.Errorf("%s %w", path, ErrNoSetting)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
