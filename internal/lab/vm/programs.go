// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// libraryDirs is where programs find libraries that name no place of their own: ld.so(8).
func libraryDirs() []string {
	return []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib",
		"/usr/lib"}
}

// maxPrograms bounds how many files programs drag in.
const maxPrograms = 2000

// programs collects programs of this machine with all that they need to run: the interpreter and the
// libraries. It maps their names in a guest, which are those on this machine, to where they are here.
type programs struct{ files map[string]string }

// add adds a program that is found in the path.
func (p *programs) add(name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("%w: no program %s", ErrUnavailable, name)
	}
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	return p.file(path)
}

// file adds a file with what it needs. Directories that are links, as /lib is, are links in the guest
// as well; a program that is a link keeps its own name.
func (p *programs) file(path string) error {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return err
	}
	name := filepath.Join(dir, filepath.Base(path))
	if p.files[name] != "" {
		return nil
	}
	if len(p.files) >= maxPrograms {
		return fmt.Errorf("more than %d files", maxPrograms)
	}
	here, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	p.files[name] = here
	needs, err := needed(here)
	if err != nil {
		return fmt.Errorf("see what %s needs: %w", here, err)
	}
	for _, n := range needs {
		if err := p.file(n); err != nil {
			return err
		}
	}
	return nil
}

// needed lists the files that a program or library needs to run.
func needed(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	first, err := bufio.NewReader(io.LimitReader(f, 256)).ReadString('\n')
	if line, ok := strings.CutPrefix(first, "#!"); ok {
		if words := strings.Fields(line); len(words) > 0 {
			return words[:1], nil
		}
	}
	if err != nil && err != io.EOF {
		return nil, err
	}
	if !strings.HasPrefix(first, elf.ELFMAG) {
		return nil, nil // data
	}
	e, err := elf.NewFile(f)
	if err != nil {
		return nil, err
	}
	return linked(e, filepath.Dir(path))
}

// linked lists the interpreter and the libraries of an ELF file in dir.
func linked(e *elf.File, dir string) (out []string, err error) {
	for _, p := range e.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
		if err != nil {
			return nil, err
		}
		out = append(out, strings.TrimRight(string(b), "\x00"))
	}
	names, err := e.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		paths, err := e.DynString(tag)
		if err != nil {
			return nil, err
		}
		for _, p := range paths {
			dirs = append(dirs, strings.Split(strings.ReplaceAll(p, "$ORIGIN", dir), ":")...)
		}
	}
	// A library may need one beside it that whoever loads it has loaded by then.
	dirs = append(append(dirs, libraryDirs()...), dir)
	for _, n := range names {
		at, err := library(n, dirs)
		if err != nil {
			return nil, err
		}
		out = append(out, at)
	}
	return out, nil
}

func library(name string, dirs []string) (string, error) {
	for _, d := range dirs {
		path := filepath.Join(d, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%w: no library %s", ErrUnavailable, name)
}

// Programs lists programs of this machine, by their names in the path or in the file system, with all
// that they need to run: where each file is in a guest, and where it is here.
func Programs(names ...string) (map[string]string, error) {
	p := programs{map[string]string{}}
	for _, name := range names {
		if err := p.add(name); err != nil {
			return nil, err
		}
	}
	return p.files, nil
}
