// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/linux"
)

// Machine is what acts on base images go by: the zero value is this machine as it is. Tests have others, on which two weeks
// have passed, or which lose power between two steps.
type Machine struct {
	// Act changes what an act goes by, as its clock.
	Act func(*bases.Options)
	// Run tells about this run of the machine by what the kernel says.
	Run func(linux.Run) linux.Run
}

// act is what an act on this machine goes by.
func (m *Machine) act(o bases.Options) bases.Options {
	if m.Act != nil {
		m.Act(&o)
	}
	return o
}

// run is linux.Host.Run on this machine.
func (m *Machine) run(kernel func(context.Context) (linux.Run, error)) func(context.Context) (linux.Run, error) {
	if m.Run == nil {
		return kernel
	}
	return func(ctx context.Context) (linux.Run, error) {
		r, err := kernel(ctx)
		return m.Run(r), err
	}
}
