// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Command shisa keeps harm away from the disks of virtual machines.
package main

import (
	"os"

	"github.com/shisa-vm/shisa/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
}
