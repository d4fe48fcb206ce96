// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"os"
	"testing"

	"github.com/shisa-vm/shisa/internal/jail"
	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	mounts "github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	switch {
	case jail.IsChild(os.Args):
		os.Exit(jail.Serve())
	case mounts.IsChild(os.Args):
		os.Exit(mounts.Serve())
	case faultfs.IsChild(os.Args):
		faultfs.Serve()
	}
	// Faults are made in a mount namespace of our own.
	if err := hold.Apart(); err != nil {
		fmt.Fprintln(os.Stderr, err) // the tests that need it say so, too
	}
	testenv.Main(m)
}
