// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// LookAnew makes what this host keeps of the names in a directory as new as the moment of the call. A client of
// NFS believes a name that it looked up before until it asks for the directory's attributes again
// (nfs(5), lookupcache): they are asked for in any case, which ends what was kept if the directory was changed, and
// the names are read. Other file systems keep nothing that is old. It may wait for the storage.
func LookAnew(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = errors.Join(anew(f), f.Close())
	if err != nil {
		return &fs.PathError{Op: "look anew at", Path: dir, Err: err}
	}
	return nil
}

func anew(f *os.File) error {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
	switch {
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return ErrNotDirectory
	}
	for {
		if _, err := f.Readdirnames(walkBatch); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// IsEmpty tells whether a directory has no names, as one has on which nothing is mounted.
func IsEmpty(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	_, err = f.Readdirnames(1)
	if empty := errors.Is(err, io.EOF); empty {
		return true, f.Close()
	}
	return false, errors.Join(err, f.Close())
}
