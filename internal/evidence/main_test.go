// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"os"
	"testing"

	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if ask.IsChild(os.Args) {
		os.Exit(ask.Serve())
	}
	testenv.Main(m)
}
