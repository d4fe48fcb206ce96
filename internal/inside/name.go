// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"errors"
	"fmt"
	"strings"
)

// Errors of names on the command line, for errors.Is.
var (
	// ErrName: it means nothing that exists.
	ErrName = errors.New("no such image")
	// ErrForm: a part of it is empty, as where a variable of a script was not set. The present is not
	// meant where a snapshot was to be named.
	ErrForm = errors.New("a name is missing")
)

// Name is DISK[:PART][:/path] in its parts.
type Name struct {
	// Disk is the image or device, Snapshot the internal snapshot of it that is meant, "" the
	// present.
	Disk, Snapshot string
	// Part names a volume, "" if none was named; Path is what is meant in it, "" if nothing was said.
	Part, Path string
}

// ParseName takes a name apart: DISK, DISK:PART, DISK:/path, DISK:PART:/path, where DISK may be
// IMAGE@SNAPSHOT. exists tells whether a file or directory has a name: what exists wins over every
// colon and every @ in it, the longest name first. The error is ErrName or ErrForm.
func ParseName(arg string, exists func(string) bool) (Name, error) {
	for end := len(arg); end > 0; end = strings.LastIndexByte(arg[:end], ':') {
		n := Name{Disk: arg[:end]}
		if !exists(n.Disk) {
			at := strings.LastIndexByte(n.Disk, '@')
			if at <= 0 || strings.ContainsRune(n.Disk[at:], ':') || !exists(n.Disk[:at]) {
				continue
			}
			n.Disk, n.Snapshot = n.Disk[:at], n.Disk[at+1:]
			if n.Snapshot == "" {
				return n, fmt.Errorf("%q: %w: no snapshot stands behind the @", arg, ErrForm)
			}
		}
		if end == len(arg) {
			return n, nil
		}
		rest := arg[end+1:]
		if strings.HasPrefix(rest, "/") {
			n.Path = rest
			return n, nil
		}
		if part, path, found := strings.Cut(rest, ":/"); found {
			n.Part, n.Path = part, "/"+path
		} else {
			n.Part = rest
		}
		if n.Part == "" {
			return n, fmt.Errorf("%q: %w: no part or path stands behind the colon", arg, ErrForm)
		}
		return n, nil
	}
	return Name{}, fmt.Errorf("%w: %s", ErrName, arg)
}
