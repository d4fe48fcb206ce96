// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

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

	"github.com/shisa-vm/shisa/internal/lab/debian"
)

// Packages that stand for kernels of Debian 12, 6.1.
const (
	Debian12 = "linux-image-amd64" // with all drivers
	// Debian12Cloud has few drivers and is configured for guests.
	Debian12Cloud = "linux-image-cloud-amd64"
	// Debian12RT is preempted nearly everywhere (CONFIG_PREEMPT_RT).
	Debian12RT = "linux-image-rt-amd64"
)

// Kernel is an unpacked kernel.
type Kernel struct {
	Package string // as linux-image-6.1.0-1-amd64
	Version string // of the package
	Image   string // the file vmlinux, an ELF that starts by itself
	Modules string // the directory with the modules
}

// CacheDir is where unpacked kernels are kept: shisa-lab in the user's cache directory.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache: %w", err)
	}
	return filepath.Join(dir, "shisa-lab"), nil
}

// Fetch gives the kernel of a Debian package, or of the package that one depends on. What is not in
// cache by its version is downloaded and unpacked there; nothing is installed. The error is
// ErrUnavailable where apt does not have it.
func Fetch(ctx context.Context, cache, name string) (Kernel, error) {
	k, err := fetch(ctx, cache, name)
	if err != nil {
		return Kernel{}, fmt.Errorf("get the kernel of %s: %w", name, err)
	}
	return k, nil
}

func fetch(ctx context.Context, cache, name string) (Kernel, error) {
	pkg, version, err := candidate(ctx, name)
	if err != nil {
		return Kernel{}, fmt.Errorf("%w: %w (apt-get update may help)", ErrUnavailable, err)
	}
	dir := filepath.Join(cache, pkg+"_"+strings.ReplaceAll(version, ":", "."))
	k := Kernel{pkg, version, filepath.Join(dir, "vmlinux"), filepath.Join(dir, "modules")}
	if _, err := os.Stat(dir); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Kernel{}, err
	}
	work, err := os.MkdirTemp(cache, ".new-")
	if err != nil {
		return Kernel{}, err
	}
	err = unpackInto(ctx, work, pkg, version)
	if err == nil {
		err = os.Rename(filepath.Join(work, "kept"), dir)
		if _, there := os.Stat(dir); there == nil {
			err = nil // somebody else was faster
		}
	}
	return k, errors.Join(err, os.RemoveAll(work))
}

// dependsOn is what apt-cache depends prints of a package that stands for a kernel.
var dependsOn = regexp.MustCompile(`(?m)^ +Depends: (linux-image-[a-z0-9.+-]+)$`)

// candidate tells which package apt would take, and of which version.
func candidate(ctx context.Context, name string) (pkg, version string, err error) {
	out, err := debian.Run(ctx, "", "apt-cache", "depends", name)
	if err != nil {
		return "", "", err
	}
	pkg = name
	if m := dependsOn.FindSubmatch(out); m != nil {
		pkg = string(m[1])
	}
	version, err = debian.Version(ctx, pkg)
	return pkg, version, err
}

// unpackInto leaves the kernel and its modules in work/kept.
func unpackInto(ctx context.Context, work, pkg, version string) error {
	if _, err := debian.Run(ctx, work, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3",
		"download",
		pkg+"="+version); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get left %d packages (%w), want one", len(debs), err)
	}
	tree, kept := filepath.Join(work, "tree"), filepath.Join(work, "kept")
	if err := debian.Unpack(ctx, debs[0], tree); err != nil {
		return err
	}
	if err := os.Mkdir(kept, 0o755); err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("the package has %d kernels (%w), want one", len(images), err)
	}
	if err := unpackImage(ctx, images[0], filepath.Join(kept, "vmlinux")); err != nil {
		return err
	}
	for _, pattern := range []string{"lib/modules/*", "usr/lib/modules/*"} {
		if dirs, err := filepath.Glob(filepath.Join(tree, pattern)); err == nil && len(dirs) == 1 {
			return os.Rename(dirs[0], filepath.Join(kept, "modules"))
		}
	}
	return errors.New("the package has no modules")
}

// unpackImage writes the kernel that is packed in a bzImage.
func unpackImage(ctx context.Context, image, to string) error {
	b, err := os.ReadFile(image)
	if err != nil {
		return err
	}
	packed, command, err := payload(b)
	if err != nil {
		return fmt.Errorf("read %s: %w", image, err)
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	var words bytes.Buffer
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(packed), out, &words
	if err := errors.Join(c.Run(), out.Close()); err != nil {
		return fmt.Errorf("unpack %s by %s: %w: %s", image, command[0], err, bytes.TrimSpace(words.Bytes()))
	}
	return nil
}
