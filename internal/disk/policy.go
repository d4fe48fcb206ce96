// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import "github.com/shisa-vm/shisa/internal/diskio"

// Policy says which files the headers of images may make us open. The zero value allows only
// what lies in or below the directory of the image itself.
type Policy struct {
	// Dirs are the directories that the user named and the configured pools. All below them is
	// allowed. Symbolic links are resolved before comparing.
	Dirs []string
	// Follow allows every local file, as qemu does.
	Follow bool
}

// Resolve says where a name from the header of the image at overlay leads, without opening
// anything: the file's existence and type are looked up. format is what the header says of it.
// seen are the files of the chain from the top down to and including overlay.
func (p Policy) Resolve(overlay, name, format string, seen []diskio.ID) Link {
	return Link{Name: name, Format: format, State: LinkUnreadable}
}
