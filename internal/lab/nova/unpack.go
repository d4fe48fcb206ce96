// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package nova

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// ErrUnavailable: apt does not have Nova, or could not fetch it, for errors.Is.
var ErrUnavailable = errors.New("cannot be had here")

// Package is Debian's Nova with all that it needs of Python, unpacked and not installed.
type Package struct {
	// Version is that of python3-nova.
	Version string
	// Root is the directory that the packages were unpacked in.
	Root string
}

const name = "python3-nova"

// versionField is a line that apt-cache show prints.
var versionField = regexp.MustCompile(`(?m)^Version: ([A-Za-z0-9.+:~-]+)$`)

// Unpack gives Nova as apt would install it now. What is not in the user's cache by its version is
// downloaded and unpacked there: some two hundred packages, 55 MB, which take 250 MB. Nothing is installed,
// since that would start services and compile all of it. The error is ErrUnavailable where apt does not have it.
func Unpack(ctx context.Context) (Package, error) {
	p, err := unpack(ctx)
	if err != nil {
		return Package{}, fmt.Errorf("get %s: %w", name, err)
	}
	return p, nil
}

func unpack(ctx context.Context) (Package, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return Package{}, err
	}
	out, err := output(ctx, "", "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return Package{}, fmt.Errorf("%w: %w (apt-get update may help)", ErrUnavailable, err)
	}
	m := versionField.FindSubmatch(out)
	if m == nil {
		return Package{}, fmt.Errorf("%w: apt has no package of that name", ErrUnavailable)
	}
	p := Package{Version: string(m[1])}
	cache = filepath.Join(cache, "shisa-lab")
	p.Root = filepath.Join(cache, name+"_"+strings.ReplaceAll(p.Version, ":", "."))
	if _, err := os.Stat(p.Root); err == nil {
		return p, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Package{}, err
	}
	work, err := os.MkdirTemp(cache, ".new-")
	if err != nil {
		return Package{}, err
	}
	root := filepath.Join(work, "root")
	if err = download(ctx, work, root); err == nil {
		err = os.Rename(root, p.Root)
		if _, there := os.Stat(p.Root); there == nil {
			err = nil // somebody else was faster
		}
	}
	return p, errors.Join(err, os.RemoveAll(work))
}

// download unpacks Nova and what apt would install with it into root.
func download(ctx context.Context, work, root string) error {
	debs := filepath.Join(work, "debs")
	if err := os.MkdirAll(filepath.Join(debs, "partial"), 0o755); err != nil {
		return err
	}
	// Nothing is installed, so that neither root's rights nor the lock of whoever installs are needed.
	if _, err := output(ctx, work, "apt-get", "-q", "-y", "--no-install-recommends", "--download-only",
		"-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=3",
		"-o", "Dir::Cache::archives="+debs, "install", name); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	all, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range all {
		if _, err := output(ctx, work, "dpkg-deb", "-x", deb, root); err != nil {
			return err
		}
	}
	for _, dir := range []string{"doc", "man", "locale"} { // a quarter of it, which nothing here reads
		err = errors.Join(err, os.RemoveAll(filepath.Join(root, "usr/share", dir)))
	}
	return err
}

// output is what a command prints, with what it complains of in the error.
func output(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
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
