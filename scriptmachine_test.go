// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/cli"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// Variables that scripts set for their program, which is the one of the tests and not the one of users.
const (
	// aheadVar is for how long everything stood still before this: "360h".
	aheadVar = "SCRIPT_AHEAD"
	// killVar is the step of an act before which the program is killed, as by a power cut.
	killVar = "SCRIPT_KILL"
)

// machine is the machine that the program of a script runs on.
func machine() (m cli.Machine) {
	ahead, err := time.ParseDuration(os.Getenv(aheadVar))
	m.Run = func(r linux.Run) linux.Run {
		r.Up, r.Awake = r.Up+ahead, r.Awake+ahead
		return r
	}
	m.Act = func(o *bases.Options) {
		if err == nil {
			o.Now = func() time.Time { return time.Now().Add(ahead) }
			o.Links = later{diskio.HostLinks(), ahead}
		}
		if at := os.Getenv(killVar); at != "" {
			o.Step = func(what string) error {
				if what == at {
					_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
					select {}
				}
				return nil
			}
		}
	}
	return m
}

// later is the file system some time later: the time that it gives the file which is touched to ask for its clock is that
// of then, and the times at which it says that names were changed before are those of now.
type later struct {
	diskio.Links
	ahead time.Duration
}

func (l later) Touch(id diskio.ID, name string, t time.Time) error {
	if t.IsZero() && filepath.Base(name) == pool.Clock {
		t = time.Now().Add(l.ahead)
	}
	return l.Links.Touch(id, name, t)
}
