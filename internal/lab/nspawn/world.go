// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// layers are the directories that a guest's file system is laid of.
type layers struct {
	lower        []string // the uppermost first
	upper, work  string
	merged, temp string
}

// options are those of the mount. Colons and commas would be taken for something else.
func (l *layers) options() (string, error) {
	for _, dir := range append(slices.Clone(l.lower), l.upper, l.work) {
		if strings.ContainsAny(dir, ":,\\") {
			return "", fmt.Errorf("lay %s: overlay cannot name it", dir)
		}
	}
	o := "lowerdir=" + strings.Join(l.lower, ":")
	if l.upper != "" {
		o += ",upperdir=" + l.upper + ",workdir=" + l.work
	}
	return o, nil
}

// lower are the layers of a root that a world stands on.
func (r *Root) lower(w *World) []string {
	if w.Logind {
		return []string{r.logind, r.dir}
	}
	return []string{r.dir}
}

// Write writes the whole file system of a world to dir, which must be empty or not there: what a program
// sees that looks at the guest's disk before it was booted.
func (r *Root) Write(ctx context.Context, w World, dir string) (err error) {
	l, err := r.prepare(ctx, w)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(l.temp)) }()
	return l.copyOut(ctx, dir)
}

// copyOut copies what the layers make together.
func (l *layers) copyOut(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	only := layers{lower: append([]string{l.upper}, l.lower...), merged: l.merged}
	return only.apart(ctx, `cp -a "$MERGED/." "$TO"`, "TO="+dir)
}

// prepare makes the layer of a world's files, enables its units there, and lays an empty one above it.
func (r *Root) prepare(ctx context.Context, w World) (l *layers, err error) {
	temp, err := os.MkdirTemp("", "nspawn-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	world := filepath.Join(temp, "world")
	l = &layers{lower: append([]string{world}, r.lower(&w)...), upper: filepath.Join(temp, "changed"),
		work: filepath.Join(temp, "work"), merged: filepath.Join(temp, "merged"), temp: temp}
	for _, dir := range []string{world, l.upper, l.work, l.merged} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := w.write(world); err != nil {
		return nil, fmt.Errorf("write a world: %w", err)
	}
	if len(w.Enable) > 0 {
		first := layers{lower: r.lower(&w), upper: world, work: l.work, merged: l.merged}
		err := first.apart(ctx, `SYSTEMD_OFFLINE=1 systemctl --quiet --root="$MERGED" enable $UNITS`,
			"UNITS="+strings.Join(w.Enable, " "))
		if err != nil {
			return nil, fmt.Errorf("enable %v: %w", w.Enable, err)
		}
	}
	return l, w.setTimes(world)
}

// write writes the files of a world to its layer.
func (w *World) write(dir string) error {
	files := map[string]File{}
	if w.MachineID != "" {
		files["/etc/machine-id"] = File{Text: w.MachineID + "\n"}
	}
	if w.OneBin {
		files["/usr/sbin"] = File{Link: "bin"}
		for _, name := range []string{"reboot", "poweroff", "halt", "shutdown", "telinit", "runlevel"} {
			files["/usr/bin/"+name] = File{Link: "systemctl"}
		}
		files["/usr/bin/init"] = File{Link: "../lib/systemd/systemd"}
	}
	for name, f := range w.Files {
		files[name] = f
	}
	for name, f := range files {
		if !filepath.IsAbs(name) || filepath.Clean(name) != name {
			return fmt.Errorf("the name %q is not absolute and clean", name)
		}
		if err := f.write(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func (f *File) write(at string) error {
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	switch {
	case f.Link != "":
		return os.Symlink(f.Link, at)
	case f.Dir:
		err := os.MkdirAll(at, 0o755)
		if f.Mode != 0 {
			err = errors.Join(err, os.Chmod(at, f.Mode))
		}
		return err
	}
	mode := f.Mode
	if mode == 0 {
		mode = 0o644
	}
	return errors.Join(os.WriteFile(at, []byte(f.Text), mode), os.Chmod(at, mode))
}

// setTimes sets the times of the files that have one.
func (w *World) setTimes(dir string) (err error) {
	for name, f := range w.Files {
		if !f.Mtime.IsZero() && f.Link == "" {
			err = errors.Join(err, os.Chtimes(filepath.Join(dir, name), time.Time{}, f.Mtime))
		}
	}
	return err
}

// forget takes away what the guest changed, but its logs.
func (l *layers) forget() error {
	logs, kept := filepath.Join(l.upper, "var/log"), filepath.Join(l.temp, "log")
	err := os.Rename(logs, kept)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	had := err == nil
	err = errors.Join(os.RemoveAll(l.upper), os.Mkdir(l.upper, 0o755))
	if err == nil && had {
		err = errors.Join(os.Mkdir(filepath.Join(l.upper, "var"), 0o755), os.Rename(kept, logs))
	}
	return err
}
