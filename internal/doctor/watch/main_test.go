// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package watch

import (
	"fmt"
	"os"
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	inLeak()
	switch {
	case ask.IsChild(os.Args):
		os.Exit(ask.Serve())
	case faultfs.IsChild(os.Args):
		faultfs.Serve()
	}
	// Faults are made in a mount namespace of our own.
	if err := hold.Apart(); err != nil {
		fmt.Fprintln(os.Stderr, err) // the test that needs it says so, too
	}
	testenv.Main(m)
}
