// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import "github.com/shisa-vm/shisa/internal/linux"

// may gives what is known of whether somebody may write.
func may(write bool) *bool { return &write }

// writingOf tells whether who holds in such a way may write to the file system by that, nil where the
// way alone does not tell. Whoever only stands in a directory, or has a name, may not without opening a
// file first; a mount elsewhere is written to by those who hold that.
func writingOf(k Kind) *bool {
	switch k {
	case OPath, Cwd, Root, Exe, UnixSocket, Uprobe, BinfmtMisc, Fanotify, Bind, Namespace, ImageMount:
		return may(false)
	case Swap:
		return may(true)
	}
	return nil
}

// writingByText is writingOf for what /proc tells. A mapping that is read-only now may be made writable
// where its file was opened for that, which no text tells.
func writingByText(k Kind, u linux.Use) *bool {
	switch {
	case k == OpenFD && u.Info.Opened:
		return may(u.Info.Write)
	case k == Mapping && (u.Write || !u.Shared):
		return may(u.Write)
	}
	return writingOf(k)
}
