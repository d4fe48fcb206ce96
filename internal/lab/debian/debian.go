// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package debian asks apt for packages that tests need, which are unpacked and not installed. It runs apt and dpkg.
package debian

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
)

// versionField is a line that apt-cache show prints.
var versionField = regexp.MustCompile(`(?m)^Version: ([A-Za-z0-9.+:~-]+)$`)

// Version tells of which version apt would take a package.
func Version(ctx context.Context, name string) (string, error) {
	out, err := Run(ctx, "", "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return "", err
	}
	m := versionField.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("apt has no package %s", name)
	}
	return string(m[1]), nil
}

// Unpack unpacks the file of a package into a directory.
func Unpack(ctx context.Context, deb, dir string) error {
	_, err := Run(ctx, "", "dpkg-deb", "-x", deb, dir)
	return err
}

// Run gives what a program prints in a directory, with what it complains of in the error.
func Run(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, program, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "LC_ALL=C")
	var words bytes.Buffer
	c.Stderr = &words
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(words.Bytes()))
	}
	return out, nil
}
