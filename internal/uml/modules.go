// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package uml

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ModulesDir is where Debian's package has the modules, a directory for each version of the kernel.
const ModulesDir = "/usr/lib/uml/modules"

// Modules gives the files of modules and of all that they need, in the order in which they are to be
// loaded, without those that are part of the kernel. dir is ModulesDir, or where it was unpacked to. For
// the fields see modules.dep(5).
func Modules(dir string, names ...string) ([]string, error) {
	versions, err := filepath.Glob(filepath.Join(dir, "*", "modules.dep"))
	if err != nil || len(versions) != 1 {
		return nil, errors.Join(err, fmt.Errorf("%w: %d versions of its modules in %s, want 1", ErrUnavailable,
			len(versions), dir))
	}
	at := filepath.Dir(versions[0])
	built, err := lines(filepath.Join(at, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	within := map[string]bool{}
	for _, l := range built {
		within[moduleName(l)] = true
	}
	deps, err := lines(versions[0])
	if err != nil {
		return nil, err
	}
	files := map[string][]string{}
	for _, l := range deps {
		file, after, _ := strings.Cut(l, ":")
		files[moduleName(file)] = append([]string{file}, strings.Fields(after)...)
	}
	var all []string
	for _, name := range names {
		name = moduleName(name)
		list, ok := files[name]
		if !ok && !within[name] {
			return nil, fmt.Errorf("%w: there is no module %s in %s", ErrUnavailable, name, at)
		}
		for _, f := range slices.Backward(list) { // what a module needs stands behind it
			if full := filepath.Join(at, f); !slices.Contains(all, full) {
				all = append(all, full)
			}
		}
	}
	return all, nil
}

// moduleName is the name of a module as the kernel writes it.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

func lines(file string) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		all = append(all, s.Text())
	}
	return all, s.Err()
}

// Load gives a file with a module to the kernel, with its parameters. It is for programs in the guest.
func Load(file, parameters string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), parameters, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", file, err)
	}
	return nil
}
