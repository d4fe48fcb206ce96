// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package demo makes the worlds of the five stories that shisa comes from, in small: what machines that are
// ill would show, a pool that loses a base image, a mount that somebody looks at all the time. What is
// wrong in each is what was wrong in its story, with what was taken for the cause beside it.
//
// All is made below a directory that is passed in, and nowhere else.
package demo

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/shisa-vm/shisa/internal/doctor/stories"
)

// Server writes what "shisa doctor collect" would gather of five machines, two of which hang since a server that
// both use is full; the image of one has leaks. It gives the names of the files, which are in dir.
func Server(ctx context.Context, dir string) (names []string, err error) {
	s, err := stories.FullServer()
	if err != nil {
		return nil, err
	}
	for _, m := range s.Machines {
		name := filepath.Join(dir, m.Name+".shisa")
		if err := bundle(ctx, m, name); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

func bundle(ctx context.Context, m *stories.Machine, name string) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	return m.Bundle(ctx, f)
}

// plant makes dir, which must not exist yet, and files and links by their names below it.
func plant(dir string, files, links map[string]string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(name, "usr/bin/") {
			mode = 0o755 // a program
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			return err
		}
	}
	for name, to := range links {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(to, path); err != nil {
			return err
		}
	}
	return nil
}
