// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"fmt"
	"os"
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if faultfs.IsChild(os.Args) {
		faultfs.Serve()
	}
	if err := hold.Apart(); err != nil { // the tests that need it say so, too
		fmt.Fprintln(os.Stderr, err)
	}
	testenv.Main(m)
}
