// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// writers may call functions that change files. Everything else has a read-only handle from
// diskio, or describes its change as data.
var writers = []string{
	"internal/diskio",
	"internal/lab",                                // breaks disks on purpose, in directories that it makes itself
	"internal/lab/demo",                           // the worlds of shisa demo, in directories of their own; mounts that one thread sees
	"internal/lab/zoo",                            // tests only
	"internal/lab/sweep",                          // tests and the bench: breaks images that it made
	"internal/lab/cutfs",                          // tests and the bench: a directory of its own, mounted for one thread
	"internal/lab/hold",                           // tests and the bench: keeps mounts busy in a mount namespace of its own
	"internal/lab/faultfs",                        // tests and the bench: disks of its own that fail, in a mount namespace of its own
	"internal/linux/loop",                         // loop devices; the file is opened by others
	"internal/linux/apart",                        // unmounts and covers in a mount namespace of one thread of its own
	"internal/lab/vhost",                          // tests: a directory of its own for a socket
	"internal/lab/vm",                             // tests and the bench: kernels in a cache, guests in directories of their own
	"internal/lab/vm/init", "internal/lab/stalls", // the first process of such a guest
	"internal/lab/nspawn",      // tests: files of guests below a directory of its own, cgroups of its own
	"internal/lab/nova",        // tests: packages in a cache, a database in a directory of the test
	"internal/mount",           // mounts, makes loop devices, and keeps records of them
	"internal/image/imagetest", // tests only
	"internal/testenv",         // tests only
	"internal/guest/filestest", // tests only
	"internal/guest/busy",      // tests and the bench: the files of a mounted disk that they made
	"internal/jail",            // shared memory and the filter of system calls: no file is opened
	"internal/holders/trace",   // mounts a tmpfs that one thread of its own sees, to try engines on
	"internal/linux/ask",       // O_TMPFILE, to see whether a mount can be written to
	"internal/linux/probe",     // ioctl on events of perf: no file is opened
	"internal/umount",          // umount(2), and cgroup.freeze of a unit
	"internal/fix",             // names in a mount of a layer in memory, in a guest or seen by it alone
	"internal/uml",             // the root that a guest's kernel sees, in a mount namespace of its own
	"bench",                    // not part of the program

	"internal/linux/journal/journaltest", // tests and the bench: journals that systemd writes
}

// runners may start other programs: what the program itself knows, it knows from reading.
var runners = []string{"bench", "internal/lab/zoo", "internal/lab/sweep", "internal/lab/hold",
	"internal/lab/faultfs",
	"internal/lab/demo", // somebody who looks at a mount, and this program again to watch
	"internal/lab/vm", "internal/lab/vhost", "internal/lab/vm/init", "internal/lab/stalls", "internal/lab/nspawn",
	"internal/lab/nova",
	"internal/lab/debian", // apt and dpkg
	"internal/testenv",
	"internal/image/imagetest",
	"internal/linux/journal/journaltest",
	"internal/apply/bases",   // mkfs, for a file system that was empty
	"internal/holders/trace", // the command that is to run when a umount fails
	"internal/mount",         // fusermount3, and the program that is to see a mount,
	"internal/guest/filestest",
	"internal/jail",      // starts this program again, with fewer rights
	"internal/linux/ask", // starts this program again, to be left behind where a mount hangs
	"internal/umount",    // starts this program again, to continue what was stopped
	"internal/uml",       // User Mode Linux, and this program again to confine it
}

// opening are flags that open a file for writing, in each of the packages that have them.
var opening = []string{"O_RDWR", "O_WRONLY", "O_CREAT", "O_CREATE", "O_TRUNC", "O_APPEND", "O_TMPFILE"}

// changing lists what changes a file, a name or a mount.
var changing = map[string][]string{
	"os": append([]string{"Chmod", "Chown", "Chtimes", "CopyFS", "Create", "CreateTemp", "Lchown",
		"Link", "Mkdir", "MkdirAll", "MkdirTemp", "OpenFile", "OpenRoot", "Remove", "RemoveAll", "Rename",
		"Symlink", "Truncate", "WriteFile"}, opening...),
	"syscall":               append(syscalls, opening...),
	"golang.org/x/sys/unix": append(syscalls, opening...),
}

var syscalls = []string{
	"Chmod", "Chown", "CopyFileRange", "Creat", "Fallocate", "Fchmod", "Fchmodat", "Fchown",
	"Fchownat", "Fremovexattr", "Fsetxattr", "Ftruncate", "Futimes", "Futimesat", "IoctlFileClone",
	"IoctlFileCloneRange", "IoctlFileDedupeRange", "IoctlSetInt", "IoctlSetPointerInt", "Lchown",
	"Link", "Linkat", "Lremovexattr", "Lsetxattr", "Mkdir", "Mkdirat", "Mknod", "Mknodat", "Mount",
	"MoveMount", "Open_tree", "PivotRoot", "Pwrite", "Pwritev", "Pwritev2", "RawSyscall",
	"RawSyscall6", "Removexattr", "Rename", "Renameat", "Renameat2", "Rmdir", "Sendfile",
	"Setxattr", "Splice", "Symlink", "Symlinkat", "Syscall", "Syscall6", "Truncate", "Unlink",
	"Unlinkat", "Unmount", "Utime", "Utimes", "UtimesNano", "UtimesNanoAt", "Write", "Writev",
}

func TestOnlyDiskioWrites(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || slices.Contains(writers, s.dir) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if pkg, name := s.called(sel); slices.Contains(changing[pkg], name) {
					t.Errorf("%s: %s.%s changes files; only %v may", s.at(sel), pkg, name, writers)
				}
			}
			return true
		})
	}
}

// repairers may name the side of diskio that changes existing files; everybody else describes a
// change as a plan. Which packages may import apply, layers_test.go says.
var repairers = []string{
	"internal/diskio", "internal/vault", "internal/apply", "internal/apply/bases",
	"internal/lab/cut", // a disk in memory, for tests
}

// repairing lists what that side is called: types and functions of diskio, and methods.
var (
	repairing = []string{"Host", "Disk", "Writable", "Opener", "Names", "KernelSettings", "Links", "HostLinks"}
	reopening = []string{"OpenForRepair", "OpenWithoutLocks"}
)

func TestOnlyPlansAreCarriedOut(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || slices.Contains(repairers, s.dir) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, name := s.called(sel)
			if pkg == module+"/internal/diskio" && slices.Contains(repairing, name) ||
				slices.Contains(reopening, sel.Sel.Name) {
				t.Errorf("%s: %s opens files for a change; only %v may", s.at(sel), sel.Sel.Name, repairers)
			}
			return true
		})
	}
}

func TestNothingIsStarted(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || slices.Contains(runners, s.dir) {
			continue
		}
		for _, i := range s.file.Imports {
			if i.Path.Value == `"os/exec"` || i.Path.Value == `"plugin"` || i.Path.Value == `"C"` {
				t.Errorf("%s imports %s; only %v may", s.at(i), i.Path.Value, runners)
			}
		}
	}
}

// TestOnlyTheLabIsUnconfined: a guest that may do to the host what we may is one that the laboratory made.
func TestOnlyTheLabIsUnconfined(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || s.dir == "internal/uml" || strings.HasPrefix(s.dir, "internal/lab/") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "RunUnconfined" {
				t.Errorf("%s: RunUnconfined is for the laboratory; use Run", s.at(sel))
			}
			return true
		})
	}
}
