// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package hypervisor knows where the disk images of virtual machines live on a host: storage pools
// and domains of libvirt, the instances of OpenStack Nova, the storage of Proxmox VE, and the
// usual directories of other programs.
package hypervisor

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// PlaceKind says what a place is.
type PlaceKind string

// The kinds of places.
const (
	PlaceConfig    PlaceKind = "config"    // a file or directory that names other places
	PlaceDirectory PlaceKind = "directory" // holds images
	PlaceImage     PlaceKind = "image"     // is an image
	PlaceProcess   PlaceKind = "process"   // an image that a running program has open
	PlaceRemote    PlaceKind = "remote"    // holds images, but not as files of this host
)

// Place is somewhere that images may live, whether or not it is there.
type Place struct {
	Path    string    `json:"path"`
	PathB64 string    `json:"path_b64,omitempty"` // where the path is not UTF-8
	Kind    PlaceKind `json:"kind"`
	// Why says who names the place, for example `storage pool "vms" of libvirt`.
	Why string `json:"why"`
	// Machine is the virtual machine that uses the place, "" if none is known.
	Machine string `json:"machine"`
	There   bool   `json:"there"`
	// Readable: what is there could be looked at.
	Readable bool `json:"readable"`
	// Error says why it could not be read, or what in it was not understood; "" if all is well.
	Error string `json:"error"`
	// Since is when the document was changed last that names an image as a machine's: so long at least that has been so. It
	// is that of the oldest where several do, and zero if it is not known.
	Since time.Time `json:"-"`
	// Unknown: nobody can tell what it is, and it may be a file of this host after all.
	Unknown bool `json:"-"`
	// Bases: it is a directory that holds nothing but base images.
	Bases bool `json:"-"`
	// Beside: a machine names it beside its disks. It need be no image, and no file.
	Beside bool `json:"-"`
	// Format is what QEMU takes a disk of a machine on the network for, "" where nothing says.
	Format string `json:"-"`
}

const (
	// maxConfigBytes bounds one configuration file; a domain with hundreds of disks has 200 KiB.
	maxConfigBytes = 4 << 20
	// maxConfigFiles bounds the files of one directory: a host has some thousand machines at most.
	maxConfigFiles = 1 << 16
	// maxPlaces bounds the whole list.
	maxPlaces = 1 << 18
)

// Options say where to look.
type Options struct {
	// Root is the directory of the host's /; "" is the running system.
	Root string
	// Home is the user's home directory, whose own machines are looked for; "" for none.
	Home string
	// Timeout is how long storage is waited for; 0 means 10 s.
	Timeout time.Duration
	// Files: what machines name beside their disks is wanted too.
	Files bool
}

// Find lists where images live on a host, and what was looked at to know it. Each place has been
// looked at; nothing was opened but configuration. The error is that of ctx.
func Find(ctx context.Context, opts Options) ([]Place, error) {
	opts.Timeout = cmp.Or(opts.Timeout, 10*time.Second)
	f := &finder{ctx: ctx, opts: opts, at: map[[2]string]int{}}
	f.libvirt("/etc/libvirt", "/run/libvirt", "libvirt")
	if opts.Home != "" {
		f.libvirt(filepath.Join(opts.Home, ".config/libvirt"), "", "libvirt of this user")
	}
	f.nova()
	f.proxmox()
	f.usual()
	return f.places, ctx.Err()
}

// FindNova is Find for OpenStack Nova alone.
func FindNova(ctx context.Context, opts Options) ([]Place, error) {
	opts.Timeout = cmp.Or(opts.Timeout, 10*time.Second)
	f := &finder{ctx: ctx, opts: opts, at: map[[2]string]int{}}
	f.nova()
	return f.places, ctx.Err()
}

// FindPools gives the storage pools of the host's libvirt. The error is that of ctx.
func FindPools(ctx context.Context, opts Options) (Pools, error) {
	opts.Timeout = cmp.Or(opts.Timeout, 10*time.Second)
	f := &finder{ctx: ctx, opts: opts, at: map[[2]string]int{}}
	return f.pools("/etc/libvirt", "/run/libvirt", "libvirt"), ctx.Err()
}

// Look returns the place at path as it is found. It waits for storage no longer than timeout.
func Look(ctx context.Context, timeout time.Duration, kind PlaceKind, path, why, machine string) Place {
	p := Place{Path: path, Kind: kind, Why: why, Machine: machine}
	if !utf8.ValidString(path) {
		p.PathB64 = base64.StdEncoding.EncodeToString([]byte(path))
	}
	_, err := diskio.WithinAt(ctx, path, timeout, func() (struct{}, error) {
		_, err := diskio.Look(path)
		isDir := errors.Is(err, diskio.ErrDirectory)
		switch {
		case isDir && kind != PlaceImage && kind != PlaceProcess:
			err = nil
		case err == nil && kind == PlaceDirectory:
			err = unix.ENOTDIR
		}
		if err != nil {
			return struct{}{}, err
		}
		mode := uint32(unix.R_OK)
		if isDir {
			mode |= unix.X_OK
		}
		return struct{}{}, unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_EACCESS)
	}, nil)
	switch {
	case err == nil:
		p.There, p.Readable = true, true
	case errors.Is(err, fs.ErrNotExist):
	default:
		p.There, p.Error = true, plain(err)
	}
	return p
}

// plain is an error without the path, which stands beside it.
func plain(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

type finder struct {
	ctx    context.Context
	opts   Options
	places []Place
	at     map[[2]string]int // path and machine: where in places
	// changed is when the file was changed last that was read last.
	changed time.Time
	full    bool
}

// host is the path by which something that the host calls path is opened here.
func (f *finder) host(path string) string {
	if f.opts.Root == "" {
		return path
	}
	return filepath.Join(f.opts.Root, filepath.Join("/", path))
}

// add looks at a place and adds it; a path that two reasons name is one place with both.
func (f *finder) add(kind PlaceKind, path, why, machine string) {
	if f.ctx.Err() != nil || f.full {
		return
	}
	if !strings.HasPrefix(path, "/") {
		f.put(Place{Path: path, Kind: kind, Why: why, Machine: machine, Error: "is not an absolute path"})
		return
	}
	path = f.host(filepath.Clean(path))
	if i, ok := f.at[[2]string{path, machine}]; ok {
		if !slices.Contains(strings.Split(f.places[i].Why, "; "), why) {
			f.places[i].Why += "; " + why
		}
		return
	}
	f.at[[2]string{path, machine}] = len(f.places)
	f.put(Look(f.ctx, f.opts.Timeout, kind, path, why, machine))
}

// image adds an image of a machine, which a document names that was changed last at since.
func (f *finder) image(path, why, machine string, since time.Time) {
	f.add(PlaceImage, path, why, machine)
	i, ok := f.at[[2]string{f.host(filepath.Clean(path)), machine}]
	if ok && i < len(f.places) && (f.places[i].Since.IsZero() || since.Before(f.places[i].Since)) {
		f.places[i].Since = since
	}
}

// place is the place that was added for a path of the host, nil if there is none.
func (f *finder) place(path string) *Place {
	i, ok := f.at[[2]string{f.host(filepath.Clean(path)), ""}]
	if !ok || i >= len(f.places) {
		return nil
	}
	return &f.places[i]
}

func (f *finder) put(p Place) {
	if f.full {
		return
	}
	if len(f.places) == maxPlaces {
		f.full = true
		p = Place{Kind: PlaceConfig, Why: "all configuration", There: true,
			Error: fmt.Sprintf("names more than %d places, the others were left out", maxPlaces)}
	}
	f.places = append(f.places, p)
}

// remote adds storage that is not made of files of this host.
func (f *finder) remote(name, why, machine string) {
	f.put(Place{Path: name, Kind: PlaceRemote, Why: why, Machine: machine, There: true,
		Error: "is not made of files of this host, so it was not looked at"})
}

// fail notes what was not understood of a configuration file.
func (f *finder) fail(path, why string, err error) {
	if p := f.place(path); p != nil {
		p.Error = strings.TrimPrefix(p.Error+"; "+plain(err), "; ")
		return
	}
	f.put(Place{Path: f.host(path), Kind: PlaceConfig, Why: why, Error: plain(err)})
}

// read reads a configuration file. Whether it is there or not, it becomes a place; the result is
// nil where there is nothing to read.
func (f *finder) read(path, why string) []byte {
	f.add(PlaceConfig, path, why, "")
	p := f.place(path)
	if p == nil || !p.Readable {
		return nil
	}
	c, err := diskio.WithinAt(f.ctx, p.Path, f.opts.Timeout, func() (config, error) { return readConfig(p.Path) }, nil)
	if err != nil {
		p.Readable, p.Error = false, plain(err)
		return nil
	}
	f.changed = c.changed
	return c.text
}

// config is a file of configuration, and when it was changed last.
type config struct {
	text    []byte
	changed time.Time
}

func readConfig(path string) (c config, err error) {
	file, err := diskio.Open(path)
	if err != nil {
		return c, err
	}
	defer file.Close()
	if file.Size() > maxConfigBytes {
		return c, fmt.Errorf("is larger than %d bytes", maxConfigBytes)
	}
	c.changed = file.Stat().ModTime
	c.text, err = io.ReadAll(io.NewSectionReader(file, 0, maxConfigBytes))
	return c, err
}

// list gives the names in a directory of configuration that end in suffix, sorted. The directory
// becomes a place.
func (f *finder) list(dir, suffix, why string) []string {
	f.add(PlaceConfig, dir, why, "")
	p := f.place(dir)
	if p == nil || !p.Readable {
		return nil
	}
	names, err := diskio.WithinAt(f.ctx, p.Path, f.opts.Timeout, func() ([]string, error) {
		return namesIn(p.Path, suffix)
	}, nil)
	if err != nil {
		p.Readable, p.Error = false, plain(err)
	}
	return names
}

// namesIn gives the names with a suffix; beside an error it gives those that it has.
func namesIn(dir, suffix string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var names []string
	for {
		batch, err := d.Readdirnames(1024)
		for _, name := range batch {
			if strings.HasSuffix(name, suffix) {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		if errors.Is(err, io.EOF) {
			return names, nil
		} else if err != nil {
			return names, err
		}
		if len(names) > maxConfigFiles {
			return names[:maxConfigFiles], fmt.Errorf(
				"holds more than %d files, the others were left out", maxConfigFiles)
		}
	}
}
