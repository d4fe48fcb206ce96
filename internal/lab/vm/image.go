// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Image is what a guest is made of: all its files, and what it does.
type Image struct {
	Kernel Kernel
	// Init is the first process: package init below this one, built by Build.
	Init string
	// Modules are loaded before any check runs, with those that they need, in this order.
	Modules []string
	// Programs are programs of this machine that the guest has as well, with their libraries, under
	// the same names.
	Programs []string
	// Files are further files, by their names in the guest.
	Files map[string]string
	// Checks run one after the other.
	Checks []Check
}

// Files that programs look for, if this machine has them.
func configuration() []string {
	return []string{"/etc/mke2fs.conf", "/etc/ld.so.cache", "/etc/protocols", "/etc/services", "/etc/netconfig"}
}

// texts are files that a guest has instead of those of this machine.
func texts() map[string]string {
	return map[string]string{
		"/etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"/etc/group":         "root:x:0:\nnogroup:x:65534:\n",
		"/etc/hosts":         "127.0.0.1 localhost\n",
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
	}
}

// write writes the archive that the guest has as its file system.
func (i Image) write(ctx context.Context, w io.Writer) error {
	mods, err := readModules(i.Kernel.Modules)
	if err != nil {
		return fmt.Errorf("read the modules of %s: %w", i.Kernel.Package, err)
	}
	all, err := mods.closure(ctx, i.Modules)
	if err != nil {
		return err
	}
	p := programs{map[string]string{}}
	for _, name := range i.Programs {
		if err := p.add(name); err != nil {
			return err
		}
	}
	a := newArchive(w)
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/mnt", "/root", "/usr/bin",
		"/usr/sbin", "/usr/lib", "/usr/lib64", "/etc", "/var/lib", "/lab/modules"} {
		a.dir(dir)
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if to, err := os.Readlink("/" + name); err == nil {
			a.link(name, to)
		}
	}
	a.link("/var/run", "/run")
	a.link("/var/lock", "/run/lock")
	plan := Plan{Checks: i.Checks}
	for _, m := range all {
		path := "/lab/modules/" + m.name + ".ko"
		plan.Modules = append(plan.Modules, path)
		a.file(path, 0o644, int64(len(m.data)), strings.NewReader(string(m.data)))
	}
	b, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	a.file(PlanPath, 0o644, int64(len(b)), strings.NewReader(string(b)))
	for _, name := range sorted(texts()) {
		a.file(name, 0o644, int64(len(texts()[name])), strings.NewReader(texts()[name]))
	}
	files := i.files(p)
	for _, name := range sorted(files) {
		if err := copyIn(a, name, files[name]); err != nil {
			return err
		}
	}
	return a.close()
}

// files maps the names of all files that are taken from this machine.
func (i Image) files(p programs) map[string]string {
	files := p.files
	files["/init"] = i.Init
	for _, name := range configuration() {
		if _, err := os.Stat(name); err == nil {
			files[name] = name
		}
	}
	for name, from := range i.Files {
		files[name] = from
	}
	return files
}

func sorted(m map[string]string) []string {
	var names []string
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// copyIn adds a file of this machine, which may be run if it may be here.
func copyIn(a *archive, name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	st, err := f.Stat()
	if err == nil {
		a.file(name, uint32(st.Mode().Perm()|0o400), st.Size(), f)
		err = a.err
	}
	return errors.Join(err, f.Close())
}

// Write makes the archive as a new file.
func (i Image) Write(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(i.write(ctx, f), f.Close()); err != nil {
		return fmt.Errorf("make the files of a guest in %s: %w", filepath.Base(path), err)
	}
	return nil
}
