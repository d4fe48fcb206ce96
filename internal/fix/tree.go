// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package fix

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/plan"
)

// Tree makes the files of a plan that keeps units from being started in the system whose files are below
// root, "/" for the running one. It changes nothing. Already are the changes for which there is nothing to do;
// the plan lacks what apply.DraftTexts fills in. The error is ErrRefused, ErrNothing, or that of reading.
func Tree(root string, changes []Change) (files []plan.Text, already []Change, err error) {
	if err := Check(changes); err != nil {
		return nil, nil, err
	}
	top, err := os.Open(root)
	if err != nil {
		return nil, nil, err
	}
	defer top.Close()
	refused := func(err error) error {
		if errors.Is(err, errKeep) {
			return fmt.Errorf("%w: %s: %s", ErrRefused, root, strings.TrimPrefix(err.Error(), errKeep.Error()+": "))
		}
		return err
	}
	if err := isSystem(top, within); err != nil {
		return nil, nil, refused(err)
	}
	for _, c := range changes {
		s, err := find(top, c, within)
		if err != nil {
			return nil, nil, refused(err)
		}
		if s == nil {
			already = append(already, c)
			continue
		}
		more, err := s.texts()
		if err = errors.Join(err, s.dir.Close()); err != nil {
			return nil, nil, refused(err)
		}
		files = append(files, more...)
	}
	if len(files) == 0 {
		return nil, already, fmt.Errorf("%w: %s is so already", ErrNothing, words(changes))
	}
	return files, already, nil
}

// texts gives what becomes of the names of a change.
func (s *step) texts() ([]plan.Text, error) {
	// The directory as the kernel names it: links that lead to it are resolved.
	dir, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", s.dir.Fd()))
	if err != nil {
		return nil, err
	}
	name := filepath.Join(dir, s.name)
	if s.Kind == Unlink {
		return []plan.Text{{Path: name, Gone: true}}, nil
	}
	link := plan.Text{Path: name, Link: true, Mode: plan.LinkMode, Content: masked}
	if !s.aside {
		return []plan.Text{link}, nil
	}
	kept, err := s.content()
	if err != nil {
		return nil, err
	}
	kept.Path = name + Aside
	return []plan.Text{kept, link}, nil
}

// content reads the file that a mask is to take the place of.
func (s *step) content() (kept plan.Text, err error) {
	fd, err := unix.Openat(int(s.dir.Fd()), s.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return kept, &os.PathError{Op: "open", Path: s.Path, Err: err}
	}
	f := os.NewFile(uintptr(fd), s.Path)
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return kept, err
	}
	raw, err := io.ReadAll(io.LimitReader(f, plan.MaxTextBytes+1))
	if err != nil {
		return kept, err
	}
	if len(raw) > plan.MaxTextBytes {
		return kept, fmt.Errorf("%w: %s has more than %d bytes", errKeep, s.Path, plan.MaxTextBytes)
	}
	err = unix.Fstatat(int(s.dir.Fd()), s.name+Aside, &unix.Stat_t{}, unix.AT_SYMLINK_NOFOLLOW)
	if !errors.Is(err, unix.ENOENT) {
		return kept, errors.Join(fmt.Errorf("%w: there is %s%s already", errKeep, s.Path, Aside), err)
	}
	return plan.Text{Mode: plan.ModeOf(fi.Mode() & 0o755), Content: string(raw)}, nil
}

// Twin is the unit of the same name that is started with one: the timer of a service, and the other way round;
// "" for other units.
func Twin(unit string) string {
	stem, ext := strings.TrimSuffix(unit, path.Ext(unit)), path.Ext(unit)
	if twin := map[string]string{".service": ".timer", ".timer": ".service"}[ext]; twin != "" {
		return stem + twin
	}
	return ""
}
