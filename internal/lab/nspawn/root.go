// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package nspawn

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/lab/vm"
)

// unitDir is where vendors' units are, on machines where / and /usr are merged.
const unitDir = "/usr/lib/systemd/system"

// Root is the part of this machine that guests have: systemd, its units, and some programs that units
// call. It is copied once and never changed then.
type Root struct {
	dir string
	// logind is what guests with D-Bus and logind have besides.
	logind string
}

// services are the units, besides targets and slices, that a guest has.
func services() []string {
	return []string{"systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket",
		"systemd-journal-flush.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
		"systemd-user-sessions.service", "systemd-tmpfiles-clean.timer", "systemd-tmpfiles-clean.service",
		"systemd-reboot.service", "systemd-poweroff.service", "systemd-halt.service", "systemd-kexec.service",
		"systemd-soft-reboot.service", "systemd-exit.service", "tmp.mount"}
}

func logindServices() []string {
	return []string{"systemd-logind.service", "systemd-logind-varlink.socket", "dbus.service", "dbus.socket"}
}

// programs are those that a guest has; those with a "?" before them need not be there.
func programs() []string {
	const lib = "/usr/lib/systemd/"
	return []string{lib + "systemd", lib + "systemd-journald", lib + "systemd-shutdown", "?" + lib + "systemd-executor",
		lib + "systemd-update-utmp", lib + "systemd-user-sessions", "?" + lib + "systemd-reply-password",
		lib + "system-generators/systemd-debug-generator", lib + "system-generators/systemd-run-generator",
		"systemctl", "journalctl", "systemd-tmpfiles", "systemd-cat", "systemd-run", "sh", "env", "true", "false", "sleep",
		"touch", "rm", "cat", "date", "ln", "mkdir", "mv", "test", "chmod", "grep", "sed", "id", "head", "mount", "umount"}
}

func logindPrograms() []string {
	return []string{"/usr/lib/systemd/systemd-logind", "dbus-daemon"}
}

// NewRoot copies a root to dir, which it makes.
func NewRoot(ctx context.Context, dir string) (*Root, error) {
	r := &Root{filepath.Join(dir, "root"), filepath.Join(dir, "logind")}
	if _, err := exec.LookPath("systemd-nspawn"); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	err := skeleton(r.dir)
	if err == nil {
		err = copyPrograms(ctx, r.dir, programs())
	}
	if err == nil {
		err = copyUnits(r.dir, append(services(), targets()...))
	}
	if err == nil {
		err = errors.Join(copyPrograms(ctx, r.logind, logindPrograms()), copyUnits(r.logind, logindServices()),
			copyBus(r.logind))
	}
	if err != nil {
		return nil, fmt.Errorf("copy systemd to a root: %w", err)
	}
	return r, nil
}

// copyBus copies what D-Bus needs to let logind and systemd answer.
func copyBus(root string) (err error) {
	const dir = "/usr/share/dbus-1/"
	err = copyFile(dir+"system.conf", root)
	for _, name := range []string{"system.d/org.freedesktop.login1.conf", "system.d/org.freedesktop.systemd1.conf",
		"system-services/org.freedesktop.login1.service", "system-services/org.freedesktop.systemd1.service"} {
		err = errors.Join(err, copyFile(dir+name, root))
	}
	return err
}

// skeleton makes the directories of a root, and what packages of a distribution make besides.
func skeleton(root string) error {
	err := os.MkdirAll(root, 0o755)
	for _, dir := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc/systemd/system", "var/log/journal",
		"var/lib/systemd/timers", "var/tmp", "run", "proc", "sys", "dev", "tmp", "root"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		err = errors.Join(err, os.Symlink("usr/"+dir, filepath.Join(root, dir)))
	}
	// As the package systemd-sysv has them.
	for _, name := range []string{"reboot", "poweroff", "halt", "shutdown", "telinit", "runlevel"} {
		err = errors.Join(err, os.Symlink("../bin/systemctl", filepath.Join(root, "usr/sbin", name)))
	}
	err = errors.Join(err, os.Symlink("../lib/systemd/systemd", filepath.Join(root, "usr/sbin/init")))
	for name, text := range map[string]string{
		"etc/passwd":         "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/:/bin/false\n",
		"etc/group":          "root:x:0:\ntty:x:5:\nutmp:x:43:\nmessagebus:x:100:\n",
		"etc/hostname":       "guest\n",
		"etc/machine-id":     machineID + "\n",
		"usr/lib/os-release": "ID=lab\nPRETTY_NAME=Laboratory\n",
		"var/log/wtmp":       "",
		// Small files, and each line is kept.
		"etc/systemd/journald.conf": "[Journal]\nSystemMaxFileSize=512K\nRateLimitBurst=0\nAudit=no\n",
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(root, name), []byte(text), 0o644))
	}
	return err
}

// machineID is that of guests which have none of their own.
const machineID = "5b15a0000000000000000000000000a1"

// targets lists this machine's targets and slices.
func targets() (names []string) {
	for _, pattern := range []string{"*.target", "*.slice"} {
		found, _ := filepath.Glob(filepath.Join(unitDir, pattern))
		for _, f := range found {
			names = append(names, filepath.Base(f))
		}
	}
	return names
}

// copyPrograms copies programs with all that they need to run.
func copyPrograms(ctx context.Context, root string, names []string) error {
	var want []string
	for _, name := range names {
		if may, ok := strings.CutPrefix(name, "?"); !ok {
			want = append(want, name)
		} else if _, err := os.Stat(may); err == nil {
			want = append(want, may)
		}
	}
	files, err := vm.Programs(want...)
	if err != nil {
		return err
	}
	for name, from := range files {
		if err := errors.Join(ctx.Err(), copyTo(from, filepath.Join(root, name))); err != nil {
			return err
		}
	}
	return nil
}

// copyUnits copies vendors' units, their drop-ins, and the links between those that are copied.
func copyUnits(root string, names []string) error {
	entries, err := os.ReadDir(unitDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		at := filepath.Join(unitDir, e.Name())
		base, kind, _ := cutLast(e.Name(), ".")
		switch {
		case e.IsDir() && (kind == "wants" || kind == "requires"):
			err = copyLinks(root, at, names)
		case e.IsDir() && kind == "d" && slices.Contains(names, base):
			err = copyDropIns(root, at)
		case e.Type() == fs.ModeSymlink:
			err = copyAlias(root, at, names)
		case e.Type().IsRegular() && slices.Contains(names, e.Name()):
			err = copyFile(at, root)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// cutLast divides s at the last sep.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// copyLinks copies the links to units that are copied.
func copyLinks(root, dir string, names []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if slices.Contains(names, e.Name()) {
			err = errors.Join(err, copyLink(root, filepath.Join(dir, e.Name())))
		}
	}
	return err
}

func copyDropIns(root, dir string) error {
	found, err := filepath.Glob(filepath.Join(dir, "*.conf"))
	for _, f := range found {
		err = errors.Join(err, copyFile(f, root))
	}
	return err
}

// copyAlias copies another name of a unit that is copied.
func copyAlias(root, at string, names []string) error {
	to, err := os.Readlink(at)
	if err == nil && slices.Contains(names, filepath.Base(to)) {
		err = copyLink(root, at)
	}
	return err
}

func copyLink(root, at string) error {
	to, err := os.Readlink(at)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(filepath.Join(root, at)), 0o755)
	}
	if err == nil {
		err = os.Symlink(to, filepath.Join(root, at))
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// copyFile copies a file of this machine to the same name below root.
func copyFile(name, root string) error { return copyTo(name, filepath.Join(root, name)) }

func copyTo(from, to string) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err == nil {
		err = os.WriteFile(to, b, st.Mode().Perm()|0o200)
	}
	return err
}
