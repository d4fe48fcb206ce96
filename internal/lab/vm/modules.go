// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// maxModules bounds how many modules one guest loads.
const maxModules = 400

// modules knows a kernel's modules by their names. A package has no modules.dep: that is made when it
// is installed. What a module needs stands in the module itself, in the section .modinfo.
type modules struct {
	files   map[string]string // name to path
	builtin map[string]bool
}

func readModules(dir string) (*modules, error) {
	m := &modules{files: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if name, ok := moduleName(path); ok && err == nil && d.Type().IsRegular() {
			m.files[name] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if name, ok := moduleName(s.Text()); ok {
			m.builtin[name] = true
		}
	}
	return m, nil
}

// moduleName is the name of the module in a file, packed or not.
func moduleName(path string) (string, bool) {
	name, _, ok := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_"), ok
}

// closure gives the contents of modules with all that they need, in the order in which they load.
func (m *modules) closure(ctx context.Context, names []string) ([]module, error) {
	var out []module
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if seen[name] || m.builtin[name] {
			return nil
		}
		seen[name] = true
		path, ok := m.files[name]
		if !ok || len(seen) > maxModules {
			return fmt.Errorf("the kernel has no module %s, or too many are asked for", name)
		}
		data, err := m.read(ctx, path)
		if err != nil {
			return err
		}
		needs, before, err := moduleInfo(data)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		for _, n := range before { // they may be names of what a module does, not of one
			if _, ok := m.files[strings.ReplaceAll(n, "-", "_")]; ok {
				needs = append(needs, n)
			}
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		out = append(out, module{name, data})
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

type module struct {
	name string
	data []byte
}

// read gives a module, unpacked.
func (m *modules) read(ctx context.Context, path string) ([]byte, error) {
	if !strings.HasSuffix(path, ".xz") {
		return os.ReadFile(path)
	}
	out, err := exec.CommandContext(ctx, "xz", "-dc", path).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", path, err)
	}
	return out, nil
}

// moduleInfo tells which modules one needs, and which it says are to be loaded before it.
func moduleInfo(data []byte) (needs, before []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, nil, errors.New("it has no .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(entry), "=")
		switch key {
		case "depends":
			needs = strings.FieldsFunc(value, func(r rune) bool { return r == ',' })
		case "softdep":
			pre, _, _ := strings.Cut(value, "post:")
			if pre, ok := strings.CutPrefix(strings.TrimSpace(pre), "pre:"); ok {
				before = append(before, strings.Fields(pre)...)
			}
		}
	}
	return needs, before, nil
}
