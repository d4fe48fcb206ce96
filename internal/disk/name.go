// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"errors"
	"fmt"
	"strings"
)

// ErrName: a name that qemu cannot open either.
var ErrName = errors.New("no usable name")

// maxNameBytes bounds the names that are parsed. A header holds 1023 bytes; names on a command
// line may be longer.
const maxNameBytes = 64 << 10

// hasProtocol tells whether qemu takes name for a protocol and its address: a colon stands before
// the first slash.
func hasProtocol(name string) bool {
	i := strings.IndexAny(name, ":/")
	return i >= 0 && name[i] == ':'
}

// PlainName gives a name by which qemu opens the local file at path, whatever colons are in it.
func PlainName(path string) string {
	if hasProtocol(path) {
		return "./" + path
	}
	return path
}

// fullName completes a name from the header of the image at overlay as qemu does: relative to the
// directory in the overlay's own name, wherever symbolic links lead.
func fullName(overlay, name string) string {
	if hasProtocol(name) || strings.HasPrefix(name, "/") {
		return name
	}
	return overlay[:strings.LastIndexByte(overlay, '/')+1] + name
}

// ParseName says which local file a name of qemu's means, and in which format if the name itself
// says so. Names are plain paths, with the prefix file: or host_device:, or json: with the options
// of a plain file. The error is ErrProtocol for what is not a local file, and ErrName for what
// means nothing.
func ParseName(name string) (path, format string, err error) {
	if len(name) > maxNameBytes {
		return "", "", fmt.Errorf("%w: %d bytes, %d at most", ErrName, len(name), maxNameBytes)
	}
	if !hasProtocol(name) {
		return name, "", nil
	}
	protocol, rest, _ := strings.Cut(name, ":")
	switch protocol {
	case "json":
		return parseJSONName(rest)
	case "file", "host_device":
		// Behind the prefix a colon is one of the name.
		if hasProtocol(rest) {
			rest = "./" + rest
		}
		return rest, "", nil
	}
	return "", "", fmt.Errorf("%w: protocol %q", ErrProtocol, protocol)
}

// Options in a json: name that do not change which bytes the guest sees.
var harmlessOptions = map[string]bool{
	"node-name": true, "read-only": true, "auto-read-only": true, "force-share": true,
	"discard": true, "detect-zeroes": true, "locking": true, "aio": true, "aio-max-batch": true,
	"cache.direct": true, "cache.no-flush": true, "cache.writeback": true, "pr-manager": true,
	"drop-cache": true, "check-cache-dropped": true, "lazy-refcounts": true, "cache-size": true,
	"l2-cache-size": true, "l2-cache-entry-size": true, "refcount-cache-size": true,
	"cache-clean-interval": true, "overlap-check": true, "overlap-check.template": true,
	"pass-discard-request": true, "pass-discard-snapshot": true, "pass-discard-other": true,
}

// parseJSONName reads the options behind json:, for example
// {"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}.
func parseJSONName(text string) (path, format string, err error) {
	opts, err := parseOptions(text)
	if err != nil {
		return "", "", fmt.Errorf("%w: json: %w", ErrName, err)
	}
	return nameOf(opts)
}

// PartName is ParseName for who wants to know the file alone: a json: name may also mean a part of it, by offset and size
// (block/raw-format.c), as libvirt writes for a slice. inner: that part may be an image whose header is not at the beginning of the
// file.
func PartName(name string) (path string, inner bool, err error) {
	text, found := strings.CutPrefix(name, "json:")
	opts, bad := parseOptions(text)
	prefix := ""
	if opts["driver"] != "raw" && opts["file.driver"] == "raw" {
		prefix = "file."
	}
	if !found || bad != nil || opts[prefix+"driver"] != "raw" {
		path, _, err = ParseName(name)
		return path, false, err
	}
	format, offset := opts["driver"], opts[prefix+"offset"]
	delete(opts, prefix+"offset")
	delete(opts, prefix+"size")
	if prefix != "" { // what the part is taken for is nothing to its file
		delete(opts, "driver")
		below := make(map[string]string, len(opts))
		for key, value := range opts {
			below[strings.TrimPrefix(key, prefix)] = value
		}
		opts = below
	}
	path, _, err = nameOf(opts)
	return path, format != "raw" && offset != "" && offset != "0", err
}

// nameOf is ParseName for options.
func nameOf(opts map[string]string) (path, format string, err error) {
	driver, prefix := opts["driver"], "file."
	protocol := opts["file.driver"]
	if localProtocol(driver) {
		// The protocol stands alone; qemu puts the raw format upon it.
		driver, prefix, protocol = "raw", "", driver
	}
	if knownFormat(protocol) {
		return "", "", fmt.Errorf("%w: json: format %q below %q is not understood", ErrName, protocol, driver)
	}
	if protocol != "" && !localProtocol(protocol) {
		return "", "", fmt.Errorf("%w: protocol %q", ErrProtocol, protocol)
	}
	if driver != "" && prefix != "" && !knownFormat(driver) && opts["file.filename"] == "" {
		return "", "", fmt.Errorf("%w: driver %q", ErrProtocol, driver)
	}
	for _, key := range sortedKeys(opts) {
		switch bare := strings.TrimPrefix(key, "file."); {
		case key == "driver" || key == prefix+"driver" || key == prefix+"filename":
		case harmlessOptions[bare]:
		default:
			return "", "", fmt.Errorf("%w: json: option %q is not understood", ErrName, key)
		}
	}
	if path = opts[prefix+"filename"]; path == "" {
		return "", "", fmt.Errorf("%w: json: no file is named", ErrName)
	}
	return path, driver, nil
}

func localProtocol(driver string) bool { return driver == "file" || driver == "host_device" }
