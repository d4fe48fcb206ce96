// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/shisa-vm/shisa/internal/plan"
)

// Settings of the running kernel are made after the files of a plan are in place, and taken back before
// them: the file alone, after the next start, gives the same value, and a value without its file only
// lasts until then. Nothing has to be synced: they live in the kernel's memory.

// liveNow reads a setting. there is false where its device is gone: then there is nothing to be set, or
// taken back.
func (e *engine) liveNow(l *plan.Live) (value string, there bool, err error) {
	value, err = e.o.Settings.ReadSetting(l.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", false, nil
	case err != nil:
		return "", false, fmt.Errorf("read %s: %w", l.Path, err)
	}
	return strings.TrimSpace(value), true, nil
}

// liveBefore holds the settings of a plan against what is in force.
func (c *texts) liveBefore() error {
	for i := range c.r.Plan.Live {
		l := &c.r.Plan.Live[i]
		now, there, err := c.e.liveNow(l)
		switch {
		case err != nil:
			return err
		case !there:
			return &ChangedError{Path: l.Path, What: "its device is gone"}
		case now != l.Before:
			return &ChangedError{Path: l.Path, What: "it is " + now + ", and was " + l.Before + " when the plan was made"}
		}
	}
	return nil
}

// liveKnown returns a *ChangedError unless each setting is as before the change or as after it, or its
// device is gone.
func (c *texts) liveKnown() error {
	for i := range c.r.Plan.Live {
		l := &c.r.Plan.Live[i]
		now, there, err := c.e.liveNow(l)
		if err != nil {
			return err
		}
		if there && now != l.Before && now != l.Value {
			return &ChangedError{Path: l.Path, What: fmt.Sprintf(
				"it is %s, neither %s as before the change nor %s as after it", now, l.Before, l.Value)}
		}
	}
	return nil
}

// setLive gives each setting the value of after the change, or of before it, and reads it back.
func (c *texts) setLive(after bool) error {
	if err := c.liveKnown(); err != nil {
		return err
	}
	for i := range c.r.Plan.Live {
		l := &c.r.Plan.Live[i]
		want := l.Before
		if after {
			want = l.Value
		}
		now, there, err := c.e.liveNow(l)
		if err != nil {
			return err
		}
		if !there || now == want {
			continue
		}
		if err := c.e.o.Settings.WriteSetting(l.Path, want); err != nil {
			return fmt.Errorf("set %s to %s: %w", l.Path, want, err)
		}
		if now, _, err = c.e.liveNow(l); err != nil {
			return err
		}
		if now != want {
			return fmt.Errorf("set %s to %s: the kernel has %s", l.Path, want, now)
		}
	}
	return nil
}
