// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// InitPackage is the first process of guests.
const InitPackage = "github.com/shisa-vm/shisa/internal/lab/vm/init"

// Build builds a program, or the tests of a package, so that it runs in a guest: static, without cgo.
func Build(ctx context.Context, to, pkg string, tests bool) error {
	// With -trimpath the packages are those of the program as users get it, and are compiled once.
	args := []string{"build", "-trimpath"}
	if tests {
		args = []string{"test", "-c", "-trimpath"}
	}
	c := exec.CommandContext(ctx, "go", append(args, "-o", to, pkg)...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s for a guest: %w: %s", pkg, err, out)
	}
	return nil
}
