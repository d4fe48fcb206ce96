// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package zoo keeps images that only the real qemu-img and qemu-io can make: those of crashed
// programs, encrypted ones, bitmaps that recorded writes, other formats. It serves tests and the
// bench, and needs both programs in the path.
package zoo

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Image is one animal.
type Image struct {
	Name   string
	Path   string
	Format string // as qemu calls it
	// Leaks: made by a crash, which may leave leaked clusters.
	Leaks bool
	// Dirty: the image was not closed, so refcounts may lag behind.
	Dirty bool
	// Encrypted: the programs of qemu need the words of OpenArgs in place of the name.
	Encrypted bool
}

// OpenArgs is how the programs of qemu are told to open the image.
func (i Image) OpenArgs() []string {
	switch {
	case !i.Encrypted:
		return []string{"-f", i.Format, i.Path}
	case i.Format == "luks":
		return []string{"--object", secret, "--image-opts",
			"driver=luks,file.filename=" + i.Path + ",key-secret=s"}
	}
	format := strings.TrimSuffix(i.Name, "-inside")
	return []string{"--object", secret, "--image-opts", "driver=qcow2,file.filename=" + i.Path +
		",encrypt.format=" + format + ",encrypt.key-secret=s"}
}

// secret opens the encrypted images.
const secret = "secret,id=s,data=shisa"

// recipe makes one image: the options of qemu-img create, then commands; %s is the image.
type recipe struct {
	name, format, options, size string
	// io are qemu-io commands; more are whole command lines run after them, {} standing for the image.
	io                      []string
	more                    []string
	leaks, dirty, encrypted bool
}

// work is what a guest does: data, zeros with and without unmapping, and discarded ranges.
var work = [...]string{
	"write -P 17 0 3M", "write -P 18 5M 100k", "write -P 19 20M 1M", "write -z 1M 256k",
	"write -z -u 2M 256k", "discard 21M 128k", "write -P 20 30000k 4k", "flush",
}

// small is the same within the first MiB, for images of few clusters.
var small = [...]string{"write -P 17 0 100k", "write -P 18 300k 40k", "discard 64k 8k", "flush"}

func recipes() []recipe {
	w, s := work[:], small[:]
	const c, o = "qcow2", "64M"
	luks := "--object " + secret + " -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=200"
	return []recipe{
		{name: "empty", format: c, size: o},
		{name: "plain", format: c, size: o, io: w},
		{name: "v2", format: c, size: o, options: "-o compat=0.10", io: w},
		{name: "cluster-512", format: c, size: "1M", options: "-o cluster_size=512", io: s},
		{name: "cluster-4k", format: c, size: o, options: "-o cluster_size=4k", io: w},
		{name: "cluster-2M", format: c, size: "1G", options: "-o cluster_size=2M", io: w},
		{name: "refcount-1", format: c, size: o, options: "-o refcount_bits=1", io: w},
		{name: "refcount-8", format: c, size: o, options: "-o refcount_bits=8", io: w},
		{name: "refcount-64", format: c, size: o, options: "-o refcount_bits=64", io: w},
		{name: "lazy", format: c, size: o, options: "-o lazy_refcounts=on", io: w},
		{name: "preallocated", format: c, size: o, options: "-o preallocation=metadata", io: s},
		{name: "extended-l2", format: c, size: o, options: "-o extended_l2=on", io: w},
		{name: "extended-l2-16k", format: c, size: o, options: "-o extended_l2=on,cluster_size=16k", io: w},
		{name: "zlib", format: c, size: o, io: []string{"write -c -P 3 0 64k", "write -c -P 4 64k 64k",
			"write -P 5 192k 64k", "write -c -P 6 1M 64k", "write -c -P 7 30M 64k"}},
		{name: "zstd", format: c, size: o, options: "-o compression_type=zstd",
			io: []string{"write -c -P 3 0 64k", "write -c -P 4 64k 64k", "write -c -P 6 1M 64k"}},
		{name: "luks-inside", format: c, size: o, encrypted: true, io: w, options: luks},
		{name: "aes-inside", format: c, size: o, encrypted: true,
			options: "--object " + secret + " -o encrypt.format=aes,encrypt.key-secret=s"},
		{name: "data-file", format: c, size: o, options: "-o data_file={dir}/data-file.data", io: w},
		{name: "data-file-raw", format: c, size: o,
			options: "-o data_file={dir}/data-file-raw.data,data_file_raw=on", io: w},
		{name: "bitmaps", format: c, size: o, io: s, more: []string{
			"qemu-img bitmap --add {} b0", "qemu-img bitmap --add -g 4096 {} b1",
			"qemu-img bitmap --add --disable {} b2", "qemu-io -f qcow2 -c {write -P 9 8M 2M} {}"}},
		{name: "snapshots", format: c, size: o, io: w, more: []string{
			"qemu-img snapshot -c one {}", "qemu-io -f qcow2 -c {write -P 9 1M 2M} {}",
			"qemu-img snapshot -c two {}", "qemu-io -f qcow2 -c {write -P 9 20M 200k} {}",
			"qemu-img snapshot -c three {}", "qemu-img snapshot -d two {}"}},
		{name: "snapshot-resized", format: c, size: o, io: w, more: []string{
			"qemu-img snapshot -c one {}", "qemu-img resize -q {} 3G",
			"qemu-io -f qcow2 -c {write -P 9 2G 200k} {}"}},
		{name: "snapshot-reverted", format: c, size: o, io: w, more: []string{
			"qemu-img snapshot -c one {}", "qemu-io -f qcow2 -c {write -P 9 1M 2M} {}",
			"qemu-img snapshot -a one {}"}},
		{name: "base", format: c, size: o, io: w},
		{name: "middle", format: c, options: "-b base.qcow2 -F qcow2", io: []string{"write -P 33 4M 1M"}},
		{name: "top", format: c, options: "-b middle.qcow2 -F qcow2", io: []string{"write -P 34 6M 64k"}},
		{name: "crashed", format: c, size: o, leaks: true,
			io: []string{"write -P 1 0 4M", "flush", "write -P 2 8M 4M", "abort"}},
		{name: "crashed-lazy", format: c, size: o, options: "-o lazy_refcounts=on", dirty: true, leaks: true,
			io: []string{"write -P 1 0 4M", "flush", "write -P 2 8M 4M", "flush", "abort"}},
		{name: "raw", format: "raw", size: o, io: []string{"write -P 1 1M 1M"}},
		{name: "vmdk", format: "vmdk", size: o, io: s},
		{name: "vdi", format: "vdi", size: o, io: s},
		{name: "vhdx", format: "vhdx", size: o, io: s},
		{name: "vpc", format: "vpc", size: o, io: s},
		{name: "qed", format: "qed", size: o, io: s},
		{name: "qcow1", format: "qcow", size: o, io: s},
		{name: "parallels", format: "parallels", size: o, io: s},
		{name: "luks", format: "luks", size: "8M", encrypted: true,
			options: "--object " + secret + " -o key-secret=s,iter-time=200"},
	}
}

// Fill makes every image in dir, which must exist and be empty.
func Fill(ctx context.Context, dir string) ([]Image, error) {
	var images []Image
	for _, r := range recipes() {
		img := Image{Name: r.name, Path: filepath.Join(dir, r.name+"."+r.format), Format: r.format,
			Leaks: r.leaks, Dirty: r.dirty, Encrypted: r.encrypted}
		if err := r.make(ctx, dir, img); err != nil {
			return nil, fmt.Errorf("make %s: %w", r.name, err)
		}
		images = append(images, img)
	}
	return images, nil
}

// createTries is how often an encrypted image is tried: qemu times the hash of the key on its own
// processor time, and gives up where the kernel's clock is too coarse for it.
const createTries = 50

func (r recipe) make(ctx context.Context, dir string, img Image) error {
	args := []string{"create", "-q", "-f", r.format}
	args = append(args, strings.Fields(strings.ReplaceAll(r.options, "{dir}", dir))...)
	args = append(args, img.Path)
	if r.size != "" {
		args = append(args, r.size)
	}
	err := command(ctx, dir, "qemu-img", args...)
	for range createTries {
		if err == nil || !r.encrypted {
			break
		}
		os.Remove(img.Path)
		err = command(ctx, dir, "qemu-img", args...)
	}
	if err != nil {
		return err
	}
	if len(r.io) > 0 {
		args = nil
		for _, c := range r.io {
			args = append(args, "-c", c)
		}
		// A crash is what some are made for.
		err := command(ctx, dir, "qemu-io", append(args, img.OpenArgs()...)...)
		if err != nil && !r.leaks {
			return err
		}
	}
	for _, line := range r.more {
		words := split(line, img.Path)
		if err := command(ctx, dir, words[0], words[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// split cuts a command line into words: {} is the image, {two words} one word.
func split(line, path string) []string {
	var words []string
	for rest := line; rest != ""; rest = strings.TrimLeft(rest, " ") {
		end := " "
		if rest[0] == '{' {
			rest, end = rest[1:], "}"
		}
		word, after, _ := strings.Cut(rest, end)
		if word == "" {
			word = path
		}
		words, rest = append(words, word), after
	}
	return words
}

func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
