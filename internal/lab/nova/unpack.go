// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package nova

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/shisa-vm/shisa/internal/lab/debian"
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

const pythonNova = "python3-nova"

// Unpack gives Nova as apt would install it now. What is not in the user's cache by its version is
// downloaded and unpacked there: some two hundred packages, 55 MB, which take 250 MB. Nothing is installed,
// since that would start services and compile all of it. The error is ErrUnavailable where apt does not have it.
func Unpack(ctx context.Context) (Package, error) { return get(ctx, pythonNova) }

// get gives a package, and more that it is to be unpacked with. What is installed is not unpacked again.
func get(ctx context.Context, name string, more ...string) (Package, error) {
	p, err := unpack(ctx, name, more)
	if err != nil {
		return Package{}, fmt.Errorf("get %s: %w", name, err)
	}
	return p, nil
}

func unpack(ctx context.Context, name string, more []string) (Package, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return Package{}, err
	}
	version, err := debian.Version(ctx, name)
	if err != nil {
		return Package{}, fmt.Errorf("%w: %w (apt-get update may help)", ErrUnavailable, err)
	}
	p := Package{Version: version}
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
	if err = download(ctx, work, root, append([]string{name}, more...)); err == nil {
		err = os.Rename(root, p.Root)
		if _, there := os.Stat(p.Root); there == nil {
			err = nil // somebody else was faster
		}
	}
	return p, errors.Join(err, os.RemoveAll(work))
}

// download unpacks packages and what apt would install with them into root.
func download(ctx context.Context, work, root string, names []string) error {
	debs := filepath.Join(work, "debs")
	if err := errors.Join(os.MkdirAll(filepath.Join(debs, "partial"), 0o755), os.Mkdir(root, 0o755)); err != nil {
		return err
	}
	// Nothing is installed, so that neither root's rights nor the lock of whoever installs are needed.
	args := []string{"-q", "-y", "--no-install-recommends", "--download-only", "-o", "Debug::NoLocking=1",
		"-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=3", "-o", "Dir::Cache::archives=" + debs, "install"}
	if _, err := debian.Run(ctx, work, "apt-get", append(args, names...)...); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	all, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range all {
		if err := debian.Unpack(ctx, deb, root); err != nil {
			return err
		}
	}
	for _, dir := range []string{"doc", "man", "locale"} { // a quarter of it, which nothing here reads
		err = errors.Join(err, os.RemoveAll(filepath.Join(root, "usr/share", dir)))
	}
	return err
}
