// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"fmt"
	"os"
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "as-server" {
		if err := serveFor(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(9)
		}
		return
	}
	if len(os.Args) == 3 && os.Args[1] == diskArg {
		fmt.Fprintln(os.Stderr, showDisk(os.Args[2]))
		os.Exit(9)
	}
	if faultfs.IsChild(os.Args) {
		faultfs.Serve()
	}
	if err := hold.Apart(); err != nil { // or other tests' namespaces keep what is mounted here
		fmt.Fprintln(os.Stderr, err)
	}
	testenv.Main(m)
}

// top is what was mounted last on a directory; nil if nothing is.
func top(dir string) (*entry, error) {
	all, err := mounts()
	var last *entry
	for i := range all {
		if all[i].dir == dir {
			last = &all[i]
		}
	}
	return last, err
}
